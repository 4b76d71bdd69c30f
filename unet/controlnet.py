"""ControlNet (Zhang et al. 2023, arXiv:2302.05543): a trained copy of a U-Net's way down, told a control image.

Modules are named as in diffusers' state dict of a ControlNetModel.
"""

# mypy: no-warn-return-any

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import ControlNetConfig
from unet.attention import Transformer
from unet.checks import check_conditions, check_hint, check_inputs
from unet.resnet import added
from unet.unet import Trunk, UNet, text_bias


class HintEmbedding(nn.Module):
    """A control image (b, 3, H, W) to the U-Net's first features, at H / 8 and W / 8 for four widths."""

    def __init__(self, config: ControlNetConfig):
        super().__init__()
        first, *others = config.hint_channels
        self.conv_in = nn.Conv2d(config.hint_in, first, 3, padding=1)
        self.blocks = nn.ModuleList()
        for c, d in zip(config.hint_channels, others, strict=False):
            self.blocks += [nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, d, 3, padding=1, stride=2)]
        self.conv_out = zeroed(nn.Conv2d(config.hint_channels[-1], config.unet.channels[0], 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:
        x = F.silu(self.conv_in(hint))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNet(Trunk):
    """A noisy latent, a time, a text and a control image to what a U-Net takes as `residuals`."""

    def __init__(self, config: ControlNetConfig):
        super().__init__(config.unet)
        unet = config.unet
        self.config = config
        for level, hollow in enumerate(config.hollow):
            if hollow:
                empty = [Transformer(unet, level, 0, False) for _ in unet.down_depths[level]]
                self.down_blocks[level].attentions = nn.ModuleList(empty)
        widths = [unet.channels[0]]
        for c, depths, downsamples in zip(unet.channels, unet.down_depths, _downsamples(unet.channels), strict=True):
            widths += [c] * (len(depths) + downsamples)
        self.controlnet_cond_embedding = HintEmbedding(config)
        self.controlnet_down_blocks = nn.ModuleList(zeroed(nn.Conv2d(c, c, 1)) for c in widths)
        self.controlnet_mid_block = zeroed(nn.Conv2d(unet.channels[-1], unet.channels[-1], 1))

    @classmethod
    def from_unet(cls, unet: UNet, **fields: Any) -> "ControlNet":
        """A ControlNet to train: a copy of the U-Net that adds nothing to it yet. `fields` are ControlNetConfig's."""
        own = cls(ControlNetConfig(unet=replace(unet.config, guidance_dim=0), **fields))
        names = own.state_dict().keys()
        copied = {name: value for name, value in unet.state_dict().items() if name in names}
        own.load_state_dict(copied, strict=False)
        return own.to(unet.conv_in.weight)

    @property
    def factor(self) -> int:
        """Pixels of the control image to a latent cell, in height and in width."""
        return int(2 ** (len(self.config.hint_channels) - 1))

    def embed(self, hint: Tensor) -> Tensor:
        """Control images (b, 3, H, W), in [0, 1], to what `forward` takes: the same at every step. ValueError as there.

        H and W are those of the picture, `factor` times the latent's.
        """
        check_hint(self.config, hint)
        hint = hint.flip(1) if self.config.order == "bgr" else hint
        return self.controlnet_cond_embedding(hint.to(self.conv_in.weight.dtype))  # (b, c, h, w)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Tensor,
        hint: Tensor,
        *,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        scale: float = 1.0,
        guess: bool = False,
    ) -> list[Tensor]:
        """All but `hint` as the U-Net takes them -> one residual for each skip connection, the last for the middle.

        hint: control images as `embed` gives them (b, c, h, w). scale: of all residuals. guess: for pictures without a
        prompt, residuals fade from the full weight in the middle to a tenth at the finest level, as the authors do.

        ValueError if one of them does not fit the network.
        """
        check_inputs(self.config.unet, x, t, context, mask)
        check_conditions(self.config.unet, len(context), vector, None)
        dtype = self.conv_in.weight.dtype
        time, bias = self.embed_time(t, vector, None), text_bias(mask, dtype)
        return self.weighed(self.control(x.to(dtype), time, context.to(dtype), bias, hint), scale, guess)

    def control(self, x: Tensor, time: Tensor, context: Tensor, bias: Tensor | None, hint: Tensor) -> list[Tensor]:
        """What `forward` does with conditions in the form that blocks take them, as `UNet.denoise`, at scale 1."""
        # down and middle
        states = [added(self.conv_in(x), hint)]
        for block in self.down_blocks:
            states += block(states[-1], time, context, bias)
        middle = self.mid_block(states[-1], time, context, bias)
        # residuals
        residuals = [project(state) for project, state in zip(self.controlnet_down_blocks, states, strict=True)]
        residuals.append(self.controlnet_mid_block(middle))
        return [residual.mean((2, 3), keepdim=True) for residual in residuals] if self.config.pooled else residuals

    def weighed(self, residuals: Sequence[Tensor], scale: float, guess: bool) -> list[Tensor]:
        """Residuals of scale 1 at another, as `forward` gives them."""
        fading = torch.logspace(-1, 0, len(residuals)).tolist() if guess and not self.config.pooled else ()
        weights = fading or [1.0] * len(residuals)
        return [scale * weight * residual for weight, residual in zip(weights, residuals, strict=True)]


def _downsamples(channels: tuple[int, ...]) -> list[int]:
    """By level, whether a step to a coarser one follows."""
    return [1] * (len(channels) - 1) + [0]


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """With which training starts from the U-Net's own picture."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
