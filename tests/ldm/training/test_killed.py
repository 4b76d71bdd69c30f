"""kill -9 at any moment: a run loses at most the steps since its last checkpoint, and never leaves a broken one."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from ldm.training.checkpoint import newest
from ldm.training.verify import tensors_of
from tests.ldm.training.tuning import pictures

SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.ldm.training.tuning import config_of, train, with_loop

torch.set_num_threads(1)
model, folder, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
config = with_loop(config_of(model, folder / "pictures"), steps=60, checkpoint_every=1)
print("begun", flush=True)
train(config, folder / name, cache=folder / "cache")
"""
STEPS, TIMES = 60, 20


def test_a_run_killed_twenty_times_is_the_uninterrupted_one(tmp_path: Path, tiny_sd_folder: Path) -> None:
    pictures(tmp_path / "pictures")
    folder = tmp_path / "cut" / "checkpoints"
    command = [sys.executable, "-c", SCRIPT, str(tiny_sd_folder), str(tmp_path)]
    drawn, reached, kills = random.Random(5), 0, 0
    whole = _begun([*command, "whole"])
    while kills < TIMES:
        before = _drafts(folder)
        process = _begun([*command, "cut"])
        while process.poll() is None and not _drafts(folder) - before:  # until it writes
            time.sleep(0.001)
        time.sleep(drawn.uniform(0, 0.05))
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a broken one
            found = newest(folder)
        step = 0 if found is None else found.step  # none before the first is whole
        assert step >= reached
        reached = step
        if ended:
            break
    assert kills == TIMES or reached == STEPS
    last = _begun([*command, "cut"])
    assert (whole.wait(), last.wait()) == (0, 0)
    one, other = newest(tmp_path / "whole" / "checkpoints"), newest(folder)
    assert one is not None
    assert other is not None
    assert (one.step, other.step) == (STEPS, STEPS)
    tensors = tensors_of(other)
    for name, value in tensors_of(one).items():
        if name == "random":  # of the process, which examples do not use
            continue
        assert torch.equal(value, tensors[name]), name


def _begun(command: list[str]) -> "subprocess.Popen[str]":
    """A process that has begun to train."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def _drafts(folder: Path) -> set[tuple[Path, int]]:
    """Checkpoints that are there or being written, and since when."""
    found = set()
    for path in folder.glob("*step-*"):
        with suppress(OSError):  # it has its final name by now
            found.add((path, path.stat().st_mtime_ns))
    return found
