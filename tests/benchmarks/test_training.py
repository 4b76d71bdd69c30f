"""The training benchmark on a U-Net of a few channels, and the start-up benchmark's report."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = ["--channels", "64,64,64,64", "--size", "128", "--batch", "2", "--rounds", "2", "--device", "cpu"]


def task(scripts: Any, *more: str) -> Any:
    return scripts.training.task_of(scripts.training.arguments().parse_args([*TINY, *more]))


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_loss_and_gradients_are_those_of_diffusers(scripts: Any, precision: str) -> None:
    found, wrong = scripts.training.check(task(scripts, "--precision", precision))
    assert wrong == []
    if precision == "float32":
        assert found["ours"]["gradients"] < 1e-4
    else:
        assert 1e-3 < found["ours"]["gradients"] < 0.2


def test_the_gate_fails_when_a_gradient_is_off_missing_or_no_number(scripts: Any) -> None:
    reference = {"a": torch.ones(3), "b": torch.full((2,), 2.0)}
    distance = scripts.training.distance
    assert distance(reference, reference) == 0
    assert distance({**reference, "a": torch.zeros(3)}, reference) == pytest.approx((3 / 11) ** 0.5)
    assert distance({"a": torch.ones(3)}, reference) == math.inf
    assert distance({}, {}) == math.inf
    assert math.isnan(distance({**reference, "a": torch.full((3,), math.nan)}, reference))


def test_a_wrong_loss_ends_without_a_ratio(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    side = scripts.training.side

    def wrong(name: str, task: Any) -> Any:
        network, loss = side(name, task)
        return network, (lambda batch: 1.01 * loss(batch)) if name == "ours" else loss

    monkeypatch.setattr(scripts.training, "side", wrong)
    assert scripts.training.main([*TINY, "--precision", "float32"]) == 1
    out = capsys.readouterr().out
    assert "gate: FAILED" in out
    assert "x ours" not in out


def test_a_run_ends_in_one_line_of_ratios(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scripts.meters, "guard", lambda _: 1e12)
    peaks = {"ours": [1e9, None], "diffusers": [2e9, None]}
    monkeypatch.setattr(scripts.training, "measure_memory", lambda *_: peaks)
    argv = [*TINY, "--precision", "autocast", "--json", str(tmp_path / "out.json")]
    assert scripts.training.main(argv) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("x ours, training step autocast cpu: diffusers ")
    assert last.endswith("memory 2.00")
    assert len(json.loads((tmp_path / "out.json").read_text())["times"]["ours"]) == 2


def test_the_task_follows_the_device(scripts: Any) -> None:
    parse = scripts.training.arguments().parse_args
    cpu = scripts.training.task_of(parse(["--device", "cpu"]))
    assert (cpu.config.channels, cpu.batch, cpu.precision) == ((64, 128, 256, 256), 4, "autocast")
    full = scripts.training.task_of(parse(["--device", "cpu", "--full"]))
    assert (full.config.channels, full.batch, full.precision) == ((320, 640, 1280, 1280), 1, "bfloat16")
    cuda = scripts.training.task_of(parse(["--device", "cuda"]))
    assert (cuda.config.channels, cuda.batch, cuda.precision) == ((320, 640, 1280, 1280), 32, "autocast")
    assert replace(full, reference=True).dtype == torch.float32


def test_startup_reports_shares_of_diffusers_and_fails_on_other_pictures(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    startup = scripts.startup
    columns = dict.fromkeys(startup.COLUMNS, 2.0)
    whole = dict.fromkeys(("wall", "cpu", "memory"), 3.0)
    runs = {"ours": [columns] * 2, "diffusers": [dict.fromkeys(columns, 4.0)] * 2, "command": [whole] * 2}
    options = startup.arguments().parse_args(["--json", str(tmp_path / "out.json")])
    assert startup.finish(options, "head", runs, 0.3) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("ours / diffusers: imports 0.50 [0.50, 0.50]; ")
    for apart in (5.1, math.nan, math.inf):
        assert startup.finish(options, "head", runs, apart) == 1
        assert "ours / diffusers" not in capsys.readouterr().out


def test_startup_takes_the_embedded_models_own_steps(scripts: Any) -> None:
    steps, guidance = scripts.startup.own_defaults(scripts.startup.EMBEDDED)
    assert steps < 50
    assert guidance > 1
