"""The convolutional half of the U-Net: residual blocks and the steps between levels."""

# mypy: no-warn-return-any

import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import UNetConfig


class ResNet(nn.Module):
    """A residual block told the time: x (b, c_in, h, w), time (b, d) or (1, d) -> (b, c_out, h, w).

    `time` has passed its nonlinearity already, once for all blocks.
    """

    def __init__(self, config: UNetConfig, c_in: int, c_out: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_groups, c_in, eps=config.norm_eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.channels[0], c_out)
        self.norm2 = nn.GroupNorm(config.norm_groups, c_out, eps=config.norm_eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x), inplace=True))
        y = added(y, self.time_emb_proj(time)[:, :, None, None])
        y = self.conv2(F.silu(self.norm2(y), inplace=True))
        return added(self.conv_shortcut(x), y)


def as_many(x: Tensor, like: Tensor) -> Tensor:
    """x (b, ...) as often as `like` (k b, ...) asks for: rows that are the same until they meet what tells them apart,
    such as the two halves of guidance, are computed once until then."""
    return x if len(x) >= len(like) else x.repeat(len(like) // len(x), *[1] * (x.ndim - 1))


def added(x: Tensor, y: Tensor) -> Tensor:
    """The sum of two, of which one may have fewer rows; a single one is broadcast."""
    return x + y if 1 in (len(x), len(y)) else as_many(x, y) + as_many(y, x)


class Downsample(nn.Module):
    """(b, c, h, w) -> (b, c, ceil(h / 2), ceil(w / 2))"""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """(b, c, h, w) -> (b, c, *size), by nearest neighbour and a convolution."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size, mode="nearest"))
