"""The denoiser's loss of fine-tuning: which noise, how much of it, and how much an error counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from configs.architecture import DiffusionConfig
from configs.finetuning import ObjectiveConfig
from ldm.data.emoji_scenes.keyed import Keyed, digest
from ldm.diffusion.denoiser import Denoiser, Network
from ldm.diffusion.prediction import prediction_of
from ldm.diffusion.schedule import NoiseSchedule
from ldm.training.stage import Batch
from ldm.training.weighting import loss_factor


class Objective:
    """Draws what an example needs, keyed by (purpose, seed, position), and makes a loss of it.

    diffusion: the model's process; `self.diffusion` is the one it is trained for. Raises ValueError for an
    epsilon-predicting network on a schedule that ends in pure noise, where it has no signal.
    """

    def __init__(self, config: ObjectiveConfig, diffusion: DiffusionConfig) -> None:
        zero = config.zero_terminal_snr or diffusion.zero_terminal_snr
        prediction = config.prediction or diffusion.prediction
        if zero and prediction == "epsilon":
            raise ValueError(
                "with objective.zero_terminal_snr a network that predicts the noise has no signal at the last step: "
                'set objective.prediction = "v_prediction", or leave it out'
            )
        self.config = config
        self.diffusion = replace(diffusion, prediction=prediction, zero_terminal_snr=zero)
        self.schedule = NoiseSchedule(self.diffusion)
        self.prediction = prediction_of(self.diffusion)

    def draw(self, seed: int, position: int, shape: tuple[int, ...]) -> Batch:
        """`noise`, `sigma` () and, with input perturbation, the noise `seen` by the network, for latents (c, h, w)."""
        config = self.config
        noise = normal(("noise", seed, position), shape)
        if config.offset_noise:
            noise = noise + config.offset_noise * normal(("offset", seed, position), (shape[0], 1, 1))
        drawn = {"noise": noise, "sigma": torch.tensor(self.level(seed, position))}
        if config.input_perturbation:
            drawn["seen"] = noise + config.input_perturbation * normal(("perturbation", seed, position), shape)
        return drawn

    def level(self, seed: int, position: int) -> float:
        """The noise level of an example."""
        levels = self.schedule.training_sigmas
        if self.config.levels == "uniform":
            return Keyed("level", seed, position).pick(levels)
        log_sigma = self.config.mean + self.config.std * float(normal(("level", seed, position), ()))
        return math.exp(min(max(log_sigma, math.log(levels[0])), math.log(levels[-1])))

    def losses(self, network: Network, x0: Tensor, batch: Batch, cond: Any) -> Tensor:
        """Weighted mean squared errors of the network's output by example, (b,), of latents x0 (b, c, h, w)."""
        denoiser = Denoiser(network, self.prediction, self.schedule.time)
        sigma = batch["sigma"]
        losses = denoiser.loss(x0, batch["noise"], sigma, cond, batch.get("seen"))
        return losses * loss_factor(self.config, self.prediction, sigma)


def normal(key: tuple[object, ...], shape: tuple[int, ...]) -> Tensor:
    """Standard normal values that depend on the key alone, float32 on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(digest(*key) >> 1))
