"""Tar archives are read by position: nothing is unpacked, and what lies where is found once."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from configs.finetuning import DataConfig, SourceConfig
from ldm.data.pictures import shard_index
from ldm.data.pictures.scan import scan
from ldm.data.pictures.shard_index import braces, index_of

Paint = Callable[..., Image.Image]
Encode = Callable[..., bytes]


def packed(members: Mapping[str, bytes | str]) -> bytes:
    """A tar archive's content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def two(tmp_path: Path, paint: Paint, encode: Encode) -> Path:
    """A folder with a-00.tar and a-01.tar."""
    files: dict[str, bytes | str] = {
        "./0000.jpg": encode(paint(0), "JPEG"),
        "./0000.txt": "zero\n",
        "x/0001.v1.png": encode(paint(1)),
        "x/0001.json": json.dumps({"caption": "one", "n": 3}),
        "0002.png": encode(paint(2)),
        "0002.json": json.dumps({"caption": "two", "optout": True}),
        "0003.png": b"none",
        "0004.cls": "7",
        "._0000.jpg": b"junk",
    }
    (tmp_path / "a-00.tar").write_bytes(packed(files))
    long = "d" * 120 + "/0005"  # beyond a header's 100 letters
    second = {f"{long}.png": encode(paint(5)), f"{long}.json": '["no fields"]', f"{long}.caption": "five"}
    (tmp_path / "a-01.tar").write_bytes(packed(second))
    return tmp_path


@pytest.mark.parametrize("pattern", ["a-{00..01}.tar", "a-*.tar", "a-{00,01}.tar"])
def test_members_of_one_name_are_one_example(two: Path, paint: Paint, pattern: str) -> None:
    items, report = scan(DataConfig(str(two / pattern)))
    assert [item.captions for item in items] == [("zero",), ("one",), ("five",)]
    assert items[1].name == f"{two}/a-00.tar/x/0001.v1.png"
    assert items[1].open().image.tobytes() == paint(1).tobytes()
    assert report.opted_out == (f"{two}/a-00.tar/0002.png",)
    assert [*report.problems] == ["caption unreadable", "unreadable"]
    assert report.found == 5


def test_control_images_and_columns(tmp_path: Path, paint: Paint, encode: Encode) -> None:
    picture, depth, other = (encode(paint(i)) for i in range(3))
    files = {"a.png": picture, "a.depth.png": depth, "a.hint.png": other, "a.json": '{"de": "ein Hund", "en": "a dog"}'}
    (tmp_path / "a.tar").write_bytes(packed(files | {"b.png": picture, "b.txt": "no hint"}))
    path = str(tmp_path / "a.tar")
    (item,), report = scan(DataConfig(sources=(SourceConfig(path, hint_column="depth", caption_column="de"),)))
    assert item.captions == ("ein Hund",)
    assert item.read() == picture
    assert item.hint is not None
    assert item.hint() == depth
    assert report.problems["hint missing"] == (f"{path}/b.png: no b.hint.png in the archive",)
    (item,), _ = scan(DataConfig(path))
    assert item.hint is not None
    assert item.hint() == other
    with pytest.raises(ValueError, match=r"lie in it, as KEY\.hint\.png"):
        scan(DataConfig(path, hints=str(tmp_path)))


def test_the_index_is_made_once_and_again_for_another_archive(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = str(two / "a-00.tar"), []
    true = shard_index._made
    monkeypatch.setattr(shard_index, "_made", lambda file: made.append(1) or true(file))
    first = index_of(path)
    assert index_of(path) == first
    assert len(made) == 1
    (note,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json")
    note.write_text(note.read_text()[:50])
    assert index_of(path) == first
    assert len(made) == 2
    (two / "a-00.tar").write_bytes((two / "a-01.tar").read_bytes())
    assert index_of(path).members[0][0].endswith("0005.png")
    assert {name.name for name in two.iterdir()} == {"a-00.tar", "a-01.tar"}


def test_archives_elsewhere_are_read_in_parts(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through fsspec: its file system in memory stands for a server."""
    system = fsspec.filesystem("memory")
    for name in ("a-00.tar", "a-01.tar"):
        system.pipe(f"/bucket/{name}", (two / name).read_bytes())
    asked: list[int] = []
    true = type(system).cat_file

    def cat_file(self: object, path: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        found: bytes = true(self, path, start, end)
        return found

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    here, _ = scan(DataConfig(str(two / "a-*.tar")))
    for pattern in ("memory://bucket/a-{00..01}.tar", "memory://bucket/a-*.tar"):
        asked.clear()
        items, _ = scan(DataConfig(pattern))
        assert [item.digest for item in items] == [item.digest for item in here]
        assert sorted(asked) == sorted([4, *(len(item.read()) for item in here)])  # pictures alone, one of them bad
        assert items[0].name.endswith("bucket/a-00.tar/0000.jpg")


def test_damaged_and_other_archives(two: Path, tmp_path: Path) -> None:
    whole = (two / "a-00.tar").read_bytes()
    (two / "a-00.tar").write_bytes(whole[: 512 * 2])
    items, report = scan(DataConfig(str(two / "a-{00..01}.tar")))
    assert len(items) == 1
    assert "a-00.tar; what follows is lost: unexpected end" in report.problems["archive damaged"][0]
    assert "a-00.tar ends after 512 of the" in report.problems["unreadable"][0]
    assert report.found == 2
    with pytest.raises(ValueError, match=r"a-\{00\.\.02\}\.tar' means .*a-02\.tar, and there is no such file"):
        scan(DataConfig(str(two / "a-{00..02}.tar")))
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(ValueError, match=r"b\.tar cannot be read as a plain \.tar"):
        scan(DataConfig(str(tmp_path / "b.tar")))
    with pytest.raises(ValueError, match=r"nosuch://a\.tar cannot be read"):
        scan(DataConfig("nosuch://a.tar"))


def test_braces_are_a_shells() -> None:
    assert list(braces("a{08..11}-{x,y}.tar")) == [
        f"a{n}-{s}.tar" for n in ("08", "09", "10", "11") for s in ("x", "y")
    ]
    assert list(braces("a{8..10}")) == ["a8", "a9", "a10"]
    assert list(braces("plain.tar")) == ["plain.tar"]
    assert list(braces("a{b.tar")) == ["a{b.tar"]


def test_webdataset_groups_alike(two: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = [
        (one["__key__"].removeprefix("./"), sorted(e for e in one if not e.startswith("__")))
        for one in webdataset.WebDataset(str(two / "a-00.tar"), shardshuffle=False)
    ]
    theirs = [key for key, endings in found if any(e.rpartition(".")[2] in ("jpg", "png") for e in endings)]
    ours = scan(DataConfig(str(two / "a-00.tar")))
    names = [item.name for item in ours[0]] + [*ours[1].opted_out]
    keys = [name.removeprefix(f"{two}/a-00.tar/").split(".")[0] for name in names]
    assert sorted(keys) == sorted(key for key in theirs if "0003" not in key and "._" not in key)
