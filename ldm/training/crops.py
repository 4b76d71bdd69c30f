"""Pieces of pictures, and what is to be seen in them."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.rendering import render
from ldm.data.emoji_scenes.scene import Box, Scene
from vae.pixels import from_pil

SEEN = 0.5  # least share of a thing's box inside the crop for it to count as seen
_AIMED = 0.85  # share of crops that are laid over a thing; the others lie anywhere


def window(scene: Scene, size: int, crop: int, draw: Keyed) -> tuple[int, int]:
    """Left and top edge, in pixels, of a crop of a picture of side `size`: mostly over one of the things."""
    aimed, thing = draw.chance(_AIMED), draw.pick(scene.objects)
    x0, y0, x1, y1 = thing.box
    middle = (draw.between(x0, x1), draw.between(y0, y1)) if aimed else (draw.unit(), draw.unit())
    left, top = (min(max(round(at * size - crop / 2), 0), size - crop) for at in middle)
    return left, top


def cut(scene: Scene, size: int, crop: int, draw: Keyed) -> tuple[Tensor, tuple[int, int]]:
    """The picture's crop, (3, crop, crop) in [-1, 1], with its left and top edge."""
    left, top = window(scene, size, crop, draw)
    piece = render(scene, size).crop((left, top, left + crop, top + crop))
    return from_pil([piece])[0], (left, top)


def seen(box: Box, size: int, crop: int, corner: tuple[int, int]) -> bool:
    """Whether enough of a box (in units of the picture) lies in the crop."""
    left, top = corner
    x0, y0, x1, y1 = (side * size for side in box)
    width = min(x1, left + crop) - max(x0, left)
    height = min(y1, top + crop) - max(y0, top)
    return max(width, 0) * max(height, 0) >= SEEN * (x1 - x0) * (y1 - y0)


def multi_hot(names: set[str], among: tuple[str, ...]) -> Tensor:
    """(len(among),) float32 with ones where the name is in the set."""
    return torch.tensor([float(name in names) for name in among])
