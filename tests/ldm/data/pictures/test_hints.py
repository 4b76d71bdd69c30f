"""Edges are Canny's, against a plain loop over the pixels."""

from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw

from ldm.data.pictures.hints import edges

Paint = Callable[..., Image.Image]


def canny(image: Image.Image, low: int, high: int) -> set[tuple[int, int]]:
    """Pixels (x, y) on edges, one by one, as OpenCV's documentation and source define them for three channels."""
    w, h = image.size
    pixels = image.load()

    def at(x: int, y: int, c: int) -> int:
        return int(pixels[min(max(x, 0), w - 1), min(max(y, 0), h - 1)][c])

    def slope(x: int, y: int) -> tuple[int, int]:
        best = (0, 0)
        for c in range(3):
            dx = sum(k * (at(x + 1, y + j, c) - at(x - 1, y + j, c)) for j, k in ((-1, 1), (0, 2), (1, 1)))
            dy = sum(k * (at(x + j, y + 1, c) - at(x + j, y - 1, c)) for j, k in ((-1, 1), (0, 2), (1, 1)))
            if c == 0 or abs(dx) + abs(dy) > abs(best[0]) + abs(best[1]):
                best = (dx, dy)
        return best

    slopes = {(x, y): slope(x, y) for x in range(w) for y in range(h)}
    size = {place: abs(dx) + abs(dy) for place, (dx, dy) in slopes.items()}

    def crest(x: int, y: int) -> bool:
        dx, dy = slopes[x, y]
        m, tangent = size[x, y], abs(dx) * 13573
        if abs(dy) * 32768 < tangent:
            return m > size.get((x - 1, y), 0) and m >= size.get((x + 1, y), 0)
        if abs(dy) * 32768 > tangent + abs(dx) * 65536:
            return m > size.get((x, y - 1), 0) and m >= size.get((x, y + 1), 0)
        s = -1 if (dx < 0) != (dy < 0) else 1
        return m > size.get((x - s, y - 1), 0) and m > size.get((x + s, y + 1), 0)

    weak = {place for place in slopes if size[place] > low and crest(*place)}
    found = {place for place in weak if size[place] > high}
    grown = True
    while grown:
        near = {(x + i, y + j) for x, y in found for i in (-1, 0, 1) for j in (-1, 0, 1)} & weak
        grown = not near <= found
        found |= near
    return found


@pytest.mark.parametrize("thresholds", [(100, 200), (20, 60), (250, 260)])
@pytest.mark.parametrize("number", range(4))
def test_edges_are_cannys(paint: Paint, number: int, thresholds: tuple[int, int]) -> None:
    picture = paint(number, (37, 29))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((4, 5, 20, 18 + number), (250, 20 * number, 30))
    pen.line((2, 27, 34, 3), (0, 255, 60), 1 + number)
    ours = edges(picture, *thresholds)
    assert ours.mode == "RGB"
    lit = {(x, y) for x in range(37) for y in range(29) if ours.getpixel((x, y)) == (255, 255, 255)}
    assert lit == canny(picture, *thresholds)
    assert lit
    assert set(ours.tobytes()) <= {0, 255}


def test_a_square_has_a_line_around_it() -> None:
    picture = Image.new("L", (40, 40))
    picture.paste(255, (10, 10, 30, 30))
    found = edges(picture).convert("L")
    assert found.getbbox() in ((9, 9, 30, 30), (9, 9, 31, 31), (10, 10, 30, 30), (10, 10, 31, 31))
    assert found.crop((13, 13, 27, 27)).getbbox() is None
    assert edges(Image.new("RGB", (8, 8), "red")).getbbox() is None
