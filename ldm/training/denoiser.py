# mypy: no-warn-return-any
"""The denoiser's stage: the U-Net, and with it at a lower rate the text encoder."""

from __future__ import annotations

import math
import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs.training import DenoiserStage, LoopConfig, RunConfig
from ldm.conditioning import Conditioning
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.keyed import Keyed, digest
from ldm.data.emoji_scenes.rendering import render
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.prediction import prediction_of
from ldm.diffusion.schedule import NoiseSchedule
from ldm.training.captions import token_ids, unseen
from ldm.training.grid import grid
from ldm.training.sketch import sketch
from ldm.training.stage import Batch, Player
from text_encoder.clip import CLIPTextModel
from text_encoder.tokenizer import Tokenizer
from unet import UNet
from vae import AutoencoderKL
from vae.pixels import from_pil

_SHOWN, _SEEDS = 8, 2  # captions in the sample grid, pictures of each
_QUIET = ("conv2", "proj_out", "conv_out")  # last layers of ResNets, of transformers, of the network
_FEW = 16 * 16  # pixels of latents
_LOUD = 2.0  # noise levels above it decide the layout


class Denoising(nn.Module):
    """The denoiser's loss on latents, noise, sigma and the token ids of a batch."""

    def __init__(self, unet: UNet, text: CLIPTextModel, config: DenoiserStage) -> None:
        super().__init__()
        self.unet = unet
        self.text = text
        schedule = NoiseSchedule(config.diffusion)
        self._denoiser = Denoiser(self._network, prediction_of(config.diffusion), schedule.time)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        latents = batch["latents"].float()  # here, not in the examples: from the pool they come as half as many bytes
        with attention_for(latents):
            cond = Conditioning(self.text(batch["ids"])[0])
            losses = self._denoiser.loss(latents, batch["noise"], batch["sigma"], cond)  # (b,)
        loud = batch["sigma"] > _LOUD
        high = (losses * loud).sum() / loud.sum().clamp(min=1)
        return losses.mean(), {"high": high.detach()}

    def _network(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.unet(x, t, cond.context)


class DenoiserTraining:
    """The stage. `autoencoder` is finished; `pool` (count, c, h, w) holds latents of the first scenes in any
    precision, None encodes every scene when it is met."""

    def __init__(
        self,
        run: RunConfig,
        scenes: EmojiScenes,
        autoencoder: AutoencoderKL,
        tokenizer: Tokenizer,
        text: CLIPTextModel,
        pool: Tensor | None,
    ) -> None:
        self.run, self.scenes, self.config = run, scenes, run.denoiser
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.tokenizer, self.pool = tokenizer, pool
        self.schedule = NoiseSchedule(run.denoiser.diffusion)
        self.module = Denoising(calm(UNet(run.denoiser.model)), text, run.denoiser)
        if self.config.compile and _has_compiler():
            self.module.unet.compile()
            self.module.text.compile()
        self.players = [Player("denoiser", self.module, {"text.": run.denoiser.text_rate})]

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop

    def example(self, index: int) -> Batch:
        """Latents of a scene, the noise to put on them, and a caption, now and then empty."""
        telling, number = divmod(index, len(self.pool)) if self.pool is not None else (0, index)
        draw = Keyed("denoiser", self.run.seed, index)
        caption = "" if draw.chance(self.config.empty) else self.scenes.caption(number, telling)
        source = torch.Generator().manual_seed(digest("noise", self.run.seed, index) >> 1)
        latents = self._latents(number)
        log_sigma = self.config.sigma_mean + self.config.sigma_std * torch.randn((), generator=source)
        levels = self.schedule.training_sigmas
        return {
            "latents": latents,
            "noise": torch.randn(latents.shape, generator=source),
            "sigma": log_sigma.clamp(math.log(levels[0]), math.log(levels[-1])).exp(),
            "ids": torch.tensor(token_ids(self.tokenizer, caption)),
        }

    @torch.no_grad()
    def samples(self, averaged: Mapping[str, nn.Module]) -> Image.Image:
        """Unseen captions of trained combinations, two pictures each, one above the other."""
        module = averaged["denoiser"]
        assert isinstance(module, Denoising)
        others = unseen(self.scenes)
        captions = [others.caption(i) for i in range(_SHOWN)] * _SEEDS
        rows = [token_ids(self.tokenizer, caption) for caption in [*captions, ""]]
        context = module.text(torch.tensor(rows, device=module.text.device))[0]
        cond, empty = Conditioning(context[:-1]), Conditioning(context[-1:]).repeat(len(captions))
        latents = sketch(module._denoiser, cond, empty, self._shape(), self.schedule)
        return grid(self.autoencoder.decode(latents.cpu()), _SHOWN)

    def _latents(self, number: int) -> Tensor:
        if self.pool is not None:
            return self.pool[number]
        with torch.no_grad():
            return self.autoencoder.encode(from_pil([render(self.scenes[number], self.run.size)])).mode()[0]

    def _shape(self) -> tuple[int, int, int]:
        side = self.run.size // self.autoencoder.factor
        return (self.config.model.in_channels, side, side)


def _has_compiler() -> bool:
    """Whether torch.compile finds what it writes C++ for; warns if not."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        warnings.warn(
            f"there is no C++ compiler {compiler}, so the networks are not compiled and steps take about a third "
            "longer: install it, or name another in CXX",
            stacklevel=2,
        )
        return False
    return True


def attention_for(latents: Tensor) -> AbstractContextManager[None]:
    """The attention that trains fastest: on a CPU the plain one for few pixels, whose fused backward pass takes
    more than a quarter of a step; else PyTorch's own choice."""
    few = latents.device.type == "cpu" and latents[0, 0].numel() <= _FEW
    return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()


def calm(unet: UNet) -> UNet:
    """The network with every residual branch and the output at zero, as untrained U-Nets learn fastest (Dhariwal and
    Nichol 2021, 2105.05233, `zero_module`)."""
    for name, module in unet.named_modules():
        if name.endswith(_QUIET) and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return unet
