"""A task made ready for a sampler: where it starts, which noise levels it visits, what denoises it."""

from dataclasses import dataclass, replace

from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.foreign import ForeignSampling
from ldm.diffusion.grid import Grid
from ldm.diffusion.guidance import cfg
from ldm.diffusion.noise import SeededNoise
from ldm.diffusion.registry import Sampling


@dataclass(eq=False)
class Problem:
    """What is solved: x (b, c, h, w) = init_scale * noise is denoised down the grid under guidance.

    Conditioning and weight may be exchanged between steps (callbacks do); the sampler sees only `denoise`.
    """

    x: Tensor
    grid: Grid
    sampling: Sampling | ForeignSampling
    noise: SeededNoise
    denoiser: Denoiser
    cond: Conditioning
    uncond: Conditioning | None
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """x (b, c, h, w) at noise level sigma -> the guided estimate of x0."""
        return cfg(self.denoiser, self.cond, self.uncond, self.scale, rescale=self.rescale, interval=self.interval)(
            x, sigma
        )

    def outside(self, x: Tensor, sigma: float) -> Tensor:
        """The state as diffusers holds it: x / sqrt(1 + sigma^2) for variance-preserving samplers, else x itself."""
        return x / (1 + sigma**2) ** 0.5 if self.grid.variance_preserving else x

    def inside(self, x: Tensor, sigma: float) -> Tensor:
        """The inverse of `outside`."""
        return x * (1 + sigma**2) ** 0.5 if self.grid.variance_preserving else x

    def embeds(self) -> dict[str, Tensor]:
        """The text as callbacks of diffusers know it: `prompt_embeds` has the negative half in front."""
        if self.uncond is None:
            return {"prompt_embeds": self.cond.context}
        both = self.uncond.cat(self.cond).context
        return {"prompt_embeds": both, "negative_prompt_embeds": self.uncond.context}

    def exchange_embeds(self, both: Tensor) -> None:
        """Takes `prompt_embeds` back from a callback; without its negative half, guidance ends."""
        if len(both) == len(self.cond.context):
            self.uncond = None
        elif self.uncond is not None:
            self.uncond = replace(self.uncond, context=both[: len(both) // 2])
        self.cond = replace(self.cond, context=both[-len(self.cond.context) :])
