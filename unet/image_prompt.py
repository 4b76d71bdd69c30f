"""IP-Adapter (Ye et al. 2023, arXiv:2308.06721): pictures as prompts, through keys and values of their own.

Modules are named as in the files people have (`image_proj.*`, `ip_adapter.*`). The U-Net knows nothing of them:
`ImagePrompt.attach` puts cross-attentions in the place of its own that take image tokens off the end of the context.
"""

# mypy: no-warn-return-any

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import ImagePromptConfig
from unet.attention import Attention, TransformerBlock
from unet.unet import UNet

HEAD = 64  # width of a resampler's attention head

# image embeddings to tokens


class Plain(nn.Module):
    """One embedding (b, e) -> (b, n, d)."""

    def __init__(self, config: ImagePromptConfig):
        super().__init__()
        self.tokens = config.tokens
        self.proj = nn.Linear(config.image_dim, config.tokens * config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.proj(image).unflatten(1, (self.tokens, -1)))


class Full(nn.Module):
    """Every patch to a token: (b, n, e) -> (b, n, d)."""

    def __init__(self, config: ImagePromptConfig):
        super().__init__()
        e, d = config.image_dim, config.context_dim
        self.proj = nn.Sequential(nn.Linear(e, e), nn.GELU(), nn.Linear(e, d), nn.LayerNorm(d))

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)


class FaceTokens(nn.Module):
    """An identity embedding (b, e) -> (b, n, d)."""

    def __init__(self, config: ImagePromptConfig, d: int):
        super().__init__()
        self.tokens = config.tokens
        hidden, e = config.id_width, config.id_dim
        self.proj = nn.Sequential(nn.Linear(e, hidden), nn.GELU(), nn.Linear(hidden, config.tokens * d))
        self.norm = nn.LayerNorm(d)

    def project(self, face: Tensor) -> Tensor:
        return self.norm(self.proj(face).unflatten(1, (self.tokens, -1)))


class Face(FaceTokens):
    """An identity embedding (b, e) -> (b, n, d)."""

    def forward(self, face: Tensor) -> Tensor:
        return self.project(face)


