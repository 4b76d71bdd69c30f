# mypy: allow-untyped-calls
"""How much memory tensors take at the moment when most is in use, told apart by what they are for."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Kind = Literal["parameters", "gradients", "optimizer", "activations", "temporaries"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Tracker(TorchDispatchMode):
    """While in use, counts the bytes of every tensor that torch makes, real or fake, until it is gone.

    now, at_peak: bytes by kind, at this moment and when their sum was largest. making: the kind of tensors that
    are made from here on; those of before the first use are counted by `add`.

    Memory that kernels take without a tensor, and what an allocator keeps in reserve, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.making: Kind = "activations"
        self.now: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.at_peak = dict(self.now)
        self._sum = self._most = 0
        self._known: dict[int, tuple[Kind, int, weakref.ref[Any]]] = {}  # by the address of the storage

    def add(self, tensors: Iterable[Tensor], kind: Kind, share: float = 1.0) -> None:
        """Counts tensors as of a kind, whatever they were counted as before; of their bytes only a share."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._known:
                self._forget(storage._cdata)
            self._count(storage, kind, round(share * storage.nbytes()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._count(storage, self.making, storage.nbytes())
        return result

    def _count(self, storage: torch.UntypedStorage, kind: Kind, size: int) -> None:
        place = storage._cdata
        self._known[place] = (kind, size, weakref.ref(storage, lambda _: self._forget(place)))
        self.now[kind] += size
        self._sum += size
        if self._sum > self._most:
            self._most, self.at_peak = self._sum, dict(self.now)

    def _forget(self, place: int) -> None:
        kind, size, _ = self._known.pop(place)
        self.now[kind] -= size
        self._sum -= size
