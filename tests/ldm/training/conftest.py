"""A run small enough for tests: every stage real, a few steps of each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from configs.architecture import AutoencoderConfig, DiffusionConfig, TextEncoderConfig, UNetConfig
from configs.training import (
    AutoencoderStage,
    ClassifierConfig,
    DenoiserStage,
    LoopConfig,
    OptimizerConfig,
    RunConfig,
    TextStage,
    WorldConfig,
)
from ldm.data.emoji_scenes import EmojiScenes, words
from ldm.training.bpe import build_tokenizer
from ldm.training.text import TextTraining
from text_encoder.tokenizer import Tokenizer

LOOP = LoopConfig(
    steps=4,
    batch=4,
    optimizer=OptimizerConfig(rate=1e-3, warmup=2),
    ema=0.9,
    precision="no",
    checkpoint_every=2,
    sample_every=4,
    log_every=1,
)
WORLD = WorldConfig(
    nouns=("cat", "dog", "banana", "apple", "crown", "top hat", "table", "rock"),
    colours=("red", "blue"),
    places=("night", "beach"),
    styles=("flat",),
    recipes=("single", "left of", "above", "holding", "wearing"),
)
AUTOENCODER = AutoencoderConfig(
    channels=(8, 8, 8, 16), layers=1, latent_channels=4, norm_groups=4, mid_attention=False, scaling_factor=1.0,
    force_upcast=False, sample_size=32,
)  # fmt: skip
UNET = UNetConfig(
    channels=(16, 32), down_depths=((0,), (1,)), up_depths=((1, 1), (0, 0)), heads=(2, 2),
    only_cross_attention=(False, False), context_dim=16, norm_groups=8, sample_size=4,
)  # fmt: skip
TEXT = TextEncoderConfig(width=16, layers=1, heads=2, mlp_width=32, max_length=32)
RUN = RunConfig(
    name="tiny",
    size=32,
    world=WORLD,
    classifier=ClassifierConfig((8, 16), LOOP),
    autoencoder=AutoencoderStage(model=AUTOENCODER, crop=16, whole_from=0.75, discriminator_channels=8, loop=LOOP),
    text=TextStage(
        model=TEXT, negatives=1, image_channels=(8, 8), image_size=16, loop=replace(LOOP, precision="bf16")
    ),
    denoiser=DenoiserStage(
        model=UNET, diffusion=DiffusionConfig(prediction="v_prediction"), pool=8, loop=LOOP
    ),
)  # fmt: skip


@pytest.fixture
def run() -> RunConfig:
    return RUN


def with_steps(stage: Any, steps: int) -> Any:
    """A stage's table with another length."""
    return replace(stage, loop=replace(stage.loop, steps=steps))


def with_loop(run: RunConfig, **changes: object) -> RunConfig:
    """The run with other numbers in the denoiser's loop."""
    return replace(run, denoiser=replace(run.denoiser, loop=replace(run.denoiser.loop, **changes)))


@contextmanager
def two_processes(rank: int) -> Iterator[None]:
    """For the processes of `torch.multiprocessing.spawn`: they are two of one run, on the CPU."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(20000 + os.getppid() % 20000), "ACCELERATE_USE_CPU": "true"}
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Of the whole world."""
    return build_tokenizer(words(), max_length=32)


@pytest.fixture(scope="module")
def training(tokenizer: Tokenizer) -> TextTraining:
    """The text stage on the whole world."""
    torch.manual_seed(0)
    text = TextEncoderConfig(width=32, layers=2, heads=2, mlp_width=64, vocabulary=1000, max_length=32)
    stage = TextStage(text, negatives=3, image_channels=(8, 16, 16), image_size=32)
    run = RunConfig("tiny", text=stage, denoiser=DenoiserStage(UNetConfig(context_dim=32)))
    return TextTraining(run, EmojiScenes("train", seed=5), tokenizer)
