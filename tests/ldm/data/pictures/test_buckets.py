"""Buckets have one area, cuts lie where their record says."""

import math

import pytest
import torch
from PIL import Image
from torch.nn import functional

from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.pictures.buckets import nearest, place, seen, shapes
from vae.pixels import from_pil

# height and width, Podell et al. 2023 (2307.01952), appendix I
SDXL = (
    "512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472 704x1408 704x1344 "
    "768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024 1024x1024 1024x960 1088x960 "
    "1088x896 1152x896 1152x832 1216x832 1280x768 1344x768 1408x704 1472x704 1536x640 1600x640 1664x576 1728x576 "
    "1792x576 1856x512 1920x512 1984x512 2048x512"
)


def test_the_shapes_of_sdxl() -> None:
    published = {tuple(map(int, shape.split("x"))) for shape in SDXL.split()}
    ours = set(shapes(1024, 64))
    assert ours <= published
    dropped = published - ours  # each has the same side as one of ours that is longer
    assert all(any((h == oh and w < ow) or (w == ow and h < oh) for oh, ow in ours) for h, w in dropped)


@pytest.mark.parametrize("number", range(60))
def test_shapes_are_of_one_area(number: int) -> None:
    drawn = Keyed("shapes", number)
    step = drawn.pick((8, 16, 32, 64))
    size = step * (4 + drawn.bits() % 24)
    found = shapes(size, step)
    assert len(set(found)) == len(found)
    assert (size, size) in found
    assert {(h, w) for w, h in found} == set(found)
    assert max(w / h for w, h in found) >= 2
    for w, h in found:
        assert w % step == h % step == 0
        assert w * h <= size * size
        assert w * (h + step) > size * size or h * (w + step) > size * size  # none could be larger


def test_a_size_that_is_no_multiple_and_one_too_small() -> None:
    assert (448, 448) in shapes(500, 64)
    assert shapes(64, 64) == [(64, 64)]
    assert shapes(512, 64, low=384, high=640) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    with pytest.raises(ValueError, match="bucket_step = 64 is more than the size of 32"):
        shapes(32, 64)


@pytest.mark.parametrize("number", range(40))
def test_a_picture_fills_its_bucket(number: int) -> None:
    drawn = Keyed("place", number)
    size = 1 + drawn.bits() % 3000, 1 + drawn.bits() % 3000
    bucket = nearest(size, shapes(512, 64))
    placed = place(size, bucket, (drawn.unit(), drawn.unit()))
    (w, h), (wide, high), (left, top) = placed.scaled, bucket, placed.crop
    assert (w == wide and h >= high) or (h == high and w >= wide)
    assert 0 <= left <= w - wide
    assert 0 <= top <= h - high
    scale = max(wide / size[0], high / size[1])
    assert abs(w - size[0] * scale) <= 0.5 + 1e-9 or w == wide
    assert abs(h - size[1] * scale) <= 0.5 + 1e-9 or h == high
    aspect = math.log(size[0] / size[1])
    assert all(abs(math.log(wide / high) - aspect) <= abs(math.log(a / b) - aspect) + 1e-12 for a, b in shapes(512, 64))


def test_every_cut_is_met_alike() -> None:
    tops = [place((100, 103), (100, 100), (0.5, i / 999)).crop[1] for i in range(1000)]
    assert [tops.count(top) for top in range(4)] == [250, 250, 250, 250]
    assert place((100, 103), (100, 100), (0, 0)).crop == (0, 0)
    assert place((103, 100), (100, 100), (1, 1)).crop == (3, 0)
    assert place((104, 100), (100, 100)).crop == (2, 0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("number", range(25))
def test_a_marked_pixel_is_where_the_record_says(number: int, flip: bool) -> None:
    drawn = Keyed("marker", number)
    size = 33 + drawn.bits() % 60, 33 + drawn.bits() % 60
    placed = place(size, (32, 24), (drawn.unit(), drawn.unit()))
    picture = Image.new("L", placed.scaled)
    spot = drawn.bits() % placed.scaled[0], drawn.bits() % placed.scaled[1]
    picture.putpixel(spot, 255)
    cut = seen(picture, placed, flip)
    _, _, top, left, h, w = placed.sizes
    stood = placed.scaled[0] - 1 - spot[0] if flip else spot[0]  # in the mirrored picture
    x, y = stood - left, spot[1] - top
    assert cut.size == (w, h) == (32, 24)
    assert cut.getbbox() == ((x, y, x + 1, y + 1) if 0 <= x < w and 0 <= y < h else None)


def test_conditions_are_those_of_sdxl() -> None:
    placed = place((3000, 2000), (1216, 832), (0.0, 1.0))
    assert placed.scaled == (1248, 832)
    assert placed.sizes == (2000, 3000, 0, 0, 832, 1216)
    assert place((3000, 2000), (1216, 832), (1.0, 1.0)).sizes == (2000, 3000, 0, 32, 832, 1216)


def test_scaling_down_has_no_jaggies() -> None:
    stripes = Image.new("L", (256, 256))
    stripes.putdata([255 * (x % 2) for _ in range(256) for x in range(256)])
    small = from_pil([seen(stripes, place((256, 256), (64, 64)))])
    assert small.abs().max() < 0.1  # grey: every other line would be black or white
    ramp = Image.linear_gradient("L")
    ours = from_pil([seen(ramp, place((256, 256), (64, 64)))])
    theirs = functional.interpolate(from_pil([ramp]), size=(64, 64), mode="area")
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4], rtol=0, atol=2.1 / 255)
