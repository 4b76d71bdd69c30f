"""The autoencoder's convolutional encoder (Rombach et al. 2022, arXiv:2112.10752, appendix E)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import AutoencoderConfig
from vae.layers import MidBlock, Resnet, conv, norm, silu


class Downsample(nn.Module):
    """(b, c, h, w) -> (b, c, h/2, w/2). Pads on the right and at the bottom alone."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class DownBlock(nn.Module):
    """One level: (b, c, h, w) -> (b, d, h/2, w/2), or (b, d, h, w) for the last."""

    def __init__(self, c: int, d: int, config: AutoencoderConfig, last: bool) -> None:
        super().__init__()
        widths = (c, *[d] * config.layers)
        self.resnets = nn.ModuleList(Resnet(i, o, config.norm_groups) for i, o in pairwise(widths))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(d)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Images (b, 3, H, W) -> (b, 2c, h, w): mean and log variance of c channels, before the quantisation conv."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.channels
        levels = enumerate(pairwise((widths[0], *widths)), start=1)
        self.conv_in = conv(config.in_channels, widths[0])
        self.down_blocks = nn.ModuleList(DownBlock(c, d, config, last=i == len(widths)) for i, (c, d) in levels)
        self.mid_block = MidBlock(widths[-1], config.norm_groups, config.mid_attention)
        self.conv_norm_out = norm(config.norm_groups, widths[-1])
        self.conv_out = conv(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(silu(self.conv_norm_out(x)))  # type: ignore[no-any-return]
