"""`ldm train` up to the trainer and back from it."""

import logging
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.files import read, run_file, run_names
from configs.training import STAGES, RunConfig
from ldm.training import run
from ldm.training.interrupt import Interrupted

Command = Callable[..., Any]
RUN = """
name = "tiny"
[autoencoder]
crop = 32
[autoencoder.loop]
steps = 7
"""


class Asked(list[Any]):
    """What the trainer is asked for, in place of hours of training."""

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.append((arguments, options))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(run, "train", asked)
    return asked


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(RUN)
    return path


def test_asks_for_everything(ldm: Command, asked: Asked, toml: Path) -> None:
    assert ldm("train", str(toml)).status == 0
    wanted = (read(toml, RunConfig), Path("runs/tiny"), STAGES)
    assert asked == [(wanted, {"start": None, "fresh": False, "progress": True, "minutes": None})]


def test_options_reach_the_trainer(ldm: Command, asked: Asked, toml: Path) -> None:
    line = (
        "--stage",
        "denoiser,autoencoder",
        "-o",
        "elsewhere",
        "--steps",
        "100",
        "--fresh",
        "--from",
        "old",
        "--no-progress",
        "--minutes",
        "2.5",
    )
    assert ldm("train", str(toml), *line).status == 0
    (((config, output, stages), options),) = asked
    assert (output, stages) == (Path("elsewhere"), ("autoencoder", "denoiser"))  # in the order they build on each other
    assert options == {"start": Path("old"), "fresh": True, "progress": False, "minutes": 2.5}
    assert [getattr(config, stage).loop.steps for stage in STAGES] == [100, 7, 100, 100]
    whole = read(toml, RunConfig)
    restored = {name: replace(getattr(config, name), loop=getattr(whole, name).loop) for name in STAGES}
    assert replace(config, **restored) == whole


def test_shipped_runs_are_listed_and_found_by_name(ldm: Command, asked: Asked) -> None:
    ran = ldm("train", "--list")
    assert (ran.status, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == run_names()
    assert run_names()
    for name in run_names():
        assert ldm("train", name).status == 0
        assert asked[-1][0][:2] == (read(run_file(name), RunConfig), Path("runs") / name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], "name a run file: emoji-"),
        (["missing.toml"], "there is no run file missing.toml"),
        (["emoji-smal"], "did you mean emoji-small?"),
        (["own.toml", "-o", "own.toml"], "own.toml is no folder: choose another place with -o"),
        (["own.toml", "--minutes", "0"], "argument --minutes: '0' is not a number above 0"),
        (["own.toml", "--minutes", "inf"], "argument --minutes: 'inf' is not a number above 0"),
        (["wrong.toml"], "wrong.toml: unknown key autoencoder.lop; did you mean autoencoder.loop?"),
    ],
)
def test_bad_input_is_told_in_one_line(
    ldm: Command, asked: Asked, toml: Path, tmp_path: Path, line: list[str], words: str
) -> None:
    (tmp_path / "wrong.toml").write_text(RUN.replace(".loop", ".lop"))
    ran = ldm("train", *line)
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.err
    assert ran.err.startswith("ldm: ")
    assert ran.err.count("\n") == 1
    assert asked == []


def test_interrupted_training_says_how_to_go_on(ldm: Command, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    ran = ldm("train", str(toml))
    assert (ran.status, ran.out) == (130, "")
    assert ran.err == "ldm: interrupted; the same command goes on from the newest checkpoint in runs/tiny\n"
    ran = ldm("train", str(toml), "--fresh")
    assert "the same command without --fresh goes on" in ran.err


def test_terminated_training_has_its_own_status(ldm: Command, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(*_: Any, **__: Any) -> None:
        raise Interrupted(signal.SIGTERM, "interrupted: text is kept at step 3 of 7")

    monkeypatch.setattr(run, "train", terminated)
    ran = ldm("train", str(toml))
    assert (ran.status, ran.out) == (143, "")
    assert ran.err.startswith("ldm: interrupted: text is kept at step 3 of 7; the same command goes on from the newest")


@pytest.mark.parametrize(
    ("stage", "batch", "words"),
    [
        ("classifier", 6, "out of memory: set classifier.loop.accumulation = 2 in the run file"),
        ("classifier", 1, "out of memory: the run file's networks of the stage classifier are too large"),
    ],
)
def test_full_memory_names_what_to_change(ldm: Command, toml: Path, stage: str, batch: int, words: str) -> None:
    """Weights of terabytes, as the processor's own allocator refuses them."""
    toml.write_text(f'name = "huge"\n[{stage}]\nchannels = [8, {2**36}]\n[{stage}.loop]\nbatch = {batch}')
    ran = ldm("train", str(toml))
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"ldm: {words}"), ran.err
    assert "--size" not in ran.err


def test_what_the_trainer_says_is_shown(ldm: Command, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(*_: Any, **__: Any) -> None:
        logging.getLogger("ldm.training.run").info("text is finished")
        warnings.warn("the newest checkpoint is damaged", stacklevel=1)

    monkeypatch.setattr(run, "train", says)
    assert ldm("train", str(toml)).err == "ldm: text is finished\nldm: note: the newest checkpoint is damaged\n"
    assert logging.getLogger("ldm.training").handlers == []
