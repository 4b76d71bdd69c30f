"""A scene with its ground truth: everything that is drawn and everything that may be asked about it."""

from dataclasses import dataclass

from ldm.data.emoji_scenes.atlas import Ink
from ldm.data.emoji_scenes.plan import Plan
from ldm.data.emoji_scenes.vocabulary import RGB

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Sprite:
    """One glyph to draw: its number, the top left corner and side of its cell in units of the picture's side.

    tint: what the darkest and lightest grey become, or None for the glyph's own colours; owner: the object of
    `Scene.objects` that it is a part of.
    """

    glyph: int
    x: float
    y: float
    side: float
    tint: tuple[RGB, RGB] | None
    owner: int


@dataclass(frozen=True, slots=True)
class Object:
    """One visible thing. thing: its noun phrase in the plan (two apples are two objects of one thing); box: the ink's
    extent (x0, y0, x1, y1) in units of the picture's side, as if nothing lay before it; depth: 0 is farthest."""

    noun: str
    thing: int
    box: Box
    depth: int
    colour: str = ""
    size: str = ""
    word: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """A captioned picture to be rendered: sprites from back to front, the objects they show, and the plan behind."""

    caption: str
    plan: Plan
    objects: tuple[Object, ...]
    sprites: tuple[Sprite, ...]


def ink_box(x: float, y: float, side: float, ink: Ink) -> Box:
    """The extent of a glyph's ink when its cell stands at (x, y) with this side."""
    return (x + side * ink[0], y + side * ink[1], x + side * ink[2], y + side * ink[3])
