"""Tensors on disk by what they were made from: a latent, the states of a text. An entry is sound or not used."""

import contextlib
import json
import os
import threading
import warnings
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


class Cache:
    """A folder of entries. Threads and processes may share it.

    The key of an entry tells everything it depends on (`key_of` of digests and settings), so none can be out of date.
    """

    def __init__(self, folder: Path) -> None:
        """The folder is made when the first entry is written."""
        self.folder = folder

    def get(self, key: str) -> dict[str, Tensor] | None:
        """An entry's tensors, on the CPU; None for one that is not there.

        One that is damaged, of another key, or holds NaN is told of in a warning and removed, and None.
        """
        place = self._place(key)
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _sound(data, key)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"the cache's entry {place} is not used, and made anew: {error}", stacklevel=2)
            place.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes an entry, whole or not at all.

        Raises ValueError for tensors with NaN or infinities, OSError with what to do where it cannot be written.
        """
        whole = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        _require_finite(whole)
        place = self._place(key)
        draft = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(save(whole, {"key": key, "digest": _digest(whole)}))
            draft.replace(place)
        except OSError as error:
            with contextlib.suppress(OSError):  # where there is no folder for it either
                draft.unlink(missing_ok=True)
            raise OSError(
                error.errno, f"{error.strerror}: make room for the cache in {self.folder}, or set data.cache = false"
            ) from error

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(*parts: object) -> str:
    """32 hex digits that tell the parts: numbers, texts, and tuples and frozen dataclasses of them, by their `repr`."""
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _sound(data: bytes, key: str) -> dict[str, Tensor]:
    """The tensors of an entry. ValueError or another error if it is not what was written under the key."""
    tensors = load(data)
    told = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if told["key"] != key:
        raise ValueError(f"it is of another key, {told['key']}")
    if told["digest"] != _digest(tensors):
        raise ValueError("it is not what was written")
    _require_finite(tensors)
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    hashed = blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"{name} holds NaN or infinities: float16 overflowed, it seems: make it in float32 or bfloat16"
            )
