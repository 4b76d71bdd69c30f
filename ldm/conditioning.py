"""What the denoiser is told beside the noisy latents, as one value that can be stacked and repeated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unet.embedding import sinusoid


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The conditions of b images.

    context: (b, n, d) text tokens for cross-attention.
    mask: (b, n) bool, True where a token counts; None when all do.
    vector: (b, v) pooled text and size ids of SDXL, or whatever second condition the U-Net was built with.
    guidance: (b,) guidance weight minus one, for models distilled on it.
    """

    context: Tensor
    mask: Tensor | None = None
    vector: Tensor | None = None
    guidance: Tensor | None = None

    def to(self, device: torch.device) -> "Conditioning":
        return self._each(lambda value: value.to(device))

    def repeat(self, n: int) -> "Conditioning":
        """Each image n times in a row: a, a, b, b."""
        return self._each(lambda value: value.repeat_interleave(n, dim=0))

    def cat(self, other: "Conditioning") -> "Conditioning":
        """The two batches behind each other; both have the same fields."""

        def both(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            return None if mine is None or theirs is None else torch.cat([mine, theirs])

        context = torch.cat([self.context, other.context])
        return Conditioning(
            context, both(self.mask, other.mask), both(self.vector, other.vector), both(self.guidance, other.guidance)
        )

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        def optional(value: Tensor | None) -> Tensor | None:
            return None if value is None else function(value)

        return Conditioning(function(self.context), optional(self.mask), optional(self.vector), optional(self.guidance))


def text_time_vector(pooled: Tensor, ids: Sequence[float], width: int) -> Tensor:
    """SDXL's second condition: pooled text (b, p) and the sinusoids of k size ids, (b, p + k * width).

    The ids are original height and width, crop top and left, target height and width; the refiner has one aesthetic
    score in place of the target. SDXL, arXiv 2307.01952, section 2.2.
    """
    sizes = sinusoid(torch.tensor(ids, dtype=torch.float32, device=pooled.device), width)  # (k, width)
    return torch.cat([pooled, sizes.flatten().to(pooled.dtype).expand(len(pooled), -1)], dim=1)
