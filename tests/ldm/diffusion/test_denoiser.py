import pytest
import torch
from torch.testing import assert_close

from configs.architecture import DiffusionConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.prediction import PREDICTIONS
from ldm.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(DiffusionConfig())


class Network:
    """A fixed function of input, time and condition, which remembers what it was given."""

    def __call__(self, x, t, cond):
        self.x, self.t = x, t
        shift = t if isinstance(t, float) else t.reshape(-1, 1, 1, 1).to(x.dtype)
        return torch.sin(3 * x) + x.flip(-1) + 0.01 * shift + cond


def batch(b=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, b, 4, 6, 5, generator=generator, dtype=torch.float64).to(dtype)
    return x0, noise, SCHEDULE.draw(b, generator)


def answer(name, x0, noise, sigma):
    a, s = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5
    return {
        "epsilon": noise,
        "v_prediction": a * noise - s * x0,
        "sample": x0,
        "flow": noise - x0,
        "edm": (x0 - 0.25 / (sigma**2 + 0.25) * (x0 + sigma * noise)) * (sigma**2 + 0.25) ** 0.5 / (0.5 * sigma),
    }[name]


@pytest.mark.parametrize("name", list(PREDICTIONS))
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_is_the_mean_squared_error_of_the_networks_own_target(name, seed):
    x0, noise, sigma = batch(dtype=torch.float64, seed=seed)
    network = Network()
    loss = Denoiser(network, PREDICTIONS[name], SCHEDULE.time).loss(x0, noise, sigma, 0.3)
    level = sigma.double().reshape(-1, 1, 1, 1)
    c_in = PREDICTIONS[name](level)[2]
    output = network(c_in * (x0 + level * noise), SCHEDULE.time(sigma), 0.3)
    expected = (output - answer(name, x0, noise, level)).square().mean((1, 2, 3))
    assert loss.shape == (4,)
    assert_close(loss, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_loss_weights_the_error_of_x0_as_known(name):
    """|eps error|^2 = |D - x0|^2 / sigma^2 and |v error|^2 = (1 + 1 / sigma^2) |D - x0|^2."""
    x0, noise, sigma = batch(dtype=torch.float64)
    denoiser = Denoiser(Network(), PREDICTIONS[name], SCHEDULE.time)
    x = x0 + sigma.double().reshape(-1, 1, 1, 1) * noise
    error = (denoiser(x, sigma, 0.3) - x0).square().mean((1, 2, 3))
    weight = {"epsilon": sigma.double() ** -2, "v_prediction": 1 + sigma.double() ** -2, "sample": 1.0}[name]
    assert_close(denoiser.loss(x0, noise, sigma, 0.3), weight * error, rtol=1e-9, atol=0)


def test_loss_of_the_true_noise_is_zero_at_the_smallest_sigma_in_float32():
    x0, noise, _ = batch()
    sigma = torch.full((4,), SCHEDULE.training_sigmas[0])
    assert (
        Denoiser(lambda x, t, cond: noise, PREDICTIONS["epsilon"], SCHEDULE.time).loss(x0, noise, sigma, None).max()
        < 1e-12
    )


@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_a_float_sigma_and_a_batch_of_it_agree(name):
    x0, noise, _ = batch()
    network = Network()
    denoiser = Denoiser(network, PREDICTIONS[name], SCHEDULE.time)
    sigma = SCHEDULE.training_sigmas[613]
    x = x0 + sigma * noise
    one = denoiser(x, sigma, 0.3)
    assert network.t == 613.0  # a number: nothing waits for a device
    several = denoiser(x, torch.full((4,), sigma), 0.3)
    assert torch.equal(network.t, torch.full((4,), 613.0))
    assert_close(one, several, rtol=1e-5, atol=1e-5)


def test_the_network_runs_in_its_own_precision_and_the_result_in_the_states():
    x0, noise, _ = batch()
    network = Network()
    denoiser = Denoiser(network, PREDICTIONS["v_prediction"], SCHEDULE.time, dtype=torch.bfloat16)
    sigma = torch.full((4,), 3.0, dtype=torch.float64)
    result = denoiser(x0 + 3 * noise, sigma, 0.3)
    assert network.x.dtype == torch.bfloat16
    assert network.t.dtype == torch.float32
    assert result.dtype == torch.float32
    exact = Denoiser(network, PREDICTIONS["v_prediction"], SCHEDULE.time)(x0 + 3 * noise, 3.0, 0.3)
    assert 0 < (result - exact).abs().max() < 0.1


def test_nan_is_not_hidden():
    def broken(x, t, cond):
        return torch.where(torch.arange(len(x)).reshape(-1, 1, 1, 1) == 1, torch.nan, x)

    x0, noise, sigma = batch()
    denoiser = Denoiser(broken, PREDICTIONS["epsilon"], SCHEDULE.time)
    assert denoiser(x0, 1.0, None).isnan().flatten(1).all(1).tolist() == [False, True, False, False]
    assert denoiser.loss(x0, noise, sigma, None).isnan().tolist() == [False, True, False, False]
