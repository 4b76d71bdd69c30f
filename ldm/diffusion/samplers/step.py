"""What every sampler is made of: the step it yields, the Euler step it is built on, and where noise comes from.

A sampler is a generator function `(denoise, x, sigmas, noise, **options) -> Iterator[Step]`. Its state is
x = x0 + sigma * eps of any shape and floating dtype; `sigmas` are its steps + 1 falling noise levels, host floats, the
last one 0 or the smallest level of the training schedule; `noise()` draws N(0, I) of x's shape. All coefficients are
host floats, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) -> the estimate D of x0
Noise = Callable[[], Tensor]
Sampler = Callable[..., Iterator["Step"]]


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One step done.

    index: of the step, from 0.
    sigma: the noise level that x is now at.
    x: the new state. It is the sampler's own tensor: whoever changes it in place steers the rest of the way.
    denoised: the last estimate of x0 made during the step.
    """

    index: int
    sigma: float
    x: Tensor
    denoised: Tensor


def euler_step(x: Tensor, D: Tensor, sigma: float, to: float) -> Tensor:
    """x along the straight line to D, from level `sigma` to level `to`.

    The textbook form x + (to - sigma) (x - D) / sigma is the same number, but subtracts terms of the size of sigma: at
    the levels of zero-terminal-SNR schedules (4096 and more) float32 would lose D in it.
    """
    q = to / sigma
    return q * x + (1 - q) * D


def ancestral(sigma: float, to: float, eta: float) -> tuple[float, float]:
    """Split level `to` into (down, up), down^2 + up^2 = to^2: go down to `down`, then add noise of size `up`.

    eta = 1 makes `up` the standard deviation of the posterior q(x_to | x_sigma, x0), eta = 0 adds no noise.
    """
    q = to / sigma
    up = min(to, eta * to * sqrt(max(0.0, 1 - q * q)))
    return sqrt(to * to - up * up), up


def usable_order(order: int, i: int, sigmas: Sequence[float], *, taper: bool) -> int:
    """The order of a multistep method in step i: limited by its history and, if it tapers off, by the steps left.

    It is 1 where log sigma does not move or moves to minus infinity (the step to 0): history says nothing about it.
    """
    if not 0 < sigmas[i + 1] < sigmas[i]:
        return 1
    return min(order, i + 1, len(sigmas) - 1 - i if taper else order)


def require(name: str, value: object, allowed: Collection[object]) -> None:
    """Refuse an option the sampler does not have: ValueError naming the ones it has."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known here: choose one of {', '.join(map(repr, allowed))}")
