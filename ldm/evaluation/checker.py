"""Looks at a picture and says whether it shows what a caption says. No weights: glyph templates and geometry.

Glyphs are found by template matching at all places, sizes and tints (`search`), compared pixel by pixel (`matching`),
and must look more like the noun than like any other noun of the world. Colours, counts and relations follow from what
was found by the definitions that the scenes are drawn with (`verdict`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.data.emoji_scenes.atlas import glyphs
from ldm.data.emoji_scenes.geometry import overlap
from ldm.data.emoji_scenes.plan import Plan
from ldm.data.emoji_scenes.scene import Box
from ldm.data.emoji_scenes.world import FULL, World
from ldm.evaluation.bank import BLUR, cut, smooth
from ldm.evaluation.matching import Match, Matcher
from ldm.evaluation.search import Candidate, Searcher
from ldm.evaluation.verdict import Verdict, judge
from vae.pixels import from_pil

ACCEPTED = 0.34  # score from which on a noun is there, if no other noun is more likely
SURE = 0.5  # score from which on a noun is there in another colour than the caption says
HOPELESS = 0.1  # score of a first look that is not worth a second one
LOOKED_AT = 10  # candidates whose place is refined
FURTHER = 0.30  # score of a further one of a kind
APART = 0.35  # share of the smaller box by which two of a kind may overlap
WITHIN = 0.5  # share of its box by which a part of another thing lies in that one
ALIKE = 0.6  # least size of a further one of a kind, of the best one's
RIVALS = 10  # most similar nouns that a find is compared with
CLOSE = 0.15  # a rival that fits no worse than this is looked at again
LEAD = 0.02  # by how much a rival's ink must fit better to be believed
BENEFIT = 0.09  # what a score may lack if
CLEAR = 0.15  # every rival is this far below: low contrast costs all of them alike


@dataclass(frozen=True, slots=True)
class Detection:
    """A thing found: box of its whole ink, as if nothing lay before it, in units of the picture's side; colour "" = the
    glyph's own; score: how well it fits, about 0.4 to 0.8."""

    noun: str
    box: Box
    score: float
    colour: str = ""


class Checker:
    """Checks pictures of one world, brought to `size` x `size` pixels.

    Only pictures of the style "flat" without words on signs can be judged; a plan of another kind is a ValueError.
    """

    def __init__(self, size: int = 128, world: World | None = None) -> None:
        if size < 64:
            raise ValueError(f"A checker cannot tell glyphs apart at {size} pixels: use 64 or more, best 128.")
        self.size, self.world = size, world or FULL
        self.tints = ("", *self.world.colours)

    def detect(self, image: Tensor | Image.Image, nouns: Sequence[str] | None = None) -> list[Detection]:
        """The things in a picture, (3, h, w) or (1, 3, h, w) in [-1, 1] or PIL; by default of all nouns there are."""
        wanted = self.world.nouns if nouns is None else nouns
        return self._seen(image, dict.fromkeys(wanted, ""))

    def check(self, image: Tensor | Image.Image, plan: Plan) -> Verdict:
        """Whether a picture shows a plan. Raises ValueError for a plan that this checker cannot judge."""
        self.require(plan)
        return judge(self._seen(image, {thing.noun: thing.colour for thing in plan.things}), plan)

    def require(self, plan: Plan) -> None:
        """Raises ValueError where a verdict would be a guess."""
        if plan.style != "flat":
            raise ValueError(f'The checker cannot judge the style {plan.style!r}: use scenes of the style "flat".')
        for thing in plan.things:
            if thing.word:
                raise ValueError(f"The checker cannot read the word {thing.word!r}: leave out scenes with signs.")
            if thing.noun not in self.world.nouns:
                raise ValueError(f"The checker's world has no {thing.noun!r}: make it with a world that has.")
            if thing.colour not in self.tints:
                raise ValueError(f"The checker's world has no colour {thing.colour!r}: make it with a world that has.")

    def _pixels(self, image: Tensor | Image.Image) -> Tensor:
        """(3, size, size) in 0..1."""
        pixels = from_pil([image]) if isinstance(image, Image.Image) else image.reshape(-1, *image.shape[-3:])
        if pixels.shape[:2] != (1, 3):
            raise ValueError(f"One picture (3, h, w) is checked at a time, got the shape {tuple(pixels.shape)}.")
        unit = (pixels.detach().float().cpu().clamp(-1, 1) + 1) / 2
        if unit.shape[-2:] != (self.size, self.size):
            unit = F.interpolate(unit, (self.size, self.size), mode="bilinear", antialias=True)
        return unit[0]

    @torch.no_grad()
    def _seen(self, image: Tensor | Image.Image, expected: Mapping[str, str]) -> list[Detection]:
        """What is found of nouns in the colours they are expected in; in others what is sure."""
        picture = _Picture(self._pixels(image))
        found = [self._find(picture, noun, colour) for noun, colour in expected.items()]
        firsts = [matches[0] for matches in found if matches]
        kept = [one for matches in found for one in matches if one in firsts or not self._part(one, firsts)]
        return [Detection(match.noun, self._box(match), match.score, match.tint) for match in kept]

    def _find(self, picture: "_Picture", noun: str, expected: str) -> list[Match]:
        """The places of a noun, best first."""
        kept: list[Match] = []
        for match in picture.matches(noun, self.tints):
            least, benefit = _least(match, kept, expected)
            if match.score >= least - benefit and self._apart(match, kept) and self._stands(picture, match, least):
                kept.append(match)
        return kept

    def _part(self, match: Match, firsts: Sequence[Match]) -> bool:
        """Whether a further one of a kind is rather a part of another thing that was found."""
        others = (one for one in firsts if one.noun != match.noun and one.score > match.score)
        return any(overlap(self._box(match), self._box(one)) > WITHIN for one in others)

    def _apart(self, match: Match, kept: Sequence[Match]) -> bool:
        """Whether a match is another copy than those kept, and like them in size."""
        alike = not kept or match.side >= ALIKE * kept[0].side
        return alike and all(overlap(self._box(match), self._box(one)) <= APART for one in kept)

    def _stands(self, picture: "_Picture", match: Match, least: float) -> bool:
        """Whether no other noun of the world fits better in the same place; far below it if the score is too low."""
        clear = match.score - (0.0 if match.score >= least else CLEAR)
        for rival in rivals(match.noun, self.world.nouns):
            for tint in dict.fromkeys(("", match.tint)):
                other = picture.matcher.near(stand_in(match, rival, tint), 2)
                if other.score > match.score - CLOSE:
                    other = picture.matcher.best(other)
                if other.score > clear and (other.ink > match.ink + LEAD or clear < match.score):
                    return False
        return True

    def _box(self, match: Match) -> Box:
        return match.box(self.size)


