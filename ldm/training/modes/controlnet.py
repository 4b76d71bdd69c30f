"""A ControlNet beside a U-Net that stays as it is (Zhang et al. 2023, 2302.05543)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from configs.finetuning import FineTuneConfig
from ldm.checkpoint.extras import load_controlnet
from ldm.model import LatentDiffusion
from ldm.training.modes.mode import RESULTS, Prepared, frozen, tuned
from ldm.training.results import write_controlnet
from ldm.training.tuned import Tuned
from unet.controlnet import ControlNet


def prepare(model: LatentDiffusion, config: FineTuneConfig) -> Prepared:
    """Leaves a folder and a file. The ControlNet begins as a copy of the U-Net that adds nothing."""
    frozen(model)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # of the layers that see the control image
        start = config.control.start
        control = load_controlnet(start) if start else ControlNet.from_unet(model.unet)
    module = tuned(model, config, control.requires_grad_(True))

    def write(best: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(best, Tuned)
        assert best.control is not None
        dtype = RESULTS[config.result.precision]
        return write_controlnet(best.control, folder, config.name, dtype=dtype, result=config.result)

    return Prepared(module, write)
