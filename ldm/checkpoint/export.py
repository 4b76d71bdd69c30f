"""Models and networks -> single safetensors files in the layout of their makers, which A1111 and ComfyUI read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.architecture import TextEncoderConfig
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.names_compvis import Name, clip_names, openclip_names, to_original, unet_names, vae_names
from ldm.checkpoint.published import DISTILLED, DISTILLED_FROM, distilled_of, scheduler_config, task_of
from ldm.checkpoint.recognise import ENCODERS, UNET_PREFIXES, VAE_PREFIXES, Recognised, recognise
from ldm.checkpoint.save import text_encoders
from ldm.checkpoint.writing import HASH_KEY, placed, require_safetensors, write_tensors
from ldm.diffusion.schedulers import diffusion_from_scheduler_config
from ldm.model import LatentDiffusion
from ldm.quantize import require_unquantized
from text_encoder import CLIPTextEncoder
from text_encoder.tokenizer import clip_vocabulary
from vae import AutoencoderKL

MARKS = ("v_pred", "ztsnr")  # empty tensors by which files say what their U-Net predicts and how its noise ends
ARCHITECTURES = {
    "sd1": ("stable-diffusion-v1", "https://github.com/CompVis/stable-diffusion"),
    "sd2": ("stable-diffusion-v2", "https://github.com/Stability-AI/stablediffusion"),
    "sdxl": ("stable-diffusion-xl-v1", "sgm"),
    "sdxl_refiner": ("stable-diffusion-xl-v1-refiner", "sgm"),
}
TASKS = {"inpaint": "-inpainting", "instruct": "-instruct-pix2pix", "depth": "-depth", "upscale": "-x4-upscaler"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # here, in the metadata's spelling
# Settings that every reader chooses for itself; they do not change what a network computes from the tokens of CLIP.
FREE = {"sample_size", "upcast_attention", "force_upcast", "bos_token_id", "eos_token_id", "pad_token_id"}


def save_single_file(
    model: LatentDiffusion, path: str | Path, *, dtype: torch.dtype | None = None, overwrite: bool = False
) -> Path:
    """Writes a Stable Diffusion 1, 2 or XL model as one `.safetensors` file; returns its path.

    Keys are those that CompVis and Stability AI published, so that A1111, ComfyUI and diffusers' `from_single_file`
    read it. Its metadata (sai_model_spec 1.0.0) say the architecture, what the U-Net predicts, the resolution and the
    SHA-256 of all tensors; SDXL that predicts v is also marked as ComfyUI knows it (`v_pred`, `ztsnr`).

    Not in such a file: the sampler (readers take their own), the tokenizer (they have CLIP's), what no program
    computes with (`position_ids`, `logit_scale`), and of Stable Diffusion 2 the last layer and the projection of the
    text encoder, which nothing reads and a folder does not have: A1111 and ComfyUI go on without them, and diffusers
    has no place for them.

    dtype: converts the weights, the VAE's too, whatever precision it has to run in; None keeps every tensor's own; a
    weight too large for it is a ValueError. overwrite: replaces a file that is there.

    The file appears complete or not at all. Raises FileExistsError, and ValueError, before anything is written, while
    LoRAs are loaded and for models that readers of such files would take for something else: with a tokenizer other
    than CLIP's (as the embedded model), a tiny autoencoder, another noise schedule, or sizes that names and shapes do
    not tell.
    """
    return write_single_file(model, require_safetensors(path), dtype=dtype, overwrite=overwrite)


def write_single_file(
    model: LatentDiffusion,
    target: Path,
    *,
    dtype: torch.dtype | None,
    overwrite: bool,
    beside: Mapping[str, Tensor] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """As `save_single_file`, with other tensors beside the model's, and notes whose title and author are kept."""
    model.loras.require_settled()
    require_unquantized(model.unet, "saved")
    encoders = text_encoders(model)
    _require_clip(encoders)
    if not isinstance(model.autoencoder, AutoencoderKL):
        raise _refusal("its tiny autoencoder has no place there: load the model with its full VAE")
    metadata = _metadata(model, target.stem, notes or {})
    marks = {mark: torch.zeros(0) for mark in _marks(model)}
    tensors = {**(beside or {}), **marks, **dict(_model_tensors(model, encoders))}
    _require_readable(model, encoders, tensors, metadata)
    with placed(target, overwrite=overwrite) as new:
        write_tensors(tensors, new, dtype, metadata)
    return target


def network_tensors(module: nn.Module, names: Iterable[Name], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """A network's tensors under their original names with this prefix."""
    state = getattr(module, "_orig_mod", module).state_dict()  # inside torch.compile
    return ((prefix + name, tensor) for name, tensor in to_original(names, state))


def _model_tensors(model: LatentDiffusion, encoders: Mapping[str, CLIPTextEncoder]) -> Iterator[tuple[str, Tensor]]:
    yield from network_tensors(model.unet, unet_names(model.unet.config), UNET_PREFIXES[0])
    assert isinstance(model.autoencoder, AutoencoderKL)
    yield from network_tensors(model.autoencoder, vae_names(model.autoencoder.config), VAE_PREFIXES[0])
    for part, encoder in encoders.items():
        config, slot = _written(part, encoder), ENCODERS[model.family][part]
        if part == "text_encoder_2" or model.family == "sd2":
            yield from network_tensors(encoder.model, openclip_names(config), f"{slot}model.")
        else:
            yield from network_tensors(encoder.model, clip_names(config), f"{slot}transformer.")


def _written(part: str, encoder: CLIPTextEncoder) -> TextEncoderConfig:
    """Of the projections, only that of SDXL's second encoder is read."""
    config = encoder.model.config
    return config if part == "text_encoder_2" else replace(config, projection_dim=None)


# what is said about them


def _metadata(model: LatentDiffusion, title: str, notes: Mapping[str, str]) -> dict[str, str]:
    """https://github.com/Stability-AI/ModelSpec. Without a date: the same model gives the same file."""
    unet, process = model.unet.config, diffusion_from_scheduler_config(model.scheduler_config)
    if process.prediction not in PREDICTIONS:
        raise _refusal(f"its U-Net predicts {process.prediction!r}, and readers know {' and '.join(PREDICTIONS)}")
    height, width = (unet.sample_size,) * 2 if isinstance(unet.sample_size, int) else unet.sample_size
    task, distilled = task_of(unet), _distilled(model)
    own = {"sd2": "-768-v" if process.prediction == "v_prediction" else "-512", "sdxl": "-base"}
    kind = TASKS.get(task) or own.get(model.family, "")
    if distilled and distilled_of(model.family, title) != distilled.split()[0]:
        title = f"{title} ({distilled})"
    return {
        **modelspec(model.family, kind, title, notes),
        "modelspec.prediction_type": PREDICTIONS[process.prediction],
        "modelspec.resolution": f"{8 * width}x{8 * height}",
    }


def modelspec(family: str, kind: str, title: str, notes: Mapping[str, str]) -> dict[str, str]:
    """What the metadata of every file must say: `kind` is what follows the family in the name of its architecture.

    notes: of the file it was made from, whose title, author and so on are kept.
    """
    name, implementation = ARCHITECTURES[family]
    return {
        "modelspec.title": title,
        **{key: text for key, text in notes.items() if not key.startswith("modelspec.hash_")},
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": name + kind,
        "modelspec.implementation": implementation,
        HASH_KEY: "",
    }


def _marks(model: LatentDiffusion) -> list[str]:
    process = diffusion_from_scheduler_config(model.scheduler_config)
    velocity = process.prediction == "v_prediction" and model.family == "sdxl"
    return [mark for mark, is_so in zip(MARKS, (velocity, process.zero_terminal_snr), strict=True) if is_so]


def _distilled(model: LatentDiffusion) -> str:
    """What in a title tells a distilled model, "" for others; many models have the same schedule."""
    config, steps = model.scheduler_config, model.defaults.get("num_inference_steps")
    words = [word for word, name in DISTILLED.items() if name == config["_class_name"]]
    if not steps or not words or config.get("timestep_spacing") != "trailing" or config.get("rescale_betas_zero_snr"):
        return ""
    return f"{words[0]} {steps}step" if model.family in DISTILLED_FROM[words[0]] else ""


# what cannot be told in such files


def _refusal(reason: str) -> ValueError:
    return ValueError(f"this model cannot be a single file that others read: {reason}. Write it as a folder")


def _require_clip(encoders: Mapping[str, CLIPTextEncoder]) -> None:
    """Raises ValueError for words that readers do not know: such files carry no tokenizer."""
    known, _ = clip_vocabulary()
    for encoder in encoders.values():
        if encoder.inversions is not None:
            raise _refusal("it was taught words, which have no place there: unload_textual_inversion() first")
        if encoder.tokenizer.vocabulary != known:
            raise _refusal("such a file carries no tokenizer, and this model's is not CLIP's")


def _require_readable(
    model: LatentDiffusion,
    encoders: Mapping[str, CLIPTextEncoder],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Reads names and shapes as they will be read, and raises ValueError where that gives another model."""
    try:
        found = recognise({name: tuple(tensor.shape) for name, tensor in tensors.items()}, metadata)
    except CheckpointError as error:
        raise _refusal(str(error)) from None
    ours = {
        "unet": model.unet.config,
        "vae": model.autoencoder.config,
        **{part: _written(part, encoder) for part, encoder in encoders.items()},
        "scheduler": diffusion_from_scheduler_config(model.scheduler_config),
    }
    theirs = {part: found.parts[part].config for part in found.parts} | {"scheduler": _process(found)}
    if found.family != model.family or theirs.keys() != ours.keys():
        raise _refusal(f"by its names and shapes it would be taken for {found.title}")
    for part, config in ours.items():
        if wrong := differing(config, theirs[part]):
            raise _refusal(f"its {part} has {wrong}")


def _process(found: Recognised) -> Any:
    kind, zero_snr = found.prediction.kind or "epsilon", found.prediction.zero_snr
    return diffusion_from_scheduler_config(scheduler_config(found.family, found.task, kind, zero_snr=zero_snr))


def differing(ours: Any, theirs: Any) -> str:
    """The first setting of two configurations that matters and is not the same, in words; "" if there is none."""
    for field in fields(ours):
        mine, read = getattr(ours, field.name), getattr(theirs, field.name)
        if mine != read and field.name not in FREE:
            return f"{field.name} {mine}, where readers of such files take {read}"
    return ""
