"""What the denoiser is told beside the noisy latents, as one value that can be stacked and repeated."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from unet.embedding import sinusoid


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The conditions of b images.

    context: (b, n, d) text tokens for cross-attention.
    mask: (b, n) bool, True where a token counts; None when all do.
    vector: (b, v) pooled text of SDXL, or whatever second condition the U-Net was built with.
    sizes: (b, k) SDXL's size ids.
    guidance: (b,) guidance weight minus one, for models distilled on it.
    hint: (b,) int64, which of a run's control images each is drawn by (`ldm.controlled`).
    """

    context: Tensor
    mask: Tensor | None = None
    vector: Tensor | None = None
    sizes: Tensor | None = None
    guidance: Tensor | None = None
    hint: Tensor | None = None

    def to(self, device: torch.device) -> "Conditioning":
        return self._each(lambda _, value: value.to(device))

    def repeat(self, n: int) -> "Conditioning":
        """Each image n times in a row: a, a, b, b."""
        return self._each(lambda _, value: value.repeat_interleave(n, dim=0))

    def rows(self, index: list[int]) -> "Conditioning":
        """Some of the images, by their places."""
        return self._each(lambda _, value: value[index])

    def cat(self, other: "Conditioning") -> "Conditioning":
        """The two batches behind each other; both have the same fields."""
        theirs = {f.name: getattr(other, f.name) for f in fields(other)}
        assert all((getattr(self, name) is None) == (value is None) for name, value in theirs.items())
        return self._each(lambda name, mine: torch.cat([mine, theirs[name]]))

    def _each(self, function: Callable[[str, Tensor], Tensor]) -> "Conditioning":
        """The same function of every field that is there."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(name, value) for name, value in values.items() if value is not None})


def text_time_vector(pooled: Tensor, ids: Tensor, width: int) -> Tensor:
    """SDXL's second condition: pooled text (b, p) and the sinusoids of k size ids (b, k) -> (b, p + k * width).

    The ids are original height and width, crop top and left, target height and width; the refiner has one aesthetic
    score in place of the target. SDXL, arXiv 2307.01952, section 2.2.
    """
    sizes = sinusoid(ids.flatten(), width).reshape(len(ids), -1)  # (b * k, width) -> (b, k * width)
    return torch.cat([pooled, sizes.to(pooled.dtype)], dim=1)
