"""Floor 1: prompts to embeddings. Names load on first use, so that parsing a prompt needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from text_encoder.clip import CLIPTextModel as CLIPTextModel
    from text_encoder.embedding import TextEmbedding as TextEmbedding
    from text_encoder.embedding import TextEncoder as TextEncoder
    from text_encoder.encoder import LAST as LAST
    from text_encoder.encoder import PENULTIMATE as PENULTIMATE
    from text_encoder.encoder import CLIPTextEncoder as CLIPTextEncoder
    from text_encoder.encoder import Policy as Policy
    from text_encoder.pair import PairedTextEncoder as PairedTextEncoder
    from text_encoder.tokenizer import Tokenizer as Tokenizer

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
