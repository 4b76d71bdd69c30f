"""All weights of the U-Net, and of the text encoder where that is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from configs.finetuning import FineTuneConfig
from ldm.checkpoint import load_model, resolve
from ldm.model import LatentDiffusion
from ldm.training.modes.mode import RESULTS, Prepared, assembled, frozen, tuned
from ldm.training.reading import freeze_unread
from ldm.training.results import write_model
from ldm.training.tuned import Tuned


def prepare(model: LatentDiffusion, config: FineTuneConfig) -> Prepared:
    """Leaves the model as a folder, and as a single file where that is asked for."""
    frozen(model)
    model.unet.requires_grad_(config.trains.unet)
    model.text_encoder.requires_grad_(config.trains.text)
    freeze_unread(model.text_encoder)
    module = tuned(model, config)

    def write(best: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(best, Tuned)
        untouched = load_model(resolve(model.source))  # what was not trained may have run in another precision
        kept: dict[str, Any] = {"autoencoder": untouched.autoencoder}
        kept |= {} if config.trains.text else {"text_encoder": untouched.text_encoder}
        kept |= {} if config.trains.unet else {"unet": untouched.unet}
        whole = replace(assembled(model, best), **kept)
        return write_model(whole, folder, config.name, dtype=RESULTS[config.result.precision], result=config.result)

    return Prepared(module, write, {"text_encoder.": config.trains.text_rate})
