"""Grids against those of every diffusers scheduler: noise levels, times and initial scale."""

import itertools
import sys
import types
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from configs.architecture import DiffusionConfig
from ldm.diffusion.grid import Layout
from ldm.diffusion.registry import Sampling
from ldm.diffusion.schedule import NoiseSchedule
from ldm.diffusion.schedulers import SCHEDULERS, diffusion_from_scheduler_config
from ldm.diffusion.spacing import beta_quantile, log_interpolate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, about diffusers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACINGS = ["leading", "linspace", "trailing"]
VARIANCE_PRESERVING = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"]
EULERS = [
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
]
MULTISTEPS = ["DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"]


@pytest.fixture(autouse=True, scope="module")
def stand_in_for_torchsde():
    """The grid of DPMSolverSDEScheduler needs no torchsde, its module does."""
    present = "torchsde" in sys.modules
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    yield
    if not present:
        del sys.modules["torchsde"]


def theirs(name, config):
    if name == "DPMSolverSDEScheduler":
        from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler as scheduler_class
    else:
        scheduler_class = getattr(diffusers, name)
    return scheduler_class.from_config(config)


def ours(name, config, steps=None, **custom):
    config = {**config, "_class_name": name, "clip_sample": False}
    schedule = NoiseSchedule(diffusion_from_scheduler_config(config))
    return Sampling.from_scheduler_config(config).grid(schedule, steps, **custom)


def levels_and_times(name, scheduler):
    """What the scheduler steps through, without the second evaluations of two-stage methods."""
    sigmas, times = scheduler.sigmas.double(), scheduler.timesteps.double()
    if name.startswith("KDPM2"):
        return torch.cat([sigmas[:1], sigmas[1:-1:2]]), times[::2]
    if name == "DPMSolverSDEScheduler":
        return torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]]), times[::2]
    if name == "HeunDiscreteScheduler":
        return torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]]), torch.cat([times[:1], times[1::2]])
    return sigmas, times


