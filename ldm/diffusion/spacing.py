"""Which training steps a run visits, and which noise levels: the spacings and ramps people know by name.

Each reproduces what diffusers computes, float rounding included, since a step that lands elsewhere is another image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

KARRAS_RHO = 7.0
BETA_SHAPE = 0.6  # both shape parameters of the beta grid (Lee et al. 2024, 2407.12173)

# Align Your Steps (Sabour et al. 2024, 2404.14507): the published ten steps
AYS_TIMES = {
    "ays": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),  # Stable Diffusion 1.5
    "ays_sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
}


def spaced_times(spacing: str, steps: int, train_steps: int, *, offset: int = 0, spare: int = 0) -> list[float]:
    """`steps` falling training steps, possibly fractional on "linspace" (Lin et al. 2023, 2305.08891, table 2).

    `spare` = 1 spaces one point more and drops the lowest (the DPM-Solver family; "trailing" has none to drop).
    `offset` is added on "leading" only.
    """
    count = steps + spare
    if spacing == "linspace":
        return _linspace(0, train_steps - 1, count)[::-1][:steps]
    if spacing == "leading":
        stride = train_steps // count
        if stride == 0 or stride * (count - 1) + offset > train_steps - 1:
            raise ValueError(
                f"{steps} steps do not fit on {train_steps} training steps with 'leading' spacing: take fewer"
            )
        return [float(i * stride + offset) for i in range(count)][::-1][:steps]
    if spacing == "trailing":
        width = train_steps - (train_steps - train_steps / steps)  # numpy's own rounding: it decides ties
        return [round(train_steps - i * width) - 1.0 for i in range(steps)]
    raise ValueError(f"unknown timestep_spacing {spacing!r}: use 'leading', 'linspace' or 'trailing'")


def distilled_times(steps: int, train_steps: int, original_steps: int) -> list[float]:
    """`steps` of the `original_steps` training steps a consistency model was distilled on (LCM, 2310.04378)."""
    if not 1 <= steps <= original_steps:
        raise ValueError(
            f"this model was distilled on {original_steps} steps: num_inference_steps must not exceed them"
        )
    stride = train_steps // original_steps
    original = [stride * i - 1.0 for i in range(original_steps, 0, -1)]
    return [original[math.floor(i * (original_steps / steps))] for i in range(steps)]


def ramp(kind: str, high: float, low: float, steps: int) -> list[float]:
    """`steps` noise levels from `high` down to `low`: "karras" (2206.00364, equation 5), "exponential", "beta".

    "lu" is "exponential" as diffusers' `use_lu_lambdas` computes it, from float32 logs.
    """
    if kind == "karras":
        start, end = high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO)
        return [(start + f * (end - start)) ** KARRAS_RHO for f in _linspace(0, 1, steps)]
    if kind in ("exponential", "lu"):
        ends = torch.tensor([high, low], dtype=torch.float32 if kind == "lu" else torch.float64).log()
        return [math.exp(level) for level in _linspace(ends[0].item(), ends[1].item(), steps)]
    assert kind == "beta", kind
    probabilities = [1 - f for f in _linspace(0, 1, steps)]
    quantiles = beta_quantile(torch.tensor(probabilities, dtype=torch.float64), BETA_SHAPE)
    return [low + q * (high - low) for q in quantiles.tolist()]


def log_interpolate(levels: Sequence[float], count: int) -> list[float]:
    """`count` levels on the curve through `levels`, linear in ln sigma over the index (as Align Your Steps asks)."""
    logs = [math.log(level) for level in levels]
    result = []
    for i in range(count):
        place = i * (len(levels) - 1) / max(count - 1, 1)
        low = min(int(place), len(levels) - 2)
        result.append(math.exp(logs[low] + (place - low) * (logs[low + 1] - logs[low])))
    return result


def _linspace(start: float, end: float, count: int) -> list[float]:
    stride = (end - start) / max(count - 1, 1)
    points = [start + i * stride for i in range(count)]
    return [*points[:-1], float(end)] if count > 1 else points


def beta_quantile(probability: Tensor, shape: float) -> Tensor:
    """Inverse distribution function of Beta(shape, shape), elementwise, float64.

    Newton's method in u = x^shape, in which the distribution function is nearly a straight line at 0; the upper half
    follows by symmetry.
    """
    tail = torch.minimum(probability, 1 - probability)
    whole = 2 * _lower_beta(torch.tensor(0.5, dtype=torch.float64), shape)
    u = (tail * whole * shape).clamp(max=0.5**shape)
    for _ in range(8):
        x = u ** (1 / shape)
        slope = (1 - x) ** (shape - 1) / shape  # d/du of the integral of t^(shape-1) (1-t)^(shape-1)
        u = (u - (_lower_beta(x, shape) - tail * whole) / slope).clamp(0, 0.5**shape)
    x = u ** (1 / shape)
    return torch.where(probability <= 0.5, x, 1 - x)


def _lower_beta(x: Tensor, shape: float) -> Tensor:
    """The integral of t^(shape-1) (1-t)^(shape-1) from 0 to x <= 1/2, by its power series."""
    total, factor = torch.zeros_like(x), 1.0
    for n in range(56):  # the terms fall by half
        total = total + factor * x**n / (shape + n)
        factor *= (n + 1 - shape) / (n + 1)
    return total * x**shape
