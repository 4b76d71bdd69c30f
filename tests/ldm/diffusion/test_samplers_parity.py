"""Every sampler against diffusers' scheduler: same levels, same synthetic network, same draws, all states compared.

diffusers rounds to float32 inside; run in float64 throughout (`exact`), the two agree to rounding error.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.diffusion.prediction import PREDICTIONS
from ldm.diffusion.samplers import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore")  # numpy's and diffusers' own deprecations, by the thousand
SHAPE = (2, 3, 5, 4)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
GRIDS = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True})
LEADING = ({"timestep_spacing": "leading", "steps_offset": 1},)
STEPS = (1, 2, 3, 10, 14, 15, 20, 25)


def network(x: Tensor, sigma: float) -> Tensor:
    """A smooth nonlinear network of the scaled state and the level; x (b, c, h, w)."""
    level = torch.tensor(sigma, dtype=torch.float64).log().to(x.dtype)
    return 0.8 * x + 0.5 * torch.tanh(x.roll(1, -1) - 0.7 * x.roll(1, 1) + 0.3 * level) + 0.1 * torch.sin(2 * x + level)


@dataclass
class Counted:
    """The synthetic network as `denoise(x, sigma)`."""

    prediction: str
    calls: int = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        c_skip, c_out, c_in = PREDICTIONS[self.prediction](sigma)
        return c_skip * x + c_out * network(c_in * x, sigma)


@dataclass
class Case:
    """A diffusers scheduler and the sampler that should equal it."""

    sampler: str
    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)
    grids: tuple[dict[str, Any], ...] = GRIDS
    options: dict[str, Any] = field(default_factory=dict)
    step_options: dict[str, Any] = field(default_factory=dict)  # of scheduler.step
    steps: tuple[int, ...] = STEPS
    tolerance: float = 1e-10  # in float64, of the largest value

    def __str__(self) -> str:
        options = {**self.config, **self.options, **self.step_options}
        return "-".join([self.sampler, *(f"{k}={v}" for k, v in options.items())])


DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
SDE = {"algorithm_type": "sde-dpmsolver++"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
OPEN = {"lower_order_final": False}
CASES = [
    *(
        Case("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": one}, LEADING, {"eta": e}, {"eta": e})
        for one, e in product((True, False), (0.0, 0.4, 1.0))
    ),
    *(
        Case("ddpm", "DDPMScheduler", {"clip_sample": False, "variance_type": v}, grid, {"variance": v}, tolerance=2e-9)
        for v, grid in product(("fixed_small", "fixed_large"), (LEADING, ({"timestep_spacing": "linspace"},)))
    ),
    *(Case("pndm", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": o}, LEADING) for o in (True, False)),
    Case("pndm", "PNDMScheduler", {"skip_prk_steps": False}, LEADING, steps=(4, 5, 10, 25)),
    Case("euler", "EulerDiscreteScheduler", grids=(*GRIDS, *LEADING, SIGMA_MIN)),
    Case("euler_a", "EulerAncestralDiscreteScheduler", grids=({}, *LEADING)),
    Case("heun", "HeunDiscreteScheduler"),
    Case("dpm2", "KDPM2DiscreteScheduler"),
    Case("dpm2_a", "KDPM2AncestralDiscreteScheduler"),
    *(
        Case(
            "dpmpp_2m",
            DPM,
            {"solver_order": order, "solver_type": kind, **final, **extra},
            # where the last level repeats, order 3 is NaN in diffusers
            ({}, *LEADING) if order == 3 and final else GRIDS,
            options={"order": order, "solver_type": kind, **extra},
        )
        for order, kind, final, extra in [
            *product((1, 2, 3), ("midpoint",), ({}, SIGMA_MIN), ({}, OPEN)),
            *product((2,), ("heun",), ({},), ({}, OPEN, {"euler_at_final": True})),
            (3, "midpoint", {}, {"euler_at_final": True}),
        ]
    ),
    Case("dpmpp_2m", DPM, SIGMA_MIN | {"euler_at_final": True}, options={"euler_at_final": True}),
    *(
        Case("dpmpp_2m_sde", DPM, SDE | {"solver_order": o, "solver_type": k, **f}, g, {"order": o, "solver_type": k})
        for o, k, f, g in [
            *product((1, 2), ("midpoint", "heun"), ({},), (GRIDS,)),
            (2, "midpoint", SIGMA_MIN, ({}, *LEADING)),
        ]
    ),
    *(
        Case("deis", "DEISMultistepScheduler", {"solver_order": o, **extra}, options={"order": o, **extra})
        for o, extra in product((1, 2, 3), ({}, OPEN))
    ),
    *(
        Case("unipc", UNIPC, {"solver_order": o, "solver_type": b, **final}, options={"order": o, "solver_type": b})
        for o, b, final in [*product((1, 2, 3), ("bh1", "bh2"), (SIGMA_MIN,)), (2, "bh2", {}), (3, "bh2", {})]
    ),  # bh1 to sigma 0 is NaN in diffusers
    *(
        Case("unipc", UNIPC, {**extra, **SIGMA_MIN}, ({}, *LEADING), extra)
        for extra in (OPEN, {"disable_corrector": [0, 2]})
    ),
    Case("lms", "LMSDiscreteScheduler"),
    Case("lcm", "LCMScheduler", grids=({},), tolerance=1e-7),  # computes its scalings in float32
    *(Case("tcd", "TCDScheduler", grids=({},), step_options={"eta": e}) for e in (0.0, 0.3, 1.0)),
]


def draws(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Callable[[], Tensor]:
    return lambda: torch.randn(SHAPE, generator=generator, dtype=dtype)


def make_scheduler(case: Case, grid: dict[str, Any], prediction: str) -> Any:
    return getattr(diffusers, case.scheduler)(**STABLE_DIFFUSION | case.config | grid, prediction_type=prediction)


def training_sigmas(scheduler: Any) -> Tensor:
    a = scheduler.alphas_cumprod
    return ((1 - a) / a) ** 0.5


def levels(case: Case, scheduler: Any, steps: int) -> tuple[list[float], dict[str, Any]]:
    """(steps + 1 sigmas of the sampler, options that depend on the grid)."""
    table, times = training_sigmas(scheduler), scheduler.timesteps
    if case.sampler in ("heun", "dpm2", "dpm2_a"):
        return [scheduler.sigmas[0].item(), *scheduler.sigmas[1::2].tolist()[:steps]], {}
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas.tolist(), {}
    if case.sampler == "tcd":
        after = torch.cat([times[1:], times.new_zeros(1)])
        targets = torch.floor((1 - case.step_options["eta"]) * after).long()
        return table[torch.cat([times[:1], after])].tolist(), {"targets": table[targets].tolist()}
    if case.sampler == "pndm":
        times = torch.from_numpy(scheduler._timesteps[::-1].copy()).long()
    last = 0.0 if getattr(scheduler.config, "set_alpha_to_one", True) else table[0].item()
    options: dict[str, Any] = {"times": times.tolist()} if case.sampler in ("ddpm", "lcm") else {}
    if case.sampler == "pndm":
        options["prediction"] = scheduler.config.prediction_type
        if not scheduler.config.skip_prk_steps:
            options["midpoints"] = table[times[1:4] + 1000 // steps // 2].tolist()
    return [*table[times].tolist(), last], options


def level_now(scheduler: Any, i: int, t: Tensor) -> float:
    """The noise level at which evaluation i takes place."""
    if not hasattr(scheduler, "sigmas"):
        return float(training_sigmas(scheduler)[int(t)])
    if i % 2 and hasattr(scheduler, "sigmas_interpol"):
        return float(scheduler.sigmas_interpol[i - hasattr(scheduler, "sigmas_up")])
    if i % 2 and getattr(scheduler, "mid_point_sigma", None) is not None:
        return float(scheduler.mid_point_sigma)
    return float(scheduler.sigmas[i])


def reference(case: Case, scheduler: Any, x: Tensor, generator: torch.Generator) -> list[Tensor]:
    """diffusers' states after each call of `step`."""
    states = []
    options = case.step_options | ({"generator": generator} if "generator" in scheduler.step.__annotations__ else {})
    for i, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(x, t), level_now(scheduler, i, t))
        x = scheduler.step(output, t, x, **options).prev_sample
        states.append(x)
    return states


