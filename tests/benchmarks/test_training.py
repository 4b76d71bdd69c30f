"""The training benchmark on a U-Net of a few channels, and the start-up benchmark's report."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.finetuning import MODES

TINY = ["--channels", "64,64,64,64", "--size", "128", "--batch", "2", "--rounds", "2", "--device", "cpu"]


@pytest.fixture
def narrow(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One ResNet a level, and a narrow text encoder of two layers."""
    depths = {"down_depths": ((1,), (1,), (1,), (0,)), "up_depths": ((0, 0), (1, 1), (1, 1), (1, 1))}
    unet = replace(scripts.training.UNET_SD15, **depths, context_dim=64)
    monkeypatch.setattr(scripts.training, "UNET_SD15", unet)
    monkeypatch.setattr(scripts.training_sides, "CLIP_L", replace(scripts.training_sides.CLIP_L, layers=2))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def task(scripts: Any, *more: str) -> Any:
    return scripts.training.task_of(scripts.training.arguments().parse_args([*TINY, *more]))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_are_those_of_diffusers(scripts: Any, mode: str) -> None:
    size = "64" if mode == "autoencoder" else "128"  # a U-Net of 64 pixels is all norms of two values
    found, wrong = scripts.training.check(task(scripts, "--mode", mode, "--precision", "float32", "--size", size))
    assert wrong == []
    assert found["ours"]["gradients"] < 1e-4
    assert found["diffusers"] == {"loss": 0, "gradients": 0}


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("mode", "precision"), [("full", "bfloat16"), ("full", "autocast"), ("controlnet", "autocast")]
)
def test_in_half_precision_they_are_as_near_as_those_of_diffusers(scripts: Any, mode: str, precision: str) -> None:
    found, wrong = scripts.training.check(task(scripts, "--mode", mode, "--precision", precision))
    assert wrong == []
    assert 1e-3 < found["ours"]["gradients"] < 0.2


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", ["ours", "diffusers"])
@pytest.mark.parametrize("mode", ["lora", "inversion"])
def test_a_step_changes_what_is_trained(scripts: Any, mode: str, name: str) -> None:
    one = scripts.training.side(name, task(scripts, "--mode", mode, "--precision", "float32"))
    before = {key: value.detach().clone() for key, value in one.trained.items()}
    one.step(one.task.examples(1) if name == "diffusers" else task(scripts, "--mode", mode).examples(1))
    moved = {key: (value.detach() - before[key]).abs() for key, value in one.trained.items()}
    table = moved.pop("table", None)
    if table is not None:  # the whole of it is trained there, and put back
        assert not table[:-1].any()
        moved["rows"] = table[-1:]
    rate = scripts.training_sides.RATE
    assert {key for key, value in moved.items() if not 0.5 * rate < value.max() < 2 * rate} == set()
    assert len(moved) == (1 if mode == "inversion" else 2 * 8 * 10)  # of ten transformers eight layers each


