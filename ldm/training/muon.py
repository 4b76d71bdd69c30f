"""Muon: momentum whose update is made orthogonal, for the matrices and kernels inside a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_QUINTIC = (3.4445, -4.7750, 2.0315)  # a x + b x^3 + c x^5, steep at 0: Jordan et al. 2024
_ROUNDS = 5
_ADAM_SIZE = 0.2  # root mean square of an update of AdamW: with it one rate serves both (Liu et al. 2025, 2502.16982)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised by Newton and Schulz's iteration (Jordan et al. 2024, "Muon").

    Takes parameters of two dimensions or more; a kernel (out, in, h, w) counts as the matrix (out, in * h * w), which
    `torch.optim.Muon` refuses. Updates are scaled so that the rate is one of AdamW. Against AdamW on the denoiser of
    emoji scenes it needs about half the steps.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._advance(p, p.grad, group)
        return loss

    def _advance(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        mean = state["momentum"].lerp_(grad, 1 - group["momentum"])
        update = orthogonal(grad.lerp(mean, group["momentum"]).flatten(1))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update.view_as(p), alpha=-group["lr"] * _ADAM_SIZE * max(update.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (m, n) with its singular values brought near 1, between about 0.7 and 1.2, computed in bfloat16."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    result: Tensor = (x.T if tall else x).to(matrix.dtype)
    return result
