"""Averaged weights: an exponential moving average whose decay rises as the run gets longer."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ldm.training.sharded import blend


class Average:
    """The moving average of a module's weights; `module` is a copy that holds them, never trained. What is not trained
    in the first either is the same in both, and takes no further memory.

    After step t (from 0) the average keeps min(decay, (1 + t) / (10 + t)) of itself, so that early, bad weights are
    soon forgotten (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        kept = {id(parameter): parameter for parameter in module.parameters() if not parameter.requires_grad}
        self.module = copy.deepcopy(module, dict(kept)).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the weights after a step."""
        keep = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.module.parameters(), module.parameters(), strict=True)
        trained = [(mine, theirs) for mine, theirs in pairs if theirs.requires_grad]
        blend([mine for mine, _ in trained], [theirs for _, theirs in trained], 1 - keep)
        for buffer, new in zip(self.module.buffers(), module.buffers(), strict=True):
            buffer.copy_(new)
