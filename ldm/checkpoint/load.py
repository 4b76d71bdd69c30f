"""One door in: whatever path a person has, and whatever paths of parts to use in its place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from configs.architecture import AutoencoderConfig
from configs.interchange import autoencoder_from_json
from ldm.checkpoint.extras import load_tiny
from ldm.checkpoint.files import read_config, read_json
from ldm.checkpoint.folder import load_folder
from ldm.checkpoint.hub import resolve, resolve_part
from ldm.checkpoint.kinds import TINY, kind_of
from ldm.checkpoint.prediction import checked
from ldm.checkpoint.separate_vae import load_vae, vae_of
from ldm.checkpoint.single_file import load_single_file, recognised
from ldm.checkpoint.source import open_source
from ldm.model import LatentDiffusion
from vae import Autoencoder

VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    components: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    ema: bool | None = None,
    as_stored: bool = False,
    allow_unknown_globals: bool = False,
) -> LatentDiffusion:
    """Loads a folder in diffusers format (`load_folder`) or a single file (`load_single_file`), on the CPU.

    components: as there; `vae` may also be the path or hub id of a VAE, tiny autoencoder or model, and `text_encoder`
        that of a model, which lends its own.
    prediction_type: "epsilon" or "v_prediction", whatever the model itself says.
    ema: as for `load_single_file`; folders hold no averaged weights. as_stored: as for both.
    allow_unknown_globals: as for `open_source`, for single files that are pickles, also of parts.

    Raises as these two do.
    """
    path = Path(path).expanduser()
    given = dict(components or {})
    trust: dict[str, Any] = {"allow_unknown_globals": allow_unknown_globals}
    if isinstance(place := given.get("vae"), (str, Path)):
        like = _own_vae(path, allow_unknown_globals)
        given["vae"] = load_autoencoder(place, dtype=dtype, like=like, as_stored=as_stored, **trust)
    if isinstance(place := given.get("text_encoder"), (str, Path)):
        # what it predicts does not matter, and need not be found
        lender = load_model(resolve(place), prediction_type="epsilon", as_stored=as_stored, **trust)
        encoder = lender.text_encoder
        given["text_encoder"] = encoder if as_stored else encoder.to(dtype or lender.dtype)
    if path.exists() and not path.is_dir():
        if variant is not None:
            raise ValueError(f"{path} is a single file and has no variants; leave variant out")
        return load_single_file(
            path,
            dtype=dtype,
            components=given,
            prediction_type=prediction_type,
            ema=ema,
            as_stored=as_stored,
            **trust,
        )
    kind = None if prediction_type is None else checked(prediction_type)
    if ema:
        raise ValueError(f"{path} is a folder, which holds no averaged (EMA) weights; single files may")
    model = load_folder(path, dtype=dtype, variant=variant, components=given, as_stored=as_stored)
    if kind is not None:
        model.scheduler_config = {**model.scheduler_config, "prediction_type": kind}
    return model


def load_autoencoder(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    like: AutoencoderConfig | None = None,
    as_stored: bool = False,
    allow_unknown_globals: bool = False,
) -> Autoencoder:
    """A VAE (`load_vae`) or tiny autoencoder (`load_tiny`), from a file, folder or hub id. Raises as these two do."""
    path, trust = resolve_part(path, VAE_FILES), {"allow_unknown_globals": allow_unknown_globals}
    if _is_tiny(path, allow_unknown_globals):
        return load_tiny(path, dtype=dtype, as_stored=as_stored, **trust)
    return load_vae(path, dtype=dtype, like=like, as_stored=as_stored, **trust)


def _is_tiny(path: Path, allow_unknown_globals: bool) -> bool:
    if not path.is_dir():
        return kind_of(open_source(path, allow_unknown_globals=allow_unknown_globals).entries)[0] == TINY
    part = path / "vae" if (path / "model_index.json").exists() else path
    return read_json(part / "config.json").get("_class_name") == "AutoencoderTiny"


def _own_vae(path: Path, allow_unknown_globals: bool) -> AutoencoderConfig | None:
    """The configuration of a model's own VAE, or, where a file has none, of its family's; None where unknown."""
    if path.is_dir():
        json = read_config(config) if (config := path / "vae" / "config.json").exists() else {}
        return autoencoder_from_json(json) if json.get("_class_name") == "AutoencoderKL" else None
    return vae_of(recognised(open_source(path, allow_unknown_globals=allow_unknown_globals)))
