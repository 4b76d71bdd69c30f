"""Networks beside a model -> single safetensors files in the layout of their makers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from configs.presets import VAE_SDXL
from ldm.checkpoint import infer
from ldm.checkpoint.export import differing, modelspec, network_tensors
from ldm.checkpoint.family import family_of
from ldm.checkpoint.names_compvis import vae_names
from ldm.checkpoint.names_controlnet import CONTROL, controlnet_config, controlnet_names, pooled_by_name
from ldm.checkpoint.separate_vae import noted_vae, scaled_as
from ldm.checkpoint.writing import placed, write_tensors
from unet.controlnet import ControlNet
from vae import AutoencoderKL


def write_vae(
    vae: AutoencoderKL,
    target: Path,
    notes: Mapping[str, str],
    *,
    dtype: torch.dtype | None,
    overwrite: bool,
    scaled: bool = True,
) -> Path:
    """Writes a VAE under bare names (`encoder.conv_in.weight`), as such files are published.

    scaled: whether it is known how its latents are scaled. Then its metadata say so, by the family it is for.

    Raises FileExistsError, and ValueError for a VAE that would be read as another.
    """
    tensors = dict(network_tensors(vae, vae_names(vae.config)))
    family = "sdxl" if vae.config.scaling_factor == VAE_SDXL.scaling_factor else "sd1"
    mended = family == "sdxl" and not vae.config.force_upcast
    name = f"{target.stem} (fp16-fix)" if mended else target.stem  # by which it is told again
    metadata = modelspec(family, "/vae", name, notes) if scaled else dict(notes)
    read = scaled_as(infer.autoencoder_config(_shapes(tensors)), noted_vae(metadata))
    _require_same(differing(vae.config, read), "VAE")
    return _write(tensors, target, metadata, dtype, overwrite)


def write_controlnet(
    controlnet: ControlNet, target: Path, notes: Mapping[str, str], *, dtype: torch.dtype | None, overwrite: bool
) -> Path:
    """Writes a ControlNet under `control_model.`. Raises as `write_vae`."""
    tensors = dict(network_tensors(controlnet, controlnet_names(controlnet.config)))
    config, read = controlnet.config, pooled_by_name(controlnet_config(_shapes(tensors)), target)
    unet = replace(config.unet, up_depths=read.unet.up_depths, out_channels=read.unet.out_channels)  # of no account
    _require_same(differing(unet, read.unet), "ControlNet")
    _require_same(differing(replace(config, unet=read.unet, hollow=config.hollow or read.hollow), read), "ControlNet")
    metadata = modelspec(family_of(config.unet, 2), "/controlnet", target.stem, notes)
    return _write({CONTROL + name: tensor for name, tensor in tensors.items()}, target, metadata, dtype, overwrite)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_same(wrong: str, what: str) -> None:
    if wrong:
        raise ValueError(f"this {what} cannot be a single file that others read: it has {wrong}. Write it as a folder")


def _write(
    tensors: Mapping[str, Tensor], target: Path, metadata: dict[str, str], dtype: torch.dtype | None, overwrite: bool
) -> Path:
    with placed(target, overwrite=overwrite) as new:
        write_tensors(tensors, new, dtype, metadata)
    return target
