"""Networks beside a model, each from a diffusers folder or a single file: tiny VAEs, ControlNets, adapters."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from configs.architecture import AdapterConfig
from configs.interchange_extras import adapter_from_json, controlnet_from_json, tiny_from_json
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import listed
from ldm.checkpoint.hash import remember_files
from ldm.checkpoint.infer_extras import adapter_config, image_prompt_config, tiny_config
from ldm.checkpoint.kinds import NO_CONTROLNET
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.names_compvis import renaming
from ldm.checkpoint.names_controlnet import controlnet_config, controlnet_names, original_spelling, pooled_by_name
from ldm.checkpoint.opened import Opened, opened, without
from ldm.checkpoint.source import Entry, open_source
from ldm.checkpoint.weights import Canonical
from unet.adapter import Adapter
from unet.controlnet import ControlNet
from unet.image_prompt import ImagePrompt, cross_attentions
from unet.unet import UNet
from vae import AutoencoderTiny

logger = logging.getLogger(__name__)

FACE_LORA = re.compile(r"ip_adapter\.(\d+)\.(to_(?:q|k|v|out)_lora\.(?:down|up)\.weight)")


# ControlNet


def load_controlnet(path: str | Path, *, dtype: torch.dtype | None = None, as_stored: bool = False) -> ControlNet:
    """A ControlNet for Stable Diffusion 1, 2 or XL: a diffusers folder, or a file in either layout.

    as_stored: leaves every tensor in the dtype it has in the file, to be written elsewhere rather than run.

    Raises FileNotFoundError, and CheckpointError for other files, with their name where it is known.
    """
    found = opened(path, "controlnet", "ControlNetModel")
    for kind, pattern in NO_CONTROLNET.items():
        if any(re.fullmatch(pattern, name) for name in found.entries):
            raise CheckpointError(f"{found.path} is {kind}, which is not supported; take a full ControlNet")
    marked = any(name.startswith("control_model.") for name in found.entries)
    prefix = "control_model." if marked else ""
    found = replace(found, entries={name: entry for name, entry in found.entries.items() if name.startswith(prefix)})
    shapes = {name.removeprefix(prefix): shape for name, shape in found.shapes.items()}
    own = any(name.startswith("controlnet_cond_embedding.") for name in shapes)
    if not own and "input_hint_block.0.weight" not in shapes:
        raise CheckpointError(f"{found.path} is no ControlNet: its names begin {listed(sorted(shapes), 3)}")
    config = found.config(controlnet_from_json, lambda: controlnet_config(original_spelling(shapes) if own else shapes))
    config = config if found.json is not None else pooled_by_name(config, found.path)
    canonical = without(prefix, dict) if own else renaming(controlnet_names(config), prefix)
    network = found.filled(ControlNet, config, canonical, dtype, as_stored=as_stored)
    remember_files(network, sorted({entry.file for entry in found.entries.values()}))
    return network


# T2I-Adapter


def load_adapter(path: str | Path, *, dtype: torch.dtype | None = None, as_stored: bool = False) -> Adapter:
    """A T2I-Adapter: a diffusers folder, or a file in either layout. as_stored: as for `load_vae`.

    Raises FileNotFoundError, and CheckpointError for other files.
    """
    found = opened(path, "adapter", "T2IAdapter")
    shapes = {_adapter_name(name, found.entries): shape for name, shape in found.shapes.items()}
    config: AdapterConfig = found.config(adapter_from_json, lambda: adapter_config(shapes))
    names = {name: _adapter_name(name, found.entries) for name in found.entries}

    def canonical(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {names[key]: tensor for key, tensor in tensors.items()}

    return found.filled(Adapter, config, canonical, dtype, as_stored=as_stored)


def _adapter_name(name: str, names: Mapping[str, Entry]) -> str:
    """Our name for an original one: there all ResNets are in one list, two for each level, except in light ones."""
    if name.startswith("adapter."):
        return name
    light = any(re.match(r"body\.\d+\.body\.", each) for each in names)
    match name.split("."):
        case ["body", level, "body", j, *rest] if light:
            return ".".join(["adapter.body", level, "resnets", j, *rest])
        case ["body", i, "in_conv", leaf] if not light and i.isdigit():
            return f"adapter.body.{int(i) // 2}.in_conv.{leaf}"
        case ["body", i, *rest] if not light and i.isdigit():
            return ".".join([f"adapter.body.{int(i) // 2}.resnets.{int(i) % 2}", *rest])
    return f"adapter.{name}"


# tiny autoencoders


def load_tiny(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    as_stored: bool = False,
    allow_unknown_globals: bool = False,
) -> AutoencoderTiny:
    """A tiny autoencoder: a diffusers folder or file, or `taesd_encoder` and `taesd_decoder` as first published.

    Of such a pair, name either; where the other is not beside it, that half is missing. Those for Stable Diffusion 1
    and for SDXL look alike: take the one for the model. Options as for `load_vae`. Raises FileNotFoundError, and
    CheckpointError for other files.
    """
    trust = {"allow_unknown_globals": allow_unknown_globals}
    found = opened(path, "vae", "AutoencoderTiny", **trust)
    if any(name.startswith(("encoder.layers.", "decoder.layers.")) for name in found.entries):
        config = found.config(tiny_from_json, lambda: tiny_config(found.shapes))
        return found.filled(AutoencoderTiny, config, dict, dtype, as_stored=as_stored)
    halves = {_half(found): found}
    other = found.path.with_name(_exchanged(found.path.name))
    if other != found.path and other.is_file():
        second = opened(other, "vae", "AutoencoderTiny", **trust)
        halves.setdefault(_half(second), second)
    shapes = {
        f"{half}.{_layer(name, half)}": shape for half, each in halves.items() for name, shape in each.shapes.items()
    }
    config = found.config(tiny_from_json, lambda: tiny_config(shapes))
    tiny = on_meta(found.path, AutoencoderTiny, config)
    for half, each in halves.items():
        canonical = _relayered(half)
        each.fill(getattr(tiny, half), canonical, dtype, as_stored=as_stored)
    return tiny.eval()


def _half(found: Opened) -> str:
    """Which half is in a file as first published: the decoder's first layer, which clamps, has no weights."""
    if not all(re.match(r"\d{1,3}\.", name) for name in found.entries) or not found.entries:
        raise CheckpointError(
            f"{found.path} is no tiny autoencoder: its names begin {listed(sorted(found.entries), 3)}"
        )
    return "encoder" if "0.weight" in found.entries else "decoder"


