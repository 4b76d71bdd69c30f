# mypy: no-warn-return-any
"""The autoencoder on one's own pictures: its decoder alone unless asked otherwise, which leaves latents as they are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.finetuning import FineTuneConfig, ReconstructionConfig
from ldm.model import LatentDiffusion
from ldm.training.modes.mode import RESULTS, Prepared, frozen, in_precision
from ldm.training.results import write_vae
from ldm.training.stage import Batch
from vae import AutoencoderKL

_SCALES = 3


class Reconstructed(nn.Module):
    """The loss of what comes back of pictures, a draw of the posterior in between."""

    def __init__(self, autoencoder: AutoencoderKL, config: ReconstructionConfig, *, encodes: bool) -> None:
        super().__init__()
        self.autoencoder, self.config, self.encodes = autoencoder, config, encodes

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        losses, metrics = self._terms(batch)
        return (losses * batch["weight"]).mean(), {name: value.mean().detach() for name, value in metrics.items()}

    def losses(self, batch: Batch) -> Tensor:
        """By example, (b,), before they are weighted among each other."""
        return self._terms(batch)[0]

    def _terms(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, image = self.config, batch["pixels"]
        with torch.set_grad_enabled(self.encodes and torch.is_grad_enabled()):
            posterior = self.autoencoder.posterior(image)
        output = self.autoencoder.decode(self.autoencoder.scaled(posterior).sample(batch["posterior"]))
        terms = {
            "l1": (output - image).abs().flatten(1).mean(1),
            "l2": (output - image).square().flatten(1).mean(1),
            "gradient": gradient_distance(output, image),
        }
        loss = config.l1 * terms["l1"] + config.l2 * terms["l2"] + config.gradient * terms["gradient"]
        if self.encodes:
            terms["kl"] = posterior.kl()
            loss = loss + config.kl * terms["kl"]
        return loss, terms


def gradient_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels, on three scales: (b, 3, h, w) -> (b,)."""
    error, total = a - b, a.new_zeros(len(a))
    for scale in range(_SCALES):
        error = F.avg_pool2d(error, 2) if scale else error
        across, down = error.diff(dim=3), error.diff(dim=2)
        total = total + across.abs().flatten(1).mean(1) + down.abs().flatten(1).mean(1)
    return total / (2 * _SCALES)


def prepare(model: LatentDiffusion, config: FineTuneConfig) -> Prepared:
    """Leaves the autoencoder as a folder and a file. Raises ValueError for a tiny one, which has no posterior."""
    autoencoder = model.autoencoder
    if not isinstance(autoencoder, AutoencoderKL):
        raise ValueError("a tiny autoencoder cannot be trained here: take a model with its full one")
    in_precision(frozen(model), config)
    encodes = not config.trains.decoder_only
    autoencoder.float()
    autoencoder.requires_grad_(encodes)
    autoencoder.decoder.requires_grad_(True)
    autoencoder.post_quant_conv.requires_grad_(True)
    module = Reconstructed(autoencoder, config.reconstruction, encodes=encodes)

    def write(best: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(best, Reconstructed)
        dtype = RESULTS[config.result.precision]
        return write_vae(best.autoencoder, folder, config.name, dtype=dtype, result=config.result)

    return Prepared(module, write)
