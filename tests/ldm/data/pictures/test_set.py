"""Examples are functions of (seed, position), cut as their record says, and never of a picture held out."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from configs.finetuning import DataConfig
from ldm.data.pictures.hints import edges
from ldm.data.pictures.item import Item
from ldm.data.pictures.open import BadPicture
from ldm.data.pictures.scan import scan
from ldm.data.pictures.set import Pictures
from ldm.data.pictures.split import split
from vae.pixels import from_pil

Paint = Callable[..., Image.Image]
Fill = Callable[..., Path]
SHAPES = ((96, 80), (80, 96), (128, 64), (64, 200), (90, 90), (200, 180))


@pytest.fixture
def album(tmp_path: Path, fill: Fill, paint: Paint) -> DataConfig:
    """24 pictures with captions and control images, four of each shape; two are the same."""
    files: dict[str, object] = {}
    for number in range(24):
        files[f"p/{number:02}.png"] = paint(min(number, 22), SHAPES[number % 6] if number < 22 else SHAPES[0])
        files[f"p/{number:02}.txt"] = f"picture {number}, red, blue, green"
        files[f"h/{number:02}.png"] = paint(100 + number, SHAPES[number % 6] if number < 22 else SHAPES[0])
    fill(tmp_path, files)
    return DataConfig(str(tmp_path / "p"), hints=str(tmp_path / "h"), bucket_step=16, caption_dropout=0.2, smallest=16)


def pictures(config: DataConfig, **changes: object) -> Pictures:
    return Pictures(scan(config)[0], config, **({"size": 64, "seed": 3, "batch": 4} | changes))  # type: ignore[arg-type]


def test_examples_are_cut_as_their_record_says(album: DataConfig, paint: Paint) -> None:
    ours = pictures(replace(album, crop="random", flip=True, held_out=0.0))
    flips = []
    for position in range(len(ours)):
        example = ours.example(position)
        item, (h, w, top, left, high, wide) = ours.items[example.item], example.sizes
        assert (w, h) == item.size
        assert example.image.size == (example.hint or example.image).size == (wide, high) == example.placed.bucket
        number = min(int(Path(item.name).stem), 22)
        whole = paint(number, item.size)
        whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if example.flip else whole
        scaled = whole.resize(example.placed.scaled, Image.Resampling.LANCZOS)
        expected = from_pil([scaled.crop((left, top, left + wide, top + high))])
        torch.testing.assert_close(from_pil([example.image]), expected, rtol=0, atol=2.1 * 2 / 255)
        flips.append(example.flip)
    assert 0.2 < sum(flips) / len(flips) < 0.8
    assert len({ours.placed(p).crop for p in range(len(ours))}) > 10


def test_a_hint_is_cut_the_very_same_way(album: DataConfig, tmp_path: Path) -> None:
    for place in (tmp_path / "p").glob("*.png"):
        (tmp_path / "h" / place.name).write_bytes(place.read_bytes())
    ours = pictures(replace(album, crop="random", flip=True))
    for position in range(len(ours)):
        example = ours.example(position)
        assert example.hint is not None
        assert example.hint.tobytes() == example.image.tobytes()


def test_an_outline_says_the_same_without_opening_a_file(album: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pictures(replace(album, crop="random", flip=True, shuffle_tags=True))
    examples = [ours.example(p) for p in range(8)]

    def refuse(self: Item) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(Item, "open", refuse)
    for position, example in enumerate(examples):
        outline = ours.outline(position)
        assert all(getattr(example, name) == value for name, value in vars(outline).items())
        assert outline.placed == ours.placed(position)
        assert outline.sizes == example.sizes == outline.placed.sizes


def test_examples_depend_on_nothing_asked_before(album: DataConfig) -> None:
    config = replace(album, crop="random", flip=True, shuffle_tags=True)
    ours = pictures(config)
    far = [len(ours) * 3 + 5, 2, len(ours) + 1, 2]
    found = [ours.outline(p) for p in far]
    fresh = [pictures(config).outline(p) for p in reversed(far)][::-1]
    copy = pickle.loads(pickle.dumps(ours))
    assert found == fresh == [copy.outline(p) for p in far]
    assert copy.fingerprint == ours.fingerprint
    assert found[1] == found[3]
    assert len({one.caption for one in map(ours.outline, range(40)) if one.caption}) > 20


def test_keys_tell_content_and_cut_and_nothing_else(album: DataConfig, tmp_path: Path) -> None:
    ours = pictures(replace(album, flip=True, held_out=0.0))
    outlines = [ours.outline(p) for p in range(12 * len(ours))]
    what = {(ours.items[one.item].digest, one.placed, one.flip) for one in outlines}
    assert len({one.key for one in outlines}) == len(what) == 46  # 23 contents, two ways round
    other = pictures(replace(album, flip=True, held_out=0.0, caption_dropout=0.9), seed=9, batch=3)
    assert {one.key for one in map(other.outline, range(12 * len(other)))} == {one.key for one in outlines}
    larger = pictures(album, size=80)
    assert not {larger.outline(p).key for p in range(len(larger))} & {one.key for one in outlines}


def test_a_changed_set_has_another_fingerprint(album: DataConfig, tmp_path: Path, paint: Paint) -> None:
    first = pictures(album).fingerprint
    changes = ["flip", "shuffle_tags"], ["crop"], ["keep_tags", "caption_dropout"]
    values = {"flip": True, "shuffle_tags": True, "crop": "random", "keep_tags": 2, "caption_dropout": 0.3}
    others = [pictures(replace(album, **{n: values[n] for n in names})).fingerprint for names in changes]  # type: ignore[arg-type]
    others += [pictures(album, **change).fingerprint for change in ({"size": 80}, {"seed": 4}, {"batch": 5})]
    (tmp_path / "p/00.txt").write_text("other words")
    (tmp_path / "p/23.txt").write_text("other words")  # one of them may be held out
    others.append(pictures(album).fingerprint)
    paint(200, SHAPES[0]).save(tmp_path / "p/00.png")
    others.append(pictures(album).fingerprint)
    assert len({first, *others}) == 1 + len(others)
    moved = replace(album, path=str((tmp_path / "p").rename(tmp_path / "moved")))
    assert pictures(moved).fingerprint == others[-1]


def test_held_out_pictures_are_never_trained_on(album: DataConfig) -> None:
    for share, count in ((0.1, 2), (0.01, 1), (0.5, 12)):
        ours = pictures(replace(album, held_out=share))
        assert ours.held_out is not None
        kept, out = ({item.digest for item in one.items} for one in (ours, ours.held_out))
        assert not kept & out
        assert len(out) == count
        assert len(ours.items) + len(ours.held_out.items) == 24
        assert {ours.example(p).name for p in range(len(ours))} == {item.name for item in ours.items}
        assert ours.held_out.held_out is None
        assert ours.held_out.items == pictures(replace(album, held_out=share), seed=8, batch=1).held_out.items  # type: ignore[union-attr]
    assert pictures(replace(album, held_out=0.0)).held_out is None


def test_a_known_split_stays_what_it_was() -> None:
    """In every process, and by contents: here, each picture is there twice."""
    items = [Item(f"{i}", (), bytes, digest=f"{i % 20}") for i in range(40)]
    kept, out = split(items, 0.1)
    assert [item.name for item in out] == ["0", "9", "20", "29"]
    assert len(kept) + len(out) == 40


def test_few_pictures_are_all_trained_on(album: DataConfig) -> None:
    items, _ = scan(album)
    few = [item for item in items if item.digest in sorted({item.digest for item in items})[:19]]
    assert Pictures(few, album, size=64, seed=0, batch=4).held_out is None
    more = [item for item in items if item.digest in sorted({item.digest for item in items})[:20]]
    assert Pictures(more, album, size=64, seed=0, batch=4).held_out is not None


def test_sides_hardly_change_with_the_pictures(album: DataConfig) -> None:
    items, _ = scan(album)
    whole = Pictures(items, replace(album, held_out=0.3), size=64, seed=0, batch=4).held_out
    less = Pictures(items[2:], replace(album, held_out=0.3), size=64, seed=0, batch=4).held_out
    assert whole is not None
    assert less is not None
    one, other = ({item.digest for item in some.items} - {items[0].digest, items[1].digest} for some in (whole, less))
    assert len(one ^ other) <= 2


def test_square_cuts_without_buckets(album: DataConfig) -> None:
    ours = pictures(replace(album, buckets=False, held_out=0.0))
    assert ours.shapes() == {(64, 64): 24}
    assert len(ours) == 24
    assert {ours.outline(p).placed.bucket for p in range(24)} == {(64, 64)}
    assert sum(pictures(replace(album, held_out=0.0)).shapes().values()) == 24
    assert pictures(album).shapes() == {(32, 96): 4, (64, 64): 14, (80, 48): 4}


def test_small_pictures_are_left_out_if_not_enlarged(album: DataConfig) -> None:
    ours = pictures(replace(album, enlarge=False, held_out=0.0), size=96)
    assert all(w >= a and h >= b for (w, h), (a, b) in zip((i.size for i in ours.items), ours.buckets, strict=True))
    assert {item.size for item in ours.items} == {(128, 64), (64, 200), (200, 180)}
    assert len(ours.left_out) == 24 - len(ours.items)
    with pytest.raises(
        ValueError, match=r"none of 24 pictures is as large as its bucket, of 512 x 512 .*enlarge = true"
    ):
        pictures(replace(album, enlarge=False), size=512)
    with pytest.raises(ValueError, match="bucket_step = 128 is more than the size"):
        pictures(replace(album, bucket_step=128))


def test_another_bucket_for_a_batch_that_is_joined(album: DataConfig) -> None:
    example = pictures(album).example(0, bucket=(80, 32))
    assert example.image.size == (80, 32) == example.placed.bucket
    assert example.key != pictures(album).outline(0).key


def test_edges_are_those_of_the_cut(album: DataConfig) -> None:
    example = pictures(replace(album, hints=""), edges=True).example(0)
    assert example.hint is not None
    assert example.hint.tobytes() == edges(example.image).tobytes()
    assert pictures(replace(album, hints="")).example(0).hint is None


def test_a_picture_that_is_gone_is_named(album: DataConfig, tmp_path: Path) -> None:
    ours = pictures(album)
    name = ours.outline(5).name
    Path(name).unlink()
    with pytest.raises(BadPicture, match=f"^{name} cannot be read"):
        ours.example(5)


def test_captions_are_dropped_at_their_rate(album: DataConfig) -> None:
    ours, count = pictures(album), 3000
    dropped = sum(ours.outline(p).caption == "" for p in range(count))
    assert abs(dropped - 0.2 * count) < 4 * (count * 0.2 * 0.8) ** 0.5
