"""Clocks, memory and the machine's own speed, on a CPU or a CUDA device."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from common import resident
from torch import Tensor

STILL = 0.05  # how far the guard may move


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Wall clock, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


class Stamps:
    """Called at the end of each step; waits for no device, so that the processor may run ahead as it would."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def __call__(self) -> None:
        if self.device.type != "cuda":
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def per_step(self) -> float:
        """Seconds, from the end of the first step to that of the last. ValueError for fewer than two."""
        if len(self.marks) < 2:
            raise ValueError(f"{len(self.marks)} steps have no time from the first to the last: take two or more")
        first, last = self.marks[0], self.marks[-1]
        if self.device.type != "cuda":
            return (last - first) / (len(self.marks) - 1)
        last.synchronize()
        return first.elapsed_time(last) / 1e3 / (len(self.marks) - 1)


# the machine


def rate(kernel: Callable[[], Any], flops: float, device: torch.device, count: int) -> float:
    """FLOP/s, median over `count` runs after two that do not count."""
    times = [seconds(kernel, device) for _ in range(count + 2)][2:]
    return flops / median(times)


def gemm(n: int, dtype: torch.dtype, device: torch.device, count: int) -> float:
    """FLOP/s of a product of n x n matrices."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return rate(lambda: a @ b, 2 * n**3, device, count)


def convolution(c: int, side: int, dtype: torch.dtype, device: torch.device, count: int) -> float:
    """FLOP/s of a 3x3 convolution of two images (c, side, side)."""
    x = torch.randn(2, c, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(c, c, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return rate(lambda: F.conv2d(x, w, padding=1), 2 * 2 * side**2 * 9 * c**2, device, count)


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s that this machine reaches in large kernels of a precision: the better of a product and a convolution."""
    with torch.no_grad():
        if device.type == "cuda":
            return max(gemm(8192, dtype, device, 20), convolution(1280, 64, dtype, device, 20))
        return max(gemm(2048, dtype, device, 5), convolution(320, 64, dtype, device, 9))


def guard(device: torch.device) -> float:
    """FLOP/s of the guard kernel, a bfloat16 product: 8192 wide on a GPU, 1024 on a CPU."""
    return gemm(8192, torch.bfloat16, device, 20) if device.type == "cuda" else gemm(1024, torch.bfloat16, device, 40)


def movement(before: float, after: float) -> float:
    """How far the machine's speed moved, relative to the slower reading; infinite for what is no speed."""
    slow, fast = sorted((before, after))
    moved = fast / slow - 1 if slow > 0 else float("inf")
    return moved if moved >= 0 else float("inf")  # NaN too


@dataclass
class Watch:
    """Guard readings around the blocks of a run: a run is valid if no block saw the machine's speed move."""

    device: torch.device
    blocks: list[tuple[str, float, float]] = field(default_factory=list)

    def around(self, name: str, block: Callable[[], Any]) -> Any:
        before = guard(self.device)
        answer = block()
        self.blocks.append((name, before, guard(self.device)))
        return answer

    @property
    def moved(self) -> float:
        return max((movement(before, after) for _, before, after in self.blocks), default=0.0)

    @property
    def valid(self) -> bool:
        return self.moved <= STILL

    def __str__(self) -> str:
        speeds = [speed for _, *pair in self.blocks for speed in pair]
        if not speeds:
            return "nothing was timed"
        verdict = "" if self.valid else f": INVALID, it may move by {STILL:.0%}; something else was running"
        low, high = min(speeds) / 1e12, max(speeds) / 1e12
        return f"guard kernel {low:.3f} to {high:.3f} TFLOP/s, moved by {self.moved:.1%} within a block{verdict}"


# memory


def settle(device: torch.device) -> None:
    """Gives back what was freed, so that peaks start from what is held."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of this process


def held(device: torch.device) -> float:
    """Bytes now: of CUDA's allocator, or resident."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident("VmRSS") * 1024


def peaks(device: torch.device) -> tuple[float, float | None]:
    """Most bytes since `settle`: allocated and reserved on CUDA; resident on a CPU (Linux), which reserves nothing."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return resident("VmHWM") * 1024, None


def relative(value: Tensor, reference: Tensor) -> float:
    """Relative L2 error, in float32; NaN or infinite where a value is."""
    value, reference = value.detach().float().cpu(), reference.detach().float().cpu()
    return ((value - reference).norm() / reference.norm()).item()
