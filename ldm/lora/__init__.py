"""Low-rank changes of a model's weights, and their relatives: read, merged, taken out, trained, written. Lazy names."""

from importlib import import_module
from typing import Any

_HOMES = {
    "IN_FOLDERS": "layout",
    "Lora": "formats",
    "LoraLayer": "layers",
    "Loras": "state",
    "Names": "names",
    "attach": "layers",
    "detach": "layers",
    "layers_of": "layers",
    "lora_of": "layers",
    "read_lora": "formats",
    "save_lora": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ldm.lora' has no attribute {name!r}")
    return getattr(import_module(f"ldm.lora.{_HOMES[name]}"), name)
