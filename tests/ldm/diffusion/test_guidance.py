import math
from dataclasses import dataclass

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor
from torch.testing import assert_close

from configs.architecture import DiffusionConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import cfg, match_std, weight
from ldm.diffusion.prediction import PREDICTIONS
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(DiffusionConfig())


@dataclass
class Modes:
    """A Gaussian by example: mean and variance of each coordinate, (b, d)."""

    mean: Tensor
    variance: Tensor

    def cat(self, other):
        return Modes(torch.cat([self.mean, other.mean]), torch.cat([self.variance, other.variance]))


class Oracle:
    """The exact denoiser of the condition's Gaussian, which counts the examples it was shown and asked for."""

    def __init__(self):
        self.examples = []

    def __call__(self, x, t, cond):
        self.examples.append((len(x), len(cond.mean)))
        gain = cond.variance / (cond.variance + t**2)
        return cond.mean + gain * (x.repeat(len(cond.mean) // len(x), 1) - cond.mean)


@dataclass
class Shift:
    value: Tensor  # (b, 1, 1, 1)

    def cat(self, other):
        return Shift(torch.cat([self.value, other.value]))


def network(x, t, cond):
    x = x.repeat(len(cond.value) // len(x), 1, 1, 1)
    return torch.sin(2 * x + cond.value) + 0.3 * cond.value * x.flip(-1)


def case(b=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 5 * torch.randn(b, 4, 6, 5, generator=generator, dtype=torch.float64)
    cond, uncond = (Shift(torch.randn(b, 1, 1, 1, generator=generator, dtype=torch.float64)) for _ in range(2))
    return x, cond, uncond


def oracle_denoiser():
    oracle = Oracle()
    return oracle, Denoiser(oracle, lambda sigma: (0.0, 1.0, 1.0), lambda sigma: sigma)


def final(denoise, x, high=80.0, low=0.02, steps=1200):
    sigmas = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
    for step in SAMPLERS["heun"](denoise, x, sigmas, lambda: None):
        x = step.x
    return x


@pytest.mark.parametrize("scale", [2.0, 7.5])
@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample", "flow"])
def test_cfg_is_the_same_affine_rule_in_x0(name, scale):
    x, cond, uncond = case()
    denoiser = Denoiser(network, PREDICTIONS[name], SCHEDULE.time)
    for sigma in (0.3, 3.0, 14.0):
        c, u = denoiser(x, sigma, cond), denoiser(x, sigma, uncond)
        got = cfg(denoiser, cond, uncond, scale)(x, sigma)
        assert_close(got, u + scale * (c - u), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("rescale", [0.7, 1.0])
def test_rescale_is_that_of_diffusers_on_the_networks_output(name, rescale):
    x, cond, uncond = case(seed=1)
    denoiser = Denoiser(network, PREDICTIONS[name], SCHEDULE.time)
    c, u = denoiser.predict(x, 3.0, cond), denoiser.predict(x, 3.0, uncond)
    expected = rescale_noise_cfg(u + 7.5 * (c - u), c, guidance_rescale=rescale)
    got = cfg(denoiser, cond, uncond, 7.5, rescale=rescale)(x, 3.0)
    assert_close(got, denoiser.to_x0(x, 3.0, expected), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(got, cfg(denoiser, cond, uncond, 7.5)(x, 3.0), rtol=1e-2)


def test_match_std_at_one_has_the_reference_deviation():
    guided, reference = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    matched = match_std(9 * guided, reference, 1.0)
    assert_close(matched.std((1, 2, 3)), reference.std((1, 2, 3)))


def test_passes_are_counted():
    oracle, denoiser = oracle_denoiser()
    modes = Modes(torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64))
    x = torch.zeros(2, 3, dtype=torch.float64)
    for scale, uncond, examples in [(3.0, modes, 4), (1.0, modes, 2), (0.0, modes, 2), (3.0, None, 2)]:
        oracle.examples.clear()
        cfg(denoiser, modes, uncond, scale)(x, 1.0)
        assert oracle.examples == [(2, examples)], (scale, uncond)  # the states once, whatever is asked about them


def test_interval_guides_inside_and_skips_the_pass_outside():
    x, cond, uncond = case()
    denoiser = Denoiser(network, PREDICTIONS["epsilon"], SCHEDULE.time)
    limited = cfg(denoiser, cond, uncond, 5.0, interval=(0.5, 3.0))
    full = cfg(denoiser, cond, uncond, 5.0)
    for sigma in (0.5, 1.0, 3.0):
        assert torch.equal(limited(x, sigma), full(x, sigma))
    for sigma in (0.49, 3.01):
        assert torch.equal(limited(x, sigma), denoiser(x, sigma, cond))
        assert not torch.allclose(limited(x, sigma), full(x, sigma), rtol=1e-2)


def test_order_in_the_batch_is_uncond_then_cond():
    seen = []
    denoiser = Denoiser(
        lambda x, t, cond: seen.append(cond.value) or network(x, t, cond), PREDICTIONS["epsilon"], SCHEDULE.time
    )
    x, cond, uncond = case()
    cfg(denoiser, cond, uncond, 2.0)(x, 1.0)
    assert torch.equal(seen[0], torch.cat([uncond.value, cond.value]))


def test_guided_flow_of_equal_covariances_is_that_of_the_shifted_mean(gaussian):
    _, denoiser = oracle_denoiser()
    start = gaussian.starts()
    variance = gaussian.variances.expand_as(start)
    m, m_c = gaussian.mu.expand_as(start), gaussian.mu.flip(0).expand_as(start)
    scale = 3.0
    got = final(cfg(denoiser, Modes(m_c, variance), Modes(m, variance), scale), start)
    mean = m + scale * (m_c - m)
    expected = mean + ((variance + 0.02**2) / (variance + 80.0**2)).sqrt() * (start - mean)
    assert_close(got, expected, rtol=0, atol=1e-4)


def test_guided_flow_of_unequal_covariances_has_its_closed_form(gaussian):
    """phi = (lambda_c + sigma^2)^(w/2) (lambda + sigma^2)^((1-w)/2) solves the homogeneous equation."""
    _, denoiser = oracle_denoiser()
    start = gaussian.starts()
    v, v_c = gaussian.variances, gaussian.variances.flip(0)
    m, m_c = gaussian.mu, gaussian.mu.flip(0)
    w, high, low = 2.5, 80.0, 0.02

    def phi(q):
        return (v_c + q**2) ** (w / 2) * (v + q**2) ** ((1 - w) / 2)

    def integrand(log_q):  # over ln q: (lines, 1) -> (lines, d)
        q = log_q.exp().reshape(-1, 1)
        return q * q * (w * m_c / (v_c + q**2) + (1 - w) * m / (v + q**2)) / phi(q)

    points = torch.linspace(math.log(high), math.log(low), 40_001, dtype=torch.float64)
    integral = torch.trapezoid(integrand(points), points, dim=0)
    q_high, q_low = (torch.tensor(q, dtype=torch.float64) for q in (high, low))
    expected = phi(q_low) * (start / phi(q_high) - integral)
    uncond = Modes(m.expand_as(start), v.expand_as(start))
    got = final(
        cfg(denoiser, Modes(m_c.expand_as(start), v_c.expand_as(start)), uncond, w), start, high, low, steps=4000
    )
    assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_weight_has_two_names():
    assert weight(7.5) == weight(gamma=6.5) == 7.5
    assert weight() == 7.5
    assert weight(default=5.0) == 5.0
    assert weight(0.0) == 0.0
    assert weight(gamma=0.0) == 1.0
    with pytest.raises(ValueError, match="not both"):
        weight(7.5, 6.5)
