"""What the training benchmark compares, and our side of it: the module and the loop of this project's trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import torch
from systems import SCHEDULERS, Setting, fill
from torch import Tensor, nn

from configs.architecture import AutoencoderConfig, DiffusionConfig, TextEncoderConfig, UNetConfig
from configs.finetuning import DataConfig, FineTuneConfig, InversionConfig, Mode, ReconstructionConfig
from configs.presets import CLIP_L, UNET_SD15, VAE_KL_F8
from configs.training import LoopConfig, OptimizerConfig
from ldm.checkpoint.compose import composed
from ldm.checkpoint.meta import on_meta
from ldm.diffusion.schedule import NoiseSchedule
from ldm.model import LatentDiffusion
from ldm.training.device import suited
from ldm.training.modes import PREPARE
from ldm.training.modes.mode import Prepared
from ldm.training.stage import Batch, Player
from ldm.training.trainer import Trainer
from text_encoder import CLIPTextModel, Tokenizer
from unet import UNet
from vae import AutoencoderKL

SIDES = ("ours", "diffusers")
PRECISIONS = ("autocast", "bfloat16", "float32")
TOKENS = 77
WORD = "<it>"  # that an inversion learns
RATE = 1e-5
# what a mode trains is called alike on both sides but for this
_PREFIXES: dict[Mode, str] = {
    "full": "unet.",
    "lora": "unet.",
    "inversion": "text_encoder.model.text_model.embeddings.token_embedding.",
    "controlnet": "control.",
    "autoencoder": "autoencoder.",
}
_NEW: dict[Mode, str] = {"lora": "", "inversion": "", "controlnet": "controlnet_"}  # names of what no model has


@dataclass(frozen=True)
class Task:
    """What both sides train."""

    config: UNetConfig
    size: int  # pixels
    batch: int
    precision: str  # of PRECISIONS
    device: torch.device
    mode: Mode = "full"
    reference: bool = False  # the very same weights, everything else in float32

    @property
    def trains_own(self) -> bool:
        """Whether weights of the model itself are trained."""
        return self.mode in ("full", "autoencoder")

    @property
    def rounding(self) -> torch.dtype:
        """What the model's weights are rounded to, before anything else."""
        halved = self.precision == "bfloat16" or (self.precision == "autocast" and not self.trains_own)
        return torch.bfloat16 if halved else torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """What trained weights are kept in."""
        return torch.bfloat16 if self.precision == "bfloat16" and not self.reference else torch.float32

    @property
    def frozen(self) -> torch.dtype:
        """What weights that are not trained are kept in."""
        return torch.float32 if self.precision == "float32" or self.reference else torch.bfloat16

    @property
    def text(self) -> TextEncoderConfig:
        """Stable Diffusion 1's, as wide as the text that the U-Net takes."""
        c = self.config.context_dim
        return CLIP_L if c == CLIP_L.width else replace(CLIP_L, width=c, heads=max(c // 64, 1), mlp_width=4 * c)

    @property
    def autoencoder(self) -> AutoencoderConfig:
        """Stable Diffusion 1's with its U-Net, else one of half as many channels as the U-Net has."""
        if self.config.channels == UNET_SD15.channels:
            return VAE_KL_F8
        channels = tuple(c // 2 for c in self.config.channels)
        return replace(VAE_KL_F8, channels=channels, norm_groups=math.gcd(32, *channels))

    @cached_property
    def sigmas(self) -> Tensor:
        """Noise levels of the training steps (1000,)."""
        return torch.tensor(NoiseSchedule(DiffusionConfig()).training_sigmas)

    def examples(self, seed: int) -> Batch:
        """A batch as the trainer makes them of cached latents and text, with the training steps `t` (b,) beside it;
        another one for each seed. See `Tuned` and `Reconstructed` for what it holds."""
        source, b, side = torch.Generator().manual_seed(seed), self.batch, self.size // 8
        shape = (b, self.config.in_channels, side, side)
        drawn = {"posterior": torch.randn(shape, generator=source), "weight": torch.ones(b)}
        if self.mode == "autoencoder":
            drawn["pixels"] = torch.rand(b, 3, self.size, self.size, generator=source) * 2 - 1
            return self._there(drawn)
        drawn |= {"mean": torch.randn(shape, generator=source), "std": torch.full(shape, 0.1)}
        drawn |= {"noise": torch.randn(shape, generator=source), "own_chunks": torch.ones(b, dtype=torch.long)}
        drawn["t"] = torch.randint(len(self.sigmas), (b,), generator=source)
        drawn["sigma"] = self.sigmas[drawn["t"]]
        if self.mode == "inversion":
            drawn["ids"] = self._ids(source)
        else:
            drawn["tokens"] = torch.randn(b, TOKENS, self.config.context_dim, generator=source)
        if self.mode == "controlnet":
            drawn["hint"] = torch.rand(b, 3, self.size, self.size, generator=source)
        return self._there(drawn)

    def _ids(self, source: torch.Generator) -> Tensor:
        """Captions (b, 1, 77) with the new word in them, whose number is the first after the vocabulary."""
        new = self.text.vocabulary
        ids = torch.randint(new - 2, (self.batch, 1, TOKENS), generator=source)
        ids[..., 0], ids[..., 5], ids[..., -1] = new - 2, new, new - 1  # start, word, end
        return ids

    def _there(self, batch: Batch) -> Batch:
        return {name: value.to(self.device) for name, value in batch.items()}


class Side(Protocol):
    """One of the two. `gradients` and those of the other have the same names."""

    def loss(self, batch: Batch) -> Tensor:
        """Of a batch, (), with a graph."""

    def gradients(self) -> dict[str, Tensor]:
        """What a backward pass has left, by the name of what is trained."""

    def step(self, batch: Batch) -> None:
        """A whole training step."""


# the model


def model_of(task: Task) -> LatentDiffusion:
    """With seeded weights of the same values for both sides, not yet in the precision of the run."""
    unet = on_meta("the benchmark", UNet, task.config)
    autoencoder = on_meta("the benchmark", AutoencoderKL, task.autoencoder)
    text = on_meta("the benchmark", CLIPTextModel, task.text)
    setting = Setting("sd15", task.size, 0, "ddim", task.rounding, task.device)
    for seed, network in enumerate((unet, autoencoder, text)):
        fill(network, seed, setting, task.dtype)
    encoder = composed(task.config, [(_tokenizer(), text)])
    return LatentDiffusion(autoencoder, encoder, unet, SCHEDULERS["ddim"], "sd1")


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.clip("<|endoftext|>")


@torch.no_grad()
def renew(mode: Mode, trained: Mapping[str, Tensor]) -> None:
    """Seeded values for what a mode adds to the model: small, but not zero, or most gradients would be."""
    names = [name for name in sorted(trained) if mode in _NEW and name.startswith(_NEW[mode])]
    for number, name in enumerate(names):
        source = torch.Generator().manual_seed(number)
        trained[name].copy_(0.02 * torch.randn(trained[name].shape, generator=source))


# our side


def run_of(task: Task, folder: Path = Path("pictures"), workers: int = 0) -> FineTuneConfig:
    """The run file's values: defaults, but for the precision, and for the reconstruction's loss: L2 alone, in whose
    gradients rounding cannot change a sign."""
    loop = LoopConfig(
        steps=10**6,
        batch=task.batch,
        precision="bf16" if task.precision == "autocast" else "no",
        workers=workers,
        optimizer=OptimizerConfig(rate=RATE, warmup=0, schedule="constant"),
    )
    hints = str(folder) if task.mode == "controlnet" else ""
    return FineTuneConfig(
        mode=task.mode,
        name="benchmark",
        data=DataConfig(str(folder), hints, size=task.size, held_out=0.0),
        inversion=InversionConfig(WORD),
        reconstruction=ReconstructionConfig(l1=0.0, l2=1.0, gradient=0.0),
        loop=loop,
    )


def prepared_of(task: Task, model: LatentDiffusion, config: FineTuneConfig) -> tuple[Prepared, dict[str, nn.Parameter]]:
    """The model as its mode prepares it, and what is trained, by common names."""
    prepared = PREPARE[task.mode](model, config)
    prepared.module.to(task.device)
    if task.precision == "bfloat16":  # which the trainer offers for no weight that it trains
        prepared.module.to(task.dtype)
    suited(prepared.module)
    trained = {name.removeprefix(_PREFIXES[task.mode]): value for name, value in prepared.trained.items()}
    renew(task.mode, trained)
    return prepared, trained


@dataclass
class Given:
    """The stage of a run whose batches are given to it."""

    loop: LoopConfig
    players: list[Player]

    def example(self, index: int) -> Batch:
        raise NotImplementedError("batches are given")

    def samples(self, averaged: Mapping[str, nn.Module]) -> None:
        return None


class Ours:
    """The trainer's own steps."""

    def __init__(self, task: Task) -> None:
        config = run_of(task)
        prepared, self.trained = prepared_of(task, model_of(task), config)
        player = Player("tuned", prepared.module, prepared.rates, decays=prepared.decays)
        trainer = Trainer(Given(config.loop, [player]), Path("nowhere"), cpu=task.device.type == "cpu")
        self.active, self.steps, self.taken = trainer.players[0], config.loop.steps, 0

    def loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.active.module(batch, 0)[0]
        return loss

    def gradients(self) -> dict[str, Tensor]:
        return {name: value.grad for name, value in self.trained.items() if value.grad is not None}

    def step(self, batch: Batch) -> None:
        self.active.advance([batch], self.taken, self.steps)
        self.taken += 1