def assert_same_grid(name, scheduler, grid):
    sigmas, times = levels_and_times(name, scheduler)
    # DPMSolverSDE alone spaces its times in float64
    rtol = 1e-6 if name == "DPMSolverSDEScheduler" else 2e-7
    assert_close(torch.tensor(grid.sigmas, dtype=torch.float64), sigmas, rtol=rtol, atol=0)
    assert_close(torch.tensor(grid.times, dtype=torch.float64), times, rtol=0, atol=1e-4)
    assert grid.variance_preserving == (name in MULTISTEPS)
    # A variance-preserving state of unit variance is sqrt(1 + sigma^2) times it in ours
    scale = (1 + sigmas[0] ** 2) ** 0.5 if name in MULTISTEPS else 1.0
    assert_close(grid.init_scale, float(scheduler.init_noise_sigma * scale), rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", EULERS + MULTISTEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_plain_grids(name, spacing):
    config = {**BETAS, "timestep_spacing": spacing}
    scheduler = theirs(name, config)
    for steps in (1, 2, 10, 20, 25, 30, 50, 333, 998):
        if spacing == "trailing" and steps == 998:
            continue  # numpy's arange gives diffusers one step too many, at time -1
        scheduler.set_timesteps(steps)
        assert_same_grid(name, scheduler, ours(name, config, steps))


@pytest.mark.parametrize("name", [name for name in EULERS + MULTISTEPS if name != "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
def test_ramps(name, kind, beta_schedule):
    for spacing in SPACINGS:
        config = {**BETAS, "beta_schedule": beta_schedule, "timestep_spacing": spacing, f"use_{kind}_sigmas": True}
        scheduler = theirs(name, config)
        for steps in (2, 25):
            scheduler.set_timesteps(steps)
            assert_same_grid(name, scheduler, ours(name, config, steps))


def test_lu_lambdas():
    for beta_schedule in ("scaled_linear", "squaredcos_cap_v2"):
        config = {**BETAS, "beta_schedule": beta_schedule, "use_lu_lambdas": True}
        scheduler = theirs("DPMSolverMultistepScheduler", config)
        for steps in (2, 10, 25, 30):
            scheduler.set_timesteps(steps)
            grid = ours("DPMSolverMultistepScheduler", config, steps)
            sigmas = torch.tensor(grid.sigmas)
            assert_close(sigmas, scheduler.sigmas, rtol=1e-6, atol=0)
            assert grid.times == tuple(scheduler.timesteps.tolist())


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("kind", ["plain", "karras"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_last_level_ramp_ends_and_zero_terminal_snr(name, kind, zero_snr):
    config = {
        **BETAS,
        "timestep_spacing": "trailing",
        "final_sigmas_type": "sigma_min",
        "use_karras_sigmas": kind == "karras",
        "rescale_betas_zero_snr": zero_snr,
    }
    if name == "EulerDiscreteScheduler" and kind == "karras":
        config |= {"sigma_min": 0.05, "sigma_max": 12.0}
    scheduler = theirs(name, config)
    for steps in (2, 10, 30):
        scheduler.set_timesteps(steps)
        assert_same_grid(name, scheduler, ours(name, config, steps))


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("alpha_one", [False, True])
def test_variance_preserving_schedulers(name, spacing, alpha_one):
    config = {**BETAS, "timestep_spacing": spacing, "set_alpha_to_one": alpha_one, "skip_prk_steps": True}
    scheduler = theirs(name, config)
    for steps in (1, 2, 10, 20, 25, 30, 50, 333):
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps
        if name == "PNDMScheduler" and steps > 1:
            times = torch.cat([times[:1], times[2:]])  # its second time comes twice
        alpha_bar = scheduler.alphas_cumprod[times]
        last = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
        expected = ((1 - alpha_bar) / alpha_bar) ** 0.5
        grid = ours(name, config, steps)
        assert torch.equal(torch.tensor(grid.sigmas[:-1]), expected)
        assert_close(torch.tensor(grid.sigmas[-1]), ((1 - last) / last) ** 0.5, rtol=2e-7, atol=0)
        assert grid.times == tuple(times.tolist())
        assert grid.variance_preserving
        assert_close(grid.init_scale, float((1 + expected[0].double() ** 2) ** 0.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("original", [50, 100, 37])
def test_distilled_schedulers(name, original):
    config = {**BETAS, "original_inference_steps": original}
    scheduler = theirs(name, config)
    for steps in (1, 2, 3, 4, 8, 13, 37):
        scheduler.set_timesteps(steps)
        grid = ours(name, config, steps)
        assert grid.times == tuple(scheduler.timesteps.tolist())
        alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps]
        assert torch.equal(torch.tensor(grid.sigmas[:-1]), ((1 - alpha_bar) / alpha_bar) ** 0.5)
        assert (grid.sigmas[-1] == 0) == (name == "LCMScheduler")  # TCD's last jump goes to time 0
    with pytest.raises(ValueError, match=f"distilled on {original} steps"):
        ours(name, config, original + 1)


def test_zero_terminal_snr_of_ddim_starts_beyond_float32():
    grid = ours("DDIMScheduler", {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 10)
    assert grid.sigmas[0] == 2.0**24
    assert grid.times[0] == grid.time(grid.sigmas[0]) == 999.0
    assert_close(grid.init_scale, 2.0**24, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_custom_timesteps(name):
    times = [999, 850, 736, 645, 24, 0]
    config = {**BETAS, "timestep_spacing": "trailing"}
    scheduler = theirs(name, config)
    scheduler.set_timesteps(timesteps=times)
    assert_same_grid(name, scheduler, ours(name, config, timesteps=times))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_custom_sigmas(spacing):
    sigmas = [14.615, 6.475, 3.861, 0.152, 0.03, 0.0]
    config = {**BETAS, "timestep_spacing": spacing}
    scheduler = theirs("EulerDiscreteScheduler", config)
    scheduler.set_timesteps(sigmas=sigmas)
    assert_same_grid("EulerDiscreteScheduler", scheduler, ours("EulerDiscreteScheduler", config, sigmas=sigmas))


@pytest.mark.parametrize(
    ("kind", "key"), [("ays", "StableDiffusionTimesteps"), ("ays_sdxl", "StableDiffusionXLTimesteps")]
)
def test_align_your_steps(kind, key):
    schedule = NoiseSchedule(DiffusionConfig())
    published = diffusers.schedulers.AysSchedules[key]
    ten = Layout(kind=kind).grid(schedule, 10)
    assert ten.times == tuple(map(float, published))
    assert ten.sigmas == (*(schedule.training_sigmas[t] for t in published), 0.0)
    knots = [*ten.sigmas[:-1], schedule.training_sigmas[0]]
    twenty = Layout(kind=kind).grid(schedule, 20)
    assert_close(twenty.sigmas[:-1:2], tuple(knots[:-1]), rtol=2e-7, atol=0)  # every second level is published
    middle = [(a * b) ** 0.5 for a, b in itertools.pairwise(knots)]
    assert_close(twenty.sigmas[1::2], tuple(middle), rtol=2e-7, atol=0)
    assert twenty.sigmas[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(twenty.times))


@pytest.mark.parametrize("shape", [0.6, 0.9, 0.3])
def test_beta_quantile_is_that_of_scipy(shape):
    p = torch.cat([torch.linspace(0, 1, 501, dtype=torch.float64), torch.tensor([1e-9, 1e-4, 1 - 1e-7]).double()])
    expected = torch.from_numpy(scipy.stats.beta.ppf(p.numpy(), shape, shape))
    assert_close(beta_quantile(p, shape), expected, rtol=1e-11, atol=1e-14)


def test_log_interpolation_passes_through_its_knots():
    knots = [14.0, 3.0, 0.5, 0.02]
    assert_close(log_interpolate(knots, 4), knots, rtol=1e-14, atol=0)
    expected = np.exp(np.interp(np.linspace(0, 3, 11), np.arange(4), np.log(knots)))
    assert_close(log_interpolate(knots, 11), expected.tolist(), rtol=1e-13, atol=0)


def test_times_of_a_grid_and_between():
    grid = ours("DPMSolverMultistepScheduler", {**BETAS, "use_karras_sigmas": True}, 10)
    assert [grid.time(sigma) for sigma in grid.sigmas[:-1]] == list(grid.times)
    assert grid.time(grid.sigmas[3]) == round(grid.schedule.time(grid.sigmas[3]))
    between = (grid.sigmas[3] * grid.sigmas[4]) ** 0.5
    assert grid.time(between) == grid.schedule.time(between)


def test_skip_outside_and_inside():
    grid = ours("DDIMScheduler", {**BETAS, "set_alpha_to_one": False}, 10)
    rest = grid.skip(4)
    assert (rest.sigmas, rest.times, rest.steps) == (grid.sigmas[4:], grid.times[4:], 6)
    x = torch.ones(2)
    assert_close(grid.outside(x, grid.sigmas[-1]), x / (1 + grid.sigmas[-1] ** 2) ** 0.5)
    assert replace(grid, variance_preserving=False).outside(x, 3.0) is x
    assert_close(grid.inside(grid.outside(x, 3.0), 3.0), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"steps": 5, "timesteps": [3, 2]}, "exactly one"),
        ({"steps": 0}, "between 1 and 1000, not 0"),
        ({"steps": 1001}, "between 1 and 1000, not 1001"),
        ({"steps": 1000}, "1000 steps do not fit"),
        ({"timesteps": [10, 10]}, "timesteps must be finite"),
        ({"timesteps": [10, -1]}, "timesteps must be finite"),
        ({"timesteps": [1000, 5]}, "between 0 and 999"),
        ({"timesteps": []}, "timesteps must"),
        ({"sigmas": [5.0]}, "a level to start from"),
        ({"sigmas": [5.0, float("nan"), 0.0]}, "sigmas must be finite"),
        ({"sigmas": [float("inf"), 0.0]}, "sigmas must be finite"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        Layout(spacing="leading", offset=1).grid(NoiseSchedule(DiffusionConfig()), **arguments)


def test_timesteps_and_a_ramp_exclude_each_other():
    with pytest.raises(ValueError, match="cannot be combined with a karras grid"):
        Layout(kind="karras").grid(NoiseSchedule(DiffusionConfig()), timesteps=[900, 5])
    with pytest.raises(ValueError, match="unknown timestep_spacing 'even'"):
        Layout(spacing="even").grid(NoiseSchedule(DiffusionConfig()), 5)


def test_every_class_is_covered():
    assert set(SCHEDULERS) == {*VARIANCE_PRESERVING, *EULERS, *MULTISTEPS, "LCMScheduler", "TCDScheduler"}
