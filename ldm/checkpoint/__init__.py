"""Models from and to files. Names load on first use: finding a folder needs no torch."""

from importlib import import_module
from typing import Any

_HOMES = {
    "embedded": "hub",
    "is_embedded": "hub",
    "load_folder": "folder",
    "load_model": "load",
    "load_single_file": "single_file",
    "resolve": "hub",
    "save_folder": "save",
    "save_single_file": "export",
    "weights_hash": "hash",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ldm.checkpoint' has no attribute {name!r}")
    return getattr(import_module(f"ldm.checkpoint.{_HOMES[name]}"), name)
