"""How long a run will take: its parts on trial, by what it will really do, of which nothing is kept."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from ldm.training.drawing import Draw, Validation
from ldm.training.encoded import encode_pictures, encode_texts
from ldm.training.finetuning import FineTuning
from ldm.training.forecast import STEPS, WARM, Timing, autocast, seconds, settled
from ldm.training.prior import ENDINGS, prior_place
from ldm.training.probe import MOST, Probe
from ldm.training.ready import Ready
from ldm.training.tuned import Tuned
from vae.pixels import from_pil

_SHORT, _LONG = 2, 4  # denoising steps of two drawings, whose difference is what steps take
_STEPS = 50  # where neither the run file nor the model says how many


@dataclass(frozen=True)
class Durations:
    """step: as measured. The rest are seconds of a whole run: encoding pictures beforehand, drawing those of the prior,
    drawing the validation prompts, measuring losses."""

    step: Timing
    steps: float
    encoding: float = 0.0
    prior: float = 0.0
    drawing: float = 0.0
    measuring: float = 0.0

    @property
    def whole(self) -> float:
        return self.steps + self.encoding + self.prior + self.drawing + self.measuring


def durations(run: Ready, stage: FineTuning, draw: Draw, output: Path, device: torch.device) -> Durations:
    """Of a run on a device. stage: as `rehearsed` gives it. output: of the run, for what is there of the prior already.
    The networks are on the CPU afterwards, as before."""
    config, loop = run.config, run.config.loop
    step, missing = seconds(stage, cpu=device.type == "cpu"), _missing(run, output)
    parts = {**run.model.networks(), "module": run.stage.module}
    try:
        for part in parts.values():
            part.to(device)
        picture = _picture(run, draw, device) if config.validation.prompts or missing else 0.0
        sets = 1 + -(-loop.steps // loop.sample_every)  # with those before training, as of measures
        measures = 1 + -(-loop.steps // stage.measure_every) if stage.measure_every else 0
        return Durations(
            step,
            steps=loop.steps * step.seconds,
            encoding=_encoded(run) * _encoding(stage, device) if stage.latents else 0.0,
            prior=missing * picture,
            drawing=sets * len(config.validation.prompts) * picture,
            measuring=measures * _measure(run, stage, device) if measures else 0.0,
        )
    finally:
        for part in parts.values():
            part.to("cpu")


def rehearsed(run: Ready, folder: Path, device: torch.device) -> FineTuning:
    """The stage with what its examples on trial take from the caches, in a folder, if a real run has any."""
    stage, config = copy.copy(run.stage), run.config.data
    if not config.cache or not isinstance(stage.module, Tuned):
        return stage
    positions = {*range((WARM + STEPS) * stage.loop.batch), *largest(run)}
    examples = [stage.pictures.outline(position) for position in sorted(positions)]
    if config.crop == "center":
        pictures = [(run.pictures, example) for example in examples]  # the prior's are one's own here
        stage.latents = encode_pictures(run.model, pictures, folder, device=device, progress=False)
    if not stage.module.reads and not config.shuffle_tags:
        captions = [example.caption for example in examples]
        stage.texts = encode_texts(run.model, captions, stage.chunks, folder, device=device)
    return stage


def largest(run: Ready) -> range:
    """Positions of the examples that one process takes at once, of the largest pictures there are."""
    loop, order = run.config.loop, run.pictures.order
    part = loop.batch // (loop.accumulation * PartialState().num_processes)
    areas = {step: math.prod(order.pick(step * order.batch).bucket) for step in range(order.steps)}
    first = max(areas, key=lambda step: areas[step]) * loop.batch
    return range(first, first + part)


def _encoding(stage: FineTuning, device: torch.device) -> float:
    """Seconds to open a picture and encode it."""
    taken = 0.0
    for _ in range(2):  # the first warms up
        begun = time.perf_counter()
        pixels = from_pil([stage.pictures.example(0).image]).to(device)
        with torch.no_grad():
            stage.autoencoder.encode(pixels)
        settled(device)
        taken = time.perf_counter() - begun
    return taken


def _encoded(run: Ready) -> int:
    """How many pictures are encoded before a run: the prior's in each shape."""
    own = len(run.pictures.items) + (len(run.pictures.held_out.items) if run.pictures.held_out else 0)
    prior = run.config.prior.count * len(run.pictures.shapes()) if run.config.prior.prompts else 0
    return own * (2 if run.config.data.flip else 1) + prior


def _missing(run: Ready, output: Path) -> int:
    """Pictures of the prior that are still to be drawn."""
    prior, place = run.config.prior, prior_place(run.config, run.model_hash, output)
    there = sum(path.suffix.lower() in ENDINGS for path in place.iterdir()) if place.is_dir() else 0
    return max(prior.count - there, 0) if prior.prompts else 0


def _picture(run: Ready, draw: Draw, device: torch.device) -> float:
    """Seconds to draw a picture: a short drawing and a longer one tell what a denoising step takes, and the rest."""
    _, short, long = (_drawn(run, draw, steps, device) for steps in (_SHORT, _SHORT, _LONG))  # the first warms up
    step = max(long - short, 0.0) / (_LONG - _SHORT)
    vocabulary = run.model.vocabulary
    own = {"num_inference_steps": _STEPS, **run.model.defaults, **(vocabulary.defaults if vocabulary else {})}
    steps = run.config.validation.steps or int(own["num_inference_steps"])
    return max(short + (steps - _SHORT) * step, 0.0)


def _drawn(run: Ready, draw: Draw, steps: int, device: torch.device) -> float:
    config = run.config
    asked = replace(config.validation, prompts=(config.validation.prompts or config.prior.prompts)[:1], steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        hint = run.pictures.example(0).hint
        validation = Validation(
            replace(config, validation=asked), run.model, draw, Path(folder), [hint] if hint else []
        )
        settled(device)
        begun = time.perf_counter()
        validation.begin(run.stage.module)
        settled(device)
        return time.perf_counter() - begun


def _measure(run: Ready, stage: FineTuning, device: torch.device) -> float:
    """Seconds of the losses by noise level."""
    assert run.stage.probe is not None
    row = stage.batch_of(stage.pictures.example(0), 0)
    probe = Probe({"trained": [row]}, run.stage.probe.levels)
    taken = math.inf
    for _ in range(2):
        begun = time.perf_counter()
        with autocast(stage.loop, device):
            probe(stage.module)
        settled(device)
        taken = min(taken, time.perf_counter() - begun)
    held_out = run.pictures.held_out
    rows = min(len(run.pictures.items), MOST) + (min(len(held_out.items), MOST) if held_out else 0)
    return taken * rows
