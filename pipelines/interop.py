"""Models from and to the pipelines of diffusers, without a copy: both sides hold the very same parameters.

    pipe = TextToImagePipeline(from_diffusers(theirs))
    theirs = StableDiffusionImg2ImgPipeline.from_pipe(to_diffusers(pipe.model))

The two stay one model from then on: weights that are changed, moved or converted on one side are so on the other. What
is no weight (configurations, tokenizers) is copied.
"""

import inspect
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from configs import interchange
from configs.interchange_extras import controlnet_from_json, controlnet_to_json, tiny_from_json, tiny_to_json
from ldm.checkpoint.compose import composed
from ldm.checkpoint.family import family_of
from ldm.checkpoint.folder import CLASSES
from ldm.checkpoint.meta import Uninitialised, on_meta
from ldm.checkpoint.overrides import NAMES, scheduler_config
from ldm.checkpoint.published import LOW_RES_SCHEDULER
from ldm.checkpoint.save import pipeline_index, text_encoders
from ldm.checkpoint.weights import Canonical, differences
from ldm.model import LatentDiffusion
from ldm.vocabulary import read_vocabulary
from text_encoder import CLIPTextModel, Tokenizer
from text_encoder.clip import canonical_keys
from unet import ControlNet, UNet
from vae import AutoencoderKL, AutoencoderTiny

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
NOTES = ("_diffusers_version", "_name_or_path")  # of diffusers, in its configurations
SUPPORTED = "supported are pipelines of Stable Diffusion 1, 2 and XL with " + ", ".join(
    f"{part} ({' or '.join(names)})" for part, names in CLASSES.items()
)


@dataclass(frozen=True)
class Kind:
    """A network of ours that stands for a class of theirs; `canonical` turns names of either into common ones."""

    network: Callable[[Any], nn.Module]
    from_json: Callable[[interchange.Json], Any]
    to_json: Callable[[Any], dict[str, Any]]
    canonical: Canonical = dict


CLIP = Kind(CLIPTextModel, interchange.text_encoder_from_json, interchange.text_encoder_to_json, canonical_keys)
KINDS = {
    "UNet2DConditionModel": Kind(UNet, interchange.unet_from_json, interchange.unet_to_json),
    "AutoencoderKL": Kind(AutoencoderKL, interchange.autoencoder_from_json, interchange.autoencoder_to_json),
    "AutoencoderTiny": Kind(AutoencoderTiny, tiny_from_json, tiny_to_json),
    "CLIPTextModel": CLIP,
    "CLIPTextModelWithProjection": CLIP,
}


CONTROLNET = Kind(ControlNet, controlnet_from_json, controlnet_to_json)


def from_diffusers(pipe: Any) -> LatentDiffusion:
    """The model of a DiffusionPipeline, on its parameters. What no model has stays behind: a safety checker, the
    schedule of an upscaler's small pictures.

    Raises ValueError for a pipeline with other parts than Stable Diffusion 1, 2 or XL has, for networks with layers of
    peft or of an IP-Adapter in them, and for one that is offloaded layer by layer.
    """
    parts = _parts(pipe)
    unet = _ours("unet", parts["unet"])
    encoders = {part: tokenizer for part, tokenizer in TOKENIZERS.items() if part in parts}
    source = str(pipe.name_or_path or "")
    own = {name: value for name, value in pipe.config.items() if not isinstance(value, (list, tuple))}
    return LatentDiffusion(
        autoencoder=_ours("vae", parts["vae"]),
        text_encoder=composed(
            unet.config,
            [(_our_tokenizer(parts[tokenizer]), _ours(part, parts[part])) for part, tokenizer in encoders.items()],
        ),
        unet=unet,
        scheduler_config=scheduler_config(parts["scheduler"]) or {},
        family=family_of(unet.config, len(encoders)),
        model_index={name: value for name, value in own.items() if name not in NOTES}
        | {"_class_name": type(pipe).__name__},
        source=source,
        vocabulary=read_vocabulary(Path(source)) if source and Path(source).is_dir() else None,
    )


def controlnet_from_diffusers(theirs: Any) -> ControlNet:
    """A ControlNet on the parameters of a ControlNetModel. Raises ValueError for one with layers that ours has not."""
    network: ControlNet = _made("the ControlNet", CONTROLNET, dict(theirs.config), theirs)
    return network


