"""What a U-Net may leave out to be faster. It changes the picture, so nothing is left out unless it is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ldm.deep_cache import Acting, DeepCache
from ldm.token_merging import MOST, merge_tokens
from unet import UNet

# The network that is to denoise x (b, c, h, w) at time t under ControlNets
Choice: TypeAlias = Callable[[Tensor, float, Acting], UNet]


@dataclass(frozen=True)
class Shortcuts:
    """Which shortcuts to take. Raises ValueError for those that do not exist.

    deep_cache: every how many steps the whole U-Net runs (`ldm.deep_cache`); 1 is always.
    merge_tokens: the share of tokens that self-attention does without (`ldm.token_merging`), 0 to 0.75.
    """

    deep_cache: int = 1
    merge_tokens: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.deep_cache, int) or self.deep_cache < 1:
            raise ValueError(f"deep_cache is a whole number of at least 1, 1 to leave it off, not {self.deep_cache!r}")
        if not isinstance(self.merge_tokens, (int, float)) or not 0 <= self.merge_tokens <= MOST:
            raise ValueError(f"merge_tokens is a share from 0 to {MOST}, 0 to leave it off, not {self.merge_tokens!r}")

    def __bool__(self) -> bool:
        return self != Shortcuts()

    def through(self, twin: UNet, times: Sequence[float]) -> Choice:
        """Builds them into a twin (`ldm.plan`), for a run whose steps are at these times."""
        if self.merge_tokens:
            merge_tokens(twin, self.merge_tokens)
        return DeepCache(twin, times, self.deep_cache) if self.deep_cache > 1 else lambda x, t, acting: twin