def whole_steps(sampler: str, states: list[Tensor], steps: int) -> list[Tensor]:
    """The states at the ends of steps: diffusers counts every evaluation as one."""
    extra = len(states) - steps
    if sampler == "pndm":
        return states[extra:] if extra <= 1 else states[3:12:4] + states[12:]
    return [*states[1::2], states[-1]] if extra else states


def compare(case: Case, scheduler: Any, steps: int, dtype: torch.dtype) -> float:
    """Largest deviation over all states, relative to the largest value."""
    sigmas, options = levels(case, scheduler, steps)
    variance_preserving = float(scheduler.init_noise_sigma) == 1
    eps = torch.randn(SHAPE, generator=torch.Generator().manual_seed(steps), dtype=dtype)
    x = eps * (1 + sigmas[0] ** 2) ** 0.5
    mine, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    states = reference(case, scheduler, eps if variance_preserving else x, theirs)

    denoise = Counted(scheduler.config.prediction_type)
    sampler = SAMPLERS[case.sampler](denoise, x, sigmas, draws(mine, dtype), **case.options, **options)
    ours = [step.x / (1 + step.sigma**2) ** 0.5 if variance_preserving else step.x for step in sampler]

    assert denoise.calls == len(states) == len(scheduler.timesteps)
    assert torch.equal(mine.get_state(), theirs.get_state()), "not the same number of draws"
    assert all(state.dtype == dtype for state in ours)
    states = whole_steps(case.sampler, states, steps)
    assert len(ours) == len(states) == steps
    errors = [(a - b).abs().max() / b.abs().max() for a, b in zip(ours, states, strict=True)]
    return torch.stack(errors).max().item()  # NaN if there is one


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' casts to float32 become casts to float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(np, "float32", np.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_diffusers_in_float64(case: Case, prediction: str, exact: None) -> None:
    for grid in case.grids:
        scheduler = make_scheduler(case, grid, prediction)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        for steps in case.steps if prediction == "epsilon" else case.steps[-3::2]:
            scheduler.set_timesteps(steps)
            error = compare(case, scheduler, steps, torch.float64)
            assert error < case.tolerance, (grid, steps)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_diffusers_in_float32(case: Case, prediction: str) -> None:
    scheduler = make_scheduler(case, case.grids[-1], prediction)
    scheduler.set_timesteps(20)
    assert compare(case, scheduler, 20, torch.float32) < max(case.tolerance, 2e-5)


