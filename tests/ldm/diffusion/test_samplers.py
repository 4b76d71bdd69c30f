"""The samplers among each other: identities between methods, cost, state, numerics, options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import inf, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.samplers import SAMPLERS, Step

SIGMAS = [14.6, 9.0, 5.5, 3.1, 1.9, 1.0, 0.4, 0.1]


def needed(name: str, sigmas: Sequence[float]) -> dict[str, Any]:
    """The options without a default, for a made-up training schedule."""
    if name == "lcm":
        return {"times": [999.0 - 40 * i for i in range(len(sigmas) - 1)]}
    return {"targets": [0.7 * sigma for sigma in sigmas[1:]]} if name == "tcd" else {}


def draws(x: Tensor, seed: int = 3) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)


def steps_of(name: str, denoise: Any, x: Tensor, sigmas: Sequence[float], **options: Any) -> Iterator[Step]:
    return SAMPLERS[name](denoise, x, sigmas, draws(x), **needed(name, sigmas) | options)


def run(name: str, denoise: Any, x: Tensor, sigmas: Sequence[float], **options: Any) -> Tensor:
    *_, last = steps_of(name, denoise, x, sigmas, **options)
    return last.x


def assert_same(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


REDUCTIONS = [
    ("ddim", {"eta": 0.0}, "euler", {}),
    ("euler_a", {"eta": 0.0}, "euler", {}),
    ("euler_a", {}, "ddim", {"eta": 1.0}),
    ("euler_a", {"eta": 0.3}, "ddim", {"eta": 0.3}),
    ("ddpm", {}, "ddim", {"eta": 1.0}),
    ("lms", {"order": 1}, "euler", {}),
    ("deis", {"order": 1}, "euler", {}),
    ("dpmpp_2m", {"order": 1}, "euler", {}),
    ("unipc", {"order": 1, "disable_corrector": range(99)}, "euler", {}),
    ("unipc", {"disable_corrector": range(99), "lower_order_final": False}, "dpmpp_2m", {"lower_order_final": False}),
    ("dpmpp_2m_sde", {"eta": 0.0}, "dpmpp_2m", {}),
    ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}, "dpmpp_2m", {"solver_type": "heun"}),
    ("dpmpp_3m_sde", {"eta": 0.0}, "dpmpp_2m", {"order": 3, "solver_type": "heun", "lower_order_final": False}),
    ("dpmpp_sde", {"eta": 0.0}, "dpmpp_2s_a", {"eta": 0.0}),
    ("dpm2_a", {"eta": 0.0}, "dpm2", {}),
    ("tcd", {"targets": SIGMAS[1:]}, "ddim", {}),
    ("lcm", {"times": [1e12] * 8}, "tcd", {"targets": [0.0] * 8}),  # far from t = 0 the jump is the estimate of x0
]


@pytest.mark.parametrize("final", [[0.05], [0.0]], ids=["to-0.05", "to-0"])
@pytest.mark.parametrize(("name", "options", "other", "other_options"), REDUCTIONS)
def test_one_method_is_a_case_of_another(
    name: str, options: dict[str, Any], other: str, other_options: dict[str, Any], final: list[float], gaussian: Any
) -> None:
    if name == "tcd":
        options = {"targets": SIGMAS[1:] + final}
    x, sigmas = gaussian.starts(14.6), SIGMAS + final
    ours, theirs = (list(steps_of(n, gaussian, x, sigmas, **o)) for n, o in ((name, options), (other, other_options)))
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a.x, b.x)
        assert (a.index, a.sigma) == (b.index, b.sigma)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_is_the_posterior_in_variance_preserving_form(variance: str, gaussian: Any) -> None:
    x, (sigma, sigma_next) = gaussian.starts(3.1), (3.1, 1.9)
    a_t, a_s = (1 + sigma**2) ** -0.5, (1 + sigma_next**2) ** -0.5
    s_t, s_s, a_ts = sigma * a_t, sigma_next * a_s, a_t / a_s
    s_ts2 = s_t**2 - a_ts**2 * s_s**2
    mean = a_ts * s_s**2 / s_t**2 * a_t * x + a_s * s_ts2 / s_t**2 * gaussian(x, sigma)
    std = sqrt(s_ts2) if variance == "fixed_large" else sqrt(s_ts2) * s_s / s_t
    assert_same(a_s * run("ddpm", gaussian, x, [sigma, sigma_next], variance=variance), mean + std * draws(x)())


def test_ddpm_ends_without_noise_unless_the_times_say_otherwise(gaussian: Any) -> None:
    x = gaussian.starts(0.3)
    for options in ({}, {"times": [0.0]}):
        assert_same(run("ddpm", gaussian, x, [0.3, 0.0], variance="fixed_large", **options), gaussian(x, 0.3))
    noisy = run("ddpm", gaussian, x, [0.3, 0.0], variance="fixed_large", times=[41.0])
    assert_same(noisy, gaussian(x, 0.3) + sqrt(0.09 / 1.09) * draws(x)())


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_adds_its_variance_inside_its_interval(name: str) -> None:
    x = torch.zeros(9, 1, dtype=torch.float64)
    rows = iter(torch.eye(9, dtype=torch.float64)[:, :, None])
    options = {"s_churn": 2.0, "s_tmin": 0.5, "s_tmax": 6.0, "s_noise": 1.1}
    *_, last = SAMPLERS[name](lambda x, sigma: x, x, [*SIGMAS, 0.0], lambda: next(rows), **options)
    expected = sum(1.1**2 * sigma**2 * (1.25**2 - 1) for sigma in SIGMAS if 0.5 <= sigma <= 6)
    assert last.x.square().sum().item() == pytest.approx(expected, rel=1e-12)


TWO_STAGE = ("heun", "dpm2", "dpm2_a", "dpmpp_sde", "dpmpp_2s_a")


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_network_evaluations_are_those_promised(name: str, steps: int, gaussian: Any) -> None:
    for final in (0.0, 0.05):
        gaussian.calls = 0
        states = list(steps_of(name, gaussian, gaussian.starts(14.6), [*SIGMAS[:steps], final]))
        promised = steps + (steps - (final == 0) if name in TWO_STAGE else name == "pndm" and steps > 1)
        assert gaussian.calls == promised
        assert [state.index for state in states] == list(range(steps))
        assert [state.sigma for state in states] == [*SIGMAS[1:steps], final]


def test_pndm_with_midpoints_costs_nine_more(gaussian: Any) -> None:
    midpoints = [sqrt(a * b) for a, b in list(pairwise(SIGMAS))[:3]]
    run("pndm", gaussian, gaussian.starts(14.6), [*SIGMAS, 0.0], midpoints=midpoints)
    assert gaussian.calls == len(SIGMAS) + 9


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_to_zero_ends_at_the_estimate(name: str, gaussian: Any) -> None:
    *_, last = steps_of(name, gaussian, gaussian.starts(14.6), [*SIGMAS, 0.0])
    if name not in ("lms", "pndm", "tcd"):  # these extrapolate, or jump elsewhere
        assert_same(last.x, last.denoised)
    assert last.x.data_ptr() != last.denoised.data_ptr()
    assert torch.isfinite(last.x).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_start_is_left_alone(name: str, gaussian: Any) -> None:
    x = gaussian.starts(14.6)
    before = x.clone()
    run(name, gaussian, x, SIGMAS)
    assert torch.equal(x, before)


# Where the estimate is constant, a shift of the state shrinks as sigma does. Of the methods that remember
# eps = (x - D) / sigma the order is lowered: the jump would enter their polynomial.
CARRIES_A_SHIFT = [
    *((name, {}) for name in ("ddim", "euler", "heun", "dpm2", "dpmpp_2m", "unipc")),
    *(
        (name, {"eta": 0.0})
        for name in ("euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s_a", "dpmpp_sde")
    ),
    *((name, {"order": 1}) for name in ("lms", "deis")),
]


@pytest.mark.parametrize(("name", "options"), CARRIES_A_SHIFT)
def test_a_change_of_the_state_is_carried_on(name: str, options: dict[str, Any]) -> None:
    x = torch.full((2, 3), 14.6, dtype=torch.float64)
    shift = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return torch.full_like(x, 0.3)

    plain = run(name, denoise, x, SIGMAS, **options)
    for step in steps_of(name, denoise, x, SIGMAS, **options):
        if step.index == 2:
            step.x.add_(shift)
    assert_same(step.x - plain, shift * SIGMAS[-1] / SIGMAS[3])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_continues_from_the_state_it_yielded(name: str, gaussian: Any) -> None:
    """A changed state changes the result, a restored one does not."""
    x = gaussian.starts(14.6)
    plain, results = run(name, gaussian, x, SIGMAS), []
    for change in (0.0, 1.0):
        for step in steps_of(name, gaussian, x, SIGMAS):
            if step.index == 2:
                before = step.x.clone()
                step.x.zero_().add_(before + change)
        results.append(step.x)
    assert torch.equal(results[0], plain)
    assert (results[1] - plain).abs().max() > 1e-3


ONE_STEP = ("ddim", "euler", "heun", "dpm2", "euler_a", "ddpm", "dpm2_a", "dpmpp_sde", "dpmpp_2s_a")


@pytest.mark.parametrize("name", ONE_STEP)
def test_a_one_step_method_has_no_other_memory(name: str, gaussian: Any) -> None:
    x = gaussian.starts(14.6)
    first, second = draws(x), draws(x)
    for step in SAMPLERS[name](gaussian, x, SIGMAS, first):
        if step.index == 3:
            middle = step.x.mul_(0.9).clone()
    sampler = SAMPLERS[name](gaussian, x, SIGMAS, second)
    for _ in range(4):
        next(sampler)  # as many draws
    *_, restarted = SAMPLERS[name](gaussian, middle, SIGMAS[4:], second)
    assert_same(step.x, restarted.x)


@pytest.mark.parametrize("top", [4096.0, 1e6])
@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_is_accurate_from_very_large_sigma(name: str, top: float, gaussian: Any) -> None:
    """Zero terminal SNR: float32 all the way against float64 all the way."""
    sigmas = [top, *(14.6 * (1 - i / 20) ** 1.5 + 0.03 for i in range(1, 20)), 0.0]
    x = gaussian.starts(top).float()

    def rounded(x: Tensor, sigma: float) -> Tensor:
        return gaussian(x, sigma).float()

    options: dict[str, Any] = {"prediction": "v_prediction"} if name == "pndm" else {}
    wide, narrow = run(name, gaussian, x.double(), sigmas, **options), run(name, rounded, x, sigmas, **options)
    assert narrow.dtype == torch.float32
    assert_same(narrow.double(), wide, 3e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_read_back_from_the_device(name: str) -> None:
    """On the meta device tensors have no values: reading one back, or branching on one, would fail."""
    x = torch.zeros(1, 4, 8, 8, device="meta")
    sigmas = [*SIGMAS, 0.0]
    *_, last = SAMPLERS[name](lambda x, sigma: x * 0.5, x, sigmas, lambda: torch.zeros_like(x), **needed(name, sigmas))
    assert last.x.shape == x.shape
    assert last.x.dtype == x.dtype


@pytest.mark.parametrize("last", [0.1, 0.1 + 1e-8])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_final_step_of_no_length_changes_nothing(name: str, last: float, gaussian: Any) -> None:
    """Karras grids that end at sigma_min repeat it, up to rounding: as diffusers has it in DEIS and DPM-Solver++."""
    sigmas = [*SIGMAS, last]
    options: dict[str, Any] = {"targets": sigmas[1:]} if name == "tcd" else {}
    if name == "unipc":
        options = {"disable_corrector": [6]}  # of the step before
    *_, before, after = steps_of(name, gaussian, gaussian.starts(14.6), sigmas, **options)
    if name != "lcm":
        torch.testing.assert_close(after.x, before.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("dpmpp_2m", {"order": 4}, "order=4 .* 1, 2, 3"),
        ("dpmpp_2m_sde", {"solver_type": "bh2"}, "solver_type='bh2' .* 'midpoint', 'heun'"),
        ("unipc", {"solver_type": "heun"}, "'bh1', 'bh2'"),
        ("unipc", {"order": 0}, "order=0"),
        ("deis", {"order": 4}, "order=4"),
        ("lms", {"order": 5}, "1, 2, 3, 4"),
        ("ddpm", {"variance": "learned"}, "'fixed_small', 'fixed_large'"),
    ],
)
def test_unknown_options_are_refused_by_name(name: str, options: dict[str, Any], hint: str, gaussian: Any) -> None:
    with pytest.raises(ValueError, match=hint):
        run(name, gaussian, gaussian.starts(14.6), SIGMAS, **options)


def test_churn_and_interval_are_off_by_default(gaussian: Any) -> None:
    x = gaussian.starts(14.6)
    for name in ("euler", "heun"):
        plain = run(name, gaussian, x, SIGMAS)
        assert_same(run(name, gaussian, x, SIGMAS, s_churn=5.0, s_tmin=20.0, s_tmax=inf), plain)
