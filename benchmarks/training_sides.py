"""What the training benchmark compares: a U-Net's loss as this project has it and as the parts of diffusers make it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from systems import PROCESS, Setting, fill
from torch import Tensor, nn

from configs.architecture import DiffusionConfig, UNetConfig
from configs.interchange import unet_to_json
from ldm.checkpoint.meta import on_meta
from ldm.conditioning import Conditioning
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.prediction import prediction_of
from ldm.diffusion.schedule import NoiseSchedule
from ldm.training.denoiser import attention_for
from ldm.training.device import suited
from unet import UNet

SIDES = ("ours", "diffusers")
PRECISIONS = ("autocast", "bfloat16", "float32")
TOKENS = 77

Batch = dict[str, Tensor]
Loss = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Task:
    """What both sides train."""

    config: UNetConfig
    size: int  # pixels
    batch: int
    precision: str  # of PRECISIONS
    device: torch.device
    reference: bool = False  # the very same weights, everything else in float32

    @property
    def rounding(self) -> torch.dtype:
        """What the weights are rounded to."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """What they are kept in."""
        return torch.float32 if self.reference else self.rounding

    def examples(self, seed: int) -> Batch:
        """Latents (b, 4, h, w), noise like them, timesteps (b,) and text (b, 77, d), another batch for each seed."""
        source = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.config.in_channels, self.size // 8, self.size // 8)
        drawn = {
            "latents": torch.randn(shape, generator=source),
            "noise": torch.randn(shape, generator=source),
            "t": torch.randint(1000, (self.batch,), generator=source),
            "context": torch.randn(self.batch, TOKENS, self.config.context_dim, generator=source),
        }
        return {name: value.to(self.device) for name, value in drawn.items()}

    def arithmetic(self) -> AbstractContextManager[Any]:
        mixed = self.precision == "autocast" and not self.reference
        return torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()


# the two sides


def weights(task: Task) -> UNet:
    """Our U-Net with seeded weights, to be trained."""
    unet = on_meta("the benchmark", UNet, task.config)
    fill(unet, 0, Setting("sd15", task.size, 0, "ddim", task.rounding, task.device), task.dtype)
    return unet.requires_grad_(True).train()


def ours(task: Task) -> tuple[nn.Module, Loss]:
    unet, process = suited(weights(task)), DiffusionConfig()
    schedule = NoiseSchedule(process)

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        out: Tensor = unet(x, t, cond.context)
        return out

    denoiser = Denoiser(network, prediction_of(process), schedule.time)
    sigmas = torch.tensor([float(schedule.sigma(float(t))) for t in range(1000)], device=task.device)

    def loss(batch: Batch) -> Tensor:
        with attention_for(batch["latents"]), task.arithmetic():
            cond = Conditioning(batch["context"])
            return denoiser.loss(batch["latents"], batch["noise"], sigmas[batch["t"]], cond).mean()

    return unet, loss


def theirs(task: Task) -> tuple[nn.Module, Loss]:
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet: Any = on_meta("the benchmark", UNet2DConditionModel.from_config, unet_to_json(task.config))
    unet.load_state_dict(weights(task).state_dict(), assign=True)
    unet.requires_grad_(True).train()
    scheduler = DDPMScheduler.from_config(PROCESS)

    def loss(batch: Batch) -> Tensor:
        noisy = scheduler.add_noise(batch["latents"], batch["noise"], batch["t"])
        with task.arithmetic():
            predicted = unet(noisy.to(task.dtype), batch["t"], batch["context"].to(task.dtype)).sample
        return F.mse_loss(predicted.float(), batch["noise"])

    return unet, loss


def side(name: str, task: Task) -> tuple[nn.Module, Loss]:
    return ours(task) if name == "ours" else theirs(task)
