"""Floor 1: prompts to embeddings. Names load on first use, so that parsing a prompt needs no torch."""

from importlib import import_module
from typing import Any

_HOMES = {
    "CLIPTextEncoder": "encoder",
    "CLIPTextModel": "clip",
    "LAST": "encoder",
    "PENULTIMATE": "encoder",
    "PairedTextEncoder": "pair",
    "Policy": "encoder",
    "TextEmbedding": "embedding",
    "TextEncoder": "embedding",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'text_encoder' has no attribute {name!r}")
    return getattr(import_module(f"text_encoder.{_HOMES[name]}"), name)
