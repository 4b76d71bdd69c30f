"""What encoder and decoder are made of. Shapes: b batch, c d channels, h w height and width, n = h * w tokens."""

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of every normalisation in these autoencoders


def conv(c: int, d: int) -> nn.Conv2d:
    return nn.Conv2d(c, d, 3, padding=1)


def norm(groups: int, c: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, c, EPS)


def silu(x: Tensor) -> Tensor:
    """In place: x is always a norm's fresh output, and images are large."""
    return F.silu(x, inplace=True)


class Resnet(nn.Module):
    """Two normalised convolutions around a skip connection: (b, c, h, w) -> (b, d, h, w)."""

    def __init__(self, c: int, d: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(groups, c)
        self.conv1 = conv(c, d)
        self.norm2 = norm(groups, d)
        self.conv2 = conv(d, d)
        self.conv_shortcut = nn.Identity() if c == d else nn.Conv2d(c, d, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(silu(self.norm1(x)))
        y = self.conv2(silu(self.norm2(y)))
        return y.add_(self.conv_shortcut(x))  # type: ignore[no-any-return]  # images are large


class Attention(nn.Module):
    """Every position attends to every other, in a single head: (b, c, h, w) -> (b, c, h, w)."""

    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.group_norm = norm(groups, c)
        self.to_q = nn.Linear(c, c)
        self.to_k = nn.Linear(c, c)
        self.to_v = nn.Linear(c, c)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.group_norm(x).flatten(2).mT[:, None]  # (b, c, h, w) -> (b, 1, n, c), one head
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        y = self.to_out[0](y)[:, 0].mT.reshape(x.shape)  # (b, 1, n, c) -> (b, c, h, w)
        return x + y


class MidBlock(nn.Module):
    """The coarsest level: (b, c, h, w) -> (b, c, h, w)."""

    def __init__(self, c: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(c, c, groups), Resnet(c, c, groups)])
        self.attentions = nn.ModuleList([Attention(c, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)  # type: ignore[no-any-return]
