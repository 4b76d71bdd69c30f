"""Samplers that guess x0 and noise it again: DDIM, DDPM, and their few-step relatives LCM and TCD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt

from torch import Tensor

from ldm.diffusion.samplers.step import Denoise, Noise, Step, ancestral, euler_step, require


def ddim(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0) -> Iterator[Step]:
    """DDIM (Song et al. 2010.02502, equations 12 and 16), N evaluations.

    In the coordinates x0 + sigma * eps, eta = 0 is Euler's method and eta = 1 draws from the DDPM posterior. With
    eta > 0 every step draws once, even the last, where it may count for nothing: so diffusers leaves a generator.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        x = euler_step(x, D, sigma, down)
        if eta > 0:
            x = x + up * noise()
        yield Step(i, sigma_next, x, D)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    variance: str = "fixed_small",
    times: Sequence[float] | None = None,
) -> Iterator[Step]:
    """DDPM's ancestral sampling (Ho et al. 2006.11239, algorithm 2 and equation 7), N evaluations.

    variance: "fixed_small", the posterior's, or "fixed_large", beta_t of the variance-preserving process.
    times: the network's time at each evaluation. The paper's last step adds no noise; diffusers' does, unless it starts
        at time 0. Given the times this one does as diffusers.
    """
    require("variance", variance, ("fixed_small", "fixed_large"))
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        kept = (sigma_next / sigma) ** 2
        var = sigma_next**2 * (1 - kept)
        if variance == "fixed_large":
            var = (1 + sigma_next**2) * (1 - kept) / (1 + sigma**-2)
        x = kept * x + (1 - kept) * D
        if sigma_next > 0 or (times is not None and times[i] > 0):
            x = x + sqrt(max(0.0, var)) * noise()
        yield Step(i, sigma_next, x, D)


def lcm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    times: Sequence[float],
    timestep_scaling: float = 10.0,
    sigma_data: float = 0.5,
) -> Iterator[Step]:
    """Latent consistency sampling (Luo et al. 2310.04378), N evaluations.

    Each step jumps to f = c_skip x_t + c_out D, the consistency function, which is x_t itself at t = 0, and noises it
    to the next level; x_t is the variance-preserving state. times: the network's, one for each evaluation.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        t = timestep_scaling * times[i]
        c_skip = sigma_data**2 / (t**2 + sigma_data**2)
        c_out = t / sqrt(t**2 + sigma_data**2)
        f = c_skip / sqrt(1 + sigma**2) * x + c_out * D
        x = f + sigma_next * noise() if sigma_next > 0 else f.clone()
        yield Step(i, sigma_next, x, f)


def tcd(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, targets: Sequence[float]
) -> Iterator[Step]:
    """Trajectory consistency, strategic stochastic sampling (Zheng et al. 2402.19159), N evaluations.

    targets: for each step the level sigma_s <= sigma_next, s = (1 - gamma) t_next, to which the network's jump goes;
        from there noise leads back up to sigma_next. They are `sigmas[1:]` for gamma = 0, which adds no noise.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        x = euler_step(x, D, sigma, targets[i])
        if targets[i] < sigma_next:
            x = x + sqrt(sigma_next**2 - targets[i] ** 2) * noise()
        yield Step(i, sigma_next, x, D)
