"""A sheet of pictures for people: a row for each prompt, a column for each seed, a border that tells the verdict."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vae.pixels import to_pil

RIGHT, WRONG = (30, 150, 60), (205, 40, 40)
PAPER, WORDS = (255, 255, 255), (25, 25, 25)
BORDER, GAP = 3, 4  # pixels
FONT = 11


def sheet(rows: Sequence[tuple[str, Tensor, Sequence[bool]]], across: int = 1) -> Image.Image:
    """(caption, pictures (n, 3, s, s) in [-1, 1], right or wrong for each) of every row -> one picture.

    across: how many rows stand side by side. Raises ValueError where there are none, or the numbers differ.
    """
    if not rows:
        raise ValueError("A sheet needs at least one row of pictures.")
    blocks = [_block(*row) for row in rows]
    wide, high = max(block.width for block in blocks), max(block.height for block in blocks)
    lines = -(-len(blocks) // across)
    page = Image.new("RGB", (across * (wide + 2 * GAP), lines * (high + GAP) + GAP), PAPER)
    for number, block in enumerate(blocks):
        page.paste(block, (number % across * (wide + 2 * GAP) + GAP, number // across * (high + GAP) + GAP))
    return page


def save_sheet(page: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all; folders are made."""
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        page.save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _block(caption: str, pictures: Tensor, right: Sequence[bool]) -> Image.Image:
    """One prompt: its words above its pictures."""
    if len(pictures) != len(right):
        raise ValueError(f"{len(pictures)} pictures of {caption!r} have {len(right)} verdicts: give one for each.")
    step = pictures.shape[-1] + 2 * BORDER + GAP
    font = ImageFont.load_default(FONT)
    lines = wrapped(caption, len(pictures) * step - GAP, font)
    top = (FONT + 3) * len(lines) + 2
    block = Image.new("RGB", (len(pictures) * step - GAP, top + step), PAPER)
    pen = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        pen.text((0, number * (FONT + 3)), line, WORDS, font)
    for number, (image, good) in enumerate(zip(to_pil(pictures), right, strict=True)):
        x = number * step
        pen.rectangle((x, top, x + step - GAP - 1, top + step - GAP - 1), RIGHT if good else WRONG)
        block.paste(image, (x + BORDER, top + BORDER))
    return block


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The words in lines of at most this many pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
