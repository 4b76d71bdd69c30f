"""Tables of the `datasets` library: parquet files, folders it saved, and data sets of the hub by their ids."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from configs.finetuning import SourceConfig
from ldm.data.pictures.files import Hints
from ldm.data.pictures.item import Item
from ldm.data.pictures.readers import CellBytes, FileBytes
from ldm.data.pictures.report import NO_HINT, Findings
from ldm.data.pictures.rows import Columns, columns_of
from ldm.data.pictures.shards import expanded

SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`
SPLIT = "train"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in SAVED)


def dataset_items(source: SourceConfig, findings: Findings) -> Iterator[Item]:
    """The pictures of a data set in its order; they stay in its files. Texts in the picture's column are paths.

    Raises ValueError where `datasets` is not installed, and what it says of a data set that it cannot read.
    """
    library = _library(source.path)
    table, home = _table(library, source)
    columns = columns_of(table.column_names, source, source.path)
    pictures = _Cells(library, table, columns.image, home)
    controls = _Cells(library, table, columns.hint, home) if columns.hint and not source.hints else None
    hints = _hints(source, pictures)
    for row, told in enumerate(_told(table, columns)):
        name = f"{source.path}, row {row}"
        if columns.refused(told):
            findings.opted_out.append(name)
        elif hints is None:
            hint = controls.reader(row) if controls else None
            yield Item(name, columns.captions(told), pictures.reader(row), hint=hint)
        elif place := hints.find(pictures.path(row)):
            yield Item(name, columns.captions(told), pictures.reader(row), hint=FileBytes(str(place)))
        else:
            findings.problem(NO_HINT, f"{name}: none named as {pictures.path(row)} in {hints.root}")


class _Cells:
    """A column of pictures, or of paths to them."""

    def __init__(self, library: Any, table: Any, column: str, home: Path) -> None:
        alone = table.select_columns([column])
        kind = alone.features[column]
        encoded = isinstance(kind, library.Image)
        self.table = alone.cast_column(column, library.Image(decode=False)) if encoded else alone
        self.paths = getattr(kind, "dtype", "") in ("string", "large_string")
        self.column, self.home = column, home

    def path(self, row: int) -> str:
        return str(self.table[row][self.column])

    def reader(self, row: int) -> CellBytes | FileBytes:
        return FileBytes(str(self.home / self.path(row))) if self.paths else CellBytes(self.table, self.column, row)


def _hints(source: SourceConfig, pictures: _Cells) -> Hints | None:
    if source.hints and not pictures.paths:
        raise ValueError(f"hints = {source.hints!r}: the pictures of {source.path} have no names, set hint_column")
    return Hints(source.hints) if source.hints else None


def _library(path: str) -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise ValueError(
            f"path = {path!r} is no folder here; to read it as parquet or a data set of the hub: "
            'pip install "ldm-pipelines[train]"'
        ) from error


def _table(library: Any, source: SourceConfig) -> tuple[Any, Path]:
    """(the rows, the folder that paths in them are relative to)."""
    place = Path(source.path).expanduser()
    try:
        if source.path.endswith(".parquet"):
            files = expanded(source.path)
            return library.load_dataset("parquet", data_files=files, split="train"), Path(files[0]).parent
        found = library.load_from_disk(str(place)) if place.is_dir() else library.load_dataset(source.path)
    except Exception as error:  # of a library that raises its own, the hub's and Arrow's
        kind = "a data set" if place.exists() else "a folder or file here, nor is it a data set of the hub"
        raise ValueError(f"path = {source.path!r} cannot be read as {kind}: {error}") from error
    return _split(found, source.path), place


def _split(found: Any, path: str) -> Any:
    """The rows to train on. ValueError where it is unclear which of several splits they are."""
    if not isinstance(found, dict):
        return found
    if SPLIT in found:
        return found[SPLIT]
    if len(found) != 1:
        raise ValueError(f"{path} has no split {SPLIT!r}, but {', '.join(found)}: save the one you mean as a folder")
    return next(iter(found.values()))


def _told(table: Any, columns: Columns) -> Iterator[dict[str, Any]]:
    """The rows without their pictures."""
    wanted = [name for name in (columns.caption, columns.optout) if name]
    return iter(table.select_columns(wanted)) if wanted else ({} for _ in range(len(table)))
