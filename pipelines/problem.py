"""A task made ready for a sampler: where it starts, which noise levels it visits, what denoises it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.foreign import ForeignSampling
from ldm.diffusion.grid import Grid
from ldm.diffusion.guidance import Denoise, cfg
from ldm.diffusion.noise import SeededNoise
from ldm.diffusion.registry import Sampling
from pipelines.control import Steering

# The conditions as callbacks of diffusers know them; the negative half comes first
CONDITIONS = {"prompt_embeds": "context", "add_text_embeds": "vector", "add_time_ids": "sizes"}


@dataclass(eq=False)
class Problem:
    """What is solved: x (b, c, h, w) = init_scale * noise is denoised down `steps` steps of the grid under guidance.

    The sampler sees only `denoise`. Conditions and weight may be exchanged between steps, as callbacks do.
    """

    x: Tensor
    grid: Grid
    steps: int
    sampling: Sampling | ForeignSampling
    noise: SeededNoise
    denoiser: Denoiser
    cond: Conditioning
    uncond: Conditioning | None
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    steering: Steering = field(default_factory=Steering)  # for the record
    release: Callable[[], None] = lambda: None  # lets go of what was kept from step to step
    _guided: Denoise = field(init=False)
    _guided_by: tuple[object, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self.guide(self.scale)

    def guide(self, scale: float) -> None:
        """Sets the guidance weight, and takes notice of changed conditions."""
        now = (scale, *_edition(self.cond), *_edition(self.uncond))
        if now == self._guided_by:
            return  # what is known of a condition is known of the object
        self.scale, self._guided_by = scale, now
        self._guided = cfg(self.denoiser, self.cond, self.uncond, scale, rescale=self.rescale, interval=self.interval)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """x (b, c, h, w) at noise level sigma -> the guided estimate of x0."""
        return self._guided(x, sigma)

    def conditions(self) -> dict[str, Tensor | None]:
        """What there is of CONDITIONS, and `negative_prompt_embeds` (None without guidance)."""
        halves = [self.cond] if self.uncond is None else [self.uncond, self.cond]
        values = {name: [getattr(half, part) for half in halves] for name, part in CONDITIONS.items()}
        there = {name: torch.cat(both) for name, both in values.items() if both[0] is not None}
        return {**there, "negative_prompt_embeds": None if self.uncond is None else self.uncond.context}

    def exchange(self, conditions: Mapping[str, Tensor]) -> None:
        """Takes CONDITIONS back; `prompt_embeds` without its negative half ends guidance."""
        b = len(self.cond.context)
        if len(conditions.get("prompt_embeds", ())) == b:
            self.uncond = None
        for name, value in conditions.items():
            if len(value) not in (b, 2 * b):
                raise ValueError(f"the callback made {name} with {len(value)} rows: {b} or, with negatives, {2 * b}")
            self.cond = replace(self.cond, **{CONDITIONS[name]: value[-b:]})
            if self.uncond is not None and len(value) == 2 * b:
                self.uncond = replace(self.uncond, **{CONDITIONS[name]: value[:b]})


def _edition(cond: Conditioning | None) -> tuple[object, ...]:
    """Changes with another condition and, as far as it can be told, when its text is edited in place."""
    if cond is None:
        return (None,)
    return cond, object() if cond.context.is_inference() else cond.context._version
