"""The samplers: each turns noise into data by calling `denoise(x, sigma)`, one generator function for each method."""

from ldm.diffusion.samplers.adams import deis, lms, pndm, unipc
from ldm.diffusion.samplers.ddim import ddim, ddpm, lcm, tcd
from ldm.diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s_a, dpmpp_3m_sde, dpmpp_sde
from ldm.diffusion.samplers.euler import dpm2, dpm2_a, euler, euler_a, heun
from ldm.diffusion.samplers.step import Denoise, Noise, Sampler, Step

_ALL: tuple[Sampler, ...] = (
    *(ddim, ddpm, pndm, euler, euler_a, heun, dpm2, dpm2_a),
    *(dpmpp_2m, dpmpp_2m_sde, dpmpp_sde, dpmpp_2s_a, dpmpp_3m_sde),
    *(deis, unipc, lms, lcm, tcd),
)
SAMPLERS: dict[str, Sampler] = {sampler.__name__: sampler for sampler in _ALL}

__all__ = ["SAMPLERS", "Denoise", "Noise", "Sampler", "Step", *SAMPLERS]
