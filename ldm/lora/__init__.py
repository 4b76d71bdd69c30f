"""Low-rank changes of a model's weights, and their relatives: read, merged, taken back, written. Lazy names."""

from importlib import import_module
from typing import Any

_HOMES = {
    "IN_FOLDERS": "layout",
    "Lora": "formats",
    "Loras": "state",
    "Names": "names",
    "read_lora": "formats",
    "save_lora": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ldm.lora' has no attribute {name!r}")
    return getattr(import_module(f"ldm.lora.{_HOMES[name]}"), name)
