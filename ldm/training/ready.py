"""Everything a run of fine-tuning needs before its first step, from a run file."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from configs.finetuning import FineTuneConfig, SourceConfig
from ldm.checkpoint import embedded, load_model, resolve
from ldm.checkpoint.hash import weights_hash
from ldm.data.pictures.report import Report
from ldm.data.pictures.scan import scan
from ldm.data.pictures.set import Outline, Pictures
from ldm.data.pictures.variants import variants
from ldm.model import LatentDiffusion
from ldm.training.device import suited
from ldm.training.drawing import Draw, Validation
from ldm.training.encoded import encode_pictures, encode_texts
from ldm.training.finetuning import Examples, FineTuning, WithPrior
from ldm.training.modes import PREPARE
from ldm.training.modes.mode import DTYPES, Prepared
from ldm.training.prior import class_pictures
from ldm.training.probe import MOST, SHARES, Probe
from ldm.training.reading import chunks_for
from ldm.training.tuned import Tuned

# what a run that has begun may go on with: it changes neither what is learned nor from what
_FREE = {"steps", "accumulation", "precision", "checkpoint_every", "keep", "sample_every", "log_every", "workers"}
_FREE |= {"checkpointing", "rate", "betas", "weight_decay", "clip", "warmup", "schedule", "power", "floor", "text_rate"}
_FREE |= {"name", "validation", "result", "cache", "licence"}


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
    model, source = loaded(config)
    model_hash = weights_hash(model)
    # pictures
    items, report = scan(config.data)
    size = config.data.size or own_size(model)
    config = replace(config, data=replace(config.data, bucket_step=bucket_step(config, size, model.autoencoder.factor)))
    batch = config.loop.batch // (2 if config.prior.prompts else 1)
    edges = config.mode == "controlnet" and config.control.hint == "edges"
    pictures = Pictures(items, config.data, size=size, seed=config.seed, batch=batch, edges=edges)
    prior = None
    if config.prior.prompts:
        prior = pictures if dry else _prior(config, model, draw, output, size)
    captions = [caption for each in (pictures, prior) if each for item in each.items for caption in item.captions]
    # encoded once
    prepared = PREPARE[config.mode](model, config)
    suited(prepared.module)
    chunks = chunks_for(model.text_encoder, captions)
    latents = texts = None
    if config.data.cache and not dry and isinstance(prepared.module, Tuned):
        examples = _fixed_crops(pictures, prior)
        latents = encode_pictures(model, examples, output / "cache", device=device, progress=progress)
        if not prepared.module.reads and not config.data.shuffle_tags:
            texts = encode_texts(model, captions, chunks, output / "cache", device=device)
    # stage
    shown: Examples = WithPrior(pictures, prior, config.prior.weight) if prior else pictures
    stage = FineTuning(config, model, prepared, shown, chunks=chunks, latents=latents, texts=texts)
    stage.probe = _probe(stage, pictures)
    validation = None if dry else _validation(config, model, draw, output, pictures)
    stage._samples = validation
    digest = _digest(config, model_hash, pictures.fingerprint, prior.fingerprint if prior else "")
    return Ready(config, model, source, model_hash, prepared, pictures, report, captions, stage, validation, digest)


def loaded(config: FineTuneConfig) -> tuple[LatentDiffusion, str]:
    """The model of a run file, on the CPU, and its name. What all of its weights are trained in is float32."""
    name = config.model or str(embedded())
    whole = config.mode not in ("lora", "inversion")
    model = load_model(resolve(name), dtype=torch.float32 if whole else DTYPES[config.loop.precision])
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


def _prior(config: FineTuneConfig, model: LatentDiffusion, draw: Draw, output: Path, size: int) -> Pictures:
    """The pictures of the class; those without a caption have its first prompt."""
    model.unet.to(PartialState().device)
    for network in model.networks().values():
        network.to(PartialState().device)
    place = class_pictures(config, model, draw, output)
    source = SourceConfig(str(place), caption=config.prior.prompts[0])
    alone = replace(config.data, path="", hints="", sources=(source,), trigger="", held_out=0.0)
    data = replace(alone, smallest=1, enlarge=True)
    items, _ = scan(data)
    return Pictures(items, data, size=size, seed=config.seed + 1, batch=config.loop.batch // 2)


def _fixed_crops(pictures: Pictures, prior: Pictures | None) -> list[tuple[Pictures, Outline]]:
    """Every example whose picture is cut the same way each time; none where crops are drawn."""
    if pictures.config.crop != "center":
        return []
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
    return blake2b(json.dumps([_told(config), *others], sort_keys=True).encode(), digest_size=8).hexdigest()


def _told(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_told(one) for one in value]
    if not is_dataclass(value):
        return value
    given = {field.name: getattr(value, field.name) for field in fields(value) if field.name not in _FREE}
    return {name: _told(one) for name, one in given.items()}
