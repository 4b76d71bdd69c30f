"""Small pictures to look through."""

import csv
import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.data.emoji_scenes.keyed import Keyed


def painted(number: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture that is like no other."""
    drawn = Keyed("painted", number)
    small = Image.new("RGB", (4, 4))
    small.putdata([tuple(drawn.bits() % 256 for _ in range(3)) for _ in range(16)])
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A file's content."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def fill() -> Callable[..., Path]:
    """Writes files into a folder: pictures as PNG, bytes as they are, texts as UTF-8, lists of rows as tables."""

    def write(folder: Path, files: Mapping[str, object]) -> Path:
        for name, content in files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(_content(place, content))
        return folder

    return write


def _content(place: Path, content: object) -> bytes:
    if isinstance(content, Image.Image):
        return encoded(content)
    if isinstance(content, list) and place.suffix == ".csv":
        return _csv(content).encode()
    if isinstance(content, list):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return content if isinstance(content, bytes) else str(content).encode()


def _csv(rows: list[dict[str, object]]) -> str:
    from io import StringIO

    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.fixture
def paint() -> Callable[..., Image.Image]:
    """Number, size -> a picture that is like no other."""
    return painted


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Picture, kind -> a file's content."""
    return encoded


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
