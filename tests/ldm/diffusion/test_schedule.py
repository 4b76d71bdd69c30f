import math

import diffusers
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from configs.architecture import DiffusionConfig
from ldm.diffusion.schedule import CLAMPED_TERMINAL, EXACT_TERMINAL, NoiseSchedule

BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def diffusers_sigmas(**options):
    alpha_bar = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, **options).alphas_cumprod
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("train_steps", [1000, 37])
def test_training_sigmas_are_those_of_diffusers(beta_schedule, train_steps):
    schedule = NoiseSchedule(DiffusionConfig(train_steps=train_steps, beta_schedule=beta_schedule))
    expected = diffusers_sigmas(beta_schedule=beta_schedule, num_train_timesteps=train_steps)
    assert torch.equal(torch.tensor(schedule.training_sigmas), expected)


def test_known_values_of_stable_diffusion():
    schedule = NoiseSchedule(DiffusionConfig())
    assert_close(schedule.training_sigmas[-1], 14.6146, rtol=0, atol=1e-4)
    assert_close(schedule.training_sigmas[0], 0.0292, rtol=0, atol=1e-4)
    assert_close(schedule.snr(999.0), 0.0047, rtol=0, atol=1e-4)


@pytest.mark.parametrize("beta_schedule", BETAS)
def test_zero_terminal_snr(beta_schedule):
    config = DiffusionConfig(beta_schedule=beta_schedule, zero_terminal_snr=True)
    expected = diffusers_sigmas(beta_schedule=beta_schedule, rescale_betas_zero_snr=True)
    sigmas = torch.tensor(NoiseSchedule(config).training_sigmas)
    assert torch.equal(sigmas[:-1], expected[:-1])
    assert expected[-1] == math.inf
    euler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=beta_schedule, rescale_betas_zero_snr=True
    )
    assert sigmas[-1] == euler.sigmas[0]
    assert_close(sigmas[-1].item(), CLAMPED_TERMINAL, rtol=1e-7, atol=0)
    plain = NoiseSchedule(DiffusionConfig(beta_schedule=beta_schedule))
    first = [1 / (1 + sigma**2) for sigma in (sigmas[0].item(), plain.training_sigmas[0])]
    assert_close(*first, rtol=0, atol=4 * 2.0**-24)  # alpha_bar stays, but for four roundings of a float32 below 1
    assert NoiseSchedule(config, terminal_sigma=EXACT_TERMINAL).training_sigmas[-1] == EXACT_TERMINAL


def test_trained_betas():
    betas = tuple(np.linspace(0.001, 0.02, 10).tolist())
    schedule = NoiseSchedule(DiffusionConfig(train_steps=10, trained_betas=betas))
    expected = diffusers_sigmas(trained_betas=list(betas), num_train_timesteps=10)
    assert torch.equal(torch.tensor(schedule.training_sigmas), expected)
    with pytest.raises(ValueError, match="10 values for 1000"):
        NoiseSchedule(DiffusionConfig(trained_betas=betas))


def test_unknown_beta_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="'sigmoid': use 'linear', 'scaled_linear'"):
        NoiseSchedule(DiffusionConfig(beta_schedule="sigmoid"))


@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_time_is_exact_on_the_training_grid(beta_schedule, zero_terminal_snr):
    schedule = NoiseSchedule(DiffusionConfig(beta_schedule=beta_schedule, zero_terminal_snr=zero_terminal_snr))
    steps = torch.arange(1000)
    sigmas = torch.tensor(schedule.training_sigmas)
    assert torch.equal(schedule.time(sigmas), steps.float())
    assert torch.equal(schedule.time(sigmas.double()), steps.double())
    assert [schedule.time(s) for s in schedule.training_sigmas[::111]] == [float(t) for t in steps[::111]]
    assert torch.equal(schedule.sigma(steps), sigmas)


def test_sigma_between_steps_is_numpys_interpolation():
    schedule = NoiseSchedule(DiffusionConfig())
    t = np.random.default_rng(0).uniform(-5, 1005, 500)
    expected = np.interp(t, np.arange(1000), schedule.training_sigmas)
    assert_close(schedule.sigma(torch.from_numpy(t)), torch.from_numpy(expected), rtol=1e-14, atol=0)
    assert_close([schedule.sigma(value) for value in t[:20]], expected[:20].tolist(), rtol=1e-14, atol=0)


def test_time_between_levels_is_that_of_diffusers():
    schedule = NoiseSchedule(DiffusionConfig())
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    logs = np.log(np.array(schedule.training_sigmas, dtype=np.float32))
    sigmas = np.exp(np.random.default_rng(1).uniform(np.log(0.01), np.log(20), 500))
    expected = np.array([scheduler._sigma_to_t(sigma, logs) for sigma in sigmas])
    assert_close(schedule.time(torch.from_numpy(sigmas)), torch.from_numpy(expected), rtol=0, atol=5e-5)
    assert schedule.time(20.0) == 999.0
    assert schedule.time(0.01) == schedule.time(0.0) == 0.0


def test_alpha_and_snr():
    schedule = NoiseSchedule(DiffusionConfig())
    alpha_bar = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).alphas_cumprod.double()
    t = torch.arange(1000, dtype=torch.float64)
    assert_close(schedule.alpha(t), alpha_bar.sqrt(), rtol=3e-7, atol=0)
    assert_close(schedule.snr(t), alpha_bar / (1 - alpha_bar), rtol=1e-6, atol=0)
    assert_close(schedule.logsnr(t), (alpha_bar / (1 - alpha_bar)).log(), rtol=0, atol=1e-6)
    assert_close(schedule.logsnr(500.0), schedule.logsnr(t)[500].item(), rtol=1e-12, atol=0)


def test_draw_is_uniform_over_the_training_steps():
    schedule = NoiseSchedule(DiffusionConfig(train_steps=10))
    sigma = schedule.draw(20_000, torch.Generator().manual_seed(0))
    assert sigma.shape == (20_000,)
    assert sigma.dtype == torch.float32
    counts = torch.bincount(schedule.time(sigma).long(), minlength=10)
    assert counts.sum() == 20_000
    assert (counts - 2000).abs().max() < 5 * 2000**0.5
    assert torch.equal(sigma, schedule.draw(20_000, torch.Generator().manual_seed(0)))


def test_tables_are_copied_to_a_device_once():
    """Here to one that holds no numbers: a second copy would be another tensor."""
    schedule = NoiseSchedule(DiffusionConfig())
    first, second = (schedule._tables(torch.device("meta")) for _ in range(2))
    assert first[0] is second[0]
    assert first[1] is second[1]
    assert first[0].device.type == "meta"
