"""Groups onto the picture: how large, and where relative to each other."""

from ldm.data.emoji_scenes.atlas import glyphs
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.lattice import Lattice
from ldm.data.emoji_scenes.layout import ATTACH, Group, Piece, bounds, build
from ldm.data.emoji_scenes.plan import Plan
from ldm.data.emoji_scenes.scene import Object, Scene, Sprite
from ldm.data.emoji_scenes.vocabulary import GROUP_SIZES, SIZES, SPATIAL

MARGIN = 0.025
GAPS = {"left of": 0.13, "above": 0.06, "next to": 0.01}  # least distance between the groups' ink
NEAR = 0.04  # and the largest one of "next to"
DRIFT = 0.04  # how far from one line the two may stand
GROUNDED = frozenset({"beach", "snow", "meadow", "desert", "city", "forest", "night"})
ANYWHERE = Lattice()
_GRID = 4096  # positions are rounded to 1/4096: exact in binary, the same everywhere


def place(plan: Plan, caption: str, draw: Keyed, lattice: Lattice = ANYWHERE) -> Scene:
    """The plan drawn once; other draws give other pictures of the same meaning."""
    spatial = next((link for link in plan.links if link.relation in SPATIAL), None)
    if spatial is None:
        hub = bool(plan.links) and not plan.things[0].size
        group = _scaled(build(plan, 0, draw), _side(plan, 0, draw), lattice, hub)
        group = _alone(group, plan, draw, lattice)
        return _finish(plan, caption, [group])
    hubs = (spatial.subject, spatial.object)
    pair = [_scaled(build(plan, hub, draw), _side(plan, hub, draw), lattice) for hub in hubs]
    if spatial.relation == "next to" and draw.chance(0.5):
        pair.reverse()
    grounded = plan.background.kind in GROUNDED
    return _finish(plan, caption, _apart(pair, spatial.relation, draw, grounded, lattice))


def _side(plan: Plan, hub: int, draw: Keyed) -> float:
    """The hub's side: by its size word, or by how many share the picture."""
    thing, touching = plan.things[hub], [link for link in plan.links if link.relation in ATTACH]
    spatial = len(plan.links) > len(touching)
    mine = any(link.subject == hub for link in touching)
    if spatial and touching:
        low, high = (0.30, 0.36) if mine else (0.24, 0.30)
    elif mine:
        low, high = GROUP_SIZES[thing.size]
    elif thing.count > 1:
        low, high = (0.26, 0.36)
    elif not plan.links and not thing.size:
        low, high = (0.36, 0.46) if not thing.word else (0.5, 0.8)
    else:
        low, high = SIZES[thing.size]
    return draw.between(low, high)


def _scaled(group: Group, side: float, lattice: Lattice, hub: bool = False) -> Group:
    """The group with a first piece of this side, or smaller where it would not fit; hub: as large as hubs may be."""
    largest = lattice.hub if hub else lattice.thing
    side = largest(side, (1 - 2 * MARGIN) / _extent(group))
    settled = lattice.settle([piece.moved(side, 0, 0) for piece in group])
    while not lattice.fits(bounds(settled)):  # settling may have made it larger
        side = largest(side, side - lattice.step)
        settled = lattice.settle([piece.moved(side, 0, 0) for piece in group])
    return settled


def _extent(group: Group) -> float:
    """The longer side of a group's ink."""
    x0, y0, x1, y1 = bounds(group)
    return max(x1 - x0, y1 - y0)


def _alone(group: Group, plan: Plan, draw: Keyed, lattice: Lattice) -> Group:
    """Anywhere it fits, rather in the middle; on the ground in places that have one."""
    x0, y0, x1, y1 = bounds(group)
    free_x, free_y = 1 - 2 * MARGIN - (x1 - x0), 1 - 2 * MARGIN - (y1 - y0)
    across = (draw.unit() + draw.unit()) / 2
    down = draw.between(0.75, 1) if plan.background.kind in GROUNDED else (draw.unit() + draw.unit()) / 2
    dx = lattice.shift(MARGIN + free_x * across - x0, -x0, 1 - x1)
    dy = lattice.shift(MARGIN + free_y * down - y0, -y0, 1 - y1)
    return [piece.moved(1, dx, dy) for piece in group]


