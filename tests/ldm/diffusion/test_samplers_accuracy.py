"""How accurate the samplers are: order of convergence, variance, and exactness on what they are built to integrate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, log, log2, prod, sqrt
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from ldm.diffusion.samplers import SAMPLERS, Step
from ldm.diffusion.samplers.adams import lagrange_weights

Grid = Callable[..., list[float]]
SIGMAS = [14.6, 9.0, 5.5, 3.1, 1.9, 1.0, 0.4, 0.1]


def draws(x: Tensor) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(3)
    return lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def steps_of(name: str, denoise: Any, x: Tensor, sigmas: Sequence[float], **options: Any) -> list[Step]:
    return list(SAMPLERS[name](denoise, x, sigmas, draws(x), **options))


# To the exact flow, sigma 80 -> 0.02 on the rho = 7 grid: RMS error at 20, 40 and 80 steps, order from 80 to 160.
CONVERGENCE = [
    ("ddim", {}, (7.7e-2, 4.0e-2, 2.0e-2), 1.0),
    ("euler", {}, (7.7e-2, 4.0e-2, 2.0e-2), 1.0),
    ("heun", {}, (1.7e-2, 4.2e-3, 1.0e-3), 2.0),
    ("dpm2", {}, (1.0e-2, 2.5e-3, 6.0e-4), 2.0),
    ("dpmpp_2m", {}, (1.8e-2, 4.3e-3, 1.0e-3), 2.0),
    ("dpmpp_2m", {"solver_type": "heun"}, (2.9e-2, 6.3e-3, 1.5e-3), 2.0),
    ("dpmpp_2m", {"order": 3}, (3.0e-3, 7.5e-4, 2.3e-4), 1.9),
    ("dpmpp_2s_a", {"eta": 0}, (8.7e-3, 2.3e-3, 5.8e-4), 2.0),
    ("unipc", {}, (9.7e-3, 1.2e-3, 1.6e-4), 2.7),
    ("unipc", {"solver_type": "bh1"}, (2.0e-2, 2.1e-3, 2.5e-4), 2.9),
    ("unipc", {"order": 3}, (4.1e-3, 4.1e-4, 8.1e-5), 2.1),
    ("unipc", {"order": 3, "lower_order_final": False}, (5.3e-3, 3.4e-4, 2.1e-5), 4.0),
    ("deis", {}, (9.7e-3, 2.4e-3, 5.9e-4), 2.0),
    ("deis", {"order": 3}, (1.4e-3, 2.7e-4, 3.9e-5), 2.9),
    ("lms", {"order": 2}, (3.1e-2, 8.8e-3, 2.4e-3), 1.9),
    ("lms", {}, (1.1e-2, 1.2e-3, 1.0e-4), 3.8),
    ("pndm", {}, (6.5e-3, 1.4e-3, 3.4e-4), 2.0),  # its coefficients are those of equal steps
]


@pytest.mark.parametrize(("name", "options", "errors", "order"), CONVERGENCE)
def test_error_and_order_on_the_gaussian(
    name: str, options: dict[str, Any], errors: Sequence[float], order: float, gaussian: Any, karras_sigmas: Grid
) -> None:
    x, measured = gaussian.starts(80.0), []
    for steps in (20, 40, 80, 160):
        y = steps_of(name, gaussian, x, karras_sigmas(steps + 1), **options)[-1].x
        measured.append((y - gaussian.flow(x, 80.0, 0.02)).square().mean().sqrt().item())
    for error, expected in zip(measured, errors, strict=False):
        assert expected / 1.5 < error < 1.5 * expected
    assert log2(measured[2] / measured[3]) == pytest.approx(order, abs=0.15)


def reverse_variances(name: str, steps: int, karras_sigmas: Grid, **options: Any) -> float:
    """Largest relative error of the final variance over modes, without sampling.

    For a Gaussian the state is linear in the start and the draws: row k holds its coefficients of the k-th of them.
    """
    variances = torch.logspace(log(4.0) / log(10), -3, 12, dtype=torch.float64)
    sigmas = karras_sigmas(steps + 1)
    x = torch.zeros(2 * steps + 2, 12, dtype=torch.float64)
    x[0] = (variances + sigmas[0] ** 2).sqrt()
    rows = iter(range(1, len(x)))

    def unit_draw() -> Tensor:
        z = torch.zeros_like(x)
        z[next(rows)] = 1
        return z

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return variances / (variances + sigma**2) * x

    *_, last = SAMPLERS[name](denoise, x, sigmas, unit_draw, **options)
    return float((last.x.square().sum(0) / (variances + sigmas[-1] ** 2) - 1).abs().max())


VARIANCES = [  # at 100, 200 and 400 steps
    ("euler_a", {}, (0.118, 0.061, 0.031)),
    ("ddpm", {}, (0.118, 0.061, 0.031)),
    ("ddim", {"eta": 1.0}, (0.118, 0.061, 0.031)),
    ("dpmpp_2m_sde", {}, (7.1e-3, 1.8e-3, 4.4e-4)),
    ("dpmpp_2m_sde", {"solver_type": "heun"}, (1.3e-2, 3.2e-3, 7.9e-4)),
    ("dpmpp_3m_sde", {}, (5.6e-3, 1.1e-3, 2.6e-4)),
    ("dpmpp_sde", {}, (3.0e-3, 6.6e-4, 1.5e-4)),
    ("dpmpp_2s_a", {}, (8.3e-3, 2.2e-3, 5.5e-4)),
    ("dpm2_a", {}, (9.3e-3, 2.3e-3, 5.7e-4)),
    ("heun", {"s_churn": 40.0}, (4.8e-2, 1.2e-2, 3.0e-3)),
]


@pytest.mark.parametrize(("name", "options", "errors"), VARIANCES)
def test_variance_on_the_gaussian(
    name: str, options: dict[str, Any], errors: Sequence[float], karras_sigmas: Grid
) -> None:
    for steps, error in zip((100, 200, 400), errors, strict=True):
        assert reverse_variances(name, steps, karras_sigmas, **options) == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_lms_weights_equal_adaptive_quadrature(seed: int) -> None:
    levels = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cumsum(0).flip(0) * 4
    *past, sigma, sigma_next = levels.tolist()
    nodes = [sigma, *reversed(past)]

    def basis(tau: float, j: int) -> float:
        return prod((tau - n) / (nodes[j] - n) for n in nodes if n != nodes[j])

    h = sigma_next - sigma
    weights = lagrange_weights([n - sigma for n in nodes], [h ** (k + 1) / (k + 1) for k in range(4)])
    expected = [quad(basis, sigma, sigma_next, args=(j,), epsabs=0, epsrel=1e-12)[0] for j in range(4)]
    assert weights == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("order", "sampler"), [(2, "deis"), (3, "deis"), (2, "lms"), (4, "lms")])
def test_adams_integrates_polynomials_exactly(order: int, sampler: str) -> None:
    """A noise prediction that is a polynomial of the method's clock is integrated without error once it has history."""
    clock = log if sampler == "deis" else float

    def eps(sigma: float) -> float:
        return sum((k + 1) * (-0.3 * clock(sigma)) ** k for k in range(order))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x - sigma * eps(sigma)

    options = {"lower_order_final": False} if sampler == "deis" else {}
    states = steps_of(sampler, denoise, torch.zeros(1, dtype=torch.float64), SIGMAS, order=order, **options)
    for before, after in pairwise(states[order - 2 :]):
        exact = quad(eps, before.sigma, after.sigma, epsabs=0, epsrel=1e-12)[0]
        assert (after.x - before.x).item() == pytest.approx(exact, rel=1e-9)


