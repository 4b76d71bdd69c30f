"""What a single file holds: its family, its networks with their configurations, and what it lacks.

Names and shapes alone decide, with the file's own notes where they cannot. Needs no torch and reads no tensor.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from configs.architecture import AutoencoderConfig, TextEncoderConfig, UNetConfig
from ldm.checkpoint import infer
from ldm.checkpoint.errors import CheckpointError, NoModel
from ldm.checkpoint.family import family_of
from ldm.checkpoint.files import listed
from ldm.checkpoint.infer import Shapes
from ldm.checkpoint.kinds import foreign_noise, kind_of
from ldm.checkpoint.names_compvis import Name, clip_names, openclip_names, unet_names, vae_names
from ldm.checkpoint.prediction import Prediction, prediction_of
from ldm.checkpoint.published import (
    SCALES,
    SIZES,
    TITLE,
    UPSCALE_PIXELS,
    UPSCALE_SCALE,
    UPSCALE_SIZE,
    V_SIZE,
    distilled_of,
    task_of,
    title,
)

Config = TypeVar("Config", UNetConfig, AutoencoderConfig, TextEncoderConfig)

REFINER_CONTEXT = 1280
UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
EMA_PREFIX = "model_ema.diffusion_model"
UNET_ROOTS = ("time_embed", "input_blocks", "middle_block", "output_blocks", "out", "label_emb")
VAE_PREFIXES = ("first_stage_model.", "vae.", "")
VAE_ROOTS = ("encoder", "decoder", "quant_conv", "post_quant_conv")
ENCODERS = {  # parts by the slots of the original's conditioner
    "sd1": {"text_encoder": "cond_stage_model."},
    "sd2": {"text_encoder": "cond_stage_model."},
    "sdxl": {"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."},
    "sdxl_refiner": {"text_encoder_2": "conditioner.embedders.0."},
}
# What training programs leave in such files, of no use here: schedules, optimizers, buffers that are always the same.
IGNORED = re.compile(
    r"model_ema\..*|first_stage_model\.(loss|model_ema)\..*|(betas|log_one_minus_alphas_cumprod|logvar|lvlb_weights)|"
    r"(alphas_cumprod|sqrt_|posterior_).*|denoiser\..*|(loss|optimizer|optimizer_states|low_scale_model|embedder|"
    r"noise_augmentor|depth_model|callbacks|lr_schedulers|loops)\..*|(.*\.)?(logit_scale|position_ids|attn_mask)|"
    r"(v_pred|ztsnr|scale_factor)|.*\.text_projection(\.weight)?|cond_stage_model\.model\.visual\..*"
)


@dataclass(frozen=True)
class Part:
    """One network in a file. `names` is its table, whose original names here are those of the file, prefix included."""

    config: UNetConfig | AutoencoderConfig | TextEncoderConfig
    prefix: str
    names: tuple[Name, ...]


@dataclass(frozen=True)
class Recognised:
    """A model in a single file.

    family: as in LatentDiffusion. task: "", "inpaint", "instruct", "depth", "upscale" or "unclip".
    parts: by diffusers' names: "unet", "vae", "text_encoder", "text_encoder_2". missing: those that it lacks.
    prediction: what its U-Net predicts, or that it cannot be told from names, shapes and metadata.
    distilled: "turbo" or "lightning" where its title says so, else "".
    ema: whether the U-Net's weights are the averaged ones.
    absent: names that its networks need and the file lacks. unknown: names within its networks that they do not have.
    foreign: names outside its networks that nothing here reads.
    """

    family: str
    task: str
    parts: Mapping[str, Part]
    missing: tuple[str, ...]
    prediction: Prediction
    distilled: str
    ema: bool
    absent: tuple[str, ...]
    unknown: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def unet(self) -> UNetConfig:
        config = self.parts["unet"].config
        assert isinstance(config, UNetConfig)
        return config

    @property
    def title(self) -> str:
        """ "Stable Diffusion 2 (inpainting)" """
        return title(self.family, self.task)


def recognise(
    shapes: Shapes, metadata: Mapping[str, str], *, prediction_type: str | None = None, ema: bool | None = None
) -> Recognised:
    """What the tensors with these names and shapes are.

    prediction_type: what the U-Net predicts, where the caller knows. ema: whether to take the averaged weights; None
    takes them only where there are no others.

    Raises CheckpointError, saying what it looks like, for what is no whole model: NoModel where that is by its kind.
    """
    where = _unet(shapes, metadata, ema)
    if foreign_noise(shapes):
        raise NoModel("it was trained with EDM noise (Playground 2.5, CosXL), which is not supported")
    inner = {name: shapes[key] for name, key in where.keys.items()}
    unet = _inferred(f"U-Net ({where.prefix}*)", partial(infer.unet_config, inner))
    family = _family(unet, shapes)
    task = task_of(unet)
    prediction = prediction_of(shapes, metadata, family, task, prediction_type)
    parts = {
        part: found for part, slot in ENCODERS[family].items() if (found := _text_part(shapes, part, slot, family))
    }
    if vae := _vae_part(shapes, family, task):
        parts["vae"] = vae
    unet = completed(unet, family, task, prediction, metadata)
    unet = with_pooled(unet, family, _pooled_width(parts))
    table = tuple(replace(name, original=where.key(name.original)) for name in unet_names(unet))
    parts["unet"] = Part(unet, where.prefix, table)
    missing = tuple(part for part in ("vae", *ENCODERS[family]) if part not in parts)
    distilled = distilled_of(family, metadata.get(TITLE, ""))
    absent, unknown, foreign = _accounted(shapes, parts, where)
    return Recognised(family, task, parts, missing, prediction, distilled, where.averaged, absent, unknown, foreign)


@dataclass(frozen=True)
class _Where:
    """Where a U-Net is: the file's keys by original names without prefix."""

    keys: Mapping[str, str]
    prefix: str
    averaged: bool = False

    def key(self, name: str) -> str:
        """The file's key for an original name, whether it is there or not."""
        return self.prefix + (name.replace(".", "") if self.averaged else name)


