"""How long the trainer waits for its examples, by its own loader, on pictures written for the purpose."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from PIL import Image
from training_sides import WORD, Task, model_of, prepared_of, run_of

from ldm.data.pictures.scan import scan
from ldm.data.pictures.set import Pictures
from ldm.data.pictures.variants import variants
from ldm.training.encoded import encode_pictures, encode_texts
from ldm.training.finetuning import FineTuning
from ldm.training.forecast import Timing, seconds
from ldm.training.ready import bucket_step
from ldm.training.tuned import Tuned

PICTURES = 16
MOST = 0.02  # share of the time


def write_pictures(folder: Path, side: int) -> Path:
    """JPEGs with captions, square, which are their own control images."""
    folder.mkdir()
    for number in range(PICTURES):
        coarse = Image.frombytes("RGB", (24, 24), random.Random(number).randbytes(24 * 24 * 3))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95)
        (folder / f"{number}.txt").write_text(f"a picture of {WORD}, number {number}")
    return folder


def stage_of(task: Task, folder: Path, workers: int) -> FineTuning:
    """A run's stage as `ldm train` makes it, with what does not change encoded beforehand."""
    config = run_of(task, write_pictures(folder / "pictures", 2 * task.size), workers)
    model = model_of(task)
    data = replace(config.data, bucket_step=bucket_step(config, task.size, model.autoencoder.factor))
    items, _ = scan(data)
    pictures = Pictures(items, data, size=task.size, seed=config.seed, batch=task.batch)
    prepared, _ = prepared_of(task, model, config)
    stage = FineTuning(config, model, prepared, pictures)
    if isinstance(prepared.module, Tuned):
        examples = [(pictures, one) for one in variants(pictures)]
        stage.latents = encode_pictures(model, examples, folder, device=task.device, progress=False)
        if not prepared.module.reads:
            captions = [caption for item in items for caption in item.captions]
            stage.texts = encode_texts(model, captions, stage.chunks, folder, device=task.device)
    return stage


def waiting(task: Task, workers: int) -> Timing:
    """Of steps with that many processes making examples ahead of time."""
    cpu = task.device.type == "cpu"
    PartialState(cpu=cpu)  # of which whoever encodes would else make one of its own
    with tempfile.TemporaryDirectory() as folder:
        return seconds(stage_of(task, Path(folder), workers), cpu=cpu)


def verdict(timing: Timing, workers: int) -> str:
    """A sentence on it."""
    limit = "" if timing.waiting < MOST else f": MORE than {MOST:.0%}, give it --workers"
    return f"waiting for data, {workers} workers: {timing.waiting:.2%} of {timing.seconds:.4f} s a step{limit}"
