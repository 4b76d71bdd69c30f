"""Where a picture's bytes are: small values that a worker process can be handed, and that read when called."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class FileBytes:
    """A file."""

    path: str

    def __call__(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True, slots=True)
class PartBytes:
    """A part of a file, here or, by its address (`https://`, `hf://`, `s3://` ...), elsewhere."""

    path: str
    start: int
    length: int

    def __call__(self) -> bytes:
        if "://" in self.path:
            system, path = remote(self.path)
            data: bytes = system.cat_file(path, start=self.start, end=self.start + self.length)
        else:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                data = file.read(self.length)
        if len(data) != self.length:
            raise OSError(f"{self.path} ends after {len(data)} of the {self.length} bytes at {self.start}")
        return data


@dataclass(frozen=True, slots=True)
class CellBytes:
    """A cell of a `datasets.Dataset` whose only column has undecoded pictures; the rows stay on disk."""

    table: Any
    column: str
    row: int

    def __call__(self) -> bytes:
        value = self.table[self.row][self.column]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
            raise OSError(f"there is no picture in row {self.row} of the column {self.column}")
        return value["bytes"] or Path(value["path"]).read_bytes()


def remote(address: str) -> tuple[Any, str]:
    """(file system of `fsspec`, the path in it). ValueError where the address's kind needs something installed."""
    try:
        system, path = import_module("fsspec.core").url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{address} cannot be read: {error}") from error
    return system, path
