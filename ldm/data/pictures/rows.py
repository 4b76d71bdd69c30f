"""Rows of a table: which columns hold the picture, its captions, its control image, and its owner's refusal."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from configs.finetuning import SourceConfig

IMAGE = ("file_name", "image", "image_path", "filename", "path", "img", "picture", "jpg", "png", "webp")
CAPTION = ("text", "caption", "captions", "prompt", "txt")
HINT = ("hint", "conditioning_image", "control", "control_image", "conditioning")
OPTOUT = ("optout", "opt_out", "opted_out")
_FILE = "_file_name"  # as in `conditioning_image_file_name` of an image folder


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; "" for those it lacks."""

    image: str
    caption: str
    hint: str
    optout: str

    def captions(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The row's captions, without empty ones."""
        return texts(row.get(self.caption)) if self.caption else ()

    def refused(self, row: Mapping[str, Any]) -> bool:
        """Whether the picture's owner opted out."""
        return bool(self.optout) and truth(row.get(self.optout))


def columns_of(names: Collection[str], source: SourceConfig, table: str) -> Columns:
    """The columns of a table with these names. ValueError if there is no picture, or a column is not there."""
    return Columns(
        _column(source.image_column, names, IMAGE, "image_column", table) or _no_picture(names, table),
        _column(source.caption_column, names, CAPTION, "caption_column", table),
        _column(source.hint_column, names, (*HINT, *(name + _FILE for name in HINT)), "hint_column", table),
        _column("", names, OPTOUT, "", table),
    )


def texts(value: object) -> tuple[str, ...]:
    """A cell -> its captions: a text, or a list of them; none that is empty."""
    if value is None:
        return ()
    many = value if isinstance(value, (list, tuple)) else [value]
    return tuple(text for one in many if one is not None and (text := str(one).strip()))


def truth(value: object) -> bool:
    """Whether a cell says yes, as a value or in words."""
    return value.strip().lower() in ("true", "yes", "y", "1") if isinstance(value, str) else bool(value)


def _column(given: str, names: Collection[str], usual: tuple[str, ...], key: str, table: str) -> str:
    if given and given not in names:
        raise ValueError(f"{key} = {given!r} is not in {table}, whose columns are {_list(names)}")
    return given or next((name for name in usual if name in names), "")


def _no_picture(names: Collection[str], table: str) -> str:
    raise ValueError(
        f"{table} has no column {' or '.join(IMAGE[:3])}, but {_list(names)}: name that of the pictures as image_column"
    )


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"
