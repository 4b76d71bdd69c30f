"""The ground a scene is drawn on: plain, gradient, or a place, in 16 variants each."""

from functools import lru_cache
from itertools import pairwise

from PIL import Image, ImageDraw

from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.plan import Background
from ldm.data.emoji_scenes.vocabulary import COLOURS, RGB

_PALE: tuple[RGB, ...] = ((255, 255, 255), (250, 246, 236), (240, 244, 250), (238, 238, 238))
# From the top edge down: (height, colour); equal heights make an edge.
_SKIES: dict[str, tuple[tuple[float, RGB], ...]] = {
    "night": ((0, (10, 14, 48)), (0.72, (38, 48, 105)), (0.72, (24, 40, 52)), (1, (14, 26, 36))),
    "beach": (
        (0, (110, 195, 255)), (0.42, (205, 238, 255)), (0.42, (20, 130, 200)), (0.6, (70, 190, 220)),
        (0.6, (245, 222, 165)), (1, (232, 200, 135)),
    ),
    "snow": ((0, (175, 205, 235)), (0.55, (225, 236, 246)), (0.55, (250, 252, 255)), (1, (226, 234, 244))),
    "meadow": ((0, (120, 200, 255)), (0.5, (215, 240, 255)), (0.5, (130, 200, 85)), (1, (80, 160, 60))),
    "desert": ((0, (135, 205, 250)), (0.55, (250, 235, 205)), (0.55, (235, 185, 105)), (1, (205, 145, 70))),
    "sunset": (
        (0, (85, 50, 120)), (0.4, (235, 100, 90)), (0.75, (255, 190, 95)), (0.75, (70, 45, 75)), (1, (40, 28, 55)),
    ),
    "underwater": ((0, (90, 205, 230)), (0.82, (10, 85, 150)), (0.82, (195, 180, 130)), (1, (170, 150, 105))),
    "space": ((0, (4, 4, 14)), (1, (24, 10, 44))),
    "city": ((0, (165, 200, 230)), (0.78, (222, 230, 238)), (0.78, (120, 122, 128)), (1, (85, 87, 94))),
    "forest": ((0, (190, 225, 215)), (0.62, (150, 200, 160)), (0.62, (95, 130, 60)), (1, (62, 92, 42))),
}  # fmt: skip


@lru_cache(maxsize=1024)
def paint(background: Background, size: int) -> Image.Image:
    """The background alone, RGB, size x size pixels. Shared: copy it before drawing on it."""
    if background.kind == "plain" and not background.colour:
        return Image.new("RGB", (size, size), _PALE[background.variant % len(_PALE)])
    if background.kind == "plain":
        return Image.new("RGB", (size, size), COLOURS[background.colour][1])
    if background.kind == "gradient":
        return _sky(_fade(background), size)
    fine = _sky(_SKIES[background.kind], 2 * size)
    _DECORATE[background.kind](_Brush(fine, Keyed("background", background.kind, background.variant)))
    return fine.reduce(2)


@lru_cache(maxsize=1024)
def tones(background: Background) -> tuple[RGB, ...]:
    """The colours that things stand before: what the middle and the lower part of the picture are painted with."""
    if background.kind == "plain":
        return (COLOURS[background.colour][1] if background.colour else _PALE[background.variant % len(_PALE)],)
    stops = _fade(background) if background.kind == "gradient" else _SKIES[background.kind]
    return tuple(_at(stops, height) for height in (0.35, 0.55, 0.8))


def _fade(background: Background) -> tuple[tuple[float, RGB], ...]:
    dark, light = COLOURS[background.colour]
    ends = (light, _mix(light, dark, 0.75))
    return tuple(zip((0.0, 1.0), ends if background.variant % 2 else ends[::-1], strict=True))


def _sky(stops: tuple[tuple[float, RGB], ...], size: int) -> Image.Image:
    column = b"".join(bytes(_at(stops, (row + 0.5) / size)) for row in range(size))
    return Image.frombytes("RGB", (1, size), column).resize((size, size), Image.Resampling.NEAREST)


def _at(stops: tuple[tuple[float, RGB], ...], height: float) -> RGB:
    for (low, first), (high, second) in pairwise(stops):
        if low <= height < high:
            return _mix(first, second, (height - low) / (high - low))
    return stops[-1][1]


def _mix(first: RGB, second: RGB, share: float) -> RGB:
    r, g, b = (int(a + (c - a) * share + 0.5) for a, c in zip(first, second, strict=True))
    return (r, g, b)


class _Brush:
    """Ellipses and polygons in units of the picture's side, and the chance that places them."""

    def __init__(self, image: Image.Image, draw: Keyed) -> None:
        self.pen, self.side, self.draw = ImageDraw.Draw(image), image.width, draw

    def disc(self, x: float, y: float, radius: float, colour: str, *, flat: float = 1.0) -> None:
        u = self.side
        self.pen.ellipse(((x - radius) * u, (y - radius * flat) * u, (x + radius) * u, (y + radius * flat) * u), colour)

    def shape(self, points: tuple[tuple[float, float], ...], colour: str) -> None:
        self.pen.polygon([(x * self.side, y * self.side) for x, y in points], colour)

    def scatter(self, count: int, low: float, high: float, radius: tuple[float, float], colour: str) -> None:
        for _ in range(count):
            x, y = self.draw.unit(), self.draw.between(low, high)
            self.disc(x, y, self.draw.between(*radius), colour)


