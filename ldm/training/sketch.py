"""Quick pictures during training: no pipeline, one sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import cfg
from ldm.diffusion.noise import SeededNoise
from ldm.diffusion.samplers.dpmpp import dpmpp_2m
from ldm.diffusion.schedule import NoiseSchedule

_STEPS, _SCALE, _RHO = 16, 4.0, 7.0


def sketch(
    denoiser: Denoiser, cond: Conditioning, empty: Conditioning, shape: tuple[int, int, int], schedule: NoiseSchedule
) -> Tensor:
    """Guided latents (b, c, h, w) for b conditions, from the seeds 0 to b - 1, on the noise levels of Karras et al."""
    b, levels = len(cond.context), schedule.training_sigmas
    ramp = torch.linspace(levels[-1] ** (1 / _RHO), levels[0] ** (1 / _RHO), _STEPS) ** _RHO
    sigmas = [*ramp.tolist(), 0.0]
    noise = SeededNoise((b, *shape), seeds=range(b), device=cond.context.device)
    x: Tensor = sigmas[0] * noise()
    for step in dpmpp_2m(cfg(denoiser, cond, empty, _SCALE), x, sigmas, noise):
        x = step.x
    return x