class _Picture:
    """One picture prepared for both kinds of looking; (3, s, s) in 0..1."""

    def __init__(self, pixels: Tensor) -> None:
        self.size = pixels.shape[-1]
        self.searcher, self.matcher = Searcher(pixels), Matcher(smooth(pixels, BLUR))

    def matches(self, noun: str, tints: Sequence[str]) -> list[Match]:
        """Refined places of a noun, best first; one place may come in two tints."""
        places = (self.searcher.find(noun, tints, upper=upper) for upper in (False, True))
        starts = [self._screened(one) for some in places for one in some]
        chosen: list[Match] = []
        for start in sorted(starts, key=_order):
            if start.score > HOPELESS and not any(_same(start, one) for one in chosen):
                chosen.append(start)
        return sorted((self.matcher.best(start) for start in chosen[:LOOKED_AT]), key=_order)

    def _screened(self, one: Candidate) -> Match:
        """A quick look at nine places and every second pixel."""
        side = max(4, round(one.side * self.size))
        start = Match(one.noun, one.tint, round(one.x * self.size), round(one.y * self.size), side, 0.0)
        return replace(start, score=self.matcher.near(start, 2, thin=2).score)


def _least(match: Match, kept: Sequence[Match], expected: str) -> tuple[float, float]:
    """The score a match needs, and what it may lack where contrast is low.

    Copies of a kind come in one colour; a part of another glyph looks like anything in some colour.
    """
    if match.tint != (kept[0].tint if kept else expected):
        return SURE, 0.0
    return (FURTHER, 0.0) if kept else (ACCEPTED, BENEFIT)


def _same(a: Match, b: Match) -> bool:
    """Whether two starts in one tint lead to one place."""
    near = max(abs(2 * (a.x - b.x) + a.side - b.side), abs(2 * (a.y - b.y) + a.side - b.side)) <= 0.2 * b.side
    return a.tint == b.tint and near and abs(a.side - b.side) <= 0.2 * b.side


def _order(match: Match) -> float:
    return -match.score


def stand_in(match: Match, noun: str, tint: str) -> Match:
    """Another noun whose ink has the same middle and about the same area."""
    x0, y0, x1, y1 = glyphs()[match.noun].ink
    u0, v0, u1, v1 = glyphs()[noun].ink
    side = max(4, round(match.side * ((x1 - x0) * (y1 - y0) / ((u1 - u0) * (v1 - v0))) ** 0.5))
    x = match.x + match.side * (x0 + x1) / 2 - side * (u0 + u1) / 2
    y = match.y + match.side * (y0 + y1) / 2 - side * (v0 + v1) / 2
    return Match(noun, tint, round(x), round(y), side, 0.0)


@lru_cache(maxsize=512)
def rivals(noun: str, among: tuple[str, ...]) -> tuple[str, ...]:
    """The nouns that look most like one, by how well they fit on its own picture."""
    side, frame = 40, 128
    colour, alpha = cut(noun, side)
    place = F.pad(alpha[None], (44,) * 4)
    image = F.pad(colour * alpha, (44,) * 4) + (1 - place) * 0.8
    matcher = Matcher(smooth(image[:, :frame, :frame], BLUR))
    at = Match(noun, "", 44, 44, side, 1.0)
    scores = {other: matcher.near(stand_in(at, other, ""), 2).score for other in among if other != noun}
    return tuple(sorted(scores, key=lambda other: -scores[other])[:RIVALS])
