"""A whole run: the stages of a run file one after the other, each on what the ones before it left on disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image

from configs.training import RunConfig
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.world import World
from ldm.training.adopt import adopt
from ldm.training.interrupt import Patience
from ldm.training.log import Log
from ldm.training.stages import BUILDERS
from ldm.training.trainer import Trainer

STAGES = ("classifier", "autoencoder", "text", "denoiser")
_log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    output: Path,
    stages: Sequence[str] = STAGES,
    *,
    start: Path | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> None:
    """Trains the named stages in order; one that is finished is passed over, unless the run now has more steps.

    Under `output`, each stage has a folder with its log, samples, checkpoints and result; the last one leaves the whole
    model in `output/model`. Several machines need to share that folder.

    start: folder of a model to go on from: all but the denoiser is taken as it is, and the denoiser is trained further.
    fresh: begin the named stages anew, throwing away what they left.
    """
    scenes, processes = EmojiScenes("train", config.seed, world=World(config.world)), PartialState()
    if start is not None and fresh:
        raise ValueError("--from and --fresh exclude each other: to begin anew from a model choose another --output")
    if start is not None and processes.is_main_process:
        adopt(start, config, scenes, Path(output))
    for name in (name for name in STAGES if name in stages):
        folder = Path(output) / name
        if fresh and processes.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        processes.wait_for_everyone()
        if _finished(folder) >= getattr(config, name).loop.steps:
            _log.info("%s is finished: %s", name, folder)
            continue
        torch.manual_seed(config.seed)
        stage, finish = BUILDERS[name](config, scenes, Path(output))
        trainer = Trainer(stage, folder)
        if processes.is_main_process:
            _lead(trainer, name, progress)
            finish(trainer.averaged)
            (folder / "finished").write_text(f"{trainer.step}\n")
        else:
            for _ in trainer:
                pass
        processes.wait_for_everyone()


def _lead(trainer: Trainer, name: str, progress: bool) -> None:
    """Runs a stage to its end on the main process, which also keeps log and samples.

    Ctrl-C leaves a checkpoint of the step it came in, on one process; on several the last one stays.
    """
    stage, folder = trainer.stage, trainer.folder
    with Log(folder, name, trainer.step, stage.loop.steps, progress=progress) as log, Patience() as patience:
        for report in trainer:
            log.advance()
            if report.numbers is not None:
                log.write(report.step, report.numbers)
            if report.step % stage.loop.sample_every == 0 or report.step == stage.loop.steps:
                _keep(stage.samples(trainer.averaged), folder / "samples" / f"step-{report.step:08d}.png")
            if patience.asked and trainer.accelerator.num_processes == 1:
                trainer.save()
                raise KeyboardInterrupt


def _finished(folder: Path) -> int:
    """After how many steps the stage in a folder was finished, 0 if it was not."""
    mark = folder / "finished"
    text = mark.read_text().strip() if mark.exists() else ""
    return int(text) if text.isdecimal() else 0


def _keep(picture: Image.Image | None, path: Path) -> None:
    if picture is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
