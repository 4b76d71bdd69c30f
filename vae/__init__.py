"""Floor 1: images to latents and back. Names load on first use, so that importing the package needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.autoencoder import AutoencoderKL as AutoencoderKL
    from vae.autoencoder import DiagonalGaussian as DiagonalGaussian
    from vae.autoencoder import canonical_keys as canonical_keys
    from vae.tiny import Autoencoder as Autoencoder
    from vae.tiny import AutoencoderTiny as AutoencoderTiny

_HOMES = {
    "Autoencoder": "tiny",
    "AutoencoderKL": "autoencoder",
    "AutoencoderTiny": "tiny",
    "DiagonalGaussian": "autoencoder",
    "canonical_keys": "autoencoder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vae' has no attribute {name!r}")
    return getattr(import_module(f"vae.{_HOMES[name]}"), name)