class Reads(TorchDispatchMode):
    """Counts the values of tensors that Python is told."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function == torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("mode", MODES)
def test_no_value_is_read_back_in_a_step(scripts: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = task(scripts, "--mode", mode)
    ours, batch = scripts.training.side("ours", given), given.examples(0)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)  # its count of steps is read
    with Reads() as reads:
        ours.step(batch)
        assert reads.count == 0
        batch["weight"].sum().item()
        assert reads.count == 1


def test_the_gate_fails_when_a_gradient_is_off_missing_or_no_number(scripts: Any) -> None:
    reference = {"a": torch.ones(3), "b": torch.full((2,), 2.0)}
    distance = scripts.training.distance
    assert distance(reference, reference) == 0
    assert distance({**reference, "a": torch.zeros(3)}, reference) == pytest.approx((3 / 11) ** 0.5)
    assert distance({"a": torch.ones(3)}, reference) == math.inf
    assert distance({}, {}) == math.inf
    assert math.isnan(distance({**reference, "a": torch.full((3,), math.nan)}, reference))


@pytest.mark.usefixtures("narrow")
def test_a_wrong_loss_ends_without_a_ratio(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = scripts.training_sides.Ours
    right = ours.loss
    monkeypatch.setattr(ours, "loss", lambda self, batch: 1.01 * right(self, batch))
    assert scripts.training.main([*TINY, "--precision", "float32"]) == 1
    out = capsys.readouterr().out
    assert "gate: FAILED" in out
    assert "x ours" not in out


@pytest.mark.usefixtures("narrow")
def test_a_run_ends_in_one_line_of_ratios(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scripts.meters, "guard", lambda _: 1e12)
    told = {"ours": [1e9, None], "diffusers": [2e9, None], "waiting": [0.5, 0.03, 0]}
    monkeypatch.setattr(scripts.training, "ask", lambda name, *_: told[name])
    argv = [*TINY, "--mode", "lora", "--precision", "autocast", "--json", str(tmp_path / "out.json")]
    assert scripts.training.main(argv) == 0
    out = capsys.readouterr().out
    assert "3.00% of 0.5000 s a step: MORE than 2%" in out
    last = out.strip().splitlines()[-1]
    assert last.startswith("x ours, training step lora autocast cpu: diffusers ")
    assert last.endswith("memory 2.00; waiting 3.00%")
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["times"]["ours"]) == 2
    assert written["waiting"]["waiting"] == 0.03


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("mode", ["lora", "controlnet"])
def test_waiting_is_that_for_the_trainers_own_loader(scripts: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.training.finetuning import FineTuning

    given, example, met = task(scripts, "--mode", mode, "--precision", "float32"), FineTuning.example, []

    def slow(self: FineTuning, index: int) -> Any:
        met.append(example(self, index))
        time.sleep(0.5)
        return met[-1]

    monkeypatch.setattr(FineTuning, "example", slow)
    timing = scripts.training_waiting.waiting(given, 0)
    assert 1 < timing.waiting * timing.seconds < timing.seconds  # for two examples of half a second
    assert met[0]["mean"].shape == (4, 16, 16)
    assert ("hint" in met[0]) == (mode == "controlnet")
    assert met[0]["tokens"].shape == (77, 64)


def test_a_child_answers_with_numbers(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    answer = type("Run", (), {"answer": [1.0]})
    monkeypatch.setattr(scripts.training, "child", lambda command: commands.append(command) or answer)
    argv = [*TINY, "--mode", "lora", "--workers", "2", "--threads", "1"]
    options = scripts.training.arguments().parse_args(argv)
    assert scripts.training.ask("waiting", scripts.training.task_of(options), options) == [1.0]
    told = scripts.training.arguments().parse_args(commands[0][2:])
    assert scripts.training.task_of(told) == scripts.training.task_of(options)
    assert (told.child, told.workers, told.threads) == ("waiting", 2, 1)


def test_the_task_follows_the_device(scripts: Any) -> None:
    parse = scripts.training.arguments().parse_args
    cpu = scripts.training.task_of(parse(["--device", "cpu"]))
    assert (cpu.config.channels, cpu.batch, cpu.precision) == ((64, 128, 256, 256), 4, "autocast")
    full = scripts.training.task_of(parse(["--device", "cpu", "--full"]))
    assert (full.config.channels, full.batch, full.precision) == ((320, 640, 1280, 1280), 1, "bfloat16")
    cuda = scripts.training.task_of(parse(["--device", "cuda"]))
    assert (cuda.config.channels, cuda.batch, cuda.precision) == ((320, 640, 1280, 1280), 32, "autocast")
    assert replace(full, reference=True).dtype == torch.float32
    lora = scripts.training.task_of(parse(["--device", "cpu", "--full", "--mode", "lora"]))
    assert (lora.precision, lora.rounding, lora.frozen, lora.dtype) == (
        "autocast", torch.bfloat16, torch.bfloat16, torch.float32,
    )  # fmt: skip
    assert replace(lora, reference=True).frozen == torch.float32
    with pytest.raises(SystemExit):
        scripts.training.main(["--mode", "lora", "--precision", "bfloat16"])


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
