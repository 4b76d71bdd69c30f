"""Token merging for diffusion (Bolya and Hoffman 2023, arXiv:2303.17604): self-attention runs among fewer tokens, of
which each stands for several that are alike."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet import UNet
from unet.attention import Attention, TransformerBlock
from unet.unet import Block

MOST = 0.75  # of the tokens: one in each window of 2 x 2 stays


def merge_tokens(twin: UNet, share: float) -> None:
    """Has the self-attentions of the finest level that has any do without this share of their tokens.

    Raises ValueError where a network has none.
    """
    for level in zip(twin.down_blocks, reversed(twin.up_blocks), strict=True):
        found = [_merge_in(block, share) for block in level if isinstance(block, Block)]
        if any(found):
            return
    raise ValueError("this U-Net has no self-attention on its levels: leave merge_tokens out")


def _merge_in(level: Block, share: float) -> bool:
    """Whether there is any self-attention."""
    blocks = [module for module in level.modules() if isinstance(module, TransformerBlock) and not module.only_cross]
    for block in blocks:
        block.attn1 = Merging(block.attn1, share)  # type: ignore[assignment]
    level.attentions = nn.ModuleList(map(Sized, level.attentions))
    return bool(blocks)


class Sized(nn.Module):
    """A transformer whose attentions know the height and the width of the picture that their tokens make up."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        for module in self.transformer.modules():
            if isinstance(module, Merging):
                module.size = (x.shape[2], x.shape[3])
        out: Tensor = self.transformer(x, context, mask)
        return out


class Merging(nn.Module):
    """Self-attention among merged tokens: x (b, h * w, d) -> (b, h * w, d)."""

    def __init__(self, attention: Attention, share: float) -> None:
        super().__init__()
        self.attention, self.share = attention, share
        self.size = (1, 1)  # of the picture
        self._places: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        key = (*self.size, x.device)
        if key not in self._places:
            self._places[key] = places(*self.size, x.device)
        groups, count = grouped(x, *self._places[key], self.share)
        y = merged(x, groups, count)
        return unmerged(self.attention(y, y, mask), groups)


def places(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of h * w tokens the places of those that stay, one of each window of 2 x 2, and of the others.

    Which one of a window is drawn, since a regular pattern shows; the same for all pictures and steps, so that a
    picture depends on its seed alone. Windows at the edge of odd sizes are smaller.
    """
    rows, columns = -(-h // 2), -(-w // 2)
    down, right = torch.randint(2, (2, rows, columns), generator=torch.Generator().manual_seed(0))
    y = (2 * torch.arange(rows)[:, None] + down).clamp(max=h - 1)  # (rows, columns)
    x = (2 * torch.arange(columns) + right).clamp(max=w - 1)
    others = torch.ones(h, w, dtype=torch.bool)
    others[y, x] = False
    return (y * w + x).flatten().to(device), others.flatten().nonzero().flatten().to(device)


def grouped(x: Tensor, stay: Tensor, others: Tensor, share: float) -> tuple[Tensor, int]:
    """The group of each token of x (b, n, d), as (b, n), and how many groups each picture has.

    Bipartite soft matching: of the other tokens, those join their nearest that stays, by cosine, who are nearest to
    theirs: `share` of all n, as far as there are so many. The rest stay alone.
    """
    b, n, _ = x.shape
    unit = F.normalize(x, dim=-1)
    likeness = unit[:, others] @ unit[:, stay].transpose(1, 2)  # (b, others, stay)
    best, group = likeness.max(dim=-1)  # (b, others)
    joining = min(int(share * n), len(others))
    alone = best.argsort(dim=1, descending=True, stable=True)[:, joining:]
    count = n - joining
    own = torch.arange(len(stay), count, device=x.device).expand(b, -1)
    groups = group.new_empty(b, n)
    groups[:, stay] = torch.arange(len(stay), device=x.device)
    groups[:, others] = group.scatter(1, alone, own)
    return groups, count


def merged(x: Tensor, groups: Tensor, count: int) -> Tensor:
    """The mean of each group: x (b, n, d), groups (b, n) -> (b, count, d). On CUDA, the same to rounding each time."""
    b, _, d = x.shape
    place = (groups + count * torch.arange(b, device=x.device)[:, None]).flatten()  # (b * n,)
    values = x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))  # CUDA would add up in half precision
    total = values.new_zeros(b * count, d).index_add_(0, place, values)
    size = values.new_zeros(b * count, 1).index_add_(0, place, values.new_ones(len(place), 1))
    return (total / size).to(x.dtype).view(b, count, d)


def unmerged(y: Tensor, groups: Tensor) -> Tensor:
    """To each token what its group has: y (b, count, d), groups (b, n) -> (b, n, d)."""
    b, count, d = y.shape
    place = (groups + count * torch.arange(b, device=y.device)[:, None]).flatten()
    return y.flatten(0, 1).index_select(0, place).view(b, -1, d)
