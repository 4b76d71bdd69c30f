"""Control images made from the pictures themselves."""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

LOW, HIGH = 100, 200  # of |dx| + |dy|, as most edge ControlNets were trained with
TAN = 13573  # of 22.5 degrees, times 2^15


def edges(image: Image.Image, low: int = LOW, high: int = HIGH) -> Image.Image:
    """White edges on black, RGB, of the same size: Canny's detector (1986), without smoothing, as OpenCV defines it.

    Sobel's differences of the channel that changes most, the crests of |dx| + |dy| across their direction, and of
    those the ones above `high` and all above `low` that hang together with one. Equal to `cv2.Canny(rgb, low, high)`.
    """
    dx, dy = _steepest(_pixels(image))
    size = dx.abs() + dy.abs()
    crests = _crests(dx, dy, size) & (size > low)
    kept = _joined(crests, crests & (size > high))
    return Image.fromarray((kept * 255).to(torch.uint8).numpy()).convert("RGB")


def _pixels(image: Image.Image) -> Tensor:
    """(3, h, w) int32."""
    w, h = image.size
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(h, w, 3)
    return pixels.permute(2, 0, 1).int()


def _steepest(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(3, h, w) -> Sobel's dx and dy (h, w), of the first channel in which they are largest."""
    p = functional.pad(pixels.float()[None], (1, 1, 1, 1), mode="replicate")[0].int()
    down = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]  # (3, h, w + 2)
    along = p[:, :, :-2] + 2 * p[:, :, 1:-1] + p[:, :, 2:]  # (3, h + 2, w)
    dx, dy = down[:, :, 2:] - down[:, :, :-2], along[:, 2:] - along[:, :-2]
    size = dx.abs() + dy.abs()
    most = (size[1] > size[0]).long()
    most = torch.where(size[2] > size[:2].amax(0), 2, most)[None]
    return dx.gather(0, most)[0], dy.gather(0, most)[0]


def _crests(dx: Tensor, dy: Tensor, size: Tensor) -> Tensor:
    """Where a pixel is larger than its two neighbours across the edge: (h, w) bool."""
    x, y = dx.abs(), dy.abs() << 15
    flat, steep = x * TAN, x * TAN + (x << 16)  # tan 67.5 = tan 22.5 + 2
    across = (size > _beside(size, 0, -1)) & (size >= _beside(size, 0, 1))
    upright = (size > _beside(size, -1, 0)) & (size >= _beside(size, 1, 0))
    falling = (size > _beside(size, -1, -1)) & (size > _beside(size, 1, 1))
    rising = (size > _beside(size, -1, 1)) & (size > _beside(size, 1, -1))
    slanted = torch.where((dx ^ dy) < 0, rising, falling)
    return torch.where(y < flat, across, torch.where(y > steep, upright, slanted))


def _beside(size: Tensor, down: int, right: int) -> Tensor:
    """The neighbour of each pixel, 0 outside."""
    h, w = size.shape
    return functional.pad(size, (1, 1, 1, 1))[1 + down : 1 + down + h, 1 + right : 1 + right + w]


def _joined(candidates: Tensor, certain: Tensor) -> Tensor:
    """The candidates that touch, by sides or corners and over one another, a certain one."""
    w = candidates.shape[1] + 2  # with a margin, so that neighbours wrap round onto no pixel
    left, reached = set(_places(candidates & ~certain, w)), _places(certain, w)
    kept = certain.clone()
    for place in reached:  # grows while it is gone through
        for step in (-w - 1, -w, -w + 1, -1, 1, w - 1, w, w + 1):
            if (near := place + step) in left:
                left.remove(near)
                reached.append(near)
    rows = torch.tensor(reached, dtype=torch.long)
    kept[rows // w, rows % w - 1] = True
    return kept


def _places(mask: Tensor, width: int) -> list[int]:
    y, x = mask.nonzero(as_tuple=True)
    places: list[int] = (y * width + x + 1).tolist()
    return places
