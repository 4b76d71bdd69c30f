"""Every source gives its pictures, captions and control images; what is wrong is named, and stops nothing."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from configs.finetuning import DataConfig, SourceConfig
from ldm.data.pictures.item import Item, digest_of
from ldm.data.pictures.open import BadPicture
from ldm.data.pictures.scan import scan

Paint = Callable[..., Image.Image]
Encode = Callable[..., bytes]
Fill = Callable[..., Path]


def told(items: list[Item], root: Path) -> dict[str, tuple[str, ...]]:
    """Path within the source -> captions."""
    return {os.path.relpath(item.name, root): item.captions for item in items}


def test_a_folder_with_texts_beside_its_pictures(tmp_path: Path, fill: Fill, paint: Paint, encode: Encode) -> None:
    fill(
        tmp_path,
        {
            "b.png": paint(1),
            "b.txt": "\ufeff a cat,\r\nasleep \n",
            "a/c.JPG": encode(paint(2), "JPEG"),
            "a/c.caption": "a dog",
            "a/d.webp": encode(paint(3), "WEBP"),
            "a/e.png": paint(4, (80, 64)),
            "a/e.txt": "  ",
            "notes.md": "no picture",
            ".hidden/x.png": paint(5),
            "._b.png": b"junk of macOS",
        },
    )
    items, report = scan(DataConfig(str(tmp_path)))
    assert told(items, tmp_path) == {
        "a/c.JPG": ("a dog",),
        "a/d.webp": (),
        "a/e.png": (),
        "b.png": ("a cat,\nasleep",),
    }
    assert [*report.problems] == ["without caption"]
    assert (report.found, report.kept, report.epoch) == (4, 4, 4)
    assert [item.size for item in items] == [(96, 80), (96, 80), (80, 64), (96, 80)]
    for item in items:
        assert item.digest == digest_of(Path(item.name).read_bytes())
        copy = pickle.loads(pickle.dumps(item))
        assert copy == item
        assert copy.open().image.size == item.size
        assert len(pickle.dumps(item)) < 1000  # none of its bytes


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("whole", [True, False])
def test_tables_of_paths_and_texts(tmp_path: Path, fill: Fill, paint: Paint, kind: str, whole: bool) -> None:
    rows = [
        {"file_name": "x/a.png", "text": "one, with a comma", "optout": False},
        {"file_name": "b.png", "text": 'a "two"', "optout": ""},
        {"file_name": "x/a.png", "text": "another one", "optout": "no"},
        {"file_name": "c.png", "text": "three", "optout": "true" if kind == "csv" else True},
        {"file_name": "gone.png", "text": "four", "optout": False},
        {"file_name": "", "text": "five", "optout": False},
    ]
    pictures = {name: paint(i) for i, name in enumerate(("x/a.png", "b.png", "c.png", "d.png"))}
    fill(tmp_path, {f"metadata.{kind}": rows, **pictures})
    items, report = scan(DataConfig(str(tmp_path if whole else tmp_path / f"metadata.{kind}")))
    assert told(items, tmp_path) == {"x/a.png": ("one, with a comma", "another one"), "b.png": ('a "two"',)}
    assert report.opted_out == (str(tmp_path / "c.png"),)
    assert [*report.problems] == ["row unreadable", *["not in the table"] * whole, "unreadable"]
    assert "gone.png cannot be read" in report.problems["unreadable"][0]
    assert report.found == 5 + whole


def test_tables_within_a_folder_speak_for_their_own(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    rows = [
        {"file_name": "images/1.png", "conditioning_image": "maps/1.png", "text": "one"},
        {"file_name": "images/2.png", "conditioning_image": "maps/gone.png", "text": "two"},
        {"file_name": "images/3.png", "text": "three"},
    ]
    files = {f"t/images/{i}.png": paint(i) for i in range(1, 4)} | {"t/maps/1.png": paint(9), "o.png": paint(5)}
    fill(tmp_path, {"t/metadata.jsonl": rows, "o.txt": "outside", **files})
    items, report = scan(DataConfig(str(tmp_path)))
    assert told(items, tmp_path) == {"o.png": ("outside",), "t/images/1.png": ("one",)}
    hint = items[1].open_hint()
    assert hint is not None
    assert hint.image.tobytes() == paint(9).tobytes()
    assert len(report.problems["hint missing"]) == 2
    assert items[0].open_hint() is None


def test_columns_by_other_names_and_what_is_said_of_wrong_ones(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    rows = [{"bild": "a.png", "worte": ["ein Hund", "", "Rex"]}]
    path = str(fill(tmp_path, {"t.jsonl": rows, "a.png": paint(0)}) / "t.jsonl")
    named = SourceConfig(path, image_column="bild", caption_column="worte")
    assert scan(DataConfig(sources=(named,)))[0][0].captions == ("ein Hund", "Rex")
    with pytest.raises(ValueError, match=r"has no column file_name or .*, but bild, worte: name that of the pictures"):
        scan(DataConfig(path))
    with pytest.raises(ValueError, match=r"caption_column = 'wort' is not in .*t.jsonl, whose columns are bild, worte"):
        scan(DataConfig(sources=(SourceConfig(path, image_column="bild", caption_column="wort"),)))


def test_lines_that_are_no_rows_are_named(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    table = '{"file_name": "a.png", "text": "x\u2028y"}\n{"file_name": \n[1]\n\n'
    fill(tmp_path, {"metadata.jsonl": table, "a.png": paint(0)})
    items, report = scan(DataConfig(str(tmp_path)))
    assert items[0].captions == ("x\u2028y",)
    assert [line.split(": ")[0].split(", ")[1] for line in report.problems["row unreadable"]] == ["line 2", "line 3"]


def test_bad_pictures_are_named_and_left_out(tmp_path: Path, fill: Fill, paint: Paint, encode: Encode) -> None:
    whole = encode(paint(1))
    turned = Image.Exif()
    turned[0x0112] = 6
    fill(
        tmp_path,
        {
            "good.png": whole,
            "copy.png": whole,
            "empty.png": b"",
            "text.png": b"this is none",
            "cut.png": whole[: len(whole) // 2],
            "heic.heic": b"\0\0\0\x18ftypheic\0\0\0\0",
            "tiny.png": paint(2, (200, 40)),
            "cmyk.jpg": encode(paint(3).convert("CMYK"), "JPEG"),
            "turned.jpg": encode(paint(4), "JPEG", exif=turned),
        },
    )
    (tmp_path / "secret.png").symlink_to(tmp_path / "nowhere.png")
    items, report = scan(DataConfig(str(tmp_path)))
    assert sorted(told(items, tmp_path)) == ["cmyk.jpg", "copy.png", "good.png", "turned.jpg"]
    bad = report.problems["unreadable"]
    assert [line.split(" ")[0].rpartition("/")[2] for line in bad] == [
        "cut.png", "empty.png", "heic.heic", "secret.png", "text.png"
    ]  # fmt: skip
    assert report.problems["too small"] == (f"{tmp_path}/tiny.png: 200 x 40",)
    assert report.problems["duplicate content"] == (f"{tmp_path}/good.png is {tmp_path}/copy.png",)
    assert report.notes == {
        "CMYK converted": (f"{tmp_path}/cmyk.jpg",),
        "turned by its EXIF": (f"{tmp_path}/turned.jpg",),
    }
    assert {item.name.rpartition("/")[2]: item.size for item in items}["turned.jpg"] == (80, 96)
    assert (report.found, report.kept) == (10, 4)
    lines = "\n".join(report.lines(names=2))
    assert "4 of 10 pictures are trained on, 4 in an epoch" in lines
    assert "5 unreadable, left out: " in lines
    assert " and 3 more" in lines


def test_opt_outs_are_honoured(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    wishes = "# by request\na.png\nsub/../b.png  # of 2024\nmisspelt.png\n"
    pictures = {name: paint(i) for i, name in enumerate(("a.png", "b.png", "c.png", "sub/a.png", "sub/d.png"))}
    fill(tmp_path, {"optout.txt": wishes, "sub/optout.txt": "d.png", **pictures})
    items, report = scan(DataConfig(str(tmp_path)))
    assert sorted(told(items, tmp_path)) == ["c.png", "sub/a.png"]
    assert sorted(os.path.relpath(name, tmp_path) for name in report.opted_out) == ["a.png", "b.png", "sub/d.png"]
    assert report.problems["opted out, but no picture of that name"] == (f"{tmp_path}/optout.txt: misspelt.png",)
    assert report.found == 5
    rows = [{"file_name": name, "text": name} for name in ("a.png", "c.png")]
    assert len(scan(DataConfig(str(fill(tmp_path, {"t.jsonl": rows}) / "t.jsonl")))[0]) == 1


def test_captions_get_their_source_and_their_trigger(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    files = {f"{i}.png": paint(i) for i in range(5)}
    texts = {"0.txt": "a dog", "1.txt": "a SKS, dog", "2.txt": "a sksy dog", "3.txt": "photo of (sks)"}
    fill(tmp_path, files | texts)
    given = SourceConfig(str(tmp_path), caption="a thing", repeats=3, weight=0.5)
    items, report = scan(DataConfig(sources=(given,), trigger="sks"))
    assert [item.captions[0] for item in items] == [
        "sks, a dog", "a SKS, dog", "sks, a sksy dog", "photo of (sks)", "sks, a thing"
    ]  # fmt: skip
    assert {(item.repeats, item.weight, item.source) for item in items} == {(3, 0.5, 0)}
    assert not report.problems
    assert report.epoch == 15
    items, report = scan(DataConfig(str(tmp_path), trigger="sks"))
    assert items[4].captions == ("sks",)
    assert report.problems["without caption"] == (f"{tmp_path}/4.png",)


def test_captions_that_are_all_the_same(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    fill(tmp_path, {f"{i}.png": paint(i) for i in range(3)} | {f"{i}.txt": "a cat" for i in range(3)})
    assert scan(DataConfig(str(tmp_path)))[1].problems == {"captions all the same": ("a cat",)}


def test_several_sources(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    fill(tmp_path, {"a/0.png": paint(0), "b/1.png": paint(1), "c/readme.md": ""})
    sources = [SourceConfig(str(tmp_path / name), repeats=1 + i) for i, name in enumerate("abc")]
    items, report = scan(DataConfig(sources=tuple(sources)))
    assert [(item.source, item.repeats) for item in items] == [(0, 1), (1, 2)]
    assert [kept for _, kept in report.sources] == [1, 1, 0]
    assert report.problems["source without pictures"] == (str(tmp_path / "c"),)
    assert f"  1 from {tmp_path}/b" in list(report.lines())


@pytest.mark.parametrize("inside", [True, False])
def test_hints_lie_in_a_folder_of_their_own(tmp_path: Path, fill: Fill, paint: Paint, inside: bool) -> None:
    pictures = {f"p/{name}.png": paint(i) for i, name in enumerate(("a", "x/b", "c", "d", "e"))}
    home = "p/hints" if inside else "hints"
    maps = {"a.png": paint(10), "x/b.webp": paint(11, (48, 40)), "d.png": paint(12, (96, 96)), "e.png": b"none"}
    fill(tmp_path, pictures | {f"{home}/{name}": content for name, content in maps.items() if name != "x/b.webp"})
    (tmp_path / home / "x").mkdir(parents=True, exist_ok=True)
    maps["x/b.webp"].save(tmp_path / home / "x/b.webp")
    items, report = scan(DataConfig(str(tmp_path / "p"), hints=str(tmp_path / home)))
    assert sorted(told(items, tmp_path)) == ["p/a.png", "p/x/b.png"]
    assert all(item.hint_digest for item in items)
    assert [len(report.problems[kind]) for kind in ("hint missing", "hint of another shape")] == [2, 1]
    with pytest.raises(ValueError, match=r"hints = '.*gone' is not a folder"):
        scan(DataConfig(str(tmp_path / "p"), hints=str(tmp_path / "gone")))


def test_what_vanishes_or_changes_later_is_named(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    fill(tmp_path, {"a.png": paint(0), "b.png": paint(1), "h/a.png": paint(2), "h/b.png": paint(3)})
    a, b = scan(DataConfig(str(tmp_path), hints=str(tmp_path / "h")))[0]
    (tmp_path / "a.png").unlink()
    fill(tmp_path, {"b.png": paint(4), "h/b.png": paint(5)})
    with pytest.raises(BadPicture, match=r"a\.png cannot be read: .*No such file"):
        a.open()
    with pytest.raises(BadPicture, match=r"b\.png is not what it was when the run began"):
        b.open()
    with pytest.raises(BadPicture, match=r"the hint of .*b\.png is not what it was"):
        b.open_hint()


def test_progress_is_told(tmp_path: Path, fill: Fill, paint: Paint) -> None:
    steps: list[tuple[int, int]] = []
    scan(DataConfig(str(fill(tmp_path, {f"{i}.png": paint(i) for i in range(3)}))), lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_sources_that_are_none(tmp_path: Path, fill: Fill, paint: Paint, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = fill(tmp_path, {"x/readme.md": ""}) / "x"
    with pytest.raises(ValueError, match=rf"there is no picture to train on in {empty}: looked for \.jpg, .*found 0"):
        scan(DataConfig(str(empty)))
    fill(tmp_path, {"bad/a.png": b"none", "one.png": paint(0), "t.jsonl": "\n", "u.csv": b"\xff\xfe\x00"})
    with pytest.raises(ValueError, match=r"found 1, none of use \(1 unreadable, left out: .*a\.png is not a picture"):
        scan(DataConfig(str(tmp_path / "bad")))
    with pytest.raises(ValueError, match=r"one\.png' is one file: name a folder"):
        scan(DataConfig(str(tmp_path / "one.png")))
    with pytest.raises(ValueError, match=r"t\.jsonl has no rows"):
        scan(DataConfig(str(tmp_path / "t.jsonl")))
    with pytest.raises(ValueError, match=r"u\.csv cannot be read as a table of UTF-8 text"):
        scan(DataConfig(str(tmp_path / "u.csv")))
    fill(tmp_path, {"v.csv": 'file_name,text\na.png,"' + "x" * 200_000, "w/a.png": paint(0), "w/optout.txt": b"\xff"})
    with pytest.raises(ValueError, match=r"v\.csv cannot be read as a table of UTF-8 text: field larger"):
        scan(DataConfig(str(tmp_path / "v.csv")))
    with pytest.raises(ValueError, match=r"optout\.txt cannot be read, whose opt-outs are to be honoured"):
        scan(DataConfig(str(tmp_path / "w")))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'gone/folder\' is no folder here; .*pip install "ldm-pipelines\[train\]"'):
        scan(DataConfig("gone/folder"))
