"""The conditional U-Net of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.3).

Modules are named as in the checkpoints (diffusers' state dict), so that weights load without renaming.
"""

# mypy: no-warn-return-any

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import UNetConfig
from unet.attention import Transformer
from unet.checks import check_additions, check_conditions, check_inputs
from unet.embedding import TimeEmbedding, VectorEmbedding, class_embedding
from unet.resnet import Downsample, ResNet, Upsample, added, as_many

MASKED = -10000.0  # added to a score: out of sight, but finite, so that a text with every token masked is no NaN


class Block(nn.Module):
    """What levels and the middle are made of: ResNets, a transformer behind each of the first `len(depths)`."""

    def __init__(
        self, config: UNetConfig, level: int, c_in: Sequence[int], depths: Sequence[int], only_cross: bool = False
    ):
        super().__init__()
        self.resnets = nn.ModuleList(ResNet(config, c, config.channels[level]) for c in c_in)
        self.attentions = nn.ModuleList(Transformer(config, level, depth, only_cross) for depth in depths)

    def layer(self, i: int, x: Tensor, time: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        x = self.resnets[i](x, time)
        return self.attentions[i](x, context, mask) if i < len(self.attentions) else x


class DownBlock(Block):
    """One level on the way down: (b, c, h, w) -> all that it computes, each of them a skip connection."""

    def __init__(self, config: UNetConfig, level: int):
        c, depths = config.channels[level], config.down_depths[level]
        c_in = [config.channels[max(level - 1, 0)]] + [c] * (len(depths) - 1)
        super().__init__(config, level, c_in, depths if any(depths) else (), config.only_cross_attention[level])
        coarsest = level == len(config.channels) - 1
        self.downsamplers = nn.ModuleList([] if coarsest else [Downsample(c)])

    def forward(
        self, x: Tensor, time: Tensor, context: Tensor, mask: Tensor | None, feature: Tensor | None = None
    ) -> list[Tensor]:
        """`feature` is added at the level's end: before the step down, or behind it where there is no attention."""
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, time, context, mask)
            skips.append(x)
        if feature is not None and len(self.attentions):
            skips[-1] = added(skips[-1], feature)
        skips += [downsample(skips[-1]) for downsample in self.downsamplers]
        if feature is not None and not len(self.attentions):
            skips[-1] = added(skips[-1], feature)
        return skips


class MidBlock(Block):
    """The bottom of the U: ResNet, transformer, ResNet; or one ResNet; or nothing."""

    def __init__(self, config: UNetConfig):
        resnets, depths = {"transformer": (2, (config.mid_depth,)), "resnet": (1, ()), "none": (0, ())}[config.mid]
        super().__init__(config, -1, [config.channels[-1]] * resnets, depths)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, x, time, context, mask)
        return x


class UpBlock(Block):
    """One level on the way up. Takes its skip connections off the end of `skips`."""

    def __init__(self, config: UNetConfig, level: int):
        coarsest = len(config.channels) - 1
        c, depths = config.channels[level], config.up_depths[coarsest - level]
        states = [config.channels[min(level + 1, coarsest)]] + [c] * (len(depths) - 1)
        skips = [c] * (len(depths) - 1) + [config.channels[max(level - 1, 0)]]
        c_in = [state + skip for state, skip in zip(states, skips, strict=True)]
        super().__init__(config, level, c_in, depths if any(depths) else (), config.only_cross_attention[level])
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample(c)])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, as_many(skips.pop(), x)], dim=1), time, context, mask)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:])
        return x


class Trunk(nn.Module):
    """What a U-Net and its ControlNet have in common: all up to and with the middle."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        c, d, levels = config.channels[0], 4 * config.channels[0], range(len(config.channels))
        # time and vector
        self.time_embedding = TimeEmbedding(c, d, config.guidance_dim)
        self.add_embedding = VectorEmbedding(config.vector_dim, d) if config.vector == "text_time" else None
        self.class_embedding = class_embedding(config)
        # down and middle
        self.conv_in = nn.Conv2d(config.in_channels, c, 3, padding=1)
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in levels)
        self.mid_block = MidBlock(config)

    def embed_time(self, t: Tensor | float, vector: Tensor | None, guidance: Tensor | None) -> Tensor:
        """All that does not depend on the place, (b, d), as every ResNet takes it; (1, d) if it is the same for all."""
        if not isinstance(t, Tensor):  # made on the device, which unlike a copy waits for nothing
            t = torch.full((1,), t, device=self.conv_in.weight.device)
        time = self.time_embedding(t, guidance)
        for embedding in (self.class_embedding, self.add_embedding):
            time = time if embedding is None else time + embedding(vector)
        return F.silu(time)


def text_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """mask (b, n), True where the text may be seen -> what is added to scores, (b, 1, 1, n)."""
    return None if mask is None else MASKED * (~mask[:, None, None, :]).to(dtype)


class UNet(Trunk):
    """Predicts noise, velocity or image from a noisy latent, a time and a text.

    The state dict is the one of diffusers' UNet2DConditionModel.
    """

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        self.config = config
        c, levels = config.channels[0], range(len(config.channels))
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in reversed(levels))
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, c, eps=config.norm_eps)
        self.conv_out = nn.Conv2d(c, config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        guidance: Tensor | None = None,
        residuals: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] = (),
    ) -> Tensor:
        """x (b, c_in, h, w), t (b,), context (b, n, d) -> (b, c_out, h, w), in the dtype of the weights.

        x: scaled latents of any size, with what the model takes beside them in further channels. If there are k times
            as many texts as latents, each stands for itself k times, b, b + b, ...: guidance gives its latents once.
        t: training timesteps, whole or fractional, or one for all.
        context: the text embedding. mask (b, n), True where it may be seen.
        vector: SDXL's pooled text and size sinusoids or an image embedding (b, v), class numbers or noise levels (b,).
        guidance: (b,), the guidance weight minus one, for models distilled with it.
        residuals: from ControlNets, one for each skip connection and the last for the middle.
        features: from a T2I-Adapter, one for each level, finest first, and perhaps one for the middle.

        ValueError if one of them does not fit the network.
        """
        check_inputs(self.config, x, t, context, mask)
        check_conditions(self.config, len(context), vector, guidance)
        check_additions(self.config, residuals, features)
        dtype = self.conv_in.weight.dtype
        time, bias = self.embed_time(t, vector, guidance), text_bias(mask, dtype)
        return self.denoise(x.to(dtype), time, context.to(dtype), bias, residuals, features)

    def denoise(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        bias: Tensor | None,
        residuals: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] = (),
    ) -> Tensor:
        """What `forward` does with conditions in the form that blocks take them: `embed_time`, `text_bias`."""
        # down
        skips = [self.conv_in(x)]
        for level, block in enumerate(self.down_blocks):
            skips += block(skips[-1], time, context, bias, features[level] if features else None)
        # middle
        x = self.mid_block(skips[-1], time, context, bias)
        for feature in features[len(self.down_blocks) :]:
            x = added(x, feature)
        if residuals is not None:
            *extra, last = residuals
            skips = [added(skip, residual) for skip, residual in zip(skips, extra, strict=True)]
            x = added(x, last)
        # up
        for block in self.up_blocks:
            x = block(x, skips, time, context, bias)
        return as_many(self.conv_out(F.silu(self.conv_norm_out(x))), context)
