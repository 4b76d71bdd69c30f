"""Statistics, guard and reports of the benchmarks."""

import json
import math
import random
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch


def test_a_ratio_is_that_of_the_medians_and_its_interval_holds_it(scripts: Any) -> None:
    above, below = [4.0, 4.4, 4.2, 9.0, 4.1], [2.0, 2.2, 2.1, 2.05, 2.3]
    found = scripts.common.ratio(above, below)
    assert found.value == median(above) / median(below)
    assert found.low <= found.value <= found.high
    assert found == scripts.common.ratio(above, below)  # seeded


def test_the_interval_covers_the_truth_about_as_often_as_it_says(scripts: Any) -> None:
    source, covered = random.Random(3), 0
    for _ in range(100):
        above, below = ([mean * source.lognormvariate(0, 0.1) for _ in range(20)] for mean in (3, 2))
        found = scripts.common.ratio(above, below, draws=200)
        covered += found.low <= 1.5 <= found.high
    assert 85 <= covered <= 100


def test_one_round_has_no_interval_and_none_no_ratio(scripts: Any) -> None:
    assert scripts.common.ratio([3.0], [2.0, 8.0]) == scripts.common.Ratio(1.5, None, None)
    with pytest.raises(ValueError, match="no round"):
        scripts.common.ratio([], [1.0])


def test_a_budget_gives_the_first_round_and_those_that_fit(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(scripts.common.time, "monotonic", lambda: now[0])

    def rounds(minutes: float, each: float) -> int:
        count = 0
        for _ in scripts.common.Budget(minutes).rounds(10):
            count += 1
            now[0] += each
        return count

    assert rounds(0, 20) == 1
    assert rounds(1, 20) == 3
    assert rounds(10, 20) == 10


@pytest.mark.parametrize(
    ("before", "after", "valid"),
    [(1.0, 1.04, True), (1.04, 1.0, True), (1.0, 1.06, False), (1.06, 1.0, False), (0.0, 1.0, False)],
)
def test_a_run_is_invalid_when_the_guard_moved(scripts: Any, before: float, after: float, valid: bool) -> None:
    watch = scripts.meters.Watch(torch.device("cpu"), [("still", 1.0, 1.0), ("block", before, after)])
    assert watch.valid is valid
    assert ("INVALID" in str(watch)) is not valid


def test_a_guard_that_is_no_number_is_movement(scripts: Any) -> None:
    for pair in ((math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)):
        assert not scripts.meters.Watch(torch.device("cpu"), [("block", *pair)]).valid


def test_the_guard_reads_before_and_after(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1.0, 2.0])
    monkeypatch.setattr(scripts.meters, "guard", lambda _: next(readings))
    watch = scripts.meters.Watch(torch.device("cpu"))
    assert watch.around("block", lambda: "answer") == "answer"
    assert watch.blocks == [("block", 1.0, 2.0)]
    assert watch.moved == 1.0


def test_a_step_needs_two_stamps(scripts: Any) -> None:
    stamps = scripts.meters.Stamps(torch.device("cpu"))
    stamps()
    with pytest.raises(ValueError, match="two or more"):
        stamps.per_step()
    stamps.marks = [1.0, 1.5, 3.0]
    assert stamps.per_step() == 1.0


def test_what_json_has_no_words_for_is_null(scripts: Any, tmp_path: Path) -> None:
    content = {"a": math.nan, 1: (1.0, math.inf), "r": scripts.common.Ratio(2.0, None, None), "p": tmp_path, "n": None}
    scripts.common.write_json(tmp_path / "x.json", content)
    read = json.loads((tmp_path / "x.json").read_text())
    assert read == {"a": None, "1": [1.0, None], "r": {"value": 2.0, "low": None, "high": None},
                    "p": str(tmp_path), "n": None}  # fmt: skip


def test_a_child_that_fails_says_why(scripts: Any) -> None:
    python = scripts.common.sys.executable
    run = scripts.common.child([python, "-c", "print('words'); print('[1, 2]')"])
    assert run.answer == [1, 2]
    assert run.wall > 0
    with pytest.raises(RuntimeError, match="what went wrong"):
        scripts.common.child([python, "-c", "raise SystemExit('what went wrong')"])
