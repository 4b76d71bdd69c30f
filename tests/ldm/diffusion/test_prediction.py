import pytest
import torch
from torch.testing import assert_close

from configs.architecture import DiffusionConfig
from ldm.diffusion.prediction import PREDICTIONS, edm, prediction_of

SIGMAS = [1e-3, 0.03, 1.0, 14.6, 4096.0]


def truth(name, x0, noise, sigma):
    """(what the network sees, what it should answer), from the definitions in (a, s) form."""
    a, s = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5
    if name == "flow":
        t = sigma / (1 + sigma)
        return (1 - t) * x0 + t * noise, noise - x0
    return a * x0 + s * noise, {"epsilon": noise, "sample": x0, "v_prediction": a * noise - s * x0}[name]


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_rows_recover_x0_from_the_right_answer(name, sigma):
    x0, noise = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen, answer = truth(name, x0, noise, sigma)
    c_skip, c_out, c_in = PREDICTIONS[name](sigma)
    x = x0 + sigma * noise
    assert_close(c_in * x, seen, rtol=1e-12, atol=1e-12)
    assert_close(c_skip * x + c_out * answer, x0, rtol=0, atol=1e-12 * (1 + sigma))


@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_rows_take_floats_and_tensors_alike(name):
    rows = PREDICTIONS[name](torch.tensor(SIGMAS, dtype=torch.float64))
    for column, coefficient in enumerate(rows):
        expected = [PREDICTIONS[name](sigma)[column] for sigma in SIGMAS]
        got = torch.as_tensor(coefficient, dtype=torch.float64).expand(len(SIGMAS))
        assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_edm_of_unit_data_is_minus_v(sigma):
    skip, out, c_in = edm(1.0)(sigma)
    v_skip, v_out, v_in = PREDICTIONS["v_prediction"](sigma)
    assert_close((skip, out, c_in), (v_skip, -v_out, v_in), rtol=1e-13, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_keeps_input_and_target_at_unit_variance(sigma_data):
    """The two conditions that define the preconditioning (Karras et al. 2022, appendix B.6)."""
    for sigma in SIGMAS:
        skip, out, c_in = edm(sigma_data)(sigma)
        assert_close(c_in**2 * (sigma_data**2 + sigma**2), 1.0, rtol=1e-12, atol=0)
        target = ((1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2) / out**2
        assert_close(target, 1.0, rtol=1e-9, atol=0)


def test_prediction_of():
    assert prediction_of(DiffusionConfig(prediction="v_prediction")) is PREDICTIONS["v_prediction"]
    assert prediction_of(DiffusionConfig(prediction="edm", sigma_data=0.7))(2.0) == edm(0.7)(2.0)
    with pytest.raises(ValueError, match="unknown prediction 'noise': use one of epsilon, v_prediction"):
        prediction_of(DiffusionConfig(prediction="noise"))