class Path:
    """A Brownian path over sigma, in the place of diffusers' tree; each step asks for its midpoint, then its end."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self.draw = draw
        self.at: Tensor | None = None

    def __call__(self, sigma: Tensor, to: Tensor) -> Tensor:
        """The increment from `sigma` to `to`, over the root of its length."""
        if self.at is None:
            self.at, self.increment = to, (sigma - to).sqrt() * self.draw()
        else:
            self.increment = self.increment + (self.at - to).sqrt() * self.draw()
            self.at = None
        return self.increment / (sigma - to).sqrt()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("grid", [{}, {"use_karras_sigmas": True}])
def test_dpmpp_sde_equals_diffusers_on_the_same_brownian_path(
    grid: dict[str, Any], prediction: str, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    for steps in STEPS:
        scheduler = DPMSolverSDEScheduler(**STABLE_DIFFUSION | grid, prediction_type=prediction)
        scheduler.set_timesteps(steps)
        theirs, mine = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
        scheduler.noise_sampler = Path(draws(theirs))
        x = 14.6 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
        states = whole_steps("dpmpp_sde", reference(Case("dpmpp_sde", ""), scheduler, x, theirs), steps)
        sigmas = [scheduler.sigmas[0].item(), *scheduler.sigmas[1::2].tolist()]
        sampler = SAMPLERS["dpmpp_sde"](Counted(prediction), x, sigmas, draws(mine))
        for step, state in zip(sampler, states, strict=True):
            torch.testing.assert_close(step.x, state, rtol=0, atol=1e-10 * float(state.abs().max()))


def test_third_order_sde_of_diffusers_misses_one_second_difference(exact: None) -> None:
    """Its weight of D2 is -phi_3 - 1, the expansion's -phi_3: after the first such step the states differ by D2."""
    case = Case("dpmpp_2m_sde", DPM, SDE | {"solver_order": 3} | OPEN | SIGMA_MIN, options={"order": 3} | OPEN)
    scheduler = make_scheduler(case, {}, "epsilon")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(4)
    sigmas = scheduler.sigmas.tolist()
    eps = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs, mine = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    states = reference(case, scheduler, eps, theirs)
    x = eps * (1 + sigmas[0] ** 2) ** 0.5
    ours = list(SAMPLERS["dpmpp_2m_sde"](Counted("epsilon"), x, sigmas, draws(mine), **case.options))
    h1, h0, h = (math.log(a / b) for a, b in pairwise(sigmas[:4]))
    D1_0 = (ours[2].denoised - ours[1].denoised) * h / h0
    D1_1 = (ours[1].denoised - ours[0].denoised) * h / h1
    D2 = (D1_0 - D1_1) * h / (h0 + h1)
    for step, state, missing in zip(ours[:3], states, (0.0, 0.0, D2), strict=False):
        torch.testing.assert_close(step.x - missing, state * (1 + step.sigma**2) ** 0.5, rtol=0, atol=1e-10)
