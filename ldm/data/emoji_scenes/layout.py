"""Where everything stands: a plan becomes sprites and objects. Each relation is one small function of geometry.

A group (a thing and all that touches it) is built in the hub's own units: its cell is the unit square at the origin.
Then groups are scaled to the picture and placed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ldm.data.emoji_scenes.atlas import glyphs
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.nouns import NOUNS
from ldm.data.emoji_scenes.plan import Link, Plan, Thing
from ldm.data.emoji_scenes.scene import Box, ink_box
from ldm.data.emoji_scenes.vocabulary import COLOURS, RGB

HELD = 0.56  # side of a held thing
HELD_SIGN = 0.85
PAW = 0.2
HAT = 1.12  # width of a hat, of the head's width
SUNK = {"army helmet": 0.44, "sun hat": 0.34}  # share of a hat's height that covers the head, else 0.26
MOUNT = 1.35
SEATED = 0.22  # share of a rider's height behind the mount's back
HEAP = {1: 0.62, 2: 0.46, 3: 0.33, 4: 0.26}  # side of each thing on a top of side 1
STANDING = 0.015  # how far things sink into the top they stand on
FILL = 0.78  # width of a thing inside, of the container's width
LETTER_BOX = (0.08, 0.24, 0.92, 0.60)
INK = ((10, 10, 20), (40, 40, 60))


@dataclass(frozen=True, slots=True)
class Piece:
    """A sprite that still knows its glyph by name. owner: (thing, copy); main: the owner's own picture."""

    glyph: str
    x: float
    y: float
    side: float
    owner: tuple[int, int]
    tint: tuple[RGB, RGB] | None = None
    main: bool = True

    @property
    def ink(self) -> Box:
        return ink_box(self.x, self.y, self.side, glyphs()[self.glyph].ink)

    def moved(self, scale: float, dx: float, dy: float) -> "Piece":
        """Scaled about the origin, then shifted."""
        return replace(self, x=self.x * scale + dx, y=self.y * scale + dy, side=self.side * scale)


Group = list[Piece]


def bounds(group: Group) -> Box:
    """The extent of all ink of a group."""
    boxes = [piece.ink for piece in group]
    return (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))


def build(plan: Plan, hub: int, draw: Keyed) -> Group:
    """The group around things[hub]: itself, then whatever its touching links add, from back to front."""
    group = [single(plan.things[hub], hub)] if plan.things[hub].count == 1 else heap(plan.things[hub], hub, draw)
    if plan.things[hub].word:
        group += letters(plan.things[hub].word, group[0])
    for link in plan.links:
        if link.subject == hub and link.relation in ATTACH:
            group = ATTACH[link.relation](group, plan, link)
    return group


def single(thing: Thing, number: int, copy: int = 0) -> Piece:
    """A thing alone in its unit cell."""
    return Piece(thing.noun, 0.0, 0.0, 1.0, (number, copy), COLOURS[thing.colour] if thing.colour else None)


def heap(thing: Thing, number: int, draw: Keyed) -> Group:
    """Copies in a row, a triangle or a square, never touching; cells at least 0.08 apart."""
    patterns = {2: ((0, 0), (1, 0)), 3: ((0, 0), (1, 0), (2, 0)), 4: ((0, 0), (1, 0), (0, 1), (1, 1))}
    spots: tuple[tuple[float, float], ...] = patterns[thing.count]
    if thing.count == 3 and draw.chance(0.6):
        spots = ((0.5, 0), (0, 1), (1, 1))
    piece, group = single(thing, number), []
    for copy, (column, row) in enumerate(spots):
        x, y = 1.14 * column + draw.between(-0.03, 0.03), 1.14 * row + draw.between(-0.03, 0.03)
        group.append(replace(piece, x=x, y=y, owner=(number, copy)))
    return group


def letters(word: str, sign: Piece) -> Group:
    """The word across the board of a sign, centred, as large as it fits."""
    x0, y0, x1, y1 = LETTER_BOX
    widths = [glyphs()[f"letter {letter}"].ink for letter in word]
    advance = [ink[2] - ink[0] + 0.10 for ink in widths]
    side = min((x1 - x0) / sum(advance), (y1 - y0) / 0.95)
    x, y = (x0 + x1 - side * sum(advance)) / 2, (y0 + y1) / 2 - side / 2
    group = []
    for letter, ink, step in zip(word, widths, advance, strict=True):
        at = Piece(f"letter {letter}", x + side * (0.05 - ink[0]), y, side, sign.owner, INK, main=False)
        group.append(at.moved(sign.side, sign.x, sign.y))
        x += side * step
    return group