def transcribed_2s_a(denoise: Any, x: Tensor, sigmas: Sequence[float], noise: Callable[[], Tensor]) -> Tensor:
    """DPM++ 2S ancestral in the time t = -log sigma, term by term."""
    for sigma, sigma_next in pairwise(sigmas):
        up = sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        t, t_next = -log(sigma), -log(sqrt(sigma_next**2 - up**2))
        h = t_next - t
        s = t + 0.5 * h
        x_2 = exp(-s) / exp(-t) * x - (exp(-0.5 * h) - 1) * denoise(x, sigma)
        x = exp(-t_next) / exp(-t) * x - (exp(-h) - 1) * denoise(x_2, exp(-s)) + noise() * up
    return x


def transcribed_3m_sde(denoise: Any, x: Tensor, sigmas: Sequence[float], noise: Callable[[], Tensor]) -> Tensor:
    """DPM++ 3M SDE in the time t = -log sigma, eta = 1, term by term."""
    past: list[Tensor] = []
    hs: list[float] = []
    for sigma, sigma_next in pairwise(sigmas):
        D, h = denoise(x, sigma), log(sigma / sigma_next)
        x = exp(-2 * h) * x + (1 - exp(-2 * h)) * D
        phi_2 = (exp(-2 * h) - 1) / (2 * h) + 1
        if len(past) == 1:
            x = x + phi_2 * (D - past[-1]) / (hs[-1] / h)
        elif past:
            r0, r1 = hs[-1] / h, hs[-2] / h
            d1_0, d1_1 = (D - past[-1]) / r0, (past[-1] - past[-2]) / r1
            d1, d2 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1), (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / (2 * h) - 0.5) * d2
        x = x + noise() * sigma_next * sqrt(1 - exp(-2 * h))
        past, hs = [*past, D], [*hs, h]
    return x


TRANSCRIBED = [("dpmpp_2s_a", transcribed_2s_a), ("dpmpp_3m_sde", transcribed_3m_sde)]


@pytest.mark.parametrize(("name", "transcribed"), TRANSCRIBED)
def test_equals_a_transcription_of_the_formula(name: str, transcribed: Any, gaussian: Any) -> None:
    x = gaussian.starts(14.6)
    ours = steps_of(name, gaussian, x, SIGMAS)[-1].x
    torch.testing.assert_close(ours, transcribed(gaussian, x, SIGMAS, draws(x)), rtol=0, atol=1e-12)
