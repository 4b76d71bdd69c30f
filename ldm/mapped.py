"""Weights in mapped files: a process may let go of their pages whenever it likes, for the system reads them again."""

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.quantize import parts_of

_SMAPS = Path("/proc/self/smaps")
_DONTNEED = 4  # madvise(2): of a file's pages, only this process's view is dropped


def let_go(tensors: Iterable[Tensor]) -> None:
    """Drops the pages of those tensors on the CPU that view a mapped file which nobody has written to.

    Their values stay what they are: the next access maps them again, out of the system's cache of the file. Does
    nothing where memory cannot be told so (elsewhere than on Linux).
    """
    parts = [part for tensor in tensors for part in parts_of(tensor)]
    spans = [_pages(part) for part in parts if part.device.type == "cpu" and part.numel()]
    if not spans or not _SMAPS.exists():
        return
    mapped = sorted(_clean_files())
    libc = ctypes.CDLL(None)
    for start, end in spans:
        if start < end and any(low <= start and end <= high for low, high in mapped):
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def to_channels_last(network: nn.Module) -> None:
    """Lays out kernels as images in channels last are convolved fastest, part by part, without holding both layouts of
    more than one part."""
    for part in network.children():
        for block in part if isinstance(part, nn.ModuleList) else (part,):
            before = [value.detach() for value in block.parameters()]
            block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            pairs = zip(before, block.parameters(), strict=True)
            let_go([old for old, new in pairs if old.data_ptr() != new.data_ptr()])


def _pages(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the whole pages in a tensor's memory."""
    storage, size = tensor.untyped_storage(), mmap.PAGESIZE
    start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    return -(-start // size) * size, end // size * size


def _clean_files() -> Iterator[tuple[int, int]]:
    """Addresses of mapped files, [start, end), no page of which differs from the file's."""
    span, is_file = (0, 0), False
    for line in _SMAPS.read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            low, high = (int(side, 16) for side in first.split("-"))
            span, is_file = (low, high), len(rest) > 4 and rest[3] != "0"  # permissions, offset, device, inode, path
        elif first == "Anonymous:" and is_file and rest[0] == "0":
            yield span
