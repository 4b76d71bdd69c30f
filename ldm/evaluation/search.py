"""Where in a picture a noun might be: a coarse search over all places, sizes and tints by fast Fourier transform.

A window is explained as I = a T + (1 - a) b over the glyph's ink and a ring around it: T its colours, a its opacity, b
the best even colour, by least squares in closed form. The score is the share of the window's variance that this
explains, more for large windows. A second score looks at the ink alone, for what lies before something colourful.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.data.emoji_scenes.atlas import glyphs
from ldm.evaluation.bank import cut, luminance, tint_ends

GRID = 64  # side of the reduced picture
SIDES = (6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 19, 21, 23, 26, 29, 32, 36, 40, 45, 50, 56)  # of a cell on that grid
PAD = 8  # rows and columns of repeated edge, so that a thing at one edge does not see the other one
SPAN = GRID + 2 * PAD
MARGIN = 2  # rows and columns around a kernel's cell, for the ring
NOISE = 0.05**2  # variance that needs no explanation: flat pictures explain nothing
LARGE = 0.4  # how much more a large window says: a power of its pixels
NORMAL = 400  # pixels of a window whose score is the share itself
LEAST = 0.1  # score of a place worth a closer look
UPPER = 0.5  # share of the ink's height that the upper part is: what a held thing does not hide


@dataclass(frozen=True, slots=True)
class Candidate:
    """A noun that may be here: its cell's left, top and side in units of the picture's side, and how well it fits."""

    noun: str
    tint: str
    x: float
    y: float
    side: float
    score: float


@dataclass(frozen=True, eq=False)
class _Kernels:
    """What is correlated with a picture for one noun, and the norms that the closed form needs, for each of SIDES.

    spectra (sides, 7, SPAN, SPAN / 2 + 1): ring and ink; what is clear of it; colours times opacity (3); the same of
    the grey; opacity. Norms (sides, 1, 1) each: pixels, opacity, clear^2. own and grey: see `_Colours`.
    """

    spectra: Tensor
    pixels: Tensor
    ink: Tensor
    clear: Tensor
    own: "_Colours"
    grey: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    corners: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, eq=False)
class _Colours:
    """Of a coloured glyph a T: sums of its square, of a T^2 (sides, 1, 1) and of (1 - a) a T (sides, 3, 1, 1)."""

    square: Tensor
    within: Tensor
    behind: Tensor


class Searcher:
    """A picture, (3, s, s) in 0..1, prepared to be searched for nouns."""

    def __init__(self, image: Tensor) -> None:
        small = F.interpolate(image[None], (GRID, GRID), mode="area")
        wide = F.pad(small, (PAD,) * 4, mode="replicate")[0]
        self.spectrum = torch.fft.rfft2(torch.cat([wide, (wide**2).sum(0, keepdim=True)]))

    def find(self, noun: str, tints: Sequence[str], best: int = 8, *, upper: bool = False) -> list[Candidate]:
        """Places where a noun may be, each in its two best tints; upper: by its upper part alone."""
        kernels = _kernels(noun, upper)
        found: list[Candidate] = []
        for scores in _maps(self.spectrum, kernels, tints).unbind(1):
            found += _peaks(noun, tints, _within(scores, kernels), best)
        return found


def _maps(picture: Tensor, kernels: _Kernels, tints: Sequence[str]) -> Tensor:
    """Both scores of every place, (tints, 2, sides, SPAN, SPAN)."""
    colours, squares = picture[:3], picture[3:]
    ring, clear, own, grey, alpha = torch.split(kernels.spectra.conj(), [1, 1, 3, 1, 1], 1)
    products = (squares * ring, squares * alpha, (colours * own).sum(1, keepdim=True), colours * ring)
    maps = torch.fft.irfft2(torch.cat([*products, colours * clear, colours * grey], 1), s=(SPAN, SPAN))
    energy, inner, match, total, behind, shaded = torch.split(maps, [1, 1, 1, 3, 3, 3], 1)
    energy, inner, match = energy[:, 0], inner[:, 0], match[:, 0]
    even = energy - (total**2).sum(1) / kernels.pixels
    even_ink = inner - ((total - behind) ** 2).sum(1) / kernels.ink
    scores = []
    for tint in tints:
        if tint:
            dark, light = (end[None] for end in tint_ends(tint))
            colour = _tinted(kernels, dark, light)
            fit = (dark * (total - behind) + (light - dark) * shaded).sum(1)
        else:
            colour, fit = kernels.own, match
        left = energy - 2 * fit + colour.square - ((behind - colour.behind) ** 2).sum(1) / kernels.clear
        left_ink = inner - 2 * fit + colour.within
        scores.append(torch.stack([_share(left, even, kernels.pixels), _share(left_ink, even_ink, kernels.ink)]))
    return torch.stack(scores) * (kernels.pixels / NORMAL) ** LARGE


def _share(left: Tensor, even: Tensor, pixels: Tensor) -> Tensor:
    """The explained share of the variance."""
    return 1 - (left.clamp_min(0) + NOISE * pixels) / (even.clamp_min(0) + 2 * NOISE * pixels)


def _tinted(kernels: _Kernels, dark: Tensor, light: Tensor) -> _Colours:
    """The sums of a glyph whose grey g has become dark + (light - dark) g; the ends are (1, 3, 1, 1)."""
    ink, shade, shade2, cross, rest = kernels.grey
    step = light - dark
    one, two, three = (dark**2).sum(), (2 * dark * step).sum(), (step**2).sum()
    square = one * rest[:, 0] + two * rest[:, 1] + three * rest[:, 2]
    within = one * ink + two * shade + three * shade2
    return _Colours(square, within, dark * cross[:, :1] + step * cross[:, 1:])


def _within(scores: Tensor, kernels: _Kernels) -> Tensor:
    """The scores of places whose ink is in the picture, or one cell out of it; others become -1."""
    places = torch.arange(SPAN)
    corners = torch.tensor(kernels.corners)[..., None]  # (sides, 4, 1), from the kernel's own corner
    across = (places + corners[:, 0] >= PAD - 1) & (places + corners[:, 2] <= PAD + GRID + 1)
    down = (places + corners[:, 1] >= PAD - 1) & (places + corners[:, 3] <= PAD + GRID + 1)
    return torch.where(down[:, :, None] & across[:, None, :], scores, scores.new_tensor(-1.0))


def _peaks(noun: str, tints: Sequence[str], scores: Tensor, best: int) -> list[Candidate]:
    """(tints, sides, SPAN, SPAN): the best places, one of each neighbourhood, in their two best tints."""
    top = scores.amax(0)
    found: list[Candidate] = []
    for _ in range(best):
        place = int(top.argmax())
        number, v, u = place // SPAN**2, place // SPAN % SPAN, place % SPAN
        if top[number, v, u] < LEAST:
            break
        side = SIDES[number]
        values, which = scores[:, number, v, u].topk(min(2, len(tints)))
        x, y = (u - PAD + MARGIN) / GRID, (v - PAD + MARGIN) / GRID
        for value, one in zip(values.tolist(), which.tolist(), strict=True):
            found.append(Candidate(noun, tints[one], x, y, side / GRID, value))
        _silence(top, u + side / 2, v + side / 2, side)
    return found


def _silence(scores: Tensor, x: float, y: float, side: int) -> None:
    """Removes places of every size whose cells have nearly the same middle."""
    for number, other in enumerate(SIDES):
        reach = max(1, round(0.3 * min(side, other)))
        u, v = round(x - other / 2), round(y - other / 2)
        scores[number, max(v - reach, 0) : max(v + reach + 1, 0), max(u - reach, 0) : max(u + reach + 1, 0)] = -1


@lru_cache(maxsize=64)
def _kernels(noun: str, upper: bool) -> _Kernels:
    """Everything about a noun that does not depend on the picture."""
    x0, y0, x1, y1 = glyphs()[noun].ink
    layers = torch.stack([_layers(noun, side, y0 + UPPER * (y1 - y0) if upper else 1.0) for side in SIDES])
    ring, clear, own, shade, alpha = torch.split(layers, [1, 1, 3, 1, 1], 1)
    solid = alpha.clamp_min(1e-6)
    rest = torch.stack([_sum(alpha**2), _sum(alpha * shade), _sum(shade**2)], 1)
    cross = torch.stack([_sum(alpha * clear), _sum(shade * clear)], 1)
    behind = (own * clear).sum((2, 3))[..., None, None]
    return _Kernels(
        torch.fft.rfft2(layers),
        _sum(ring),
        _sum(alpha),
        _sum(clear**2).clamp_min(1e-3),
        _Colours(_sum(own**2), _sum(own**2 / solid), behind),
        (_sum(alpha), _sum(shade), _sum(shade**2 / solid), cross, rest),
        tuple(tuple(round(side * edge) + MARGIN for edge in (x0, y0, x1, y1)) for side in SIDES),  # type: ignore[misc]
    )


def _layers(noun: str, side: int, until: float) -> Tensor:
    """The kernels of one size, (7, SPAN, SPAN); `until`: the height of the cell from which on nothing counts."""
    colour, alpha = (F.pad(layer, (MARGIN,) * 4) for layer in cut(noun, side))
    alpha[MARGIN + round(side * until) :] = 0
    ring = F.max_pool2d((alpha > 0.1).float()[None], 3, 1, 1)[0]
    ring[MARGIN + round(side * until) :] = 0
    own = alpha * ring * colour
    parts = torch.stack([ring, ring * (1 - alpha), *own, *luminance(own), alpha * ring])
    return F.pad(parts, (0, SPAN - parts.shape[2], 0, SPAN - parts.shape[1]))


def _sum(values: Tensor) -> Tensor:
    """(sides, k, SPAN, SPAN) -> (sides, 1, 1), over everything else."""
    return values.sum((1, 2, 3))[:, None, None]
