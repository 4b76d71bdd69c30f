"""Signals and the end of the time leave a run with its state kept, whichever of its processes they come to."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from configs.files import to_dict
from configs.training import RunConfig
from ldm.training.interrupt import Interrupted
from ldm.training.run import train
from tests.ldm.training.conftest import RUN, two_processes


def classifying(**changes: object) -> RunConfig:
    """The run with a classifier that is trained for very long, or as changed."""
    changes = {"steps": 100_000, "checkpoint_every": 100_000, **changes}
    return replace(RUN, classifier=replace(RUN.classifier, loop=replace(RUN.classifier.loop, **changes)))


def kept_and_logged(folder: Path) -> tuple[int, int]:
    """The step of the only checkpoint of the classifier, and of the last line of its log."""
    (kept,) = (folder / "classifier" / "checkpoints").iterdir()
    last = (folder / "classifier" / "log.jsonl").read_text().splitlines()[-1]
    return int(kept.name.removeprefix("step-")), json.loads(last)["step"]


def hear() -> None:
    """Ctrl-C is ignored by what a shell has put in the background, these tests perhaps."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_step_it_came_in(tmp_path, number, status):
    """Also where it is sent to all processes of the command, as terminals and schedulers do."""
    (tmp_path / "run.json").write_text(json.dumps(to_dict(classifying(workers=1))))
    line = [sys.executable, "-m", "pipelines.cli", "train", str(tmp_path / "run.json"), "-o", str(tmp_path)]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True, "preexec_fn": hear}
    process = subprocess.Popen([*line, "--no-progress"], **options)
    log = tmp_path / "classifier" / "log.jsonl"
    try:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None, "the run ended by itself"
            time.sleep(0.2)
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    kept, logged = kept_and_logged(tmp_path)
    assert (process.returncode, kept) == (status, logged), error
    told = f"ldm: interrupted: classifier is kept at step {kept} of 100000; the same command goes on from the newest"
    assert error.splitlines()[-1].startswith(told)


def test_two_processes_leave_together_when_one_is_told_to(tmp_path):
    mp.spawn(_told_of_two, args=(tmp_path,), nprocs=2)
    kept, logged = kept_and_logged(tmp_path)
    assert kept == logged
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == [f"15: {kept}"] * 2


def _told_of_two(rank: int, folder: Path) -> None:
    """The second of two processes, which keeps no log, gets the signal; it comes between lines of the log."""
    with two_processes(rank):
        if rank == 1:
            threading.Thread(target=_terminate_after_a_line, args=(folder / "classifier" / "log.jsonl",)).start()
        try:
            train(classifying(steps=2000, log_every=3), folder, ("classifier",), progress=False)
        except Interrupted as stop:
            step = str(stop).removeprefix("interrupted: classifier is kept at step ").removesuffix(" of 2000")
            (folder / f"rank-{rank}").write_text(f"{stop.signal}: {step}")


def _terminate_after_a_line(log: Path) -> None:
    while not (log.exists() and log.read_text()):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def test_when_the_time_is_over_the_state_is_kept(tmp_path, caplog):
    caplog.set_level("INFO", logger="ldm.training.run")
    assert not train(classifying(), tmp_path, ("classifier",), progress=False, minutes=0.5 / 60)
    kept, logged = kept_and_logged(tmp_path)
    assert kept == logged
    assert f"the time is over: classifier is kept at step {kept} of 100000; start the same run again" in caplog.text
    assert train(classifying(steps=kept + 1), tmp_path, ("classifier",), progress=False, minutes=60)
    lines = (tmp_path / "classifier" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, kept + 2))


def test_a_stage_whose_last_step_outlasts_the_time_is_finished(tmp_path, caplog):
    caplog.set_level("INFO", logger="ldm.training.run")
    stages = ("classifier", "text")
    assert not train(classifying(steps=1), tmp_path, stages, progress=False, minutes=1e-9)
    assert (tmp_path / "classifier" / "classifier.safetensors").exists()
    assert not (tmp_path / "text").exists()
    assert "without --fresh, to go on with text" in caplog.text
    with pytest.raises(ValueError, match="minutes = 0 is out of range"):
        train(RUN, tmp_path, minutes=0)