def _exchanged(name: str) -> str:
    """The name of the other half's file."""
    if "encoder" in name:
        return name.replace("encoder", "decoder")
    return name.replace("decoder", "encoder")


def _layer(name: str, half: str) -> str:
    number, _, rest = name.partition(".")
    return f"layers.{int(number) - (half == 'decoder')}.{rest}"


def _relayered(half: str) -> Canonical:
    return lambda tensors: {_layer(name, half): tensor for name, tensor in tensors.items()}


# IP-Adapter


def load_ip_adapter(path: str | Path, *, dtype: torch.dtype | None = None) -> ImagePrompt:
    """An IP-Adapter for Stable Diffusion 1 or XL: plain, plus, full face, FaceID or FaceID plus, from its single file.

    FaceID comes with a LoRA for the U-Net, see `ip_adapter_lora`. Raises FileNotFoundError, and CheckpointError for
    other files.
    """
    found = opened(path, "ip_adapter", "IPAdapter")
    if not any(name.startswith("image_proj.") for name in found.entries):
        raise CheckpointError(f"{found.path} is no IP-Adapter: its names begin {listed(sorted(found.entries), 3)}")
    config = found.config(lambda _: image_prompt_config(found.shapes), lambda: image_prompt_config(found.shapes))
    if any(FACE_LORA.fullmatch(name) for name in found.entries):
        logger.warning("%s comes with a LoRA that is a part of it: load that too (ip_adapter_lora)", found.path)
    return found.filled(ImagePrompt, config, _without_lora, dtype)


def _without_lora(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not FACE_LORA.fullmatch(name)}


def ip_adapter_lora(path: str | Path, unet: UNet) -> dict[str, Tensor]:
    """The LoRA in a FaceID file, under the names that diffusers first gave to LoRAs; {} where there is none.

    The file counts all attentions, self and cross, in the order down, up, middle.
    """
    source = open_source(path)
    paths = {id(module): name for name, module in unet.named_modules()}
    blocks = [paths[id(block)] for block in cross_attentions(unet)]
    attentions = [f"unet.{block}.{part}.processor" for block in blocks for part in ("attn1", "attn2")]
    named: dict[str, Tensor] = {}
    for name in source.entries:
        if match := FACE_LORA.fullmatch(name):
            if int(match[1]) >= len(attentions):
                raise CheckpointError(f"{path} has a LoRA for {name}, but this U-Net has {len(attentions)} attentions")
            named[f"{attentions[int(match[1])]}.{match[2]}"] = source.tensor(name)
    return named
