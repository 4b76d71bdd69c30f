"""The attentive half of the U-Net: pixels attend to each other and to the text."""

# mypy: no-warn-return-any

import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import UNetConfig
from unet.native import attention
from unet.resnet import added, as_many


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762): x (b, n, d) looks at context (b, m, d_context)."""

    native = True  # whether our own kernel may compute it, where there is one for the device

    def __init__(self, d: int, d_context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(d, d, bias=False)
        self.to_k = nn.Linear(d_context, d, bias=False)
        self.to_v = nn.Linear(d_context, d, bias=False)
        self.to_out = nn.Sequential(nn.Linear(d, d))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is added to the scores (b, heads, n, m)."""
        y = self.mix(self._split(self.to_q(x)), context, mask)  # (b, heads, n, d / heads)
        return self.to_out(y.transpose(1, 2).flatten(2))  # (b, n, d)

    def mix(self, q: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Values of the context, mixed for each query: q (b, heads, n, d / heads) -> the same shape."""
        k, v = self.keys_values(context)
        return attention(q, k, v, mask, self.native)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Two of (b, heads, m, d / heads); for a text they are the same at every step."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b, n, d) -> (b, heads, n, d / heads)


class GEGLU(nn.Module):
    """A gated linear layer (Shazeer 2020, arXiv:2002.05202): (b, n, d) -> (b, n, d_out)."""

    def __init__(self, d: int, d_out: int):
        super().__init__()
        self.proj = nn.Linear(d, 2 * d_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)


class FeedForward(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        # the place in the middle is a dropout in the checkpoints' numbering
        self.net = nn.Sequential(GEGLU(d, 4 * d), nn.Identity(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward: x (b, n, d), context (b, m, d_context) -> (b, n, d).

    With `only_cross` the first attention looks at the text too. x may have fewer rows than the context (`as_many`).
    """

    def __init__(self, d: int, d_context: int, heads: int, only_cross: bool):
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(d)
        self.attn1 = Attention(d, d_context if only_cross else d, heads)
        self.norm2 = nn.LayerNorm(d)
        self.attn2 = Attention(d, d_context, heads)
        self.norm3 = nn.LayerNorm(d)
        self.ff = FeedForward(d)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        x = as_many(x, context) if self.only_cross else x
        y = self.norm1(x)
        x = x + self.attn1(y, context if self.only_cross else y)  # unmasked also over the text, as in diffusers
        x = as_many(x, context)
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, (b, c, h, w) -> (b, d, h, w), computed as a linear layer on tokens, so that none is copied.

    It is made and called as any nn.Conv2d, since peft makes the layers of a LoRA from the type of the layer they adapt.
    """

    def forward(self, input: Tensor) -> Tensor:
        return to_image(F.linear(to_tokens(input), self.weight.flatten(1), self.bias), input)


class Transformer(nn.Module):
    """Transformer blocks over the pixels: x (b, c, h, w), context (b, m, d_context) -> (b, c, h, w)."""

    def __init__(self, config: UNetConfig, level: int, depth: int, only_cross: bool):
        super().__init__()
        c, heads = config.channels[level], config.heads[level]
        self.on_tokens = config.linear_projection
        self.norm = nn.GroupNorm(config.norm_groups, c, eps=1e-6)
        self.proj_in = nn.Linear(c, c) if self.on_tokens else Pointwise(c, c, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(c, config.context_dim, heads, only_cross) for _ in range(depth)
        )
        self.proj_out = nn.Linear(c, c) if self.on_tokens else Pointwise(c, c, 1)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        y = self.norm(x)
        tokens = self.proj_in(to_tokens(y)) if self.on_tokens else to_tokens(self.proj_in(y))
        for block in self.transformer_blocks:
            tokens = block(tokens, context, mask)
        y = to_image(self.proj_out(tokens), x) if self.on_tokens else self.proj_out(to_image(tokens, x))
        return added(x, y)


def to_tokens(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h * w, c), a view."""
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, like: Tensor) -> Tensor:
    """(b, h * w, c) -> (b, c, h, w) of the height and width of `like`, a view."""
    return tokens.transpose(1, 2).reshape(*tokens.shape[::2], *like.shape[2:])
