"""The autoencoder's convolutional decoder (Rombach et al. 2022, arXiv:2112.10752, appendix E)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import AutoencoderConfig
from vae.layers import MidBlock, Resnet, conv, norm, silu


class Upsample(nn.Module):
    """(b, c, h, w) -> (b, c, 2h, 2w)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = conv(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    """One level, a ResNet longer than the encoder's: (b, c, h, w) -> (b, d, 2h, 2w), or (b, d, h, w) for the last."""

    def __init__(self, c: int, d: int, config: AutoencoderConfig, last: bool) -> None:
        super().__init__()
        widths = (c, *[d] * (config.layers + 1))
        self.resnets = nn.ModuleList(Resnet(i, o, config.norm_groups) for i, o in pairwise(widths))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(d)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Decoder(nn.Module):
    """Unscaled latents (b, c, h, w), behind the quantisation conv -> images (b, 3, H, W)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.channels[::-1]
        levels = enumerate(pairwise((widths[0], *widths)), start=1)
        self.conv_in = conv(config.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0], config.norm_groups, config.mid_attention)
        self.up_blocks = nn.ModuleList(UpBlock(c, d, config, last=i == len(widths)) for i, (c, d) in levels)
        self.conv_norm_out = norm(config.norm_groups, widths[-1])
        self.conv_out = conv(widths[-1], config.out_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(x)))  # type: ignore[no-any-return]
