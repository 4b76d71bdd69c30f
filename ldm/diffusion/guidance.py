"""Guidance: a denoiser and its conditions become one `denoise(x, sigma)` for the samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeAlias

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser

Denoise: TypeAlias = Callable[[Tensor, float], Tensor]


class Condition(Protocol):
    """What the network is conditioned on, for a batch."""

    def cat(self, other: Self, /) -> Self:
        """This batch followed by the other."""


def weight(guidance_scale: float | None = None, gamma: float | None = None, *, default: float = 7.5) -> float:
    """The weight w of g = u + w (c - u), from either of its two names: `guidance_scale` is w, `gamma` is w - 1.

    Raises:
        ValueError: both are given.
    """
    if guidance_scale is not None and gamma is not None:
        raise ValueError("give guidance_scale (w) or gamma (w - 1), not both")
    if gamma is not None:
        return gamma + 1
    return default if guidance_scale is None else guidance_scale


def cfg(
    denoiser: Denoiser,
    cond: Condition,
    uncond: Condition | None,
    scale: float,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """Classifier-free guidance, g = u + w (c - u) (Ho and Salimans 2022, 2207.12598).

    Args:
        cond, uncond: conditions of b examples each; they run as one batch in the order [uncond, cond], for which the
            network is given the b states once.
        scale: w. As in diffusers, guidance is on only for w > 1: any w <= 1 is the plain conditional denoiser, and
            neither it nor `uncond=None` costs an unconditional pass. (For the unconditional model pass its condition
            as `cond`.)
        rescale: phi, how far the output's standard deviation is pulled back to the conditional one (Lin et al. 2023,
            2305.08891, equation 16), per example, in the network's output space as in diffusers.
        interval: noise levels [lo, hi] that are guided; outside w is 1 (Kynkäänniemi et al. 2024, 2404.07724).

    The guided field is not the score of p(x) p(c|x)^w noised: CFG sharpens, it does not sample that density.
    """
    if uncond is None or scale <= 1:
        return lambda x, sigma: denoiser(x, sigma, cond)
    both = uncond.cat(cond)
    low, high = interval or (0.0, float("inf"))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if not low <= sigma <= high:
            return denoiser(x, sigma, cond)
        u, c = denoiser.predict(x, sigma, both).chunk(2)  # (2b,c,h,w) -> 2 x (b,c,h,w)
        guided = u + scale * (c - u)
        return denoiser.to_x0(x, sigma, match_std(guided, c, rescale) if rescale else guided)

    return denoise


def match_std(guided: Tensor, reference: Tensor, phi: float) -> Tensor:
    """Blend `guided` (b,...) with itself scaled to the standard deviation of `reference`, by example."""
    axes = list(range(1, guided.ndim))
    ratio = reference.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return phi * ratio * guided + (1 - phi) * guided