def to_diffusers(model: LatentDiffusion) -> Any:
    """The DiffusionPipeline for a model, on its parameters: the one it came from, or that of its family and task.

    Others are made of its parts, `OtherPipeline.from_pipe(pipe)` or `OtherPipeline(**pipe.components, ...)`. Raises
    ValueError for anything but a model, such as the `model` of a pipeline here, and while LoRAs are loaded.
    """
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"to_diffusers takes a LatentDiffusion, such as pipe.model, not a {type(model).__name__}")
    model.loras.require_settled()
    encoders = text_encoders(model)
    index = pipeline_index(model, encoders)
    parts = {
        "low_res_scheduler": _class("diffusers", LOW_RES_SCHEDULER["_class_name"]).from_config(LOW_RES_SCHEDULER),
        "unet": _theirs("unet", index, model.unet),
        "vae": _theirs("vae", index, model.autoencoder),
        "scheduler": _class(*index["scheduler"]).from_config(dict(model.scheduler_config)),
    }
    for part, encoder in encoders.items():
        parts[part] = _theirs(part, index, encoder.model)
        parts[TOKENIZERS[part]] = _their_tokenizer(encoder.tokenizer)
    made = _class("diffusers", index["_class_name"])
    wanted = inspect.signature(made).parameters
    given = {name: parts.get(name) if isinstance(entry, list) else entry for name, entry in index.items()}
    pipe = made(**{name: value for name, value in given.items() if name in wanted})
    if model.source:
        pipe.register_to_config(_name_or_path=model.source)
    return pipe


def _parts(pipe: Any) -> dict[str, Any]:
    """What a pipeline has, of the parts that a model has. ValueError for others, and for what is missing."""
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping):
        raise ValueError(f"a {type(pipe).__name__} is no pipeline of diffusers; {SUPPORTED}")
    parts = {name: part for name, part in components.items() if part is not None and name != "low_res_scheduler"}
    known = {name for name, part in parts.items() if name in NAMES and (name not in CLASSES or _kind(name, part))}
    encoders = {"text_encoder", "text_encoder_2"} & known or {"text_encoder"}
    needed = {"unet", "vae", "scheduler", *encoders, *(TOKENIZERS[part] for part in encoders)}
    has = [f"{name} ({type(part).__name__})" for name, part in parts.items() if name not in known]
    lacks = [f"no {name}" for name in sorted(needed - parts.keys())]
    if has or lacks:
        raise ValueError(
            f"{type(pipe).__name__} has {', '.join(has + lacks)}; {SUPPORTED}; StableDiffusionPipeline.from_pipe(...) "
            "takes such a model out of a pipeline with a ControlNet or an adapter"
        )
    return parts


def _kind(part: str, network: Any) -> str:
    """The class that a part of theirs is of, by its name; "" for none that is supported."""
    return next((base.__name__ for base in type(network).__mro__ if base.__name__ in CLASSES[part]), "")


def _class(library: str, name: str) -> Any:
    return getattr(import_module(library), name)


def _ours(part: str, theirs: Any) -> Any:
    name = _kind(part, theirs)
    config = theirs.config
    json = {**config.to_dict(), "architectures": [name]} if hasattr(config, "to_dict") else dict(config)
    return _made(f"the pipeline's {part}", KINDS[name], json, theirs)


def _made(what: str, kind: Kind, json: dict[str, Any], theirs: Any) -> Any:
    network = on_meta(what, kind.network, kind.from_json(json))
    _share(what, network, theirs, kind.canonical)
    return network


def _theirs(part: str, index: Mapping[str, Any], ours: Any) -> Any:
    from accelerate import init_empty_weights

    made, kind = _class(*index[part]), KINDS[index[part][1]]
    json = kind.to_json(ours.config)
    with init_empty_weights(), Uninitialised():  # buffers, which no weights replace, are made
        network = made.from_config(json) if index[part][0] == "diffusers" else made(made.config_class(**json))
    _share(f"the model's {part}", network, ours, kind.canonical)
    return network


def _share(what: str, target: nn.Module, source: nn.Module, canonical: Canonical) -> None:
    """Puts the parameters of `source` in the place of those of `target`, strictly."""
    own = {new: name for name, tensor in target.state_dict().items() for new in canonical({name: tensor})}
    common = canonical(source.state_dict(keep_vars=True))
    state = {own.get(name, name): tensor for name, tensor in common.items()}
    if problems := differences(target, state, "there"):
        raise ValueError(
            f"{what} is not as its configuration says, {problems}: take out what was added to it; for a LoRA, "
            "fuse_lora() before unload_lora_weights() keeps its effect"
        )
    if any(tensor.is_meta for tensor in state.values()):
        raise ValueError(f"{what} is offloaded layer by layer: share it before enable_sequential_cpu_offload()")
    for name, parameter in target.named_parameters():
        parameter.requires_grad_(state[name].requires_grad)
    target.load_state_dict(state, assign=True)
    target.train(source.training)


def _our_tokenizer(theirs: Any) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return Tokenizer.from_folder(folder)


def _their_tokenizer(ours: Tokenizer) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        ours.save(folder)
        return _class("transformers", "CLIPTokenizer").from_pretrained(folder)
