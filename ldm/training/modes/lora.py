"""Low-rank changes of the U-Net's weights, and of the text encoders' where that is asked for."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from configs.finetuning import FineTuneConfig
from ldm.lora.layers import attach, layers_of
from ldm.model import LatentDiffusion
from ldm.training.modes.mode import RESULTS, Prepared, assembled, frozen, in_precision, tuned
from ldm.training.results import write_lora
from ldm.training.tuned import Tuned


def prepare(model: LatentDiffusion, config: FineTuneConfig) -> Prepared:
    """Leaves two files: kohya's keys, which every program reads, and peft's, which diffusers and peft read."""
    in_precision(frozen(model), config)
    attach(model, config.lora, unet=config.trains.unet, text=config.trains.text, seed=config.seed)
    module = tuned(model, config)

    def write(best: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(best, Tuned)
        result, whole = config.result, assembled(model, best)
        trigger = config.data.trigger
        layers = layers_of(whole)
        dtype = RESULTS[result.precision]
        return write_lora(whole, layers, folder, config.name, dtype=dtype, result=result, trigger=trigger)

    return Prepared(module, write, {"text_encoder.": config.trains.text_rate})
