"""The stage of fine-tuning: examples out of pictures, and what shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from PIL import Image
from torch import nn

from configs.finetuning import FineTuneConfig
from configs.training import LoopConfig
from ldm.data.pictures.cache import Cache
from ldm.data.pictures.set import Example, Outline, Pictures
from ldm.model import LatentDiffusion
from ldm.training.encoded import text_key
from ldm.training.modes.mode import Prepared
from ldm.training.objective import normal
from ldm.training.probe import Probe
from ldm.training.reading import token_ids
from ldm.training.stage import Batch, Player
from ldm.training.tuned import Tuned
from vae.pixels import from_pil

Samples = Callable[[nn.Module], Image.Image | None]


class Examples(Protocol):
    """Pictures by their place in a run; see `Pictures`."""

    def outline(self, position: int) -> Outline: ...

    def example(self, position: int) -> Example: ...


class WithPrior:
    """One's own pictures at even places, the class's at odd ones, so that every part of a batch has as many of each.

    Weights are doubled, for the loss is a mean over both: it is the sum of one's own mean and the class's, times the
    prior's weight, as in DreamBooth (Ruiz et al. 2022, 2208.12242, equation 2). The class's take the batch's shape.
    """

    def __init__(self, own: Pictures, prior: Pictures, weight: float) -> None:
        self.own, self.prior, self.weight = own, prior, weight

    def outline(self, position: int) -> Outline:
        number, is_prior = divmod(position, 2)
        if not is_prior:
            outline = self.own.outline(number)
            return replace(outline, weight=2 * outline.weight)
        outline = self.prior.outline(number, self.own.outline(number).placed.bucket)
        return replace(outline, weight=2 * self.weight * outline.weight)

    def example(self, position: int) -> Example:
        pictures = self.prior if position % 2 else self.own
        return pictures.opened(self.outline(position))


class FineTuning:
    """A stage of the trainer.

    pictures: what is trained on. chunks: of 75 tokens that all captions fit into. cache: latents and texts that were
    encoded beforehand (`encoded.py`), None to encode them as they are met. probe: measures; samples: draws.
    """

    def __init__(
        self,
        config: FineTuneConfig,
        model: LatentDiffusion,
        prepared: Prepared,
        pictures: Examples,
        *,
        chunks: int = 1,
        latents: Cache | None = None,
        texts: Cache | None = None,
        probe: Probe | None = None,
        samples: Samples | None = None,
    ) -> None:
        self.config, self.pictures, self.chunks = config, pictures, chunks
        self.module = prepared.module
        self.text_encoder, self.autoencoder = model.text_encoder, model.autoencoder
        self.size_conditions = model.unet.config.vector == "text_time"
        self.latents, self.texts, self.probe, self._samples = latents, texts, probe, samples
        self.players = [Player("tuned", prepared.module, prepared.rates, decays=prepared.decays)]

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop

    @property
    def measure_every(self) -> int:
        return self.config.validation.measure_every if self.probe else 0

    def name_of(self, index: int) -> str:
        """The picture's file."""
        return self.pictures.outline(index).name

    def example(self, index: int) -> Batch:
        """What `Tuned` or `Reconstructed` takes, of one example."""
        outline = self.pictures.outline(index)
        known = self._known(outline)  # then the picture need not be opened
        return self.batch_of(outline if known else self.pictures.example(index), index, known)

    def batch_of(self, example: Outline, position: int, known: Batch | None = None) -> Batch:
        """The same of any example, its chance drawn at a position; without its pixels where its latents are known."""
        batch = {"weight": torch.tensor(example.weight), **(known or self._known(example) or _pixels(example))}
        seed, shape = self.config.seed, self._shape(batch)
        batch["posterior"] = normal(("posterior", seed, position), shape)
        if isinstance(self.module, Tuned):
            batch |= self.module.objective.draw(seed, position, shape) | self._read(example.caption)
            if self.size_conditions:
                batch["sizes"] = torch.tensor(example.sizes, dtype=torch.float32)
            if self.module.control is not None:
                batch["hint"] = from_pil([self._hint(example)])[0] / 2 + 0.5
        return batch

    def samples(self, averaged: Mapping[str, nn.Module]) -> Image.Image | None:
        """The validation prompts, before training and now."""
        return self._samples(averaged["tuned"]) if self._samples else None

    def measure(self, averaged: Mapping[str, nn.Module]) -> dict[str, float]:
        """Losses by noise level, of the same examples each time."""
        assert self.probe is not None
        return self.probe(averaged["tuned"])

    def _hint(self, example: Outline) -> Image.Image:
        assert isinstance(self.pictures, Pictures)  # others have no control images
        hint = example.hint if isinstance(example, Example) else self.pictures.hint(example)
        assert hint is not None
        return hint

    def _known(self, outline: Outline) -> Batch | None:
        if self.latents is None:
            return None
        if (known := self.latents.get(outline.key)) is None:
            raise _lost(outline.name)
        return known

    def _read(self, caption: str) -> Batch:
        ids = token_ids(self.text_encoder, caption, self.chunks)
        read = {"empty": torch.tensor(not caption)}
        if self.texts is None:
            return read | ids
        if (known := self.texts.get(text_key(ids))) is None:
            raise _lost(f"the text {caption[:80]!r}")
        return read | {"own_chunks": ids["own_chunks"], **known}

    def _shape(self, batch: Batch) -> tuple[int, ...]:
        """Of the latents (c, h, w)."""
        if "mean" in batch:
            return tuple(batch["mean"].shape)
        h, w = (side // self.autoencoder.factor for side in batch["pixels"].shape[1:])
        return (self.autoencoder.config.latent_channels, h, w)


def _lost(what: str) -> ValueError:
    return ValueError(f"the cache has lost {what}: start the same command again, which encodes it anew and goes on")


def _pixels(example: Outline) -> Batch:
    assert isinstance(example, Example)
    return {"pixels": from_pil([example.image])[0]}
