"""`ldm evaluate` as a person starts it, with a real model of random weights."""

import json
import runpy
from pathlib import Path

import pytest

from ldm.evaluation.report import Report
from pipelines.cli import main

ROOT = Path(__file__).resolve().parents[3]


def test_the_checker_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.json"
    words = ["--checker-only", "--world", "emoji-small", "--splits", "swaps", "--prompts", "2", "-o", str(output)]
    assert main(["evaluate", *words]) == 0
    assert "true pictures: swaps" in capsys.readouterr().out
    assert Report.load(output).validation["true pictures: swaps"]["joint"].rate == 1


def test_a_model_that_draws_noise_draws_nothing_right(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "tests" / "make_tiny_model.py"))["make_tiny_model"](tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--world", "emoji-small", "--splits", "swaps", "--steps", "1"]
    places = {name: tmp_path / name for name in ("report.json", "card.md")}
    small = ["--prompts", "2", "--seeds", "1", "--baselines", "--device", "cpu", "-q"]
    small += ["--deep-cache", "2", "--merge-tokens", "0.5", "--guidance-interval", "0.5,20"]
    files = ["-o", str(places["report.json"]), "--markdown", str(places["card.md"])]
    assert main(["evaluate", *words, *small, *files]) == 0
    report = Report.load(places["report.json"])
    assert report.splits["swaps"]["joint"].rate == 0
    assert set(report.baselines) == {"retrieval", "unconditional"}
    settings = json.loads(places["report.json"].read_text())["settings"]
    assert (settings["steps"], settings["seeds"], len(settings["model_hash"])) == (1, 1, 10)
    assert (settings["deep_cache"], settings["merge_tokens"], settings["guidance_interval"]) == (2, 0.5, [0.5, 20.0])
    assert settings["model_hash"] in places["card.md"].read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checker-only", "--world", "emoji-small", "--splits", "piars"], "'piars' cannot be measured"),
        (["--checker-only", "--world", "emoji-smal"], "did you mean emoji-small"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--prompts", "0"], "at least 1"),
        (["--deep-cache", "0"], "at least 1"),
        (["--guidance-interval", "3"], "LOW,HIGH"),
    ],
)
def test_bad_input_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