def _night(brush: _Brush) -> None:
    brush.scatter(26, 0, 0.66, (0.004, 0.011), "#fff6cf")
    x = brush.draw.between(0.12, 0.88)
    brush.disc(x, 0.13, 0.075, "#f7efc4")
    brush.disc(x + 0.035, 0.11, 0.066, "#0f1438")


def _beach(brush: _Brush) -> None:
    brush.disc(brush.draw.between(0.1, 0.9), 0.13, 0.075, "#ffe45c")
    for row in range(3):
        y = 0.46 + 0.045 * row
        for wave in range(3):
            x = brush.draw.between(0, 0.9) + 0.1 * wave % 0.3
            brush.shape(((x, y), (x + 0.1, y), (x + 0.1, y + 0.006), (x, y + 0.006)), "#d8f2fb")


def _snow(brush: _Brush) -> None:
    brush.disc(brush.draw.between(0.1, 0.4), 0.64, 0.32, "#f7fafe", flat=0.4)
    brush.disc(brush.draw.between(0.6, 0.9), 0.66, 0.36, "#eff5fb", flat=0.4)
    brush.scatter(34, 0, 1, (0.007, 0.014), "#ffffff")


def _meadow(brush: _Brush) -> None:
    brush.disc(brush.draw.between(0.1, 0.9), 0.60, 0.45, "#8fd160", flat=0.4)
    brush.shape(((0, 0.6), (1, 0.6), (1, 0.66), (0, 0.66)), "#82c655")
    for _ in range(26):
        x, y = brush.draw.unit(), brush.draw.between(0.62, 0.98)
        brush.shape(
            ((x - 0.01, y), (x - 0.004, y - 0.035), (x, y - 0.008), (x + 0.006, y - 0.03), (x + 0.01, y)), "#4c9a35"
        )
    _clouds(brush)


def _desert(brush: _Brush) -> None:
    brush.disc(brush.draw.between(0.1, 0.9), 0.14, 0.08, "#fff1a8")
    brush.disc(brush.draw.between(0.1, 0.4), 0.68, 0.45, "#e6b15f", flat=0.42)
    brush.disc(brush.draw.between(0.7, 1.0), 0.78, 0.5, "#d99c4d", flat=0.42)


def _sunset(brush: _Brush) -> None:
    brush.disc(brush.draw.between(0.2, 0.8), 0.66, 0.17, "#fff0a0")
    brush.shape(((0, 0.75), (1, 0.75), (1, 1), (0, 1)), "#46304f")


def _underwater(brush: _Brush) -> None:
    for _ in range(16):
        x, y, radius = brush.draw.unit(), brush.draw.between(0.03, 0.78), brush.draw.between(0.008, 0.022)
        brush.disc(x, y, radius, "#a8e6f2")
        brush.disc(x, y, radius * 0.7, "#4bb4d2")
    for _ in range(6):
        x = brush.draw.unit()
        brush.shape(((x, 0.9), (x - 0.012, 0.7), (x + 0.012, 0.62), (x + 0.006, 0.74), (x + 0.024, 0.9)), "#1f8a5b")


def _space(brush: _Brush) -> None:
    brush.scatter(55, 0, 1, (0.003, 0.009), "#ffffff")
    x, y = brush.draw.between(0.1, 0.9), brush.draw.between(0.08, 0.2)
    brush.disc(x, y, 0.12, "#c9a26b", flat=0.22)
    brush.disc(x, y, 0.06, "#e08a5a")


def _city(brush: _Brush) -> None:
    x = 0.0
    while x < 1:
        width, top = brush.draw.between(0.1, 0.18), brush.draw.between(0.22, 0.55)
        brush.shape(
            ((x, top), (x + width - 0.01, top), (x + width - 0.01, 0.78), (x, 0.78)),
            brush.draw.pick(("#8d9bab", "#a3adba", "#7d8a9b")),
        )
        for row in range(int((0.76 - top) / 0.05)):
            for column in range(int(width / 0.04)):
                left, high = x + 0.012 + 0.04 * column, top + 0.02 + 0.05 * row
                lit = "#ffe9a3" if brush.draw.chance(0.4) else "#5e6c7d"
                brush.shape(
                    ((left, high), (left + 0.018, high), (left + 0.018, high + 0.024), (left, high + 0.024)), lit
                )
        x += width
    for dash in range(5):
        left = 0.02 + 0.22 * dash
        brush.shape(((left, 0.885), (left + 0.1, 0.885), (left + 0.1, 0.9), (left, 0.9)), "#e8e4c8")


def _forest(brush: _Brush) -> None:
    for row, colour in ((0, "#7fb08a"), (1, "#4f8a5c"), (2, "#376b45")):
        for trunk in range(9):
            x, foot = 0.06 + 0.12 * trunk + brush.draw.between(-0.04, 0.04), 0.6 + 0.03 * row
            height = brush.draw.between(0.34, 0.5) - 0.07 * row
            brush.shape(((x - 0.07, foot), (x, foot - height), (x + 0.07, foot)), colour)


def _clouds(brush: _Brush) -> None:
    for _ in range(2):
        x, y = brush.draw.between(0.1, 0.9), brush.draw.between(0.08, 0.22)
        for dx, radius in ((-0.06, 0.035), (0, 0.05), (0.06, 0.035)):
            brush.disc(x + dx, y, radius, "#ffffff", flat=0.8)


_DECORATE = {
    "night": _night, "beach": _beach, "snow": _snow, "meadow": _meadow, "desert": _desert, "sunset": _sunset,
    "underwater": _underwater, "space": _space, "city": _city, "forest": _forest,
}  # fmt: skip
