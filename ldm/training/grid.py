"""Pictures side by side."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from vae.pixels import to_pil


def grid(images: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """Images (b, 3, h, w) near [-1, 1], row by row, as one picture."""
    b, _, h, w = images.shape
    rows = -(-b // columns)
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), "white")
    for number, picture in enumerate(to_pil(images.float().cpu())):
        sheet.paste(picture, (number % columns * (w + gap), number // columns * (h + gap)))
    return sheet