def hold(group: Group, plan: Plan, link: Link) -> Group:
    """The thing before the body, its middle at the paw; paws in the body's colour grip it.

    A face has a paw at either side of the thing, a body seen from the side shows the near one.
    """
    holder, thing = group[0], plan.things[link.object]
    glyph = glyphs()[holder.glyph]
    assert glyph.paw
    assert glyph.coat
    ink = glyphs()[thing.noun].ink
    side = HELD_SIGN if thing.word else HELD
    x = glyph.paw[0] - side * (ink[0] + ink[2]) / 2
    y = glyph.paw[1] - side * (ink[1] + ink[3]) / 2
    item = single(thing, link.object).moved(side, x, y)
    added = [item] + (letters(thing.word, item) if thing.word else [])
    x0, y0, x1, y1 = item.ink
    reach = 0.06 * (x1 - x0)
    grips = (x1 - 0.25 * (x1 - x0),) if _sideways(holder) else (x0 + reach, x1 - reach)
    low = y0 + 0.55 * (y1 - y0)
    tint = holder.tint or _fur(glyph.coat)
    for grip in grips:
        added.append(Piece("paw", grip - PAW / 2, low - PAW / 2, PAW, holder.owner, tint, main=False))
    return group + added


def wear(group: Group, plan: Plan, link: Link) -> Group:
    """The hat as wide as the head, its lower quarter over the brow."""
    head, hat = glyphs()[group[0].glyph].head, plan.things[link.object]
    assert head
    ink = glyphs()[hat.noun].ink
    side = HAT * head[2] / (ink[2] - ink[0])
    x = head[0] - side * (ink[0] + ink[2]) / 2
    y = head[1] + SUNK.get(hat.noun, 0.26) * side * (ink[3] - ink[1]) - side * ink[3]
    return [*group, single(hat, link.object).moved(side, x, y)]


def ride(group: Group, plan: Plan, link: Link) -> Group:
    """The mount in front of the rider's lower end: legs disappear behind its back."""
    mount = plan.things[link.object]
    rider, glyph = group[0].ink, glyphs()[mount.noun]
    assert glyph.top
    low = rider[3] - SEATED * (rider[3] - rider[1])
    x, y = (rider[0] + rider[2]) / 2 - MOUNT * glyph.top[0], low - MOUNT * glyph.top[1]
    return [*group, single(mount, link.object).moved(MOUNT, x, y)]


def stand(group: Group, plan: Plan, link: Link) -> Group:
    """One to four things in a row on the top of something, which becomes the unit cell."""
    thing, base = plan.things[link.subject], single(plan.things[link.object], link.object)
    top = glyphs()[base.glyph].top
    assert top
    side, ink = HEAP[thing.count], glyphs()[thing.noun].ink
    if thing.count > 1:
        top, side = ((base.ink[0] + base.ink[2]) / 2, top[1]), side * min(1.0, 1.2 * (base.ink[2] - base.ink[0]))
    step = side * (ink[2] - ink[0]) + 0.02
    pieces = []
    for copy in range(thing.count):
        x = top[0] + (copy - (thing.count - 1) / 2) * step - side * (ink[0] + ink[2]) / 2
        y = top[1] + STANDING - side * ink[3]
        pieces.append(single(thing, link.subject, copy).moved(side, x, y))
    return [base, *pieces]


def put_in(group: Group, plan: Plan, link: Link) -> Group:
    """Container, thing, then the container's near wall; the thing's upper part stays in sight."""
    base, thing = single(plan.things[link.object], link.object), plan.things[link.subject]
    glyph = glyphs()[base.glyph]
    assert glyph.opening
    ink = glyphs()[thing.noun].ink
    side = FILL * (glyph.ink[2] - glyph.ink[0])
    x = glyph.opening[0] - side * (ink[0] + ink[2]) / 2
    y = glyph.opening[1] + 0.36 * side * (ink[3] - ink[1]) - side * ink[3]
    front = Piece(f"front of {base.glyph}", 0.0, 0.0, 1.0, base.owner, base.tint, main=False)
    return [base, single(thing, link.subject).moved(side, x, y), front]


ATTACH: dict[str, Callable[[Group, Plan, Link], Group]] = {
    "holding": hold,
    "wearing": wear,
    "riding": ride,
    "on top of": stand,
    "inside": put_in,
}


def _sideways(piece: Piece) -> bool:
    return "l" in NOUNS[piece.glyph].roles


def _fur(coat: tuple[int, int, int]) -> tuple[RGB, RGB]:
    """From half the coat's colour (the paw's rim) to the coat's colour."""
    return ((coat[0] // 2, coat[1] // 2, coat[2] // 2), coat)
