"""The steps of a run as a person sees them: log, pictures and measures on the way, and leaving in good order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from PIL import Image

from ldm.training.interrupt import TIME, Patience, agreed
from ldm.training.log import Log
from ldm.training.stage import Measured
from ldm.training.trainer import Report, Trainer

ENOUGH = 3  # the reason of a run that ends itself before its last step; the number of no signal that is minded
Judge = Callable[[Mapping[str, float]], bool]  # measures -> whether to stop


def steps_of(
    trainer: Trainer, name: str, patience: Patience, *, progress: bool = True, judge: Judge | None = None
) -> int:
    """Runs a stage to its end, or until there is a reason to stop, and returns that; the state is then kept.

    The reason is 0 at the end, the number of a signal, TIME, or ENOUGH when `judge` has seen enough.
    """
    main, alone = trainer.accelerator.is_main_process, trainer.accelerator.num_processes == 1
    steps = trainer.stage.loop.steps
    trackers = trainer.trackers(name)
    log = Log(trainer.folder, name, trainer.step, steps, progress=progress, trackers=trackers) if main else None
    with log or nullcontext(), patience:
        if log is not None and trainer.step == 0 and (numbers := _measured(trainer, 0)):
            log.write(0, numbers)
        enough = False
        for report in trainer:
            enough = (log is not None and _note(log, trainer, report, judge)) or enough  # others are asked later
            asks = alone or report.numbers is not None  # the others are waited for then anyway
            reason = agreed(patience.reason or (ENOUGH if enough else 0)) if asks else 0
            if reason and not (reason in (TIME, ENOUGH) and report.step == steps):
                trainer.save()
                return reason
    return 0


def _note(log: Log, trainer: Trainer, report: Report, judge: Judge | None) -> bool:
    """What a step leaves in the log and among the samples; whether that is reason to stop."""
    loop = trainer.stage.loop
    log.advance()
    if report.numbers is not None:
        log.write(report.step, report.numbers)
    if report.step % loop.sample_every == 0 or report.step == loop.steps:
        picture = trainer.stage.samples(trainer.averaged)
        _keep(picture, trainer.folder / "samples" / f"step-{report.step:08d}.png")
    numbers = _measured(trainer, report.step)
    if numbers:
        log.write(report.step, numbers)
    return bool(numbers) and judge is not None and judge(numbers)


def _measured(trainer: Trainer, step: int) -> dict[str, float]:
    """The stage's measures, {} where none is due."""
    stage = trainer.stage
    if not isinstance(stage, Measured) or not stage.measure_every:
        return {}
    if step % stage.measure_every and step != stage.loop.steps:
        return {}
    with trainer.accelerator.autocast():
        return stage.measure(trainer.averaged)


def _keep(picture: Image.Image | None, path: Path) -> None:
    if picture is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
