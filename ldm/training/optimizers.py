"""Optimizers and their rates."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from configs.training import OptimizerConfig
from ldm.training.muon import Muon
from ldm.training.stage import Player

_ENDS = ("conv_in", "conv_out", "embedding")  # Muon is for what lies between them


def factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """What the rate is multiplied with in step `step` of `steps`: linear warm-up, then the schedule's fall."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min((step - config.warmup) / max(steps - config.warmup, 1), 1.0)
    left = {"constant": 1.0, "polynomial": (1 - done) ** config.power, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
    return 1.0 if config.schedule == "constant" else config.floor + (1 - config.floor) * left[config.schedule]


def optimizers(player: Player, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW; with kind = "muon", Muon for the matrices and kernels that are neither an end of a network nor a table of
    embeddings, and AdamW for the others. Weight decay on matrices and kernels alone."""
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in player.module.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1
            inside = matrix and not any(end in name for end in _ENDS)
            rate = next((rate for prefix, rate in player.rates.items() if name.startswith(prefix)), 1.0)
            key = (config.kind == "muon" and inside, matrix and player.decays, rate)
            groups.setdefault(key, []).append(parameter)
    adamw, muon = (
        [
            {"params": some, "factor": rate, "lr": rate * config.rate, "weight_decay": config.weight_decay * decays}
            for (by_muon, decays, rate), some in groups.items()
            if by_muon is wanted
        ]
        for wanted in (False, True)
    )
    return ([_adamw(adamw, config)] if adamw else []) + ([Muon(muon)] if muon else [])


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    on_gpu = groups[0]["params"][0].is_cuda
    if config.kind != "adamw8bit":
        return AdamW(groups, betas=config.betas, fused=on_gpu)
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError('kind = "adamw8bit" needs bitsandbytes: pip install bitsandbytes, or take "adamw"') from error
    if not on_gpu:
        raise ValueError('kind = "adamw8bit" needs a GPU: take "adamw"')
    eight: Optimizer = AdamW8bit(groups, betas=config.betas)
    return eight
