"""A VAE by itself: a diffusers folder, a file, or the one in a whole model's file."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from configs.architecture import AutoencoderConfig
from configs.interchange import autoencoder_from_json
from configs.presets import VAE_KL_F8, VAE_SDXL, VAE_UPSCALE
from ldm.checkpoint import infer
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import listed
from ldm.checkpoint.infer import Shapes
from ldm.checkpoint.names_compvis import renaming, vae_names
from ldm.checkpoint.opened import Opened, opened, without
from ldm.checkpoint.recognise import VAE_PREFIXES, VAE_ROOTS, Recognised, below, recognise
from ldm.checkpoint.source import Entry
from ldm.checkpoint.weights import main_dtype
from vae import AutoencoderKL
from vae.autoencoder import canonical_keys

NOT_IN_SHAPES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast", "sample_size")
MENDED = re.compile(r"fp16[-_ ]?fix")


def load_vae(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    like: AutoencoderConfig | None = None,
    as_stored: bool = False,
    allow_unknown_globals: bool = False,
) -> AutoencoderKL:
    """A separate VAE: a diffusers folder, or a file in either layout (also a whole model's, whose VAE is taken).

    dtype: by default as stored, but not float16 where that overflows; a file whose path or notes say fp16-fix does not.
    like: the configuration of the VAE it replaces. A single file does not say how its latents are scaled; that is taken
        from there, by default as in Stable Diffusion 1. A whole model's file tells by its family.
    as_stored: leaves every tensor in the dtype it has in the file, to be written elsewhere rather than run.
    allow_unknown_globals: as for `open_source`.

    Raises FileNotFoundError, and CheckpointError for other files.
    """
    found = whole = opened(path, "vae", "AutoencoderKL", allow_unknown_globals=allow_unknown_globals)
    prefix = next((each for each in VAE_PREFIXES if _tensors(found.entries, each)), None)
    if prefix is None:
        raise CheckpointError(f"{found.path} holds no VAE: its names begin {listed(sorted(found.entries), 3)}")
    entries = _tensors(found.entries, prefix)
    found = replace(found, entries={f"{prefix}{name}": entry for name, entry in entries.items()})
    shapes = {name: entry.shape for name, entry in entries.items()}
    config = found.config(autoencoder_from_json, lambda: infer.autoencoder_config(_original(shapes)))
    if found.json is None:
        told = _family_vae(whole) if prefix == VAE_PREFIXES[0] else None
        config = scaled_as(config, told or like or noted_vae(found.metadata))
        config = replace(config, force_upcast=config.force_upcast and not _is_mended(found))
    original = any(name.startswith(("encoder.mid.", "decoder.mid.")) for name in entries)
    canonical = renaming(vae_names(config), prefix) if original else without(prefix, canonical_keys)
    precision = _precision(config, dtype or main_dtype(found.entries))
    return found.filled(AutoencoderKL, config, canonical, precision, as_stored=as_stored)


def vae_of(found: Recognised) -> AutoencoderConfig:
    """The configuration of a recognised model's VAE or, where it has none, that of its family."""
    own = found.parts["vae"].config if "vae" in found.parts else None
    if isinstance(own, AutoencoderConfig):
        return own
    if found.task == "upscale":
        return VAE_UPSCALE
    return VAE_SDXL if found.family.startswith("sdxl") else VAE_KL_F8


def _family_vae(whole: Opened) -> AutoencoderConfig | None:
    """Of a whole model's file, None of others."""
    try:
        return vae_of(recognise(whole.shapes, whole.metadata))
    except CheckpointError:
        return None


def _is_mended(found: Opened) -> bool:
    """Whether a VAE says that it does not overflow in float16. On the hub the folder says so, not the file's name."""
    return any(MENDED.search(text.lower()) for text in (str(found.path), *found.metadata.values()))


def noted_vae(metadata: Mapping[str, str]) -> AutoencoderConfig:
    """The published VAE that a file by itself is like, as its metadata say; without any, Stable Diffusion 1's."""
    return VAE_SDXL if "-xl-" in metadata.get("modelspec.architecture", "") else VAE_KL_F8


def scaled_as(config: AutoencoderConfig, like: AutoencoderConfig) -> AutoencoderConfig:
    """A configuration read from shapes, with what these do not tell."""
    return replace(config, **{name: getattr(like, name) for name in NOT_IN_SHAPES})


def _precision(config: AutoencoderConfig, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if config.force_upcast and dtype == torch.float16 else dtype


def _tensors(entries: Mapping[str, Entry], prefix: str) -> dict[str, Entry]:
    """Those of a VAE under a prefix, without it."""
    inner = below(entries, prefix, VAE_ROOTS).items()
    own = {name: entries[key] for name, key in inner if name.split(".")[0] in VAE_ROOTS}
    return own if "decoder.conv_in.weight" in own else {}


def _original(shapes: Shapes) -> Shapes:
    """As much in the original spelling as the configuration is read from."""
    renamed = {
        re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name): shape
        for name, shape in shapes.items()
    }
    return {
        name.replace("encoder.mid_block.attentions.0.", "encoder.mid.attn_1."): shape for name, shape in renamed.items()
    }
