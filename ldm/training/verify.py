"""Proof, on a person's own run, that an interrupted run is the uninterrupted one: a few steps, both ways."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env

from configs.finetuning import FineTuneConfig
from ldm.training import checkpoint as checkpoints
from ldm.training.checkpoint import Checkpoint
from ldm.training.drawing import Draw
from ldm.training.ready import alone, ready
from ldm.training.trainer import Trainer

STEPS, STOPS = 6, (2, 4)


def verify(config: FineTuneConfig, draw: Draw, *, progress: bool = True) -> str:
    """Six steps at once, and six interrupted after two and after four, each time from a newly loaded model; says that
    weights, averages and optimizer agree bit for bit, or raises RuntimeError naming the first tensor that does not.

    Pictures are encoded as they are met, and in the prior's place are one's own. Nothing is left on disk. Raises
    ValueError on several processes.
    """
    alone("--verify")
    loop = replace(config.loop, steps=STEPS, checkpoint_every=1, keep=1, log_every=1)
    short = replace(config, loop=loop, validation=replace(config.validation, prompts=(), measure_every=0))
    with tempfile.TemporaryDirectory() as folder:
        whole = _run(short, Path(folder) / "whole", draw, progress)
        for stop in (*STOPS, STEPS):
            cut = _run(short, Path(folder) / "cut", draw, progress, until=stop)
    count = _compare(whole, cut)
    cuts = " and ".join(map(str, STOPS))
    return f"verified: {STEPS} steps, interrupted after {cuts}, give the same {count} tensors, bit for bit"


def _run(config: FineTuneConfig, folder: Path, draw: Draw, progress: bool, until: int = STEPS) -> Checkpoint:
    """The checkpoint of step `until`, from where the folder was left."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    run = ready(config, folder, draw, progress=progress, cpu=cpu, dry=True)
    for report in Trainer(run.stage, folder, cpu=cpu, run=run.digest):
        if report.step == until:
            break
    found = checkpoints.newest(folder / "checkpoints")
    assert found is not None
    return found


def _compare(whole: Checkpoint, cut: Checkpoint) -> int:
    """How many tensors agree, all of them."""
    ours, theirs = tensors_of(whole), tensors_of(cut)
    if wrong := [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]:
        raise RuntimeError(
            f"the interrupted run differs in {len(wrong)} of {len(ours)} tensors, the first is {wrong[0]}: on a GPU, "
            "kernels that add up in any order do so; on a CPU please report it"
        )
    return len(ours)


def tensors_of(found: Checkpoint) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint that can differ, by file and name."""
    tensors = {f"{file}/{name}": value for file, values in found.tensors.items() for name, value in values.items()}
    for file, value in found.objects.items():
        tensors |= _inside(file, value)
    return tensors


def _inside(name: str, value: object) -> dict[str, torch.Tensor]:
    """Every tensor in nested lists and dictionaries, by its path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path: one for key, each in pairs for path, one in _inside(f"{name}/{key}", each).items()}
