"""Parts that a caller passes instead of having them read: checked by name and kind."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from configs.architecture import AutoencoderConfig, TextEncoderConfig, TinyConfig, UNetConfig
from text_encoder import CLIPTextEncoder, PairedTextEncoder, Tokenizer

NETWORK_CONFIGS: dict[str, tuple[Any, str]] = {
    "unet": (UNetConfig, "a unet.UNet"),
    "vae": ((AutoencoderConfig, TinyConfig), "a vae.AutoencoderKL or AutoencoderTiny"),
    "text_encoder": (
        TextEncoderConfig,
        "a text_encoder.CLIPTextModel or a whole CLIPTextEncoder or PairedTextEncoder",
    ),
    "text_encoder_2": (TextEncoderConfig, "a text_encoder.CLIPTextModel"),
}
TOKENIZERS = ("tokenizer", "tokenizer_2")
IGNORED = ("safety_checker", "feature_extractor", "image_encoder")  # no part of the model here
NAMES = (*NETWORK_CONFIGS, *TOKENIZERS, "scheduler", *IGNORED)


def checked(components: Mapping[str, Any]) -> dict[str, Any]:
    """The given parts that matter, a scheduler as its configuration. Raises ValueError naming what is expected."""
    for name, value in components.items():
        if expected := _problem(name, value):
            raise ValueError(expected)
    given = {name: value for name, value in components.items() if name not in IGNORED}
    if "scheduler" in given:
        given["scheduler"] = scheduler_config(given["scheduler"])
    return given


def _problem(name: str, value: Any) -> str:
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        return f"unknown component {name!r}{hint}; known: {', '.join(NAMES)}"
    if name in IGNORED:
        return "" if value is None else f"{name} is not supported; pass {name}=None or leave it out"
    if name == "scheduler":
        fits, expected = scheduler_config(value) is not None, "a scheduler_config.json or diffusers scheduler"
    elif name in TOKENIZERS:
        fits, expected = isinstance(value, Tokenizer), "a text_encoder.Tokenizer"
    else:
        config, expected = NETWORK_CONFIGS[name]
        fits = isinstance(value, nn.Module) and isinstance(getattr(value, "config", None), config)
        fits = fits or (name == "text_encoder" and isinstance(value, (CLIPTextEncoder, PairedTextEncoder)))
    return "" if fits else f"{name} is {type(value).__module__}.{type(value).__name__}, expected {expected}"


def scheduler_config(value: Any) -> dict[str, Any] | None:
    """The configuration of a scheduler given as dict or as an object with `.config`; None for anything else."""
    config = getattr(value, "config", value)
    if not isinstance(config, Mapping):
        return None
    name = config.get("_class_name") if value is config else type(value).__name__
    own = {key: entry for key, entry in config.items() if not key.startswith("_")}  # the others are notes of diffusers
    return {**own, "_class_name": name} if name else None
