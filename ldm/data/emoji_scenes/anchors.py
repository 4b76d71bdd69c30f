"""Where on a glyph a hat sits, an object is held, a rider sits and things lie: derived from its pixels, then by eye.

Unit: the side of the glyph's square cell, origin at its top left corner.
"""

from PIL import Image, ImageStat

Point = tuple[float, float]
Ink = tuple[float, float, float, float]

# Measured by eye where the pixels mislead: horns and ears for a head, a paddle or handlebar for a saddle.
# head: centre x, top y, width
HEADS: dict[str, tuple[float, float, float]] = {
    "deer": (0.37, 0.23, 0.24),
    "unicorn": (0.40, 0.22, 0.44),
    "goat": (0.30, 0.22, 0.32),
    "llama": (0.24, 0.13, 0.26),
    "giraffe": (0.36, 0.08, 0.26),
    "mouse": (0.34, 0.22, 0.36),
    "horse": (0.24, 0.16, 0.34),
    "sheep": (0.27, 0.27, 0.32),
    "squirrel": (0.33, 0.14, 0.38),
}
# Where a held thing's middle goes, for those that carry their heads so low that it would hide them.
LOW_HEADED = frozenset({"tiger", "leopard", "cow", "pig", "sheep", "elephant", "hedgehog", "skunk", "turtle", "horse"})
PAWS: dict[str, Point] = {"kangaroo": (0.36, 0.62), "t-rex": (0.42, 0.66), "orangutan": (0.5, 0.72)}
# Where a rider sits or a thing stands: x, y.
TOPS: dict[str, Point] = {
    "bicycle": (0.42, 0.30),
    "scooter": (0.62, 0.46),
    "canoe": (0.42, 0.42),
    "ufo": (0.5, 0.2),
    "truck": (0.66, 0.18),
    "motorcycle": (0.62, 0.42),
    "sled": (0.55, 0.32),
}
# The middle of a container's opening and the upper edge of its near wall: x, y.
OPENINGS: dict[str, Point] = {
    "bucket": (0.53, 0.30),
    "shopping cart": (0.42, 0.36),
    "bathtub": (0.44, 0.54),
    "box": (0.5, 0.44),
}


def anchors(name: str, roles: str, glyph: Image.Image) -> dict[str, list[float]]:
    """The anchors that a noun's roles ask for: ink (x0, y0, x1, y1), head (x, y, width), paw, top, opening (x, y)."""
    alpha = glyph.getchannel("A").point(lambda a: 255 if a >= 128 else 0)
    ink = _ink(alpha)
    found: dict[str, tuple[float, ...]] = {"ink": ink}
    if "t" in roles:
        found["head"] = HEADS.get(name) or _head(alpha, ink, roles)
    if "a" in roles:
        found["paw"] = PAWS.get(name) or _paw(ink, roles, low=name in LOW_HEADED)
    if "m" in roles or "s" in roles:
        found["top"] = TOPS.get(name) or _top(alpha, ink, roles)
    if "c" in roles:
        found["opening"] = OPENINGS.get(name) or ((ink[0] + ink[2]) / 2, ink[1] + 0.4 * (ink[3] - ink[1]))
    return {key: [round(value, 4) for value in values] for key, values in found.items()}


def coat(glyph: Image.Image, head: tuple[float, ...]) -> list[int]:
    """The colour (red, green, blue) that a held thing's paw has: the commonest around the middle of the head."""
    side = glyph.width
    x, y, width = (value * side for value in head)
    area = glyph.crop((int(x - width / 2), int(y), int(x + width / 2), int(y + width)))
    mask = area.getchannel("A").point(lambda a: 255 if a >= 250 else 0)
    bands = area.convert("RGB").split()
    return [ImageStat.Stat(band, mask).median[0] for band in bands]


def mean(glyph: Image.Image) -> list[int]:
    """The mean colour (red, green, blue) of a glyph's opaque pixels."""
    mask = glyph.getchannel("A").point(lambda a: 255 if a >= 250 else 0)
    return [round(ImageStat.Stat(band, mask).mean[0]) for band in glyph.convert("RGB").split()]


def _ink(alpha: Image.Image) -> Ink:
    box = alpha.getbbox()
    assert box is not None, "an empty glyph"
    return (box[0] / alpha.width, box[1] / alpha.width, box[2] / alpha.width, box[3] / alpha.width)


def _head(alpha: Image.Image, ink: Ink, roles: str) -> tuple[float, float, float]:
    """A face: its whole width. A body: the highest ink in the left half: no body of the font looks right."""
    x0, y0, x1, _ = ink
    if "f" in roles:
        return ((x0 + x1) / 2, y0, 0.8 * (x1 - x0))
    left, side = x0, alpha.width
    half = alpha.crop((int(left * side), 0, int((x0 + x1) / 2 * side), side))
    _, top, _, _ = _ink(half)
    band = half.crop((0, int(top * half.width), half.width, int(top * half.width + 0.12 * side)))
    bx0, _, bx1, _ = _ink(band)
    share = half.width / side  # _ink divides by the width of the crop
    return (left + (bx0 + bx1) / 2 * share, top * share, max((bx1 - bx0) * share, 0.3))


def _paw(ink: Ink, roles: str, *, low: bool) -> Point:
    """A face: under the chin. A body: before the chest, or before the feet of the low-headed."""
    x0, y0, x1, y1 = ink
    if "l" not in roles:
        return ((x0 + x1) / 2, y1 - 0.02)
    return (x0 + 0.16 * (x1 - x0), y0 + (0.9 if low else 0.72) * (y1 - y0))


def _top(alpha: Image.Image, ink: Ink, roles: str) -> Point:
    """The highest ink in a narrow column: the face of a table, the back of an animal behind its neck."""
    side = alpha.width
    middle = ink[0] + (0.6 if "l" in roles else 0.5) * (ink[2] - ink[0])
    box = alpha.crop((int((middle - 0.04) * side), 0, int((middle + 0.04) * side), side)).getbbox()
    assert box is not None, "a thing with a hole in its middle needs its top by eye"
    return (middle, box[1] / side)
