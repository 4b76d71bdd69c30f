"""A run of fine-tuning, from a run file to files that other programs read."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from configs.finetuning import FineTuneConfig
from ldm.training.card import Facts, card
from ldm.training.card import Pictures as Provenance
from ldm.training.drawing import Draw
from ldm.training.fingerprint import finished, mark
from ldm.training.interrupt import TIME, Interrupted, Patience
from ldm.training.log import read_log
from ldm.training.memory import advice
from ldm.training.posthoc import averaged_over, load_average
from ldm.training.probe import Overfitting
from ldm.training.ready import Ready, ready
from ldm.training.steps import ENOUGH, steps_of
from ldm.training.trainer import Trainer

_log = logging.getLogger(__name__)
PUBLISHED_WIDTH = 320  # of every Stable Diffusion's first level


def finetune(
    config: FineTuneConfig,
    output: Path,
    draw: Draw,
    *,
    fresh: bool = False,
    progress: bool = True,
    minutes: float | None = None,
) -> list[Path]:
    """Trains to the end and returns the paths of the results, [] if the time was over before.

    `output` holds the log, samples, checkpoints and results; a run that was interrupted goes on from its newest
    checkpoint, and on a CPU to the same bits. draw: draws pictures with a model (`pipelines.drawing.draw`).
    fresh: begin anew, throwing away what an earlier run left. minutes: keep the state and leave once they are over.

    Ctrl-C and SIGTERM raise `Interrupted` once the state is kept. Raises ValueError for what cannot be used, for a loss
    that is no number (naming its step and pictures), and for an `output` that another run file has made.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    output, main = Path(output), PartialState(cpu=cpu).is_main_process
    patience = Patience(minutes)
    run = ready(config, output, draw, progress=progress, cpu=cpu)
    for line in (*run.report.lines(), *_held_out(run)):
        _say(line)
    if fresh and main:  # not before it is known that there will be another run
        for name in ("checkpoints", "averages", "samples", "result", "finished", "log.jsonl"):
            _remove(output / name)
    PartialState().wait_for_everyone()
    if finished(output, run.digest) >= config.loop.steps and (output / "result").exists():
        _say(f"this run is finished: {output / 'result'}")
        return sorted((output / "result").iterdir())
    with advice("", config.loop, PartialState().num_processes):
        if run.validation and main:
            run.validation.begin(run.prepared.module.to(PartialState().device))
        trainer = Trainer(run.stage, output, cpu=cpu, run=run.digest)
        judge = Judge(output / "log.jsonl", trainer.step, stops=config.validation.stop_on_overfit)
        reason = steps_of(trainer, config.name, patience, progress=progress, judge=judge)
    if reason and reason != ENOUGH:
        kept = f"kept at step {trainer.step} of {config.loop.steps}"
        if reason != TIME:
            raise Interrupted(reason, f"interrupted: {kept}")
        _say(f"the time is over: {kept}; the same command goes on from there")
        return []
    paths = _finish(run, trainer, output) if main else []
    PartialState().wait_for_everyone()
    return paths


class Judge:
    """Says when a model begins to learn its pictures by heart. `log` has the measures of a run that goes on."""

    def __init__(self, log: Path, step: int, *, stops: bool) -> None:
        self.stops, self.watch, self.told = stops, Overfitting(), False
        for line in read_log(log):
            if line.get("step", 0) <= step:  # later ones will be cut and measured again
                self.watch.sees(line)

    def __call__(self, numbers: Mapping[str, float]) -> bool:
        """Takes in a measure; whether to stop."""
        overfits = self.watch.sees(numbers)
        if overfits and not self.told:
            self.told = True
            end = "so the run ends here" if self.stops else "validation.stop_on_overfit = true would end the run"
            _say(f"the loss of held-out pictures rises while that of trained ones falls, by heart; {end}")
        return overfits and self.stops


def _finish(run: Ready, trainer: Trainer, output: Path) -> list[Path]:
    """Writes the results, each read again and compared, and the card."""
    best = trainer.averaged["tuned"]
    draft = output / ".result.part"
    _remove(draft)
    draft.mkdir(parents=True)
    made = run.prepared.write(best, draft)
    (draft / "README.md").write_text(card(run.config, _facts(run, trainer, output, draft, made)), encoding="utf-8")
    _remove(output / "result")
    draft.rename(output / "result")
    mark(output, run.config.loop.steps, run.digest)  # also where it was enough before
    paths = sorted((output / "result").iterdir())
    _say(f"finished: {', '.join(map(str, paths))}")
    return paths


def _facts(run: Ready, trainer: Trainer, output: Path, draft: Path, made: list[Path]) -> Facts:
    """What the card says; copies the last grid beside it."""
    measures = [line for line in read_log(output / "log.jsonl") if "trained" in line]
    kinds = ("trained", "held out")
    losses = (
        [{kind: line[kind] for kind in kinds if kind in line} for line in (measures[0], measures[-1])]
        if measures
        else [{}, {}]
    )
    grids = sorted((output / "samples").glob("step-*.png"))
    if grids and run.config.mode != "controlnet":  # whose grid shows what was made of the person's pictures
        shutil.copyfile(grids[-1], draft / "grid.png")
    items, sources = run.pictures.items, run.config.data.all_sources
    return Facts(
        base=run.source,
        base_hash=run.model_hash,
        family=run.model.family,
        published=run.model.unet.config.channels[0] == PUBLISHED_WIDTH,
        steps=trainer.step,
        parameters=sum(parameter.numel() for parameter in run.prepared.trained.values()),
        pictures=tuple(
            Provenance(tuple(item.digest for item in items if item.source == number), source.licence)
            for number, source in enumerate(sources)
        ),
        opted_out=len(run.report.opted_out),
        left_out=run.report.found - run.report.kept - len(run.report.opted_out),
        before=losses[0],
        after=losses[-1],
        grid="grid.png" if (draft / "grid.png").exists() else "",
        files=tuple(path.name for path in made),
        tags=Counter(tag for text in run.captions for tag in _tags(run.config, text)) if run.config.result.tags else {},
    )


def _held_out(run: Ready) -> list[str]:
    others = run.pictures.held_out
    return [f"{len(others.items)} of them are held out, for measuring"] if others else []


def _tags(config: FineTuneConfig, caption: str) -> list[str]:
    return [tag.strip() for tag in caption.split(config.data.tag_separator) if tag.strip()]


def average_again(config: FineTuneConfig, output: Path, draw: Draw, length: float) -> list[Path]:
    """Writes the results of a finished run anew into `output/result-LENGTH`, with weights averaged over another length,
    a share of the run (`posthoc.py`); returns the paths. ValueError if it is not finished or kept no averages."""
    run = ready(config, output, draw, progress=False, cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if not (steps := finished(output, run.digest)):
        raise ValueError(f"{output} holds no finished run: train first, and then choose the length of its average")
    load_average(run.prepared.module, averaged_over(output / "averages" / "tuned", length, steps))
    place = output / f"result-{length:g}"
    _remove(place)
    place.mkdir()
    return run.prepared.write(run.prepared.module, place)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    if PartialState().is_main_process:
        _log.info(text)