def _apart(pair: list[Group], relation: str, draw: Keyed, grounded: bool, lattice: Lattice) -> list[Group]:
    """Two groups in a row ("above": in a column), their hubs on one line, a gap between."""
    axis = 1 if relation == "above" else 0
    least = GAPS[relation] + lattice.step
    room = 1 - 2 * MARGIN
    pair = _fitted(pair, axis, room - least, lattice)
    extents = [bounds(group) for group in pair]
    lengths = [box[axis + 2] - box[axis] for box in extents]
    spare = max(0.0, room - least - sum(lengths))
    gap = least + draw.unit() * min(spare, NEAR - least if relation == "next to" else 0.3)
    start = MARGIN + draw.unit() * max(0.0, room - gap - sum(lengths))
    starts = (start, start + lengths[0] + gap)
    line = (0.62 if grounded and axis == 0 else 0.5) + draw.between(-0.08, 0.08)
    drift = 0.0 if relation == "next to" else draw.between(-DRIFT, DRIFT)
    moved = []
    for group, box, at, sway in zip(pair, extents, starts, (-drift / 2, drift / 2), strict=True):
        along = lattice.shift(at - box[axis], -box[axis], 1 - box[axis + 2])
        across = _across(group, box, 1 - axis, line + sway, relation)
        across = lattice.shift(across, -box[1 - axis], 1 - box[3 - axis])
        shift = (along, across) if axis == 0 else (across, along)
        moved.append([piece.moved(1, *shift) for piece in group])
    return moved


def _across(group: Group, box: tuple[float, ...], axis: int, line: float, relation: str) -> float:
    """The shift that brings the hub's middle (next to: its lowest ink) onto the line, kept inside the picture."""
    hub = group[0].ink
    own = hub[3] - 0.15 if relation == "next to" else (hub[axis] + hub[axis + 2]) / 2
    return max(MARGIN - box[axis], min(1 - MARGIN - box[axis + 2], line - own))


def _fitted(pair: list[Group], axis: int, room: float, lattice: Lattice) -> list[Group]:
    """Both scaled down alike when they do not fit one after the other."""
    total = sum(box[axis + 2] - box[axis] for box in map(bounds, pair))
    if total <= room:
        return pair
    scales = [lattice.at_most(room / total * group[0].side) / group[0].side for group in pair]
    return [
        lattice.settle([piece.moved(scale, 0, 0) for piece in group]) for scale, group in zip(scales, pair, strict=True)
    ]


def _finish(plan: Plan, caption: str, groups: list[Group]) -> Scene:
    """Pieces numbered and rounded; each owner's main piece is its object."""
    pieces = [piece for group in groups for piece in group]
    mains = [piece for piece in pieces if piece.main]
    owners = {piece.owner: number for number, piece in enumerate(mains)}
    sprites = tuple(_sprite(piece, owners[piece.owner]) for piece in pieces)
    return Scene(caption, plan, tuple(_object(plan, piece, n) for n, piece in enumerate(mains)), sprites)


def _round(value: float) -> float:
    return int(value * _GRID + 0.5) / _GRID


def _sprite(piece: Piece, owner: int) -> Sprite:
    number = glyphs()[piece.glyph].number
    return Sprite(number, _round(piece.x), _round(piece.y), _round(piece.side), piece.tint, owner)


def _object(plan: Plan, piece: Piece, depth: int) -> Object:
    thing = plan.things[piece.owner[0]]
    box = tuple(_round(edge) for edge in piece.ink)
    assert len(box) == 4
    return Object(thing.noun, piece.owner[0], box, depth, thing.colour, thing.size, thing.word)
