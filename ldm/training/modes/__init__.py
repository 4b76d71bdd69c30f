"""What fine-tuning can train: one small file for each mode, which prepares a model and writes what became of it."""

from __future__ import annotations

from collections.abc import Callable

from configs.finetuning import FineTuneConfig
from ldm.model import LatentDiffusion
from ldm.training.modes import autoencoder, controlnet, full, inversion, lora
from ldm.training.modes.mode import Prepared

PREPARE: dict[str, Callable[[LatentDiffusion, FineTuneConfig], Prepared]] = {
    "full": full.prepare,
    "lora": lora.prepare,
    "inversion": inversion.prepare,
    "controlnet": controlnet.prepare,
    "autoencoder": autoencoder.prepare,
}
