"""Kinds of values on the command line; argparse shows the text of ArgumentTypeError."""

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", int, float)


def size(text: str) -> tuple[int, int]:
    """(width, height) from "512x768", both divisible by 8."""
    match = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write width x height, such as 512x768")
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8 or not width or not height:
        fit = "x".join(str(max(8, round(side / 8) * 8)) for side in (width, height))
        raise argparse.ArgumentTypeError(f"{text!r} does not fit: width and height are multiples of 8, such as {fit}")
    return width, height


def seed(text: str) -> int:
    return number(text, int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")


def scaled(text: str) -> tuple[str, float]:
    """(path, scale) from "style.safetensors:0.8"; the scale is 1 where none is given."""
    path, _, scale = text.rpartition(":")
    if not path or os.path.exists(text) or not re.fullmatch(r"[-+]?[\d.]+", scale):
        return text, 1.0
    return path, finite(scale)


def positive(text: str) -> int:
    return number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def several(text: str) -> int:
    return number(text, int, lambda value: value >= 2, "a whole number of at least 2")


def natural(text: str) -> int:
    return number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def finite(text: str) -> float:
    return number(text, float, math.isfinite, "a number such as 7.5")


def number(text: str, kind: Callable[[str], T], fits: Callable[[T], bool], wanted: str) -> T:
    try:
        if fits(value := kind(text)):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")


def output(text: str) -> str:
    """A path for PNG files, or of a folder; other formats cannot carry the record."""
    path = Path(text)
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"):
        raise argparse.ArgumentTypeError(f"pictures are written as PNG: name it {path.with_suffix('.png').name}")
    return text
