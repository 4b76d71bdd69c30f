"""T2I-Adapter (Mou et al. 2023, arXiv:2302.08453): a control image to features that a U-Net adds on its way down.

Modules are named as in diffusers' state dict of a T2IAdapter. They run once for a picture, not at every step.
"""

# mypy: no-warn-return-any

import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import AdapterConfig


class ResNet(nn.Module):
    """Two convolutions around a skip connection: (b, c, h, w) -> (b, c, h, w). `kernel` is the second one's."""

    def __init__(self, c: int, kernel: int):
        super().__init__()
        self.block1 = nn.Conv2d(c, c, 3, padding=1)
        self.block2 = nn.Conv2d(c, c, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))


class Level(nn.Module):
    """(b, c, h, w) -> (b, d, h, w), or with `down` (b, d, ceil(h / 2), ceil(w / 2))."""

    def __init__(self, c: int, d: int, layers: int, down: bool):
        super().__init__()
        self.downsample = nn.AvgPool2d(2, ceil_mode=True) if down else nn.Identity()
        self.in_conv = nn.Identity() if c == d else nn.Conv2d(c, d, 1)
        self.resnets = nn.Sequential(*(ResNet(d, 1) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets(self.in_conv(self.downsample(x)))


class LightLevel(nn.Module):
    """The same with ResNets a quarter as wide."""

    def __init__(self, c: int, d: int, layers: int, down: bool):
        super().__init__()
        self.downsample = nn.AvgPool2d(2, ceil_mode=True) if down else nn.Identity()
        self.in_conv = nn.Conv2d(c, d // 4, 1)
        self.resnets = nn.Sequential(*(ResNet(d // 4, 3) for _ in range(layers)))
        self.out_conv = nn.Conv2d(d // 4, d, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.resnets(self.in_conv(self.downsample(x))))


class Body(nn.Module):
    """(b, c, H, W) -> a feature map for each level: c * factor^2 channels at 1 / factor of the size, then coarser."""

    def __init__(self, config: AdapterConfig):
        super().__init__()
        self.factor = config.factor
        folded, first = config.in_channels * config.factor**2, config.channels[0]
        light = config.kind == "light"
        self.conv_in = nn.Identity() if light else nn.Conv2d(folded, first, 3, padding=1)
        widths = (folded, *config.channels, config.channels[-1]) if light else (first, *config.channels)
        steps = range(len(widths) - 1)
        downs = {2} if config.kind == "full_xl" else set(steps) - {0}
        level = LightLevel if light else Level
        self.body = nn.ModuleList(level(widths[i], widths[i + 1], config.layers, i in downs) for i in steps)

    def forward(self, hint: Tensor) -> list[Tensor]:
        x = self.conv_in(F.pixel_unshuffle(hint, self.factor))
        features = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return features


class Adapter(nn.Module):
    """A control image to what a U-Net takes as `features`."""

    def __init__(self, config: AdapterConfig):
        super().__init__()
        self.config = config
        self.adapter = Body(config)

    def forward(self, hint: Tensor, scale: float = 1.0) -> list[Tensor]:
        """hint (b, c, H, W), in [0, 1], of the picture's size -> one map (b, d, h, w) for each level, times `scale`.

        Raises ValueError if the image has other channels, or a size that `config.factor` does not divide.
        """
        config = self.config
        if hint.ndim != 4 or hint.shape[1] != config.in_channels:
            raise ValueError(
                f"this T2I-Adapter takes control images of shape (b, {config.in_channels}, h, w), not "
                f"{tuple(hint.shape)}: make them {'grey' if config.in_channels == 1 else 'RGB'}"
            )
        if hint.shape[2] % config.factor or hint.shape[3] % config.factor:
            raise ValueError(
                f"the control image is {hint.shape[3]} x {hint.shape[2]} pixels, but this T2I-Adapter needs multiples "
                f"of {config.factor}: resize it"
            )
        weight = next(self.parameters())
        return [scale * feature for feature in self.adapter(hint.to(weight.dtype))]
