"""Everything a run of fine-tuning needs before its first step, from a run file."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm

from configs.finetuning import FineTuneConfig, SourceConfig
from ldm.checkpoint import embedded, load_model, resolve
from ldm.checkpoint.files import listed
from ldm.checkpoint.hash import weights_hash
from ldm.data.pictures.item import Item
from ldm.data.pictures.report import Report
from ldm.data.pictures.scan import scan
from ldm.data.pictures.set import Outline, Pictures
from ldm.data.pictures.variants import variants
from ldm.model import LatentDiffusion
from ldm.training.device import suited
from ldm.training.drawing import Draw, Validation
from ldm.training.encoded import encode_pictures, encode_texts, identity
from ldm.training.finetuning import Examples, FineTuning, WithPrior
from ldm.training.fingerprint import FREE, told
from ldm.training.modes import PREPARE
from ldm.training.modes.mode import Prepared, in_precision
from ldm.training.prior import class_pictures
from ldm.training.probe import MOST, SHARES, Probe
from ldm.training.reading import chunks_for
from ldm.training.tuned import Tuned

# what a run that has begun may go on with: it changes neither what is learned nor from what; and places, for what was
# found there is told by its content
_FREE = FREE | {"name", "validation", "result", "cache", "licence", "trackers", "model", "path", "hints"}

_log = logging.getLogger(__name__)


@dataclass
class Ready:
    """A run that can begin. `digest` tells it from runs it cannot go on from; `captions` are all there are."""

    config: FineTuneConfig
    model: LatentDiffusion
    source: str
    model_hash: str
    prepared: Prepared
    pictures: Pictures
    report: Report
    captions: list[str]
    stage: FineTuning
    validation: Validation | None
    digest: str


def ready(
    config: FineTuneConfig, output: Path, draw: Draw, *, progress: bool = True, cpu: bool = False, dry: bool = False
) -> Ready:
    """Loads the model, reads the pictures, draws what is missing of the prior's and encodes what does not change.

    dry: nothing is drawn, encoded or written: the prior's pictures are one's own, and batches hold pixels.
    Raises ValueError for what cannot be used, OSError for what cannot be read.
    """
    device = PartialState(cpu=cpu).device
    progress = progress and PartialState().is_main_process
    model, source = loaded(config)
    model_hash = weights_hash(model)
    identities = [model_hash, identity(model.text_encoder), identity(model.autoencoder)]
    # pictures
    items, report = _scanned(config, progress=progress)
    if config.mode == "controlnet" and config.control.hint == "paired":
        _require_hints(items)
    size = config.data.size or own_size(model)
    config = replace(config, data=replace(config.data, bucket_step=bucket_step(config, size, model.autoencoder.factor)))
    batch = config.loop.batch // (2 if config.prior.prompts else 1)
    edges = config.mode == "controlnet" and config.control.hint == "edges"
    pictures = Pictures(items, config.data, size=size, seed=config.seed, batch=batch, edges=edges)
    prior = None
    if config.prior.prompts:
        prior = pictures if dry else _prior(config, model_hash, draw, output, size)
    sets = [each for each in (pictures, pictures.held_out, prior) if each]
    captions = [caption for each in sets for item in each.items for caption in item.captions]
    # encoded once
    prepared = PREPARE[config.mode](model, config)
    suited(prepared.module)
    chunks = chunks_for(model.text_encoder, captions)
    latents = texts = None
    if config.data.cache and not dry and isinstance(prepared.module, Tuned):
        if config.data.crop == "center":
            examples = _fixed_crops(pictures, prior)
            latents = encode_pictures(model, examples, output / "cache", device=device, progress=progress)
        if not prepared.module.reads and not config.data.shuffle_tags:
            texts = encode_texts(model, captions, chunks, output / "cache", device=device)
    # stage
    shown: Examples = WithPrior(pictures, prior, config.prior.weight) if prior else pictures
    validation = None if dry else _validation(config, model, draw, output, pictures)
    stage = FineTuning(config, model, prepared, shown, chunks=chunks, latents=latents, texts=texts, samples=validation)
    stage.probe = _probe(stage, pictures)
    digest = _digest(config, *identities, pictures.fingerprint, prior.fingerprint if prior else "")
    return Ready(config, model, source, model_hash, prepared, pictures, report, captions, stage, validation, digest)


def alone(option: str) -> None:
    """Raises ValueError where several processes do what is for one."""
    if PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes > 1:
        raise ValueError(f"{option} runs in one process: start it without accelerate launch")


def loaded(config: FineTuneConfig) -> tuple[LatentDiffusion, str]:
    """The model of a run file, on the CPU as it is stored, but for the autoencoder, in float32; and its name."""
    name = config.model or str(embedded())
    model = load_model(resolve(name))
    model.source = name
    if reason := _unfit(model):
        raise ValueError(f"{name} {reason}, which cannot be fine-tuned here: take a text-to-image model")
    model.autoencoder.float()
    return model, config.model or "the embedded model"


def _unfit(model: LatentDiffusion) -> str:
    """Why a model is none that draws from text alone as it was trained to, "" if it is one."""
    unet = model.unet.config
    if unet.in_channels != model.latent_channels:
        return f"takes {unet.in_channels} channels where its autoencoder has {model.latent_channels}: it edits pictures"
    if model.family == "sdxl_refiner":
        return "is SDXL's refiner, which finishes pictures that another model has begun"
    return "is distilled: it takes the guidance weight as an input" if unet.guidance_dim else ""


def own_size(model: LatentDiffusion) -> int:
    """Pixels of the side of a square that a model was trained at."""
    own = model.unet.config.sample_size
    cells: int = min(own) if isinstance(own, tuple) else own
    return cells * model.autoencoder.factor


def bucket_step(config: FineTuneConfig, size: int, factor: int) -> int:
    """Pixels that sides of buckets are multiples of. ValueError for sizes the autoencoder cannot take."""
    step = config.data.bucket_step or min(64, max(size // 8 // factor, 1) * factor)
    for name, side in (("bucket_step", step), ("size", size)):
        if side % factor:
            raise ValueError(f"data.{name} = {side} is no multiple of {factor}, the autoencoder's pixels to a latent's")
    return step


def _scanned(config: FineTuneConfig, *, progress: bool) -> tuple[list[Item], Report]:
    """The pictures of the run, with a bar while they are looked at."""
    with tqdm(desc="looking at pictures", disable=not progress, leave=False) as bar:

        def seen(count: int, whole: int) -> None:
            bar.total = whole
            bar.update(count - bar.n)

        return scan(config.data, seen)


def _require_hints(items: Sequence[Item]) -> None:
    """Raises ValueError where a picture has no control image."""
    if lacking := [item.name for item in items if item.hint is None]:
        raise ValueError(
            f"{len(lacking)} pictures have no control image ({listed(lacking, 3)}): name its folder in data.hints, or "
            'a column in hint_column; or set control.hint = "edges"'
        )


def _prior(config: FineTuneConfig, model_hash: str, draw: Draw, output: Path, size: int) -> Pictures:
    """The pictures of the class; those without a caption have its first prompt."""

    @cache
    def untouched() -> LatentDiffusion:
        model = in_precision(loaded(config)[0], config)
        for network in model.networks().values():
            network.to(PartialState().device)
        return model

    place = class_pictures(config, model_hash, lambda wanted: draw(untouched(), wanted), output)
    source = SourceConfig(str(place), caption=config.prior.prompts[0])
    data = replace(config.data, path="", hints="", sources=(source,), trigger="", held_out=0.0, shuffle_tags=False)
    data = replace(data, smallest=1, enlarge=True)
    items, report = scan(data)
    for line in report.lines() if len(items) < config.prior.count else ():
        _log.warning("of the prior's pictures, %s", line)
    return Pictures(items, data, size=size, seed=config.seed + 1, batch=config.loop.batch // 2)


def _fixed_crops(pictures: Pictures, prior: Pictures | None) -> list[tuple[Pictures, Outline]]:
    """Every example of pictures that are cut the same way each time."""
    found = [(each, one) for each in (pictures, pictures.held_out) if each for one in variants(each)]
    beside = [(prior, one) for one in variants(prior, buckets=pictures.shapes())] if prior else []
    return found + beside


def _probe(stage: FineTuning, pictures: Pictures) -> Probe:
    """Examples of a few pictures that are trained on, and of a few that are not."""
    kinds = {"trained": pictures, "held out": pictures.held_out}
    examples = {name: _whole(stage, each) for name, each in kinds.items() if each}
    module = stage.module
    if not isinstance(module, Tuned):
        return Probe(examples)
    schedule = module.objective.schedule
    levels = [schedule.training_sigmas[round(share * (schedule.train_steps - 1))] for share in SHARES]
    return Probe(examples, levels)


def _whole(stage: FineTuning, pictures: Pictures) -> list[dict[str, torch.Tensor]]:
    """Batches of single pictures with their captions, each with chance of its own that training never meets."""
    some = islice(variants(pictures, flips=False), MOST)
    return [stage.batch_of(pictures.opened(one), -1 - number) for number, one in enumerate(some)]


def _validation(
    config: FineTuneConfig, model: LatentDiffusion, draw: Draw, output: Path, pictures: Pictures
) -> Validation | None:
    if not config.validation.prompts:
        return None
    hints = []
    if config.mode == "controlnet":
        others = pictures.held_out or pictures
        some = islice(variants(others, flips=False), len(config.validation.prompts))
        hints = [hint for one in some if (hint := others.opened(one).hint)]
    return Validation(config, model, draw, output / "samples", hints)


def _digest(config: FineTuneConfig, *others: str) -> str:
    """16 hex digits that change with whatever a run cannot change on its way."""
    return blake2b(json.dumps([told(config, _FREE), *others], sort_keys=True).encode(), digest_size=8).hexdigest()
