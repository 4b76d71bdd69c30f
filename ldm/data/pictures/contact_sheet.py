"""A page of examples for people: each picture as the model will see it, and beneath it what is said of it."""

import unicodedata
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from ldm.data.pictures.set import Example
from ldm.evaluation.sheet import wrapped

PAPER, WORDS, FAINT = (255, 255, 255), (25, 25, 25), (120, 120, 120)
LARGEST, NARROWEST, GAP, FONT = 256, 128, 8, 12  # pixels: of a picture's longer side, of a column, between, of letters
LINES = 6  # of a caption
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(examples: Sequence[Example], columns: int = 6, largest: int = LARGEST) -> Image.Image:
    """A page of the examples, `columns` beside each other, each with its control image, bucket, name and caption.

    largest: pixels to which longer sides are scaled down. Letters that the font lacks are drawn as boxes. Raises
    ValueError without examples.
    """
    if not examples:
        raise ValueError("a contact sheet needs at least one example")
    cells = [_pixels(example, largest) for example in examples]
    wide = max(NARROWEST, *(cell.width for cell in cells))
    blocks = [_block(example, cell, wide) for example, cell in zip(examples, cells, strict=True)]
    rows = [blocks[first : first + columns] for first in range(0, len(blocks), columns)]
    heights = [max(block.height for block in row) for row in rows]
    across = min(columns, len(blocks))
    page = Image.new("RGB", (across * (wide + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1)), PAPER)
    top = GAP
    for row, high in zip(rows, heights, strict=True):
        for number, block in enumerate(row):
            page.paste(block, (GAP + number * (wide + GAP), top))
        top += high + GAP
    return page


def _pixels(example: Example, largest: int) -> Image.Image:
    """The picture, with its control image to the right."""
    parts = [example.image] if example.hint is None else [example.image, example.hint]
    small = [part.copy() for part in parts]
    for part in small:
        part.thumbnail((largest, largest))
    both = Image.new("RGB", (sum(part.width for part in small), small[0].height))
    left = 0
    for part in small:
        both.paste(part, (left, 0))
        left += part.width
    return both


def _block(example: Example, pixels: Image.Image, wide: int) -> Image.Image:
    """One example: pixels above words."""
    font = ImageFont.load_default(FONT)
    (w, h), name = example.placed.bucket, example.name.replace("\\", "/").rpartition("/")[2]
    about = f"{w} x {h}{', mirrored' if example.flip else ''}  {name}"
    lines = [(line, FAINT) for line in _lines(about, wide, font)[:2]]
    lines += [(line, WORDS) for line in _lines(example.caption or "(no caption)", wide, font, LINES)]
    block = Image.new("RGB", (wide, pixels.height + 4 + len(lines) * (FONT + 4)), PAPER)
    block.paste(pixels, (0, 0))
    pen = ImageDraw.Draw(block)
    for number, (line, colour) in enumerate(lines):
        pen.text((0, pixels.height + 4 + number * (FONT + 4)), line, colour, font)
    return block


def _lines(text: str, wide: int, font: Font, most: int = 2) -> list[str]:
    """At most so many lines, the last with dots if there were more."""
    letters = _drawable(text, font)
    lines = wrapped(" ".join(piece for word in letters.split() for piece in _pieces(word, wide, font)), wide, font)
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][:-1]}..."]


def _pieces(word: str, wide: int, font: Font) -> Iterator[str]:
    """A word cut into what fits on a line."""
    piece = ""
    for letter in word:
        if piece and font.getlength(piece + letter) > wide:
            yield piece
            piece = ""
        piece += letter
    yield piece


def _drawable(text: str, font: Font) -> str:
    """With ? for what is no letter (controls, halves of surrogate pairs, marks of direction) and spaces for line ends;
    letters that the font lacks without their accents."""
    plain = unicodedata.normalize("NFC", " ".join(text.split()))
    letters = {letter: _letter(letter, font) for letter in {*plain}}
    return "".join(letters[letter] for letter in plain)


def _letter(letter: str, font: Font) -> str:
    """The letter, what is nearest to it in the font, or itself, which is drawn as a box; for Pillow's font without
    FreeType, which has no boxes, a question mark."""
    if letter != " " and unicodedata.category(letter) in ("Cc", "Cf", "Cs"):
        return "?"
    if unicodedata.combining(letter):
        return ""
    bare = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    options = (letter, bare, letter.casefold())
    if isinstance(font, ImageFont.FreeTypeFont):
        return next((one for one in options if one and all(_has(font, part) for part in one)), letter)
    return next((one for one in options if one.isascii()), "?")


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether it is drawn otherwise than what no font has."""
    return letter.isascii() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
