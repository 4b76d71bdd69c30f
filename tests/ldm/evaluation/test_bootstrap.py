"""Cluster bootstrap against closed forms."""

from math import sqrt

import pytest
import torch

from ldm.evaluation.bootstrap import interval


def bernoulli(n: int, p: float) -> list[bool]:
    return [bool(x) for x in torch.rand(n, generator=torch.Generator().manual_seed(1)) < p]


def test_independent_trials_have_the_binomial_interval() -> None:
    trials = bernoulli(900, 0.3)
    found = interval([[one] for one in trials], draws=8000)
    rate = sum(trials) / 900
    half = 1.96 * sqrt(rate * (1 - rate) / 900)
    assert found.rate == pytest.approx(rate)
    assert (found.low, found.high) == (pytest.approx(rate - half, abs=0.003), pytest.approx(rate + half, abs=0.003))
    assert (found.clusters, found.trials) == (900, 900)


def test_copies_of_one_trial_add_nothing() -> None:
    trials = bernoulli(400, 0.5)
    alone, copied = (interval([[one] * copies for one in trials], draws=8000) for copies in (1, 9))
    assert copied.trials == 9 * alone.trials
    assert (copied.low, copied.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    apart = interval([[one] for one in trials for _ in range(9)], draws=4000)
    assert (copied.high - copied.low) / (apart.high - apart.low) == pytest.approx(3, rel=0.1)  # sqrt(9)


def test_clusters_count_by_their_size() -> None:
    found = interval([[True], [False] * 3, []])
    assert (found.rate, found.clusters, found.trials) == (0.25, 2, 4)


def test_a_rate_of_one_keeps_an_open_end() -> None:
    sure, never = interval([[True] * 4] * 60), interval([[False]] * 60)
    assert (sure.rate, sure.high) == (1, 1)
    assert sure.low == pytest.approx(0.025 ** (1 / 60))  # Clopper and Pearson, 60 of 60
    assert (never.rate, never.low, never.high) == (0, 0, pytest.approx(1 - 0.025 ** (1 / 60)))


def test_nothing_measured_is_no_rate() -> None:
    assert interval([[], []]).rate is None
    assert str(interval([])) == "-"
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([[True]], level=95)
