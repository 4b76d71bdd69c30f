"""The Gaussian oracle: a data distribution whose denoiser and whose exact flow are closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

DIMENSIONS, STARTS = 12, 64


@dataclass
class Gaussian:
    """Data N(mu, Q diag(variances) Q^T) in `d` dimensions, float64; states have shape (b, d)."""

    mu: Tensor  # (d,)
    rotation: Tensor  # Q (d, d), one eigenvector per column
    variances: Tensor  # lambda (d,)
    calls: int = 0  # how often the denoiser was evaluated

    def __call__(self, x: Tensor, sigma: float | Tensor, cond: object = None) -> Tensor:
        """D(x, sigma) = mu + Q diag(lambda / (lambda + sigma^2)) Q^T (x - mu)."""
        self.calls += 1
        level = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1)  # (b, 1) or (1, 1)
        gain = self.variances / (self.variances + level**2)
        return self.mu + (self.modes(x) * gain) @ self.rotation.T

    def modes(self, x: Tensor) -> Tensor:
        """Coordinates Q^T (x - mu) of the states, (b, d)."""
        return (x.double() - self.mu) @ self.rotation

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """The probability-flow ODE solved exactly from noise level `start` to `end`."""
        ratio = torch.sqrt((self.variances + end**2) / (self.variances + start**2))
        return self.mu + (self.modes(x) * ratio) @ self.rotation.T

    def starts(self, sigma: float = 80.0, count: int = STARTS, seed: int = 1) -> Tensor:
        """`count` draws of sigma * N(0, I), (count, d) float64."""
        generator = torch.Generator().manual_seed(seed)
        return sigma * torch.randn(count, len(self.mu), generator=generator, dtype=torch.float64)

    def sample(self, count: int, seed: int = 2) -> Tensor:
        """`count` exact draws of the data, (count, d) float64."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, len(self.mu), generator=generator, dtype=torch.float64)
        return self.mu + (z * self.variances.sqrt()) @ self.rotation.T


def make_gaussian(seed: int = 0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(DIMENSIONS, DIMENSIONS, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q
    variances = torch.logspace(torch.log10(torch.tensor(4.0)).item(), -3, DIMENSIONS, dtype=torch.float64)
    mu = 0.7 * torch.randn(DIMENSIONS, generator=generator, dtype=torch.float64)
    return Gaussian(mu, rotation, variances)


@pytest.fixture
def gaussian() -> Gaussian:
    """The fixture of every solver table: d = 12, lambda geometric from 4 to 1e-3, mu ~ 0.7 N(0, I)."""
    return make_gaussian()


@pytest.fixture
def karras_sigmas() -> object:
    """`karras_sigmas(steps, low=0.02, high=80.0)`: the rho = 7 grid of `steps` levels, then (with `zero`) 0."""

    def grid(steps: int, low: float = 0.02, high: float = 80.0, *, zero: bool = False) -> list[float]:
        ramp = [i / max(steps - 1, 1) for i in range(steps)]
        sigmas = [(high ** (1 / 7) + r * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for r in ramp]
        return [*sigmas, 0.0] if zero else sigmas

    return grid
