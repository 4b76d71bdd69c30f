"""How much of a batch goes through a network at once: as much as fits into the memory that is free."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.full_memory import is_full

Network = Callable[[Tensor, Tensor | float, Conditioning], Tensor]
SHARE = {"cuda": 0.8}  # of the free memory; of main memory half, since others want some too


@dataclass(frozen=True)
class Memory:
    """Of a device or of this process, in bytes: in use now, in use at most until now, and free."""

    used: int
    peak: int
    free: int


class Batching:
    """Runs a function of a part of a batch over a whole batch, part by part.

    What one row takes is measured once, in a pass of one row whose result is thrown away, so that rows are grouped
    alike at every call. Where memory runs out all the same, the rest goes on in parts half as large.
    """

    def __init__(self) -> None:
        self.most: int | None = None  # rows at once; None: not measured yet

    def __call__(self, run: Callable[[slice], Tensor], b: int, device: torch.device) -> Tensor:
        """run(rows) -> (rows, ...) for all b rows. Raises what `run` does where not even one row fits."""
        if b > 1 and self.most is None:
            self.most = _fitting(run, device)
        parts: list[Tensor] = []
        start = 0
        while start < b:
            count = min(self.most or 1, b - start)
            try:
                parts.append(run(slice(start, start + count)))
                start += count
                continue
            except (MemoryError, RuntimeError) as error:
                if count == 1 or not is_full(error):
                    raise
                self.most = count // 2
            torch.cuda.empty_cache()  # here, where nothing holds what the pass that failed had made
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Batched:
    """A network that is given a batch in parts that fit into memory.

    Of a condition with k times as many rows as latents, each latent's k rows stay together.
    """

    def __init__(self, network: Network, batching: Batching) -> None:
        self.network, self.batching = network, batching
        self._parts = WeakKeyDictionary[Conditioning, dict[tuple[int, int], Conditioning]]()

    def __call__(self, x: Tensor, t: Tensor | float, cond: Conditioning) -> Tensor:
        """x (b, c, h, w), t (b,) or one for all, a condition of k b rows -> (k b, c, h, w)."""
        b = len(x)
        if b == 1 or len(cond.context) % b:  # what does not fit the network refuses
            return self.network(x, t, cond)
        k = len(cond.context) // b

        def run(rows: slice) -> Tensor:
            part = cond if rows == slice(0, b) else self._part(cond, rows, b)
            y = self.network(x[rows], t[rows] if isinstance(t, Tensor) else t, part)
            return y.reshape(k, -1, *y.shape[1:]).transpose(0, 1)  # (rows, k, c, h, w)

        return self.batching(run, b, x.device).transpose(0, 1).flatten(0, 1)

    def _part(self, cond: Conditioning, rows: slice, b: int) -> Conditioning:
        """The same object for the same rows: what is known of a condition, is known of the object."""
        parts, key = self._parts.setdefault(cond, {}), (rows.start, rows.stop)
        if key not in parts:
            parts[key] = cond.rows([first + i for first in range(0, len(cond.context), b) for i in range(b)[rows]])
        return parts[key]


def _fitting(run: Callable[[slice], Tensor], device: torch.device) -> int:
    """How many rows fit, by what one takes."""
    forget_peak(device)
    before = memory(device)
    run(slice(0, 1))
    after = memory(device)
    if before is None or after is None:
        return sys.maxsize
    each = max(after.peak - before.used, 1)
    return max(1, int(SHARE.get(device.type, 0.5) * before.free / each))


def forget_peak(device: torch.device) -> None:
    """Counts the peak anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone; elsewhere a peak of the past makes parts smaller than they need be
            Path("/proc/self/clear_refs").write_text("5")


def memory(device: torch.device) -> Memory | None:
    """None where it cannot be told."""
    if device.type == "cuda":
        used, free = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[0]
        return Memory(used, torch.cuda.max_memory_allocated(device), free + torch.cuda.memory_reserved(device) - used)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    import psutil

    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Memory(psutil.Process().memory_info().rss, peak, psutil.virtual_memory().available)
