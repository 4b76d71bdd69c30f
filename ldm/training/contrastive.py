# mypy: no-warn-return-any
"""A text and an image encoder that learn which caption belongs to which picture, also among nearly right ones.

InfoNCE both ways (Radford et al. 2021, arXiv:2103.00020, section 2.3) with hard negatives among the captions
(Yuksekgonul et al. 2023, arXiv:2210.01936): without them a text encoder learns which words stand there, not in what
order.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs.architecture import TextEncoderConfig
from ldm.training.stage import Batch
from text_encoder.clip import CLIPTextModel

_GRID = 4  # places across and down that the image tower keeps apart
_PARTS = 8  # captions are encoded in so many groups of like length


class ContrastiveModel(nn.Module):
    """A text and an image tower that meet in one space, as wide as the text encoder.

    `text` is a plain CLIPTextModel without projection, to be saved and used on its own.
    """

    def __init__(self, config: TextEncoderConfig, image_channels: Sequence[int]):
        super().__init__()
        self.text = CLIPTextModel(replace(config, projection_dim=None))
        self.projection = nn.Linear(config.width, config.width, bias=False)
        self.image = ImageTower(image_channels, config.width)
        self.temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # log of the logits' scale
        init_clip(self)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Token ids (m, n) -> (m, d) of length 1. What stands behind the end token is not read."""
        lengths = (ids == self.text.config.eos_token_id).int().argmax(dim=1) + 1
        order = lengths.argsort()
        groups = order.chunk(_PARTS)
        ends = lengths[torch.stack([group[-1] for group in groups])].tolist()  # at once: each asking waits for a GPU
        with _short_attention(ids.device):
            parts = [self.text(ids[group, :end])[1] for group, end in zip(groups, ends, strict=True)]
        pooled = torch.cat(parts)[order.argsort()]
        return F.normalize(self.projection(pooled).float(), dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """Pictures (b, 3, s, s) in [-1, 1] -> (b, d) of length 1."""
        return F.normalize(self.image(images).float(), dim=-1)

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """image (b, 3, s, s), ids (b, 1 + k, n) and known (b, 1 + k), the true caption first -> loss (), metrics.

        Every process calls it with batches of one size: captions and pictures of all of them are told apart.
        """
        texts = self.embed_text(batch["ids"].flatten(0, 1)).view(*batch["known"].shape, -1)
        images = self.embed_images(batch["image"])
        with torch.autocast(images.device.type, enabled=False):
            return contrast(images, texts, batch["known"], self.temperature.clamp(max=math.log(100)).exp())


def _short_attention(device: torch.device) -> AbstractContextManager[None]:
    """A CPU's fused attention is made for long sequences: on captions a step with it takes half as long again."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class ImageTower(nn.Module):
    """A convolutional network that knows where things are: (b, 3, s, s) -> (b, width)."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.stages = nn.Sequential(*(ImageStage(before, after) for before, after in pairwise((3, *channels))))
        self.norm = nn.GroupNorm(math.gcd(16, channels[-1]), channels[-1])
        self.out = nn.Linear(channels[-1] * _GRID**2, width)

    def forward(self, images: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stages(images)))
        return self.out(F.adaptive_avg_pool2d(x, _GRID).flatten(1))  # (b, c, 4, 4) -> (b, 16 c)


class ImageStage(nn.Module):
    """Half the side, then a residual step."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(math.gcd(16, after), after)
        self.conv = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.conv(F.silu(self.norm(x)))


def init_clip(model: ContrastiveModel) -> None:
    """CLIP's own start for the text tower (section 2.5 of its paper's code): what a layer adds shrinks with depth."""
    width, layers = model.text.config.width, model.text.config.layers
    nn.init.normal_(model.text.text_model.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(model.text.text_model.embeddings.position_embedding.weight, std=0.01)
    stds = dict.fromkeys(("q_proj", "k_proj", "v_proj"), width**-0.5)
    stds |= {"out_proj": (2 * layers * width) ** -0.5, "fc1": (2 * width) ** -0.5, "fc2": (2 * layers * width) ** -0.5}
    for name, module in model.text.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=stds[name.rpartition(".")[2]])
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.projection.weight, std=width**-0.5)


def contrast(images: Tensor, texts: Tensor, known: Tensor, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """This process's share of the loss, whose mean over processes is the loss of the whole batch, and its metrics.

    images (b, d), texts (b, 1 + k, d) with the true caption first, known (b, 1 + k) bool, scale (). Each picture is
    compared with all captions of all processes, each true caption with all pictures.
    """
    rows = known.shape[1]
    own = torch.arange(len(images), device=images.device) + (len(images) * dist.get_rank() if _parallel() else 0)
    to_texts = scale * images @ gather(texts).flatten(0, 1).T  # (b, B (1 + k))
    to_texts = to_texts.masked_fill(gather(known.float()).flatten() == 0, -math.inf)
    to_images = scale * texts[:, 0] @ gather(images).T  # (b, B)
    loss = (F.cross_entropy(to_texts, own * rows) + F.cross_entropy(to_images, own)) / 2
    with torch.no_grad():
        accuracy = (to_texts.argmax(dim=1) == own * rows).float().mean()
        near = (texts @ images.unsqueeze(-1)).squeeze(-1).masked_fill(~known, -math.inf)  # (b, 1 + k)
        counts = known[:, 1:].any(dim=1)
        hard = ((near.argmax(dim=1) == 0) & counts).sum() / counts.sum().clamp(min=1)
    return loss, {"accuracy": accuracy, "hard": hard}


def gather(x: Tensor) -> Tensor:
    """(b, ...) of every process, one after the other -> (processes * b, ...), with gradients back to each of them."""
    return _Gather.apply(x) if _parallel() else x  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """All processes use each process's part, so that its gradient is the sum of what all of them send back."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
