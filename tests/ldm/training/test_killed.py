"""kill -9 at any moment: a run loses at most the steps since its last checkpoint, and never leaves a broken one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from ldm.training import checkpoint as checkpoints
from tests.ldm.training.tuning import config_of, pictures, train, with_loop

SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.ldm.training.tuning import config_of, train, with_loop

torch.set_num_threads(1)
model, folder = map(Path, sys.argv[1:])
config = with_loop(config_of(model, folder / "pictures"), steps=60, checkpoint_every=1)
print("begun", flush=True)
train(config, folder / "run", cache=folder / "cache")
print("finished", flush=True)
"""
TIMES = 20


def test_a_run_killed_twenty_times_is_the_uninterrupted_one(tmp_path: Path, tiny_sd_folder: Path) -> None:
    pictures(tmp_path / "pictures")
    config = with_loop(config_of(tiny_sd_folder, tmp_path / "pictures"), steps=60, checkpoint_every=1)
    whole = train(config, tmp_path / "whole", cache=tmp_path / "cache")
    drawn, reached, kills = random.Random(5), 0, 0
    command = [sys.executable, "-c", SCRIPT, str(tiny_sd_folder), str(tmp_path)]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    while kills < TIMES:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        _wait_for_progress(tmp_path / "run" / "checkpoints", reached, process)
        time.sleep(drawn.uniform(0, 0.05))
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        found = checkpoints.newest(tmp_path / "run" / "checkpoints")  # warns, and so fails, for a broken one
        step = 0 if found is None else found.step  # none before the first is whole
        assert step >= reached
        reached = step
        if ended:
            break
    assert kills == TIMES or reached == 60
    again = train(config, tmp_path / "run", cache=tmp_path / "cache")
    for name, value in whole.items():
        if name == "random":  # of the process, which examples do not use
            continue
        assert torch.equal(value, again[name]), name


def _wait_for_progress(folder: Path, reached: int, process: "subprocess.Popen[str]") -> None:
    """Until a step further than the last is kept, or being written."""
    while process.poll() is None:
        steps = [int(path.name.rpartition("-")[2].removesuffix(".part")) for path in folder.glob("*step-*")]
        if max(steps, default=0) > reached:
            return
        time.sleep(0.005)
