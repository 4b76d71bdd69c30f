"""One-step solvers of dx/dsigma = (x - D) / sigma: Euler, Heun, the midpoint rule, and their noisy forms.

The two-stage ones take a second estimate D' at a level sigma' < sigma, after an Euler step from x. Its slope exceeds
the first by (D - D') / sigma' exactly, so giving it weight w is an Euler step towards D + w (sigma / sigma') (D' - D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt

from torch import Tensor

from ldm.diffusion.samplers.step import Denoise, Noise, Step, ancestral, euler_step


@dataclass(frozen=True)
class Churn:
    """Noise added before a step (Karras et al. 2206.00364, algorithm 2): how much, at which levels, how strong."""

    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def __call__(self, x: Tensor, sigma: float, steps: int, noise: Noise) -> tuple[Tensor, float]:
        """(x, sigma), raised to sigma (1 + gamma) where sigma is in the interval."""
        gamma = min(self.s_churn / steps, sqrt(2) - 1) if self.s_tmin <= sigma <= self.s_tmax else 0.0
        if gamma <= 0:
            return x, sigma
        sigma_hat = sigma * (1 + gamma)
        return x + sqrt(sigma_hat**2 - sigma**2) * self.s_noise * noise(), sigma_hat


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Euler's method (Karras et al. 2206.00364, algorithm 2 without its correction), order 1, N evaluations.

    With churn the network sees the churned state at its raised level, as in the paper; diffusers shows it the old one.
    """
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma_hat = churn(x, sigma, len(sigmas) - 1, noise)
        D = denoise(x, sigma_hat)
        x = euler_step(x, D, sigma_hat, sigma_next)
        yield Step(i, sigma_next, x, D)


def euler_a(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Ancestral Euler (k-diffusion), N evaluations: DDIM(eta) by its other name, with noise of strength s_noise.

    Draws once a step where eta > 0, the last step included.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        x = euler_step(x, D, sigma, down)
        if eta > 0:
            x = x + up * s_noise * noise()
        yield Step(i, sigma_next, x, D)


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Heun's method (Karras et al. 2206.00364, algorithm 2), order 2, 2 evaluations a step and 1 for a step to 0."""
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma_hat = churn(x, sigma, len(sigmas) - 1, noise)
        D = target = denoise(x, sigma_hat)
        if sigma_next > 0:
            D = denoise(euler_step(x, target, sigma_hat, sigma_next), sigma_next)
            target = target + 0.5 * sigma_hat / sigma_next * (D - target)
        x = euler_step(x, target, sigma_hat, sigma_next)
        yield Step(i, sigma_next, x, D)


def midpoint_step(denoise: Denoise, x: Tensor, sigma: float, to: float) -> tuple[Tensor, Tensor]:
    """(x at level `to`, D) by the midpoint rule, the midpoint being that of log sigma; one evaluation if `to` is 0."""
    D = target = denoise(x, sigma)
    if to > 0:
        middle = sqrt(sigma * to) * (1 + 1e-12)  # not quite a level of the grid: those may come with a rounded time
        D = denoise(euler_step(x, target, sigma, middle), middle)
        target = target + sigma / middle * (D - target)
    return euler_step(x, target, sigma, to), D


def dpm2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Step]:
    """The midpoint rule in log sigma (DPM-Solver-2, Lu et al. 2206.00927, as in k-diffusion), order 2.

    2 evaluations a step and 1 for a step to 0.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, D = midpoint_step(denoise, x, sigma, sigma_next)
        yield Step(i, sigma_next, x, D)


def dpm2_a(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Ancestral `dpm2` (k-diffusion): the midpoint rule down, then noise up.

    2 evaluations and a draw a step, 1 and none for a step to 0.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral(sigma, sigma_next, eta)
        x, D = midpoint_step(denoise, x, sigma, down)
        if up > 0:
            x = x + up * s_noise * noise()
        yield Step(i, sigma_next, x, D)
