"""From a network to D(x, sigma) = E[x0 | x]: the only place that knows what the network predicts, and its precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ldm.diffusion.prediction import Coefficients, Level, Prediction

Network: TypeAlias = Callable[[Tensor, Any, Any], Tensor]  # (x (b,c,h,w), t a float or (b,), cond) -> (b,c,h,w)
Clock: TypeAlias = Callable[[Any], Any]  # sigma, a float or (b,), to the network's time, likewise


class Denoiser:
    """A network, read as an estimate of the clean latents.

    Args:
        network: `(x (b,c,h,w), t, cond) -> (b,c,h,w)`; t is a float for the whole batch or (b,) float32, as sigma is.
            Of a condition with k times as many rows it gives so many: what both halves of guidance share it does once.
        prediction: the row of coefficients the network was trained with.
        time: noise level to the network's time: `NoiseSchedule.time`, or `Grid.time` while sampling.
        dtype: precision of the network's input; None leaves the state's. States and results keep the state's dtype
            (float32), whatever the network runs in.

    `sigma` is a float for the whole batch or a (b,) tensor. A NaN from the network reaches the result.
    """

    def __init__(
        self, network: Network, prediction: Prediction, time: Clock, *, dtype: torch.dtype | None = None
    ) -> None:
        self.network = network
        self.prediction = prediction
        self.time = time
        self.dtype = dtype

    def __call__(self, x: Tensor, sigma: Level, cond: Any) -> Tensor:
        """The estimate of x0 from x = x0 + sigma * noise, both (b,c,h,w)."""
        return self.to_x0(x, sigma, self.predict(x, sigma, cond))

    def predict(self, x: Tensor, sigma: Level, cond: Any) -> Tensor:
        """The network's own output (epsilon, v, ...) at the state x (b,c,h,w)."""
        _, _, c_in = self._coefficients(x, sigma)
        t = self.time(sigma)
        t = t.to(x.device, torch.float32) if isinstance(t, Tensor) else t
        output = self.network((c_in * x).to(self.dtype or x.dtype), t, cond)
        return output.to(x.dtype)

    def to_x0(self, x: Tensor, sigma: Level, output: Tensor) -> Tensor:
        """x0_hat = c_skip x + c_out output."""
        c_skip, c_out, _ = self._coefficients(x, sigma)
        return c_skip * x + c_out * output

    def loss(self, x0: Tensor, noise: Tensor, sigma: Tensor, cond: Any, seen: Tensor | None = None) -> Tensor:
        """Mean squared error of the network's output by example, (b,); sigma is (b,).

        The target is what `to_x0` maps to x0, so for epsilon it is the noise and for v it is a noise - s x0.
        seen: the noise that the network sees in place of `noise` (input perturbation, 2301.11706).
        """
        level = _broadcast(sigma, x0)
        c_skip, c_out, _ = self.prediction(level)
        # (x0 - c_skip x) / c_out, written without the cancellation of x0 that a small sigma would bring
        target = ((1 - c_skip) * x0 - c_skip * level * noise) / c_out
        output = self.predict(x0 + level * (noise if seen is None else seen), sigma, cond)
        if output.shape != target.shape:
            raise ValueError(
                f"the network made {tuple(output.shape)} of {tuple(target.shape)}: one condition an example"
            )
        error = output - target
        return error.square().flatten(1).mean(1)

    def _coefficients(self, x: Tensor, sigma: Level) -> Coefficients:
        return self.prediction(_broadcast(sigma, x) if isinstance(sigma, Tensor) else sigma)


def _broadcast(sigma: Tensor, x: Tensor) -> Tensor:
    """(b,) or () to (b,1,1,1) or (1,1,1,1), in x's dtype."""
    return sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))
