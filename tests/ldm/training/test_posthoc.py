"""Averages of any length from snapshots of two: against averages of that length kept all along."""

import pytest
import torch
from torch import nn

from ldm.training.posthoc import PowerAverage, averaged_over, combination, gamma_of, inner, keep_snapshot, length_of

STEPS = 400


def walk(module: nn.Linear, step: int) -> None:
    """Weights as in training: a drift and noise."""
    drawn = torch.Generator().manual_seed(step)
    with torch.no_grad():
        module.weight.copy_(torch.full((4, 4), (step / STEPS) ** 0.5) + 0.1 * torch.randn(4, 4, generator=drawn))


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15])
def test_a_length_chosen_afterwards_is_the_one_kept_all_along(tmp_path, length):
    module = nn.Linear(4, 4, bias=False)
    kept = [PowerAverage(module, one) for one in (0.05, 0.1)]
    tracked = PowerAverage(module, length)
    for step in range(STEPS):
        walk(module, step)
        for average in (*kept, tracked):
            average.update(module, step)
        if (step + 1) % 25 == 0:
            for average in kept:
                keep_snapshot(average, step + 1, tmp_path)
    found = averaged_over(tmp_path, length, STEPS)["weight"]
    away = (tracked.weights["weight"] - module.weight).abs().max()
    assert away > 0.05  # so that it is not met by chance
    assert (found - tracked.weights["weight"]).abs().max() < 0.02 * away


def test_lengths_and_exponents_are_inverse_and_those_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)
    assert length_of(gamma_of(0.2)) == pytest.approx(0.2)
    for wrong in (0.0, 0.3, -1.0):
        with pytest.raises(ValueError, match="share of the run"):
            gamma_of(wrong)


def test_inner_products_are_integrals():
    a, b = (300.0, 6.94), (400.0, 16.97)
    s = torch.linspace(0, 400, 400_001, dtype=torch.float64)
    one, other = ((p + 1) * s**p / t ** (p + 1) * (s <= t) for t, p in (a, b))
    assert inner(a, b) == pytest.approx(torch.trapezoid(one * other, s).item(), rel=1e-4)
    assert inner(a, b) == inner(b, a)


def test_a_profile_that_is_there_is_itself():
    profiles = [(100.0, 6.94), (200.0, 6.94), (200.0, 16.97)]
    torch.testing.assert_close(
        combination(profiles, profiles[1]).float(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0
    )


def test_without_snapshots_it_says_what_to_set(tmp_path):
    with pytest.raises(ValueError, match=r"loop\.ema_lengths"):
        averaged_over(tmp_path, 0.1, 10)
