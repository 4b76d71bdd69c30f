"""How each stage is built from what the stages before it left on disk, and what it leaves itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.architecture import DiffusionConfig
from configs.training import RunConfig
from ldm.checkpoint import save_folder
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.rendering import render
from ldm.model import LatentDiffusion
from ldm.training.autoencoder import AutoencoderTraining, Reconstruction, normalise
from ldm.training.bpe import tokenizer_of
from ldm.training.contrastive import ContrastiveModel
from ldm.training.denoiser import DenoiserTraining, Denoising
from ldm.training.device import suited
from ldm.training.perceptual import Classification, Classifier, ClassifierTraining, PerceptualDistance, classes_of
from ldm.training.pool import latents_of
from ldm.training.stage import Stage
from ldm.training.text import TextTraining, text_config
from ldm.training.weights import load_weights, save_weights
from ldm.vocabulary import of_world
from text_encoder import CLIPTextEncoder
from text_encoder.clip import CLIPTextModel
from unet import UNet
from vae import AutoencoderKL
from vae.pixels import from_pil

Modules = Mapping[str, nn.Module]
Builder = Callable[[RunConfig, EmojiScenes, Path], tuple[Stage, Callable[[Modules], None]]]
DEFAULTS = {"num_inference_steps": 40, "guidance_scale": 4.0, "sampler": "euler_a"}  # of calls that name none
_MEASURED = 512  # scenes that the latents' mean and deviation are measured on
_LARGEST = "15MB"  # of the model's files: small enough to be sent where large ones are not taken


def _classifier(run: RunConfig, scenes: EmojiScenes, output: Path) -> tuple[Stage, Callable[[Modules], None]]:
    stage = ClassifierTraining(run, scenes)
    _suit(stage)

    def finish(averaged: Modules) -> None:
        module = averaged["classifier"]
        assert isinstance(module, Classification)
        save_weights(module.classifier, output / "classifier" / "classifier.safetensors")

    return stage, finish


def _autoencoder(run: RunConfig, scenes: EmojiScenes, output: Path) -> tuple[Stage, Callable[[Modules], None]]:
    classifier = Classifier(run.classifier.channels, len(classes_of(scenes.world)))
    load_weights(classifier, output / "classifier" / "classifier.safetensors", "classifier")
    stage = AutoencoderTraining(run, scenes, PerceptualDistance(suited(classifier)))
    _suit(stage)

    def finish(averaged: Modules) -> None:
        module = averaged["autoencoder"]
        assert isinstance(module, Reconstruction)
        statistics = latent_statistics(module.autoencoder, scenes, run.size)
        autoencoder = module.autoencoder.cpu()
        normalise(autoencoder, *statistics)
        save_weights(autoencoder, output / "autoencoder" / "autoencoder.safetensors")

    return stage, finish


@torch.no_grad()
def latent_statistics(
    autoencoder: AutoencoderKL, scenes: EmojiScenes, size: int, count: int = _MEASURED
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each latent channel over scenes, (c,) float32 both, on the CPU."""
    total = torch.zeros(2, autoencoder.config.latent_channels, dtype=torch.float64)
    device = next(autoencoder.parameters()).device
    for first in range(0, count, 32):
        images = from_pil([render(scenes[i], size) for i in range(first, min(first + 32, count))])
        z = autoencoder.posterior(images.to(device)).mean.double().cpu()  # (b, c, h, w)
        total += torch.stack([z.mean((2, 3)).sum(0), z.square().mean((2, 3)).sum(0)])
    mean, square = total / count
    return mean.float(), (square - mean.square()).sqrt().float()


def _text(run: RunConfig, scenes: EmojiScenes, output: Path) -> tuple[Stage, Callable[[Modules], None]]:
    stage = TextTraining(run, scenes, tokenizer_of(run, scenes))
    _suit(stage)

    def finish(averaged: Modules) -> None:
        module = averaged["text"]
        assert isinstance(module, ContrastiveModel)
        measured = stage.measure(module.eval())
        (output / "text" / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
        save_weights(module.text, output / "text" / "text.safetensors")

    return stage, finish


def _denoiser(run: RunConfig, scenes: EmojiScenes, output: Path) -> tuple[Stage, Callable[[Modules], None]]:
    # what is finished
    autoencoder = AutoencoderKL(run.autoencoder.model)
    load_weights(autoencoder, output / "autoencoder" / "autoencoder.safetensors", "autoencoder")
    tokenizer = tokenizer_of(run, scenes)
    text = CLIPTextModel(text_config(run, tokenizer))
    load_weights(text, output / "text" / "text.safetensors", "text")
    # what is seen
    count, folder = run.denoiser.pool, output / "denoiser" / "pool"
    pool = latents_of(autoencoder, scenes, run.size, count, folder, run.denoiser.loop.workers) if count else None
    stage = DenoiserTraining(run, scenes, autoencoder, tokenizer, text, pool)
    _suit(stage)
    if (start := output / "denoiser" / "start.safetensors").exists():  # see adopt.py
        load_weights(stage.module.unet, start, "denoiser")

    def finish(averaged: Modules) -> None:
        module = averaged["denoiser"]
        assert isinstance(module, Denoising)
        model = compose(run, scenes, autoencoder, CLIPTextEncoder(tokenizer, module.text), module.unet)
        save_folder(model, output / "model", dtype=torch.float16, max_shard_size=_LARGEST, overwrite=True)

    return stage, finish


def _suit(stage: Stage) -> None:
    for player in stage.players:
        suited(player.module)


def compose(
    run: RunConfig, scenes: EmojiScenes, autoencoder: AutoencoderKL, text_encoder: CLIPTextEncoder, unet: UNet
) -> LatentDiffusion:
    """The whole model, with how to sample it and what it can draw."""
    vocabulary = of_world(scenes.world, DEFAULTS)
    return LatentDiffusion(
        autoencoder, text_encoder, unet, scheduler_config(run.denoiser.diffusion), vocabulary=vocabulary
    )


def scheduler_config(diffusion: DiffusionConfig) -> dict[str, Any]:
    """A `scheduler_config.json`: ancestral Euler, which high guidance harms least (the embedded model's card measures
    it), for the process it was trained with."""
    return {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "num_train_timesteps": diffusion.train_steps,
        "beta_schedule": diffusion.beta_schedule,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "prediction_type": diffusion.prediction,
        "timestep_spacing": "trailing",
        "steps_offset": 1,
    }


BUILDERS: dict[str, Builder] = {
    "classifier": _classifier,
    "autoencoder": _autoencoder,
    "text": _text,
    "denoiser": _denoiser,
}
