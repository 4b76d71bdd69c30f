# mypy: no-warn-return-any
"""The autoencoder's stage: reconstruct, look right to the classifier, and late in the run fool a discriminator."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from configs.training import AutoencoderStage, LoopConfig, RunConfig
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.keyed import Keyed, digest
from ldm.data.emoji_scenes.rendering import render
from ldm.training.adversary import PatchDiscriminator, adaptive_weight, hinge
from ldm.training.captions import unseen
from ldm.training.crops import cut
from ldm.training.grid import grid
from ldm.training.perceptual import PerceptualDistance
from ldm.training.stage import Batch, Player
from vae import AutoencoderKL
from vae.autoencoder import DiagonalGaussian
from vae.pixels import from_pil

_SHOWN = 8  # scenes in the sample grid


class Reconstruction(nn.Module):
    """The autoencoder's loss: L1 + perceptual + KL + adversarial.

    L1 and the perceptual term are means; the KL weight is for the divergence summed over a picture's latents.
    """

    def __init__(self, autoencoder: AutoencoderKL, config: AutoencoderStage, perceptual: PerceptualDistance) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = config
        self._others = (perceptual, PatchDiscriminator(config.discriminator_channels))  # a tuple hides them: not mine

    @property
    def discriminator(self) -> PatchDiscriminator:
        return self._others[1]

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, config = batch["image"], self.config
        # reconstruction
        posterior = self.autoencoder.posterior(image)
        output = self.autoencoder.decode(self._latents(posterior, batch["noise"]))
        # how far it is off
        absolute = (output - image).abs().mean()
        perceptual = self._others[0].to(image.device)(output, image).mean()
        kl = posterior.kl().mean()
        loss = absolute + config.perceptual * perceptual
        metrics = {"l1": absolute, "perceptual": perceptual, "kl": kl, "psnr": _psnr(output, image)}
        # does it fool
        if step >= adversarial_start(config):
            weights = {name: value.detach() for name, value in self.discriminator.named_parameters()}
            fooled = -functional_call(self.discriminator, weights, (output,)).mean()
            weight = config.adversarial * adaptive_weight(loss, fooled, self.autoencoder.decoder.conv_out.weight)
            loss = loss + weight * fooled
            metrics |= {"fooled": fooled, "adversarial weight": weight}
            metrics["output"] = output  # for the discriminator
        return loss + config.kl * kl, {name: value.detach() for name, value in metrics.items()}

    def _latents(self, posterior: DiagonalGaussian, noise: Tensor) -> Tensor:
        """A draw of the posterior, blurred by a little more noise so that the decoder forgives inexact latents."""
        draw, blur = noise.chunk(2, 1)  # (b, 2c, h, w) -> 2 x (b, c, h, w)
        latents = posterior.sample(draw)
        return latents + self.config.latent_noise * latents.detach().std((0, 2, 3), keepdim=True) * blur


class Discrimination(nn.Module):
    """The discriminator's loss on the pictures that `Reconstruction` leaves in the batch."""

    def __init__(self, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        both = self.discriminator(torch.cat([batch["image"], batch["output"]]))
        real, fake = both.chunk(2)
        return hinge(real, fake), {"real": real.mean().detach(), "fake": fake.mean().detach()}


class AutoencoderTraining:
    """The stage; `autoencoder` gives unscaled latents until `normalise` has folded their statistics in."""

    def __init__(self, run: RunConfig, scenes: EmojiScenes, perceptual: PerceptualDistance) -> None:
        self.run, self.scenes, self.config = run, scenes, run.autoencoder
        self.autoencoder = AutoencoderKL(run.autoencoder.model)
        mine = Reconstruction(self.autoencoder, self.config, perceptual)
        theirs = Discrimination(mine.discriminator)
        rate = self.config.discriminator_rate / self.loop.optimizer.rate
        start = adversarial_start(self.config)
        self.players = [
            Player("autoencoder", mine),
            Player("discriminator", theirs, {"": rate}, starts=start, averaged=False),
        ]

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop

    def example(self, index: int) -> Batch:
        """A crop, or a whole picture in the last part of the run, and the noise for its latents."""
        size, crop, scene = self.run.size, self.config.crop, self.scenes[index]
        whole = not crop or index // self.loop.batch >= self.config.whole_from * self.loop.steps
        if whole:
            image = from_pil([render(scene, size)])[0]
        else:
            image, _ = cut(scene, size, crop, Keyed("crop", self.run.seed, index))
        side = image.shape[-1] // self.autoencoder.factor
        source = torch.Generator().manual_seed(digest("autoencoder", self.run.seed, index) >> 1)
        noise = torch.randn(2 * self.config.model.latent_channels, side, side, generator=source)
        return {"image": image, "noise": noise}

    @torch.no_grad()
    def samples(self, averaged: Mapping[str, nn.Module]) -> Image.Image:
        """Unseen pictures above what comes back of them."""
        module = averaged["autoencoder"]
        assert isinstance(module, Reconstruction)
        device = next(module.parameters()).device
        others = unseen(self.scenes)
        images = from_pil([render(others[i], self.run.size) for i in range(_SHOWN)]).to(device)
        back = module.autoencoder.decode(module.autoencoder.posterior(images).mean)
        return grid(torch.cat([images, back]), _SHOWN)


def adversarial_start(config: AutoencoderStage) -> int:
    """The step from which the discriminator plays; never, if its weight is zero."""
    return round(config.adversarial_from * config.loop.steps) if config.adversarial else config.loop.steps + 1


@torch.no_grad()
def normalise(autoencoder: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Makes the latents (z - mean) / std, both (c,), by changing the two 1x1 convolutions: exactly, with the scaling
    factor 1. The posterior's log variance falls by 2 ln std."""
    enter, leave = autoencoder.quant_conv, autoencoder.post_quant_conv
    if not isinstance(enter, nn.Conv2d) or not isinstance(leave, nn.Conv2d):
        raise ValueError("normalising the latents needs an autoencoder with quant_conv and post_quant_conv")
    assert enter.bias is not None
    assert leave.bias is not None
    c = len(mean)
    leave.bias += (leave.weight[:, :, 0, 0] @ mean).to(leave.bias)
    leave.weight *= std[None, :, None, None]
    enter.weight[:c] /= std[:, None, None, None]
    enter.bias[:c] = (enter.bias[:c] - mean) / std
    enter.bias[c:] -= 2 * std.log()


def _psnr(output: Tensor, image: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels over the batch, for values in [-1, 1]."""
    return -10 * ((output.clamp(-1, 1) - image).square().mean() / 4).log10()
