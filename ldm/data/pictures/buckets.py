"""Buckets: a few shapes, all of about one area, of which each picture is cut to the one nearest to its own.

A picture is scaled until it just covers its bucket, and what juts out is cut away (Podell et al. 2023, 2307.01952).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ldm.data.pictures.item import Size

REACH = 2  # sides go from size / 2 to size * 2: aspects from 1:4 to 4:1


@dataclass(frozen=True)
class Placed:
    """How a picture is cut. Sizes are pixels (width, height).

    bucket: what comes out. scaled: what the picture is scaled to first. crop: (left, top) of the cut in that, counted
    in the mirrored picture if it is mirrored. original: the picture's own size.
    """

    bucket: Size
    scaled: Size
    crop: tuple[int, int]
    original: Size

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's conditions: original height and width, top and left of the cut, height and width of what comes out."""
        (w, h), (left, top), (original_w, original_h) = self.bucket, self.crop, self.original
        return original_h, original_w, top, left, h, w


def shapes(size: int, step: int, low: int = 0, high: int = 0) -> list[Size]:
    """Buckets (width, height) of at most size * size pixels: for every width that is a multiple of `step` from `low`
    (0: half the size) to `high` (0: twice), the highest that fits; and the same lying.

    Raises ValueError if a step is larger than the size.
    """
    if size < step:
        raise ValueError(f"bucket_step = {step} is more than the size of {size} pixels: set it to a divisor of {size}")
    least = max((low or size // REACH) // step, 1) * step
    most = (high or size * REACH) // step * step
    square = size // step * step
    found = {(square, square)}
    for wide in range(least, most + 1, step):
        high_side = min(size * size // wide // step * step, most)
        if high_side >= least:
            found |= {(wide, high_side), (high_side, wide)}
    return sorted(found)


def nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect is nearest to the picture's, by ratio; the larger one of two alike."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda b: (abs(math.log(b[0] / b[1]) - aspect), -b[0] * b[1], b))


def place(size: Size, bucket: Size, at: tuple[float, float] = (0.5, 0.5)) -> Placed:
    """Cuts a picture of this size (width, height) to a bucket.

    at: where, from 0 (left, top) to 1 (right, bottom) of what juts out; each whole pixel is as likely as the others.
    """
    (w, h), (wide, high) = size, bucket
    if wide * h >= high * w:
        scaled = wide, max(high, (2 * h * wide + w) // (2 * w))
    else:
        scaled = max(wide, (2 * w * high + h) // (2 * h)), high
    spare = scaled[0] - wide, scaled[1] - high
    crop = min(int(at[0] * (spare[0] + 1)), spare[0]), min(int(at[1] * (spare[1] + 1)), spare[1])
    return Placed(bucket, scaled, crop, size)


def seen(image: Image.Image, placed: Placed, flip: bool = False) -> Image.Image:
    """The picture, of any size and its own shape, scaled with Lanczos' filter and cut; mirrored first if `flip`."""
    (wide, high), (left, top) = placed.bucket, placed.crop
    left = placed.scaled[0] - left - wide if flip else left  # from the other side: it is mirrored last, being smaller
    scaled = image if image.size == placed.scaled else image.resize(placed.scaled, Image.Resampling.LANCZOS)
    cut = scaled.crop((left, top, left + wide, top + high))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut
