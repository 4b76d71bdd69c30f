"""Pictures to disk: whole or not at all, and never over something that is there."""

import os
import re
import tempfile
import unicodedata
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.result import Record

LONGEST_NAME = 80  # characters of the prompt in a file name


def default_name(prompt: str, seed: int | None) -> str:
    """`a-cat-holding-a-banana-7.png`: what a picture is called when nobody names it."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", prompt).lower())
    slug = "-".join(words)[:LONGEST_NAME].strip("-") or "picture"
    while len(slug.encode()) > 200:  # file systems count bytes, 255 at most
        slug = slug[:-1]
    return f"{slug}.png" if seed is None else f"{slug}-{seed}.png"


def filled(pattern: str | Path, *, seed: int | None, index: int) -> Path:
    """The path with {seed} and {index} filled in; other braces stay as they are."""
    text = str(pattern).replace("{seed}", "none" if seed is None else str(seed)).replace("{index}", str(index))
    return Path(text).expanduser()


def write_png(image: Any, record: "Record", path: Path) -> Path:
    """Writes a PIL image with its record as PNG, at `path` or, if that is taken, at `path` with a number behind it.

    Folders are made. Raises OSError, leaving nothing behind, when the file cannot be written.
    """
    from pipelines.result import png_info  # loads Pillow, which naming files does not need

    path = path if path.suffix.lower() == ".png" else path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".ldm-", suffix=".png", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            image.save(stream, format="PNG", pnginfo=png_info(record))
        os.chmod(temporary, 0o666 & ~_umask())
        return _move_to_free_name(Path(temporary), path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _move_to_free_name(temporary: Path, path: Path) -> Path:
    for number in count():
        candidate = path if number == 0 else path.with_name(f"{path.stem}-{number:04d}{path.suffix}")
        try:
            os.link(temporary, candidate)  # unlike a rename, this fails where a file is
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links: reserve the name, then fill it
            try:
                candidate.touch(exist_ok=False)
            except FileExistsError:
                continue
            os.replace(temporary, candidate)
        return candidate
    raise AssertionError("count() does not end")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
