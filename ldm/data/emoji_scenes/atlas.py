"""The shipped glyphs: pictures and anchors, read once when first asked for."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from PIL import Image, ImageChops, ImageFilter, ImageOps

Ink = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Glyph:
    """A glyph's number, ink, mean colour and anchors, in units of its cell, origin top left; see `anchors.py`."""

    number: int
    ink: Ink
    mean: tuple[int, int, int]
    head: tuple[float, float, float] | None = None
    paw: tuple[float, float] | None = None
    top: tuple[float, float] | None = None
    opening: tuple[float, float] | None = None
    coat: tuple[int, int, int] | None = None


@cache
def index() -> dict[str, Any]:
    """The atlas's table as written by `ldm.data.build_atlas`."""
    table: dict[str, Any] = json.loads(_folder().joinpath("atlas.json").read_text("utf-8"))
    return table


@cache
def glyphs() -> dict[str, Glyph]:
    """Name -> glyph, for nouns, "sign", "paw", "letter A" ... and "front of X" for the near wall of a container X."""
    found = {}
    for name, facts in index()["glyphs"].items():
        values = {key: tuple(value) for key, value in facts.items() if key != "cell"}
        found[name] = Glyph(facts["cell"], **values)
    containers = [name for name, glyph in found.items() if glyph.opening]
    for number, name in enumerate(containers, len(found)):
        found[f"front of {name}"] = Glyph(number, found[name].ink, found[name].mean)
    return found


@cache
def pictures() -> tuple[Image.Image, ...]:
    """RGBA cells in the order of the glyphs' numbers."""
    side, columns = index()["side"], index()["columns"]
    with _folder().joinpath("atlas.webp").open("rb") as file:
        sheet = Image.open(file).convert("RGBA")
    cells = [_cell(sheet, number, side, columns) for number in range(len(index()["glyphs"]))]
    fronts = [name.removeprefix("front of ") for name in glyphs() if name.startswith("front of ")]
    return (*cells, *(_front(cells[glyphs()[name].number], glyphs()[name]) for name in fronts))


@cache
def outlines() -> tuple[Image.Image, ...]:
    """The same cells as line drawings: white inside, dark along the contour and wherever the colour changes."""
    return tuple(_outline(picture) for picture in pictures())


def _folder() -> Any:
    return files("ldm.data.emoji_scenes") / "atlas"


def _cell(sheet: Image.Image, number: int, side: int, columns: int) -> Image.Image:
    x, y = number % columns * side, number // columns * side
    return sheet.crop((x, y, x + side, y + side))


def _front(picture: Image.Image, glyph: Glyph) -> Image.Image:
    """What hides a thing inside: everything below the front wall's upper edge."""
    assert glyph.opening is not None
    edge = round(glyph.opening[1] * picture.height)
    front = Image.new("RGBA", picture.size)
    front.paste(picture.crop((0, edge, picture.width, picture.height)), (0, edge))
    return front


def _outline(picture: Image.Image) -> Image.Image:
    alpha = picture.getchannel("A")
    # over white, so that the colour hidden under a transparent pixel draws no line
    paper = Image.new("RGB", picture.size, "white")
    paper.paste(picture, mask=alpha)
    inner = ImageOps.grayscale(paper).filter(ImageFilter.FIND_EDGES).point(lambda v: min(255, 3 * max(0, v - 24)))
    contour = ImageChops.subtract(alpha.filter(ImageFilter.MaxFilter(5)), alpha.filter(ImageFilter.MinFilter(3)))
    lines = ImageChops.lighter(inner.filter(ImageFilter.MaxFilter(3)), contour)
    grey = lines.point(lambda v: 255 - v * 9 // 10)
    return Image.merge("RGBA", (grey, grey, grey, alpha.filter(ImageFilter.MaxFilter(5))))
