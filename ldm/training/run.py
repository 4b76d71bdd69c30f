"""A whole run: the stages of a run file one after the other, each on what the ones before it left on disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from configs.training import STAGES, RunConfig
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.world import World
from ldm.training.adopt import adopt
from ldm.training.fingerprint import USES, fingerprint, finished, mark, noted
from ldm.training.interrupt import TIME, Interrupted, Patience, agreed
from ldm.training.memory import advice
from ldm.training.stages import BUILDERS
from ldm.training.steps import steps_of
from ldm.training.trainer import Trainer

_log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    output: Path,
    stages: Sequence[str] = STAGES,
    *,
    start: Path | None = None,
    fresh: bool = False,
    progress: bool = True,
    minutes: float | None = None,
) -> bool:
    """Trains the named stages in order; one that is finished is passed over, unless the run now has more steps.

    Under `output`, each stage has a folder with its log, samples, checkpoints and result; the last one leaves the whole
    model in `output/model`. Several machines need to share that folder.

    start: folder of a model to go on from: all but the denoiser is taken as it is, and the denoiser is trained further.
    fresh: begin the named stages anew, throwing away what they left.
    minutes: keep the state and return False once they are over; True is returned when all is finished.

    Ctrl-C and SIGTERM raise `Interrupted` once the state is kept: at the end of the step, on several processes with the
    next line of the log. Raises ValueError for what another run file has made, and where training would change what a
    stage that is kept was trained on.
    """
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes = {minutes} is out of range, expected a number above 0")
    if start is not None and fresh:
        raise ValueError("--from and --fresh exclude each other: to begin anew from a model choose another --output")
    if unknown := [name for name in stages if name not in STAGES]:
        raise ValueError(f"{unknown[0]!r} is no stage: there are {', '.join(STAGES)}")
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # or processes on CPUs would not find each other
    output, processes, patience = Path(output), PartialState(cpu=cpu), Patience(minutes)
    scenes = EmojiScenes("train", config.seed, world=World(config.world))
    if start is not None and processes.is_main_process:
        adopt(start, config, scenes, output)
    processes.wait_for_everyone()
    todo = _unfinished(config, output, stages, fresh)
    _refuse_stale(config, output, todo)
    if fresh and processes.is_main_process:
        for name in todo:
            shutil.rmtree(output / name, ignore_errors=True)
    processes.wait_for_everyone()
    for number, name in enumerate(todo):
        if number and agreed(patience.reason):
            _say(f"the time is over: start the same run again, without --fresh, to go on with {name}")
            return False
        with advice(name, getattr(config, name).loop, processes.num_processes):
            if not _train(config, output, name, scenes, patience, progress):
                return False
    return True


def _unfinished(config: RunConfig, output: Path, stages: Sequence[str], fresh: bool) -> list[str]:
    """The named stages there is something to do for. Raises ValueError if what they build on is of another run file."""
    todo = [] if not fresh else [name for name in STAGES if name in stages]
    for name in STAGES:
        if name in todo or not any(name == other or name in USES[other] for other in stages):
            continue
        done = finished(output / name, fingerprint(config, name)) >= getattr(config, name).loop.steps
        if done and name in stages:
            _say(f"{name} is finished: {output / name}")
        elif name in stages:
            todo.append(name)
    return todo


def _refuse_stale(config: RunConfig, output: Path, todo: Sequence[str]) -> None:
    """Raises ValueError if training would change what a finished stage, which is kept, has been trained on."""
    for name in STAGES:
        changed = [used for used in USES[name] if used in todo]
        steps, digest = noted(output / name)  # one of another run file is refused when its turn comes
        kept = name not in todo and digest in ("", fingerprint(config, name))
        if changed and kept and steps >= getattr(config, name).loop.steps:
            stale = {changed[0]}
            for later in STAGES:  # in their order, so that users of users follow
                stale |= {later} if stale & {*USES[later]} else set()
            raise ValueError(
                f"{output / name} was made with the {changed[0]} that would now be trained: begin anew with --fresh "
                f"--stage {','.join(one for one in STAGES if one in stale)}, or choose another --output"
            )


def _train(config: RunConfig, output: Path, name: str, scenes: EmojiScenes, patience: Patience, progress: bool) -> bool:
    """One stage to its end; False if the time was over before."""
    processes, digest = PartialState(), fingerprint(config, name)
    torch.manual_seed(config.seed)
    stage, finish = BUILDERS[name](config, scenes, output)
    trainer = Trainer(stage, output / name, run=digest)
    if reason := steps_of(trainer, name, patience, progress=progress):
        kept = f"{name} is kept at step {trainer.step} of {stage.loop.steps}"
        if reason != TIME:
            raise Interrupted(reason, f"interrupted: {kept}")
        _say(f"the time is over: {kept}; start the same run again, without --fresh, to go on from there")
        return False
    if processes.is_main_process:
        finish(trainer.averaged)
        mark(output / name, trainer.step, digest)
    processes.wait_for_everyone()
    return True


def _say(text: str) -> None:
    if PartialState().is_main_process:
        _log.info(text)
