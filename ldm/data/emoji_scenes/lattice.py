"""A lattice for worlds that small models learn: glyphs in few sizes, their cells aligned with the latents' pixels.

An autoencoder that shrinks pictures eight times writes a glyph down otherwise at each of 64 offsets, and otherwise in
each size. On a lattice of its latents there is hardly more to learn than the glyphs.
"""

import math
from dataclasses import dataclass, replace

from ldm.data.emoji_scenes.layout import Group, Piece
from ldm.data.emoji_scenes.scene import Box

PARTS = 2  # things that touch another stand on half cells, or hats would slip from heads


@dataclass(frozen=True)
class Lattice:
    """cells: of the lattice from side to side of the picture, 0 for none; sides: how many of them a thing may measure,
    () for any whole number; hubs: how many something may that others touch, () for as many as a thing."""

    cells: int = 0
    sides: tuple[int, ...] = ()
    hubs: tuple[int, ...] = ()

    @property
    def step(self) -> float:
        """One cell, in units of the picture's side."""
        return 1 / self.cells if self.cells else 0.0

    def side(self, value: float) -> float:
        """The nearest side that is allowed, in units of the picture's side like `value`."""
        if not self.cells:
            return value
        if not self.sides:
            return max(1, round(value * self.cells)) / self.cells
        return min(self.sides, key=lambda side: abs(side - value * self.cells)) / self.cells

    def thing(self, value: float, most: float) -> float:
        """The nearest side that is allowed, or what is left where that is more than `most`."""
        side = self.side(value)
        return side if side <= most else self.at_most(most)

    def hub(self, value: float, most: float) -> float:
        """The largest side of a hub that is no more than `most`; without one, a thing's."""
        fitting = [side / self.cells for side in self.hubs if side <= most * self.cells]
        return max(fitting) if fitting else self.thing(value, most)

    def at_most(self, value: float) -> float:
        """The largest whole number of cells that is no more than `value`, but one at least."""
        return max(1, math.floor(value * self.cells)) / self.cells if self.cells else value

    def shift(self, value: float, low: float, high: float) -> float:
        """The nearest whole number of cells; one within [low, high] where there is one."""
        if not self.cells:
            return value
        least, most = self._between(low, high)
        nearest = round(value * self.cells)
        return (min(max(nearest, least), most) if least <= most else nearest) / self.cells

    def fits(self, box: Box) -> bool:
        """Whether something that extends from (x0, y0) to (x1, y1) comes into the picture by whole cells."""
        spans = (self._between(-box[axis], 1 - box[axis + 2]) for axis in (0, 1))
        return not self.cells or all(least <= most for least, most in spans)

    def _between(self, low: float, high: float) -> tuple[int, int]:
        """The least and the greatest whole number of cells within; the least is greater where there is none."""
        return math.ceil(low * self.cells - 1e-9), math.floor(high * self.cells + 1e-9)

    def settle(self, group: Group) -> Group:
        """The group, whose first piece stands at the origin in its final size, with all other things on half cells.

        What is part of a thing moves with it, and the paws with the thing they hold, which stands on whole cells: a
        paw may be anywhere along a body.
        """
        if not self.cells:
            return group
        held = _held(group)
        moves: dict[tuple[int, int], tuple[Piece, Piece]] = {}
        settled, last = [], group[0].owner
        for piece in group:
            if piece.main:
                last, moves[piece.owner] = piece.owner, (piece, self._settled(piece, group[0], piece.owner in held))
                settled.append(moves[last][1])
            else:
                settled.append(_with(piece, *moves[last if piece.glyph == "paw" else piece.owner]))
        return settled

    def _settled(self, piece: Piece, first: Piece, held: bool) -> Piece:
        cells = max(1, round(piece.side * self.cells))
        if piece.side < first.side:  # not its like, nor what carries it
            cells = max((side for side in self.sides if side <= cells), default=cells)
        side, steps = cells / self.cells, (1 if held else PARTS) * self.cells
        low = 0.5 if held else (piece.ink[3] - piece.y) / piece.side  # what stands on something shrinks towards it
        x, y = piece.x + 0.5 * (piece.side - side), piece.y + low * (piece.side - side)
        return replace(piece, x=round(x * steps) / steps, y=round(y * steps) / steps, side=side)


def _held(group: Group) -> set[tuple[int, int]]:
    """The owners of what comes before a paw."""
    held, last = set(), group[0].owner
    for piece in group:
        if piece.main:
            last = piece.owner
        elif piece.glyph == "paw":
            held.add(last)
    return held


def _with(part: Piece, before: Piece, after: Piece) -> Piece:
    """A part as it moves and grows with a thing."""
    scale = after.side / before.side
    return part.moved(scale, after.x - scale * before.x, after.y - scale * before.y)
