"""The loss on the same examples, noise and noise levels each time: comparable between steps and between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from ldm.training.stage import Batch

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the training steps: noise levels that are measured
MOST = 8  # pictures of each kind
_RISES = 3  # measures in a row


class Probe:
    """Measures a module.

    examples: by kind ("trained", "held out"), batches of one example each, without their batch axis.
    levels: noise levels sigma; none for an autoencoder, which has none.
    """

    def __init__(self, examples: Mapping[str, Sequence[Batch]], levels: Sequence[float] = ()) -> None:
        self.examples, self.levels = examples, tuple(levels)

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> dict[str, float]:
        """Mean loss by kind, and by kind and noise level: {"trained": 0.1, "trained/sigma 0.5": ...}."""
        device = next(module.parameters()).device
        numbers: dict[str, float] = {}
        for kind, rows in self.examples.items():
            losses = torch.stack([self._losses(module, row, device) for row in rows])  # (examples, levels)
            for level, loss in zip(self.levels, losses.mean(0).tolist(), strict=False):
                numbers[f"{kind}/sigma {level:.2g}"] = loss
            numbers[kind] = float(losses.mean())
        return numbers

    def _losses(self, module: nn.Module, row: Batch, device: torch.device) -> Tensor:
        """(levels,) of one example; (1,) where there are none."""
        repeats = max(len(self.levels), 1)
        batch = {name: value.to(device).expand(repeats, *value.shape) for name, value in row.items()}
        if self.levels:
            batch["sigma"] = torch.tensor(self.levels, device=device)
        losses: Tensor = module.losses(batch)  # type: ignore[operator]
        return losses.float()


@dataclass
class Overfitting:
    """Whether the loss of held-out pictures rises while that of trained ones falls: learnt by heart, not learnt."""

    history: list[tuple[float, float]] = field(default_factory=list)  # trained, held out

    def sees(self, numbers: Mapping[str, float]) -> bool:
        """Takes in a measure; True if the held-out loss has risen for three in a row, to above its best, while the
        trained one fell below what it was then."""
        if "held out" not in numbers:
            return False
        self.history.append((numbers["trained"], numbers["held out"]))
        if len(self.history) <= _RISES:
            return False
        last = self.history[-_RISES - 1 :]
        rises = all(later[1] > earlier[1] for earlier, later in pairwise(last))
        return rises and last[-1][0] < last[0][0]