def _unet(shapes: Shapes, metadata: Mapping[str, str], ema: bool | None) -> _Where:
    """The U-Net's place, the plain one unless `ema` or there is only the averaged one."""
    flat = {infer.dotted(key.removeprefix(EMA_PREFIX)): key for key in shapes if key.startswith(EMA_PREFIX)}
    averaged = _Where(flat, EMA_PREFIX, averaged=True)
    plain = [_Where(below(shapes, prefix, UNET_ROOTS), prefix) for prefix in UNET_PREFIXES]
    candidates = [averaged] if ema else plain if ema is False else [*plain, averaged]
    for where in candidates:
        if {"input_blocks", "output_blocks"} <= {name.split(".")[0] for name in where.keys}:
            return where
    if ema:
        raise CheckpointError("it holds no averaged (EMA) weights")
    if ema is False and flat:
        raise CheckpointError("it holds averaged (EMA) weights alone")
    raise NoModel(_refusal(shapes, metadata))


def below(names: Iterable[str], prefix: str, roots: tuple[str, ...]) -> dict[str, str]:
    """The file's keys by what follows a prefix; without one, only those that begin with one of `roots`."""
    keys = {key.removeprefix(prefix): key for key in names if key.startswith(prefix)}
    return keys if prefix else {name: key for name, key in keys.items() if name.split(".")[0] in roots}


def _refusal(shapes: Shapes, metadata: Mapping[str, str]) -> str:
    if not shapes:
        return "it holds no tensors"
    kind, remedy = kind_of(shapes, metadata)
    first = listed(sorted(shapes), 3)
    return f"it is {kind or f'no model that is known here (its names begin {first})'}: {remedy}"


def _inferred(what: str, infer_config: Callable[[], Config]) -> Config:
    """A configuration whose complaints say which network they are about."""
    try:
        return infer_config()
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}; the file is incomplete, fetch it again") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{what}: its shapes make no network ({error}); fetch it again") from None


def _family(unet: UNetConfig, shapes: Shapes) -> str:
    """As `family_of`. SDXL's refiner has one text encoder, in the first slot; without any, its width tells."""
    if unet.vector != "text_time":
        return family_of(unet, 1)
    slots = [slot for slot in ENCODERS["sdxl"].values() if any(key.startswith(slot) for key in shapes)]
    openclip_first = any(key.startswith("conditioner.embedders.0.model.") for key in shapes)
    refiner = openclip_first if slots else unet.context_dim == REFINER_CONTEXT
    return "sdxl_refiner" if refiner else "sdxl"


# the parts


def _text_part(shapes: Shapes, part: str, slot: str, family: str) -> Part | None:
    """The text encoder in a slot, in transformers' spelling, with or without `text_model.`, or in OpenCLIP's."""
    inner = {key.removeprefix(slot): shape for key, shape in shapes.items() if key.startswith(slot)}
    second = part == "text_encoder_2"
    for name in inner:
        if match := re.match(r"((?:transformer\.)?)(?:text_model\.)?encoder\.layers\.\d", name):
            return _clip_part(shapes, slot + match[1], gelu=second or family == "sd2", projected=second)
        if match := re.match(r"((?:model\.)?)transformer\.resblocks\.\d", name):
            return _openclip_part(shapes, slot + match[1], projected=second)
    return None


