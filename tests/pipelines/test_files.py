"""Pictures to disk: names, numbers behind taken names, nothing half-written."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

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


def bomb(path: Path, width: int, height: int) -> Path:
    """A small file that claims these pixels, all zero."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [9000, 100_000])
def test_a_picture_of_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(ValueError, match=r"bomb\.png is no PNG file that can be read .*pixels"):
        read_record(bomb(tmp_path / "bomb.png", side, side))


def test_texts_beyond_measure(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("ldm", '"' + "x" * 2**21 + '"', zip=True)
    PICTURE.save(tmp_path / "long.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"long\.png is no PNG file that can be read"):
        read_record(tmp_path / "long.png")
    for name, text in (("deep", "[" * 100_000), ("broken", "{")):
        info = PngInfo()
        info.add_itxt("ldm", text)
        PICTURE.save(tmp_path / f"{name}.png", pnginfo=info)
        with pytest.raises(ValueError, match=rf"{name}\.png"):
            read_record(tmp_path / f"{name}.png")


def test_a_record_is_read_from_png_files_of_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"a\.gif is no PNG file"):
        read_record(tmp_path / "a.gif")
    path = write_png(PICTURE, {"seed": 1}, tmp_path / "a.png")
    monkeypatch.setattr("pipelines.result.MAX_BYTES", 10)
    with pytest.raises(ValueError, match="bytes, and pictures of up to 10 are read"):
        read_record(path)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.png")
