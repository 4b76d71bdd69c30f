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
_BLOCK = 16  # channels of oneDNN's layouts


class Tracker(TorchDispatchMode):
    """While in use, counts the bytes of every tensor that torch makes, real or fake, until it is gone.

    now, at_peak: bytes by kind, at this moment and when their sum was largest. making: the kind of tensors that
    are made from here on; those of before the first use are counted by `add`.

    Memory that kernels take without a tensor is not seen, but for what a CPU's backward convolutions are known to take,
    nor what an allocator keeps in reserve.
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
        if func is torch.ops.aten.convolution_backward.default:
            self._pass(_laid_out_anew(*args[:3]))
        return result

    def _pass(self, size: int) -> None:
        """Counts bytes that a kernel takes and gives back."""
        if self._sum + size > self._most:
            self._most = self._sum + size
            self.at_peak = self.now | {"temporaries": self.now["temporaries"] + size}

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


def _laid_out_anew(gradient: Tensor, x: Tensor, weight: Tensor) -> int:
    """Bytes that a CPU's backward convolution takes beside what it returns, of tensors that lie channel by channel:
    oneDNN copies all three, their channels in blocks of 16 (seen in the profiler of torch 2.13)."""
    if x.device.type != "cpu" or not x.is_contiguous():
        return 0
    return sum(one.nbytes // one.shape[1] * (-(-one.shape[1] // _BLOCK) * _BLOCK) for one in (gradient, x, weight))
