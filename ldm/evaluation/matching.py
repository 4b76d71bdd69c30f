"""How well a picture shows a noun at one place: pixel by pixel, so that what hides a part costs only that part."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.data.emoji_scenes.atlas import glyphs
from ldm.data.emoji_scenes.scene import Box, ink_box
from ldm.evaluation.bank import RING, template

TOLERANCE = (0.05, 0.10)  # least and largest difference of colours, in 0..1, from which on a pixel hardly agrees
STRICT = 0.4  # that difference as a share of the contrast: green on grass is told by less than red on white
SPILL = 0.6  # weight of the pixels around the ink that look as if it went on
NORMAL = 36  # pixels: the side of the ink whose score stays as it is
FLAT = 0.4  # weight of the agreement that one even colour reaches: only structure and outline are evidence
LARGE = 0.2  # how much more a large match says than a small one: a power of its side
REACH = 4  # further steps of the local search at most


@dataclass(frozen=True, slots=True)
class Match:
    """A noun in a tint whose cell has its left, top and side at whole pixels.

    score: how well it fits, at most 1; ink: the same without regard to what is around it.
    """

    noun: str
    tint: str
    x: int
    y: int
    side: int
    score: float
    ink: float = 0.0

    def box(self, size: int) -> Box:
        """The ink's extent in units of the picture's side."""
        return ink_box(self.x / size, self.y / size, self.side / size, glyphs()[self.noun].ink)


class Matcher:
    """A smoothed picture, (3, s, s) in 0..1."""

    def __init__(self, smoothed: Tensor, margin: int = 40) -> None:
        self.size, self.margin = smoothed.shape[-1], margin
        self.image = F.pad(smoothed[None], (margin,) * 4, mode="replicate")[0]

    def near(self, at: Match, step: int = 1, thin: int = 1) -> Match:
        """The best of nine places: a cell, and its neighbours `step` pixels away.

        thin: look at every so many pixels only.
        """
        scores, inks = self._agreement(at, step, thin)
        value, place = scores.max(0)
        j, i = divmod(int(place), 3)
        x, y = at.x + (i - 1) * step, at.y + (j - 1) * step
        return replace(at, x=x, y=y, score=float(value), ink=float(inks[place]))

    def _agreement(self, at: Match, step: int, thin: int) -> Tensor:
        """Scores with and without the surroundings of nine places, (2, 9), row by row."""
        glyph = template(at.noun, at.side, at.tint)
        h, w = glyph.clear.shape
        left, top = at.x + glyph.left + self.margin - step, at.y + glyph.top + self.margin - step
        far = self.image.shape[-1]
        if left < 0 or top < 0 or left + w + 2 * step > far or top + h + 2 * step > far:
            return torch.full((2, 9), -1.0)
        rest = self.image[:, top:, left:]
        c, v, u = rest.stride()
        shape = (3, 3, 3, -(-h // thin), -(-w // thin))
        windows = rest.as_strided(shape, (v * step, u * step, c, v * thin, u * thin), rest.storage_offset())
        parts = (glyph.ink, glyph.clear, glyph.beyond, glyph.inside, glyph.outside)
        scores = _score(windows.reshape(9, *shape[2:]), *(part[..., ::thin, ::thin] for part in parts))
        area = (h - 2 * RING[1]) * (w - 2 * RING[1])
        return scores * float((area**0.5 / NORMAL) ** LARGE)

    def best(self, start: Match) -> Match:
        """The best place near a cell: a coarse step, then single pixels until nothing improves."""
        spread = max(1, round(0.05 * start.side))
        found = self._around(start, (start.side - spread, start.side, start.side + spread), 2)
        for _ in range(REACH):
            better = self._around(found, (found.side - 1, found.side, found.side + 1), 1)
            if better.score <= found.score:
                break
            found = better
        return found

    def _around(self, start: Match, sides: Iterable[int], step: int) -> Match:
        """The best of nine places and some sides about one middle."""
        found = replace(start, score=-2.0)
        for side in sides:
            shift = (start.side - side) // 2
            at = self.near(replace(start, x=start.x + shift, y=start.y + shift, side=side), step)
            found = at if at.score > found.score else found
        return found


def _score(windows: Tensor, ink: Tensor, clear: Tensor, beyond: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """(n, 3, h, w) -> (2, n): agreement of the ink over the colour around it, less what says nothing for the noun.

    That is FLAT times the agreement that the ink's mean colour reaches, and, in the first row, SPILL times that of the
    pixels around it with ink that went on.
    """
    inside, outside = inside / inside.sum(), outside / outside.sum().clamp_min(1e-6)
    flat = windows.flatten(2)
    around, mean = (flat @ weight.flatten() for weight in (outside, inside))  # (n, 3)
    expected = ink + clear * around[..., None, None]
    tolerance = (STRICT * _contrast(ink, 1 - clear, inside, around)).clamp(*TOLERANCE)[:, None]
    agree = _agree(windows, expected, tolerance) @ inside.flatten()
    even = _agree(windows, mean[..., None, None], tolerance) @ inside.flatten()
    spilt = _agree(windows, beyond, tolerance) @ outside.flatten()
    fit = agree - FLAT * even
    return torch.stack([fit - SPILL * spilt, fit])


def _contrast(ink: Tensor, solid: Tensor, weights: Tensor, around: Tensor) -> Tensor:
    """(n, 3) -> (n,): root mean square of ink - solid around, by which the ink differs from the colour around it."""
    square, cross, rest = ((part * weights).sum((-2, -1)) for part in (ink**2, ink * solid, solid**2))
    return (square - 2 * cross * around + rest * around**2).mean(1).clamp_min(0).sqrt()


def _agree(windows: Tensor, expected: Tensor, tolerance: Tensor) -> Tensor:
    """(n, h w) in 0..1: 1 where the colours are the same; tolerance (n, 1)."""
    difference = (windows - expected).square_().sum(1).flatten(1)
    return difference.mul_(-1 / (6 * tolerance**2)).exp_()
