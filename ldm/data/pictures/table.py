"""Tables in files: JSON lines and CSV, with the paths of pictures from the table's own folder."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from configs.finetuning import SourceConfig
from ldm.data.pictures.report import BAD_ROW, Findings
from ldm.data.pictures.rows import Columns, columns_of

NAMES = ("metadata.jsonl", "metadata.csv")  # of tables within a folder of pictures
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Listed:
    """A picture that a table names: its captions, its control image, None without, whether its owner opted out."""

    path: Path
    captions: tuple[str, ...]
    hint: Path | None
    refused: bool
    hinted: bool  # whether the table has control images at all


def listed(file: Path, source: SourceConfig, findings: Findings) -> list[Listed]:
    """The pictures of a table in its order; rows of one picture are one, with several captions.

    Raises ValueError where the table cannot be read, is empty, or has no column of pictures.
    """
    rows = list(_rows(file, findings))
    if not rows:
        raise ValueError(f"{file} has no rows: it needs one for each picture, with file_name and text")
    columns = columns_of({name for _, row in rows for name in row}, source, str(file))
    pictures: dict[Path, list[Row]] = {}
    for line, row in rows:
        name = row.get(columns.image)
        if isinstance(name, str) and name.strip():
            pictures.setdefault(file.parent / name.strip(), []).append(row)
        else:
            findings.problem(BAD_ROW, f"{file}, line {line}: no {columns.image}")
    return [_one(file.parent, path, its, columns) for path, its in pictures.items()]


def _one(folder: Path, path: Path, rows: list[Row], columns: Columns) -> Listed:
    captions = dict.fromkeys(text for row in rows for text in columns.captions(row))
    hint = next((str(row[columns.hint]).strip() for row in rows if columns.hint and row.get(columns.hint)), "")
    refused = any(columns.refused(row) for row in rows)
    return Listed(path, tuple(captions), folder / hint if hint else None, refused, bool(columns.hint))


def _rows(file: Path, findings: Findings) -> Iterator[tuple[int, Row]]:
    """(line, row)."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".csv":
            reader = csv.DictReader(StringIO(text, newline=""), restval="")
            yield from [(reader.line_num, {k: v for k, v in row.items() if k is not None}) for row in reader]
        else:
            yield from _json_rows(file, text, findings)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as a table of UTF-8 text: {error}") from error


def _json_rows(file: Path, text: str, findings: Findings) -> Iterator[tuple[int, Row]]:
    """Lines that are no objects are problems, and passed over."""
    for line, words in enumerate(text.split("\n"), 1):
        if not words.strip():
            continue
        try:
            row = json.loads(words)
        except ValueError as error:
            row = error
        if isinstance(row, dict):
            yield line, row
        else:
            findings.problem(BAD_ROW, f"{file}, line {line}: {row if isinstance(row, ValueError) else 'not an object'}")
