"""Pictures to disk: names, numbers behind taken names, nothing half-written."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.files import default_name, filled, write_png
from pipelines.result import read_record

PICTURE = Image.new("RGB", (8, 8), "teal")


@pytest.mark.parametrize(
    ("prompt", "seed", "name"),
    [
        ("a cat holding a banana", 7, "a-cat-holding-a-banana-7.png"),
        ("  ../../etc/passwd ", 0, "etc-passwd-0.png"),
        ("Ein Bär, 日本!", None, "ein-bär-日本.png"),
        ("🐻", 3, "picture-3.png"),
        ("x" * 500, 1, "x" * 80 + "-1.png"),
    ],
)
def test_default_names(prompt: str, seed: int | None, name: str) -> None:
    assert default_name(prompt, seed) == name


def test_long_names_fit_the_file_system() -> None:
    assert len(default_name("日" * 500, 2**32 - 1).encode()) <= 255


def test_patterns() -> None:
    assert filled("a/{seed}-{index}-{other}.png", seed=5, index=2) == Path("a/5-2-{other}.png")
    assert filled("{seed}.png", seed=None, index=0) == Path("none.png")


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    paths = [write_png(PICTURE, {"seed": i}, tmp_path / "new" / "a.png") for i in range(3)]
    assert [path.name for path in paths] == ["a.png", "a-0001.png", "a-0002.png"]
    assert [read_record(path)["seed"] for path in paths] == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        def save(self, stream: Any, **_: Any) -> None:
            stream.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_png(Broken(), {}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_without_a_record_says_so(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="no record"):
        read_record(tmp_path / "plain.png")