def _clip_part(shapes: Shapes, prefix: str, *, gelu: bool, projected: bool) -> Part:
    keys: dict[str, str] = {}
    for key in shapes:
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
            keys.setdefault(f"text_model.{name}" if bare else name, key)
    inner = {name: shapes[key] for name, key in keys.items()}
    config = _inferred(f"text encoder ({prefix}*)", partial(infer.clip_config, inner, gelu=gelu, projected=projected))
    names = (replace(name, original=keys.get(name.own, prefix + name.own)) for name in clip_names(config))
    return Part(config, prefix, tuple(names))


def _openclip_part(shapes: Shapes, prefix: str, *, projected: bool) -> Part:
    inner = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    config = _inferred(f"text encoder ({prefix}*)", partial(infer.openclip_config, inner, projected=projected))
    return Part(
        config, prefix, tuple(replace(name, original=prefix + name.original) for name in openclip_names(config))
    )


def _vae_part(shapes: Shapes, family: str, task: str) -> Part | None:
    for prefix in VAE_PREFIXES:
        inner = {name: shapes[key] for name, key in below(shapes, prefix, VAE_ROOTS).items()}
        if any(name.startswith("decoder.") for name in inner):
            config = _inferred(f"autoencoder ({prefix}*)", partial(infer.autoencoder_config, inner))
            upscale = task == "upscale"
            scale = UPSCALE_SCALE if upscale else SCALES.get(family, config.scaling_factor)
            pixels = UPSCALE_PIXELS if upscale else SIZES[family] * 8
            config = replace(config, scaling_factor=scale, sample_size=pixels)
            names = tuple(replace(name, original=prefix + name.original) for name in vae_names(config))
            return Part(config, prefix, names)
    return None


# what is not in the shapes


def completed(
    unet: UNetConfig, family: str, task: str, prediction: Prediction, metadata: Mapping[str, str]
) -> UNetConfig:
    """A U-Net with the size of its latents and, for Stable Diffusion 2 in its large form, its attention's precision."""
    large = family == "sd2" and prediction.kind == "v_prediction" and task != "upscale"
    size: int | tuple[int, int] = UPSCALE_SIZE if task == "upscale" else V_SIZE if large else SIZES[family]
    if match := re.fullmatch(r"(\d{2,4})x(\d{2,4})", metadata.get("modelspec.resolution", "")):
        width, height = int(match[1]) // 8, int(match[2]) // 8
        size = width if width == height else (height, width)
    return replace(unet, sample_size=size, upcast_attention=large)


def with_pooled(unet: UNetConfig, family: str, pooled: int | None) -> UNetConfig:
    """SDXL's U-Net for a pooled text of this width: the rest of its vector belongs to the size ids in equal parts."""
    ids = 5 if family == "sdxl_refiner" else 6
    if unet.vector != "text_time" or pooled is None or unet.vector_dim <= pooled:
        return unet
    return replace(unet, size_dim=(unet.vector_dim - pooled) // ids)


def _pooled_width(parts: Mapping[str, Part]) -> int | None:
    config = parts["text_encoder_2"].config if "text_encoder_2" in parts else None
    return config.projection_dim if isinstance(config, TextEncoderConfig) else None


def _accounted(
    shapes: Shapes, parts: Mapping[str, Part], where: _Where
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(absent, unknown, foreign): needed and not there, in the U-Net and not known, elsewhere and not known."""
    read = {name.original: None for part in parts.values() for name in part.names}
    absent = tuple(key for key in read if key not in shapes)
    within = set(where.keys.values())
    rest = [key for key in shapes if key not in read and not _is_ignored(key, parts)]
    unknown = tuple(key for key in rest if key in within)
    return absent, unknown, tuple(key for key in rest if key not in within)


def _is_ignored(key: str, parts: Mapping[str, Part]) -> bool:
    """Whether a tensor is known to be of no use: see IGNORED, and the last layer of Stable Diffusion 2's OpenCLIP."""
    part = parts.get("text_encoder")
    if part is not None and isinstance(part.config, TextEncoderConfig):
        last = f"{part.prefix}transformer.resblocks.{part.config.layers}."
        return key.startswith(last) or IGNORED.fullmatch(key) is not None
    return IGNORED.fullmatch(key) is not None