class PerceiverAttention(nn.Module):
    """Queries (b, n, d) look at patches (b, m, d) and at themselves."""

    def __init__(self, d: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(d)
        self.norm2 = nn.LayerNorm(d)
        self.to_q = nn.Linear(d, inner, bias=False)
        self.to_kv = nn.Linear(d, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, d, bias=False)

    def forward(self, patches: Tensor, queries: Tensor) -> Tensor:
        own = self.norm2(queries)
        k, v = self.to_kv(torch.cat([self.norm1(patches), own], dim=1)).chunk(2, dim=-1)  # (b, m + n, inner)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(own), k, v))
        y = F.scaled_dot_product_attention(q, k, v)  # (b, heads, n, inner / heads)
        return self.to_out(y.transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Patches (b, m, e) and queries (b, n, w) -> tokens (b, n, d). Alayrac et al. 2022 (arXiv:2204.14198)."""

    def __init__(self, config: ImagePromptConfig):
        super().__init__()
        w = config.width
        self.proj_in = nn.Linear(config.image_dim, w)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [PerceiverAttention(w, config.heads, HEAD * config.heads), _feed_forward(w, config.mlp_width)]
            )
            for _ in range(config.depth)
        )
        self.proj_out = nn.Linear(w, config.context_dim)
        self.norm_out = nn.LayerNorm(config.context_dim)

    def resample(self, patches: Tensor, queries: Tensor) -> Tensor:
        patches = self.proj_in(patches)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attention, feed_forward = layer
            queries = queries + attention(patches, queries)
            queries = queries + feed_forward(queries)
        return self.norm_out(self.proj_out(queries))


class Plus(Resampler):
    """Patches (b, m, e) -> tokens (b, n, d), by learned queries."""

    def __init__(self, config: ImagePromptConfig):
        super().__init__(config)
        self.latents = nn.Parameter(torch.randn(1, config.tokens, config.width) / config.width**0.5)

    def forward(self, image: Tensor) -> Tensor:
        return self.resample(image, self.latents.expand(len(image), -1, -1))


class FacePlus(FaceTokens):
    """An identity embedding (b, e) and patches (b, m, f) -> (b, n, d); `shortcut` is for the second version's files."""

    def __init__(self, config: ImagePromptConfig):
        super().__init__(config, config.width)
        self.perceiver_resampler = Resampler(config)

    def forward(self, face: Tensor, image: Tensor, shortcut: bool = False) -> Tensor:
        tokens = self.project(face)
        resampled = self.perceiver_resampler.resample(image, tokens)
        return tokens + resampled if shortcut else resampled


def _feed_forward(d: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(d), nn.Linear(d, hidden, bias=False), nn.GELU(), nn.Linear(hidden, d, bias=False))


def _projection(config: ImagePromptConfig) -> nn.Module:
    match config.kind:
        case "plain":
            return Plain(config)
        case "full":
            return Full(config)
        case "plus":
            return Plus(config)
        case "face":
            return Face(config, config.context_dim)
        case "face_plus":
            return FacePlus(config)


# tokens into the U-Net


class KeysValues(nn.Module):
    def __init__(self, d_context: int, d: int):
        super().__init__()
        self.to_k_ip = nn.Linear(d_context, d, bias=False)
        self.to_v_ip = nn.Linear(d_context, d, bias=False)


class ImagePrompt(nn.Module):
    """An IP-Adapter: its projection (called with what its kind takes) and its part of each cross-attention.

    Attached to a U-Net, the context must end with its tokens: `torch.cat([text, prompt(image)], 1)`, and the mask, if
    there is one, with True for each. Of several, the one attached last has the last tokens. `scale` weighs the picture.
    """

    def __init__(self, config: ImagePromptConfig):
        super().__init__()
        self.config = config
        self.scale = 1.0
        self.image_proj = _projection(config)
        pairs = {str(2 * i + 1): KeysValues(config.context_dim, d) for i, d in enumerate(config.attentions)}
        self.ip_adapter = nn.ModuleDict(pairs)

    def forward(self, *image: Tensor) -> Tensor:
        """What its kind takes -> tokens (b, n, d)."""
        dtype = next(self.parameters()).dtype
        return self.image_proj(*(each.to(dtype) for each in image))

    def attach(self, unet: UNet, tokens: int | None = None) -> None:
        """Lets the U-Net's cross-attentions take the last tokens of its context for this picture.

        tokens: how many, where the kind leaves it open (one for each patch). ValueError for a U-Net of another kind.
        """
        count = tokens or self.config.tokens
        if not count:
            raise ValueError("this IP-Adapter makes a token of each patch: say how many, such as tokens=257")
        blocks = list(cross_attentions(unet))
        widths = tuple(block.attn2.to_q.in_features for block in blocks)
        if (widths, unet.config.context_dim) != (self.config.attentions, self.config.context_dim):
            raise ValueError(
                f"this IP-Adapter is made for a U-Net of {len(self.config.attentions)} cross-attentions to tokens of "
                f"width {self.config.context_dim}; this one has {len(widths)} and {unet.config.context_dim}, or others "
                "of their widths differ: use one for the same family"
            )
        for block, pair in zip(blocks, self.ip_adapter.values(), strict=True):
            assert isinstance(pair, KeysValues)
            block.attn2 = PromptedAttention(block.attn2, self, pair, count)

    def detach(self, unet: UNet) -> None:
        """Puts back what `attach` replaced. ValueError if this one was not attached last."""
        blocks = list(cross_attentions(unet))
        if not all(isinstance(block.attn2, PromptedAttention) and block.attn2.prompt is self for block in blocks):
            raise ValueError("this IP-Adapter is not the last that was attached to this U-Net: detach the others first")
        for block in blocks:
            assert isinstance(block.attn2, PromptedAttention)
            block.attn2 = block.attn2.text


class PromptedAttention(Attention):
    """A cross-attention with the weights and names of the one it replaces; the picture's belong to the ImagePrompt."""

    text: Attention
    prompt: ImagePrompt
    pair: KeysValues

    def __init__(self, text: Attention, prompt: ImagePrompt, pair: KeysValues, tokens: int):
        nn.Module.__init__(self)
        self.heads, self.tokens = text.heads, tokens
        self.to_q, self.to_k, self.to_v, self.to_out = text.to_q, text.to_k, text.to_v, text.to_out
        # beside the registered modules: the state dict stays the U-Net's own
        self.__dict__.update(text=text, prompt=prompt, pair=pair)

    def mix(self, q: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        n = context.shape[1] - self.tokens
        image = context[:, n:]  # (b, tokens, d_context)
        k, v = (self._split(project(image)) for project in (self.pair.to_k_ip, self.pair.to_v_ip))
        y = self.text.mix(q, context[:, :n], None if mask is None else mask[..., :n])
        return y + self.prompt.scale * F.scaled_dot_product_attention(q, k, v)


def cross_attentions(unet: UNet) -> Iterator[TransformerBlock]:
    """The transformer blocks in the files' order: down, up, and the middle last."""
    for part in (unet.down_blocks, unet.up_blocks, unet.mid_block):
        yield from (module for module in part.modules() if isinstance(module, TransformerBlock))
