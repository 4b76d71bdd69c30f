"""Parquet files and data sets, by the `datasets` library that people have them from."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs.finetuning import DataConfig, SourceConfig
from ldm.data.pictures.scan import scan

datasets = pytest.importorskip("datasets")
Paint = Callable[..., Image.Image]
Encode = Callable[..., bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def table(paint: Paint, encode: Encode) -> Any:
    """Five rows: a picture, one of several captions, one opted out, none, one that is no picture."""
    cells = [{"bytes": encode(paint(i)), "path": f"{i}.png"} for i in range(3)]
    columns = {
        "image": [*cells, None, {"bytes": b"none", "path": None}],
        "caption": [["zero"], ["one", " ", "uno"], ["two"], ["three"], []],
        "optout": [False, None, True, False, False],
    }
    kinds = {
        "image": datasets.Image(),
        "caption": datasets.Sequence(datasets.Value("string")),
        "optout": datasets.Value("bool"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def check(path: str, paint: Paint) -> None:
    items, report = scan(DataConfig(path))
    assert [item.captions for item in items] == [("zero",), ("one", "uno")]
    assert [item.name for item in items] == [f"{path}, row 0", f"{path}, row 1"]
    for number, item in enumerate(pickle.loads(pickle.dumps(items))):
        assert item.open().image.tobytes() == paint(number).tobytes()
    assert len(pickle.dumps(items)) < 10_000  # rows stay in their files
    assert report.opted_out == (f"{path}, row 2",)
    assert len(report.problems["unreadable"]) == 2
    assert "row 3 cannot be read: there is no picture in row 3" in report.problems["unreadable"][0]


def test_parquet(tmp_path: Path, table: Any, paint: Paint) -> None:
    table.to_parquet(tmp_path / "a.parquet")
    check(str(tmp_path / "a.parquet"), paint)


def test_several_parquet_files(tmp_path: Path, table: Any) -> None:
    for number in (0, 1):
        table.to_parquet(tmp_path / f"a-{number}.parquet")
    for pattern in ("a-*.parquet", "a-{0..1}.parquet"):
        items, report = scan(DataConfig(str(tmp_path / pattern)))
        assert len(items) == 4
        assert len(report.problems["duplicate content"]) == 2


def test_a_saved_data_set(tmp_path: Path, table: Any, paint: Paint) -> None:
    table.save_to_disk(tmp_path / "one")
    check(str(tmp_path / "one"), paint)
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(tmp_path / "many")
    check(str(tmp_path / "many"), paint)
    datasets.DatasetDict(a=table, b=table).save_to_disk(tmp_path / "unclear")
    with pytest.raises(ValueError, match="has no split 'train', but a, b: save the one you mean"):
        scan(DataConfig(str(tmp_path / "unclear")))


def test_paths_and_bare_bytes(tmp_path: Path, paint: Paint, encode: Encode) -> None:
    paint(0).save(tmp_path / "a.png")
    (tmp_path / "h").mkdir()
    paint(7).save(tmp_path / "h/a.png")
    datasets.Dataset.from_dict({"file_name": ["a.png", "b.png"], "text": ["a", "b"]}).to_parquet(tmp_path / "p.parquet")
    items, report = scan(DataConfig(str(tmp_path / "p.parquet")))
    assert items[0].open().image.tobytes() == paint(0).tobytes()
    assert len(report.problems["unreadable"]) == 1
    (item,), report = scan(DataConfig(str(tmp_path / "p.parquet"), hints=str(tmp_path / "h")))
    hint = item.open_hint()
    assert hint is not None
    assert hint.image.tobytes() == paint(7).tobytes()
    assert len(report.problems["hint missing"]) == 1
    datasets.Dataset.from_dict({"jpg": [encode(paint(1))], "text": ["a"]}).to_parquet(tmp_path / "q.parquet")
    (item,), _ = scan(DataConfig(str(tmp_path / "q.parquet")))
    assert item.open().image.tobytes() == paint(1).tobytes()
    with pytest.raises(ValueError, match="have no names, set hint_column"):
        scan(DataConfig(str(tmp_path / "q.parquet"), hints=str(tmp_path / "h")))


def test_control_images_in_a_column(tmp_path: Path, paint: Paint) -> None:
    rows = {"image": [paint(0), paint(1)], "conditioning_image": [paint(5), None], "text": ["a", "b"]}
    kinds = {"image": datasets.Image(), "conditioning_image": datasets.Image(), "text": datasets.Value("string")}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "a.parquet")
    (item,), report = scan(DataConfig(str(tmp_path / "a.parquet")))
    hint = item.open_hint()
    assert hint is not None
    assert hint.image.tobytes() == paint(5).tobytes()
    assert len(report.problems["hint missing"]) == 1


def test_what_the_library_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.parquet' cannot be read as a data set"):
        scan(DataConfig(str(tmp_path / "a.parquet")))
    with pytest.raises(ValueError, match=r"b\.parquet, and there is no such file"):
        scan(DataConfig(str(tmp_path / "b.parquet")))


def test_a_data_set_of_the_hub(table: Any, monkeypatch: pytest.MonkeyPatch, paint: Paint) -> None:
    asked: list[str] = []

    def load_dataset(name: str) -> Any:
        asked.append(name)
        if name != "someone/pictures":
            raise FileNotFoundError(f"{name} doesn't exist on the Hub")
        return datasets.DatasetDict(train=table, test=table)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    items, _ = scan(DataConfig("someone/pictures"))
    assert items[1].open().image.tobytes() == paint(1).tobytes()
    with pytest.raises(
        ValueError, match="'no/one' cannot be read as a folder or file here, nor is it a data set of the"
    ):
        scan(DataConfig("no/one"))
    named = SourceConfig("someone/pictures", caption_column="words")
    with pytest.raises(
        ValueError, match="caption_column = 'words' is not in someone/pictures, whose columns are caption,"
    ):
        scan(DataConfig(sources=(named,)))
    assert asked == ["someone/pictures", "no/one", "someone/pictures"]
