"""The glyphs that no emoji font has: a table, an open box, a sign, a paw, and the letters on the sign."""

from PIL import Image, ImageDraw, ImageFont

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FINE = 4  # drawn this much larger, then reduced: smooth edges


def drawn_glyphs(side: int) -> dict[str, Image.Image]:
    """Name -> RGBA glyph of side x side pixels. The paw and the letters are grey, to be tinted."""
    shapes = {"table": _table, "box": _box, "sign": _sign, "paw": _paw}
    glyphs = {name: _draw(shape, side) for name, shape in shapes.items()}
    return glyphs | {f"letter {letter}": _letter(letter, side) for letter in LETTERS}


def _draw(shape: object, side: int) -> Image.Image:
    image = Image.new("RGBA", (side * _FINE, side * _FINE))
    assert callable(shape)
    shape(ImageDraw.Draw(image), side * _FINE / 100)
    return image.reduce(_FINE)


def _box_at(u: float, *corners: float) -> tuple[float, ...]:
    return tuple(corner * u for corner in corners)


def _table(draw: ImageDraw.ImageDraw, u: float) -> None:
    for x in (12, 78):
        draw.rectangle(_box_at(u, x, 44, x + 10, 96), fill="#6d4c41")
    draw.rectangle(_box_at(u, 8, 44, 92, 54), fill="#795548")
    draw.rounded_rectangle(_box_at(u, 2, 34, 98, 46), 4 * u, fill="#a1795f")


def _box(draw: ImageDraw.ImageDraw, u: float) -> None:
    draw.polygon([(x * u, y * u) for x, y in ((12, 44), (22, 32), (78, 32), (88, 44))], fill="#6d4a24")
    draw.polygon([(x * u, y * u) for x, y in ((12, 44), (2, 56), (10, 60), (16, 50))], fill="#d9a867")
    draw.polygon([(x * u, y * u) for x, y in ((88, 44), (98, 56), (90, 60), (84, 50))], fill="#d9a867")
    draw.rectangle(_box_at(u, 12, 44, 88, 94), fill="#c48b4a")
    draw.rectangle(_box_at(u, 42, 44, 58, 70), fill="#e0bb85")


def _sign(draw: ImageDraw.ImageDraw, u: float) -> None:
    draw.rectangle(_box_at(u, 46, 60, 54, 99), fill="#8d6e4f")
    draw.rounded_rectangle(_box_at(u, 2, 18, 98, 66), 5 * u, fill="#8d6e4f")
    draw.rounded_rectangle(_box_at(u, 5, 21, 95, 63), 4 * u, fill="#fffaf0")


def _paw(draw: ImageDraw.ImageDraw, u: float) -> None:
    draw.ellipse(_box_at(u, 8, 8, 92, 92), fill=(60, 60, 60))
    draw.ellipse(_box_at(u, 17, 17, 83, 83), fill=(235, 235, 235))
    for x in (40, 60):
        draw.line(_box_at(u, x, 52, x, 84), fill=(60, 60, 60), width=int(6 * u))


def _letter(letter: str, side: int) -> Image.Image:
    image = Image.new("RGBA", (side * _FINE, side * _FINE))
    font = ImageFont.load_default(side * _FINE * 0.95)
    ImageDraw.Draw(image).text(
        (side * _FINE / 2, side * _FINE / 2), letter, (90, 90, 90), font, anchor="mm", stroke_width=side * _FINE // 50
    )
    return image.reduce(_FINE)
