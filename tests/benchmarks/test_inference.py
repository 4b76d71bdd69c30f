"""The inference benchmark on networks of a few channels: its gate, its options, and whole runs."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

GOOD = {"eval": 1e-2, "latents": 2e-2, "decode": 1e-3, "image": 3e-2}
RUN = ["--size", "64", "--steps", "2", "--rounds", "2", "--device", "cpu"]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.05])
def test_the_gate_fails_on_what_is_too_large_or_no_number(scripts: Any, name: str, value: float) -> None:
    gate = scripts.gate
    allowed = gate.limits(GOOD, torch.bfloat16)
    assert gate.problems({each: 1.09 * error for each, error in GOOD.items()}, allowed) == []
    assert len(gate.problems({**GOOD, name: value}, allowed)) == 1


def test_the_gate_fails_without_anything_to_compare_with(scripts: Any) -> None:
    gate = scripts.gate
    assert gate.problems(GOOD, gate.limits({**GOOD, "eval": math.nan}, torch.bfloat16))
    assert gate.problems(GOOD, {})
    assert gate.problems({}, gate.limits(GOOD, torch.bfloat16))
    assert gate.problems({}, {})


def test_in_float32_diffusers_is_exact_and_ours_nearly(scripts: Any) -> None:
    gate = scripts.gate
    allowed = gate.limits(dict.fromkeys(GOOD, 0.0), torch.float32)
    assert gate.problems(dict.fromkeys(GOOD, 9e-5), allowed) == []
    assert len(gate.problems(dict.fromkeys(GOOD, 2e-4), allowed)) == len(GOOD)


@pytest.mark.parametrize("argv", [["--only", "step,walk"], ["--steps", "1"], ["--model", "sd3"], ["--batches", "a"]])
def test_options_that_cannot_be_end_the_script(scripts: Any, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        scripts.inference.read(argv)
    assert caught.value.code == 2


def test_options_follow_the_device(scripts: Any) -> None:
    cpu = scripts.inference.read(["--device", "cpu", "--model", "sdxl"])
    assert (cpu.size, cpu.systems) == (512, ["ours", "B0", "B0-fp32", "openvino"])
    cuda = scripts.inference.read(["--device", "cuda", "--model", "sdxl", "--batches", "16,1,4"])
    assert (cuda.size, cuda.systems, cuda.batches) == (1024, ["ours", "B0", "B1"], [1, 4, 16])
    assert scripts.inference.read(["--systems", "B0"]).systems == ["ours", "B0"]


def test_items_are_in_the_order_of_a_run_and_text_has_no_batches(scripts: Any) -> None:
    items = scripts.measure.items_of(["vae", "text", "step"], [1, 4])
    assert [str(item) for item in items] == ["text", "step b1", "step b4", "vae b1", "vae b4"]


def test_flops_agree_with_the_counts_known_for_stable_diffusion(scripts: Any) -> None:
    setting = scripts.systems.Setting("sd15", 512, 20, "euler", torch.bfloat16, torch.device("cpu"))
    step, vae, whole = (
        scripts.measure.flops(scripts.measure.Item(name, 1), setting) for name in ("step", "vae", "whole")
    )
    assert step == pytest.approx(2 * 803.3e9, rel=1e-3)
    assert vae == pytest.approx(2515e9, rel=1e-3)
    assert whole == 20 * step + vae


@pytest.mark.parametrize(("model", "sampler"), [("sd15", "euler"), ("sdxl", "ddim")])
@pytest.mark.usefixtures("small_models")
def test_a_run_ends_in_one_line_of_ratios(
    scripts: Any, model: str, sampler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*RUN, "--model", model, "--sampler", sampler, "--systems", "B0,B0-fp32", "--dtype", "float32"]
    argv += ["--only", "text,step,vae,whole", "--batches", "1,2", "--json", str(tmp_path / "out.json")]
    assert scripts.inference.main(argv) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"x ours, {model} 64 px float32 cpu: text B0 ")
    report = json.loads((tmp_path / "out.json").read_text())
    items = ["text", "step b1", "step b2", "vae b1", "vae b2", "whole b1", "whole b2"]
    assert list(report["ratios"]) == items
    assert all(len(rows["ours"]) == len(rows["B0"]) == 2 for rows in report["times"].values())
    assert all(error < 1e-4 for error in report["errors"]["ours"].values())
    assert report["problems"] == []
    assert report["valid"] is True


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("fault", [math.nan, 1e-2])
def test_a_wrong_picture_ends_without_a_ratio(
    scripts: Any, fault: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = scripts.systems.Ours.decode

    def wrong(self: Any, latents: Tensor) -> Tensor:
        pixels: Tensor = decode(self, latents)
        return pixels + fault

    monkeypatch.setattr(scripts.systems.Ours, "decode", wrong)
    assert scripts.inference.main([*RUN, "--systems", "B0", "--dtype", "float32", "--only", "vae"]) == 1
    out = capsys.readouterr().out
    assert "output gate: FAILED" in out
    assert "x ours" not in out


@pytest.mark.usefixtures("small_models")
def test_half_precision_is_measured_against_the_same_weights(scripts: Any) -> None:
    setting = scripts.systems.Setting("sdxl", 64, 2, "euler", torch.bfloat16, torch.device("cpu"))
    shelf = scripts.systems.Shelf(setting, room=True)
    own = shelf["ours"].pipe.unet.state_dict()
    for name in ("B0", "reference"):
        theirs = shelf[name].pipe.unet.state_dict()
        assert theirs.keys() == own.keys()
        assert all(torch.equal(theirs[key].float(), own[key].float()) for key in own)
    _, found, _ = scripts.inference.check(["ours"], shelf, 2)
    assert all(1e-4 < error < 0.2 for errors in found.values() for error in errors.values())


@pytest.mark.usefixtures("small_models")
def test_each_optimisation_is_switched_off_in_turn(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: dict[str, Any] = {}
    build = scripts.systems.build_ours
    monkeypatch.setattr(scripts.systems, "build_ours", lambda *a: built.setdefault(a[0], build(*a)))
    assert scripts.inference.main([*RUN, "--ablate", "--dtype", "float32", "--only", "step"]) == 0
    speeds = {name: each.pipe.speed for name, each in built.items()}
    whole = speeds.pop("")
    assert speeds == {name: replace(whole, **{name: False}) for name, on in asdict(whole).items() if on}
    told = capsys.readouterr().out.partition("x ours without")[2]
    assert all(name in told for name in speeds)


@pytest.mark.usefixtures("small_models")
def test_the_memory_of_a_system_is_by_batch(scripts: Any) -> None:
    setting = scripts.systems.Setting("sd15", 64, 2, "euler", torch.bfloat16, torch.device("cpu"))
    found = scripts.measure.run_child("ours", setting, [1, 2])
    assert list(found) == [1, 2]
    assert all(reserved is None for _, reserved in found.values())
