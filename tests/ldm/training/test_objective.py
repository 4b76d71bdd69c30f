"""The losses of fine-tuning: closed forms, diffusers' own training step, and draws that depend on a key alone."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from configs.architecture import DiffusionConfig
from configs.finetuning import ObjectiveConfig
from ldm.diffusion.prediction import PREDICTIONS
from ldm.training.objective import Objective, normal
from ldm.training.weighting import loss_factor

SNR = torch.logspace(-6, 6, 25, dtype=torch.float64)
ALPHA_BAR = SNR / (1 + SNR)
# factor on the loss of eps and v, in alpha_bar, as in the papers
FORMS = {
    ("min_snr", "epsilon"): lambda a: (5 * (1 - a) / a).clamp(max=1),
    ("min_snr", "v_prediction"): lambda a: torch.minimum(a, 5 * (1 - a)),
    ("p2", "epsilon"): lambda a: 1 - a,
    ("p2", "v_prediction"): lambda a: a * (1 - a),
    ("debiased", "epsilon"): lambda a: ((1 - a) / a).sqrt(),
    ("debiased", "v_prediction"): lambda a: (a * (1 - a)).sqrt(),
    ("edm", "epsilon"): lambda a: 1 / a,
    ("edm", "v_prediction"): torch.ones_like,
    ("min_snr", "sample"): lambda a: (a / (1 - a)).clamp(max=5),
    ("edm", "sample"): lambda a: 1 / (1 - a),
}


@pytest.mark.parametrize(("weighting", "prediction"), FORMS, ids=lambda value: value)
def test_weightings_are_their_closed_forms(weighting, prediction):
    factor = loss_factor(ObjectiveConfig(weighting=weighting), PREDICTIONS[prediction], SNR**-0.5)
    torch.testing.assert_close(factor, FORMS[weighting, prediction](ALPHA_BAR), rtol=1e-8, atol=0)


@pytest.mark.parametrize(("weighting", "sigma"), product(["min_snr", "p2", "debiased", "edm"], [0.1, 1.0, 20.0]))
def test_a_weighting_means_the_same_error_of_x0_whatever_the_network_predicts(weighting, sigma):
    """The same wrong x0 costs the same as eps, as v and as x0."""
    level = torch.tensor([sigma], dtype=torch.float64)
    costs = []
    for name in ("epsilon", "v_prediction", "sample"):
        _, c_out, _ = PREDICTIONS[name](level)
        error_of_output = 0.3 / torch.as_tensor(c_out, dtype=torch.float64)
        costs.append(error_of_output**2 * loss_factor(ObjectiveConfig(weighting=weighting), PREDICTIONS[name], level))
    torch.testing.assert_close(costs[1], costs[0].expand_as(costs[1]), rtol=1e-10, atol=0)
    torch.testing.assert_close(costs[2].expand_as(costs[0]), costs[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_diffusers_training_scripts(prediction):
    import diffusers

    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    process = DiffusionConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction=prediction)
    objective = Objective(ObjectiveConfig(), process)
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0, 10, 400, 750, 999])
    batch = {"noise": noise, "sigma": torch.tensor(objective.schedule.training_sigmas)[t].float()}
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1))

    def network(x, time, cond):
        torch.testing.assert_close(time, t.float())
        return F.conv2d(x, weight, padding=1)

    target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, t)
    output = network(scheduler.add_noise(latents, noise, t), t.float(), None)
    wanted = F.mse_loss(output, target, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(objective.losses(network, latents, batch, None), wanted, rtol=1e-5, atol=1e-6)


def test_offset_noise_and_perturbation_have_their_variances():
    config = ObjectiveConfig(offset_noise=0.5, input_perturbation=0.3)
    objective = Objective(config, DiffusionConfig())
    drawn = [objective.draw(0, position, (4, 8, 8)) for position in range(2000)]
    means = torch.stack([one["noise"].mean((1, 2)) for one in drawn])
    assert means.var().item() == pytest.approx(0.5**2 + 1 / 64, rel=0.05)
    difference = torch.stack([one["seen"] - one["noise"] for one in drawn])
    assert difference.std().item() == pytest.approx(0.3, rel=0.02)


def test_the_network_sees_the_perturbed_noise_and_is_asked_for_the_other():
    objective = Objective(ObjectiveConfig(input_perturbation=0.1), DiffusionConfig())
    batch = {name: value[None] for name, value in objective.draw(0, 3, (4, 2, 2)).items()}
    seen = []

    def network(x, time, cond):
        seen.append(x)
        return batch["noise"]

    latents, sigma = torch.zeros(1, 4, 2, 2), batch["sigma"]
    assert objective.losses(network, latents, batch, None).item() == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(seen[0] * (sigma**2 + 1) ** 0.5, sigma * batch["seen"])


def test_draws_depend_on_purpose_seed_and_position_alone():
    objective = Objective(ObjectiveConfig(), DiffusionConfig())
    one, again, other = (objective.draw(*key, (4, 4, 4)) for key in [(1, 7), (1, 7), (1, 8)])
    assert torch.equal(one["noise"], again["noise"])
    assert one["sigma"] == again["sigma"]
    assert not torch.equal(one["noise"], other["noise"])
    plain = Objective(ObjectiveConfig(offset_noise=0.1), DiffusionConfig()).draw(1, 7, (4, 4, 4))
    assert plain["sigma"] == one["sigma"]  # a further draw moves no other
    assert not torch.equal(normal(("noise", 1, 7), (4,)), normal(("offset", 1, 7), (4,)))


def test_levels_are_uniform_in_time_or_normal_in_the_logarithm():
    uniform = Objective(ObjectiveConfig(), DiffusionConfig())
    times = uniform.schedule.time(torch.tensor([uniform.level(0, i) for i in range(4000)], dtype=torch.float64))
    assert times.mean().item() == pytest.approx(499.5, abs=3 * 288.7 / 4000**0.5)
    assert times.std().item() == pytest.approx(288.7, rel=0.05)
    config = ObjectiveConfig(levels="lognormal", mean=-0.4, std=0.8)
    normal_logs = Objective(config, DiffusionConfig())
    logs = torch.tensor([math.log(normal_logs.level(0, i)) for i in range(4000)])
    assert logs.mean().item() == pytest.approx(-0.4, abs=3 * 0.8 / 4000**0.5)
    assert logs.std().item() == pytest.approx(0.8, rel=0.05)


def test_zero_terminal_snr_reaches_pure_noise_and_is_refused_for_epsilon():
    config = ObjectiveConfig(zero_terminal_snr=True, prediction="v_prediction")
    objective = Objective(config, DiffusionConfig())
    assert objective.schedule.training_sigmas[-1] > 1000
    with pytest.raises(ValueError, match="has no signal at the last step"):
        Objective(ObjectiveConfig(zero_terminal_snr=True), DiffusionConfig(prediction="epsilon"))


def test_the_analytic_denoiser_of_a_gaussian_attains_its_bayes_loss():
    """Schedule, scaling, target and weighting at once: data N(0, s^2), for which E[x0 | x] is known."""
    s = 0.5
    objective = Objective(ObjectiveConfig(weighting="debiased"), DiffusionConfig(prediction="epsilon"))

    def network(x, time, cond):
        sigma = objective.schedule.sigma(time).reshape(-1, 1, 1, 1)
        noisy = x * (sigma**2 + 1) ** 0.5
        return (noisy - s**2 / (s**2 + sigma**2) * noisy) / sigma

    n = 500
    rows = [objective.draw(0, i, (4, 8, 8)) for i in range(n)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    latents = s * torch.stack([normal(("data", i), (4, 8, 8)) for i in range(n)])
    sigma = batch["sigma"].double()
    x0_error = s**2 * sigma**2 / (s**2 + sigma**2)  # of the best estimate
    wanted = (1 / sigma * x0_error).mean().item()  # debiased: W = sqrt(SNR) on x0
    assert objective.losses(network, latents, batch, None).mean().item() == pytest.approx(wanted, rel=0.01)
