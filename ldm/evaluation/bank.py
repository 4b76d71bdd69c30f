"""Glyph templates: what each noun of a world looks like at every size, in its own colours and in every tint."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.data.emoji_scenes.atlas import glyphs, pictures
from ldm.data.emoji_scenes.vocabulary import COLOURS

LUMA = (0.299, 0.587, 0.114)
BLUR = 0.8  # pixels, of picture and template alike: what an autoencoder smooths then hardly matters
FAR_BLUR = 2.5  # pixels, of the colour that continues beyond the ink: it must reach the ring
RING = (2, 4)  # pixels outside of the ink between which a thing must end


@dataclass(frozen=True, eq=False)
class Template:
    """A smoothed glyph in one tint and size, cropped to its ink and widened by RING[1] on every side, values in 0..1.

    ink (3, h, w): colour times opacity; clear (h, w): 1 - opacity; beyond (3, h, w): the colour continued past the
    ink; inside, outside (h, w): weights that add up to 1; left, top: from the corner of the glyph's cell to the
    template's, in pixels.
    """

    ink: Tensor
    clear: Tensor
    beyond: Tensor
    inside: Tensor
    outside: Tensor
    left: int
    top: int


def tint_ends(tint: str) -> tuple[Tensor, Tensor]:
    """What the darkest and the lightest grey become, (3, 1, 1) in 0..1."""
    dark, light = (torch.tensor(end, dtype=torch.float32).view(3, 1, 1) / 255 for end in COLOURS[tint])
    return dark, light


@lru_cache(maxsize=1024)
def template(noun: str, side: int, tint: str = "") -> Template:
    """The template of a noun whose cell has this side in pixels, in a colour of the vocabulary ("": its own)."""
    colour, alpha = cut(noun, side)
    rows, columns = (alpha > 0.03).any(1).nonzero(), (alpha > 0.03).any(0).nonzero()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    pad = RING[1]
    alpha = F.pad(alpha[top:bottom, left:right], (pad,) * 4)
    colour = F.pad(colour[:, top:bottom, left:right], (pad,) * 4)
    if tint:
        dark, light = tint_ends(tint)
        colour = dark + (light - dark) * luminance(colour)
    layers = torch.cat([colour * alpha, alpha[None]])
    near, far = smooth(layers, BLUR), smooth(layers, FAR_BLUR)
    soft, outside = near[3], _ring(alpha)
    weights = (soft / soft.sum(), outside / outside.sum())
    return Template(near[:3], 1 - soft, _extended(near, far), *weights, left - pad, top - pad)


def luminance(colour: Tensor) -> Tensor:
    """(3, h, w) -> (1, h, w)."""
    return (colour * colour.new_tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)


@lru_cache(maxsize=2048)
def cut(noun: str, side: int) -> tuple[Tensor, Tensor]:
    """Colours (3, s, s) and opacity (s, s) of a noun's cell at this side, in 0..1, reduced as the renderer does."""
    picture = pictures()[glyphs()[noun].number].resize((side, side), Image.Resampling.BILINEAR)
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(side, side, 4).permute(2, 0, 1)
    return values[:3].float() / 255, values[3].float() / 255


def smooth(image: Tensor, sigma: float) -> Tensor:
    """(..., h, w) under a Gaussian of sigma pixels; edges continue."""
    return _gaussian(image.shape[-2], sigma) @ image @ _gaussian(image.shape[-1], sigma).T


@lru_cache(maxsize=512)
def _gaussian(n: int, sigma: float) -> Tensor:
    """The filter along one side of n pixels as a matrix: quicker than a convolution for so many small sizes."""
    reach = max(1, round(3 * sigma))
    steps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(steps.float() ** 2) / (2 * sigma**2))
    rows = torch.arange(n)[:, None].expand(n, len(steps))
    columns = (rows + steps).clamp(0, n - 1)
    return torch.zeros(n, n).index_put_((rows, columns), (weights / weights.sum()).expand(n, -1), accumulate=True)


def _ring(alpha: Tensor) -> Tensor:
    """(h, w) -> (h, w): 1 where the nearest ink is between both of RING away."""
    solid = (alpha > 0.1).float()[None, None]
    near = F.max_pool2d(solid, 2 * RING[0] + 1, 1, RING[0])
    rest = RING[1] - RING[0]
    return (F.max_pool2d(near, 2 * rest + 1, 1, rest) - near)[0, 0]


def _extended(near: Tensor, far: Tensor) -> Tensor:
    """(4, h, w) -> (3, h, w): the ink's colour, smoothed a little; beyond the ink a continuation, smoothed widely."""
    known = (near[3] / 0.1).clamp(0, 1)
    return known * near[:3] / near[3].clamp_min(1e-6) + (1 - known) * far[:3] / far[3].clamp_min(1e-6)
