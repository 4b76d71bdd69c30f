"""Names and scheduler configurations, against diffusers' classes and their `from_config`."""

import inspect
import json

import diffusers
import pytest
import torch
from torch.testing import assert_close

from configs.architecture import DiffusionConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.noise import SeededNoise
from ldm.diffusion.prediction import prediction_of
from ldm.diffusion.registry import NAMES, Sampling
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.schedule import NoiseSchedule
from ldm.diffusion.schedulers import SCHEDULERS, diffusion_from_scheduler_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own

SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SDXL = {
    **SD15,
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SD2_V = {**SD15, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
IN_DIFFUSERS = [name for name in SCHEDULERS if name != "DPMSolverSDEScheduler"]  # that one needs torchsde


def network(x, t, cond):
    return 0.8 * torch.sin(2 * x) + 0.3 * x.flip(-1) + 0.1 * torch.cos(torch.as_tensor(t) / 100).reshape(-1, 1, 1, 1)


def run_theirs(scheduler, steps, seed, shape=(2, 4, 6, 5), **options):
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.float().expand(len(x)), None)
        x = scheduler.step(output, t, x, **options, return_dict=False)[0]
    return x


def run_ours(sampling, config, steps, seed, shape=(2, 4, 6, 5)):
    process = diffusion_from_scheduler_config(config)
    grid = sampling.grid(NoiseSchedule(process), steps)
    denoiser = Denoiser(network, prediction_of(process), grid.time)
    noise = SeededNoise(shape, generator=torch.Generator().manual_seed(seed))
    x = grid.init_scale * noise()
    for step in sampling.run(lambda x, sigma: denoiser(x, sigma, None), x, grid, noise):
        x = step.x
    return grid.outside(x, grid.sigmas[-1])


@pytest.mark.parametrize(
    ("name", "sampler", "kind"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M", "dpmpp_2m", "plain"),
        ("dpmpp_2m", "dpmpp_2m", "plain"),
        ("dpmpp-2m-karras", "dpmpp_2m", "karras"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", "plain"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde", "karras"),
        ("DPM++ SDE Karras", "dpmpp_sde", "karras"),
        ("DPM++ 2S a", "dpmpp_2s_a", "plain"),
        ("dpmpp_2s_ancestral", "dpmpp_2s_a", "plain"),
        ("DPM++ 3M SDE", "dpmpp_3m_sde", "plain"),
        ("Euler a", "euler_a", "plain"),
        ("euler_ancestral", "euler_a", "plain"),
        ("EULER", "euler", "plain"),
        ("Euler beta", "euler", "beta"),
        ("Euler Align Your Steps", "euler", "ays"),
        ("dpmpp_2m ays_sdxl", "dpmpp_2m", "ays_sdxl"),
        ("DPM2 a Karras", "dpm2_a", "karras"),
        ("dpm_2_ancestral", "dpm2_a", "plain"),
        ("LMS Karras", "lms", "karras"),
        ("PLMS", "pndm", "plain"),
        ("uni_pc", "unipc", "plain"),
        ("DDIM", "ddim", "plain"),
        ("LCMScheduler", "lcm", "plain"),
    ],
)
def test_names(name, sampler, kind):
    sampling = Sampling.from_name(name)
    assert (sampling.sampler, sampling.layout.kind) == (sampler, kind)


def test_every_sampler_has_its_name_and_every_name_its_sampler():
    assert set(NAMES) == set(SAMPLERS)
    for name in NAMES:
        assert Sampling.from_name(name).sampler == name


@pytest.mark.parametrize("name", [*NAMES, "euler karras", "dpmpp_2m ays_sdxl"])
def test_the_string_is_a_name_again(name):
    sampling = Sampling.from_name(name, SDXL)
    assert str(sampling) == name
    assert Sampling.from_name(str(sampling), SDXL) == sampling


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("dpmp_2m", "dpmpp_2m"),
        ("Euler b", "euler"),
        ("DDIMM", "ddim"),
        ("EulerDiscretScheduler", "EulerDiscreteScheduler"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown sampler '{name}': did you mean '{nearest}'"):
        Sampling.from_name(name)


@pytest.mark.parametrize("config", [SD15, SDXL, SD2_V], ids=["sd15", "sdxl", "sd2_v"])
@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_switching_schedulers_is_from_config(name, config):
    """Steps of any class on any family's configuration, noise included, are those of diffusers."""
    loaded = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler = getattr(diffusers, name).from_config(loaded.config)
    options = {"eta": 0.3} if name in ("TCDScheduler", "DDIMScheduler") else {}
    expected = run_theirs(scheduler, 10, 3, **options)
    got = run_ours(Sampling.from_name(name, config).with_options(**options), config, 10, 3)
    assert_close(got, expected, rtol=0, atol=5e-6 * expected.abs().max())


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm_type": "sde-dpmsolver++"},
        {"solver_order": 3},
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"solver_type": "bh2"},
        {"lower_order_final": False},
        {"euler_at_final": True, "use_karras_sigmas": True},
        {"final_sigmas_type": "sigma_min"},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=str,
)
def test_options_of_the_multistep_solver(change):
    config = {**SD15, "_class_name": "DPMSolverMultistepScheduler", **change}
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    for steps in (5, 20):
        expected = run_theirs(scheduler, steps, 4)
        got = run_ours(Sampling.from_scheduler_config(config), config, steps, 4)
        assert_close(got, expected, rtol=0, atol=5e-6 * expected.abs().max())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("UniPCMultistepScheduler", {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"}),
        ("UniPCMultistepScheduler", {"disable_corrector": [0, 2]}),
        ("DEISMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
        ("DDPMScheduler", {"variance_type": "fixed_large"}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **SD2_V}),
        ("PNDMScheduler", {"skip_prk_steps": False}),
        ("LCMScheduler", {"timestep_scaling": 0.01, "original_inference_steps": 100}),
    ],
    ids=str,
)
def test_options_of_other_schedulers(name, change):
    config = {**SD15, **change, "_class_name": name}
    expected = run_theirs(getattr(diffusers, name).from_config(config), 10, 5)
    got = run_ours(Sampling.from_scheduler_config(config), config, 10, 5)
    assert_close(got, expected, rtol=0, atol=5e-6 * expected.abs().max())


def test_a_named_grid_replaces_that_of_the_file():
    config = {**SDXL, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    assert Sampling.from_name("heun", config).layout.kind == "karras"
    assert Sampling.from_name("heun beta", config).layout.kind == "beta"
    assert Sampling.from_name("dpmpp_2m", config).sampler == "dpmpp_2m"
    assert Sampling.from_name("ddim", config).layout.kind == "plain"  # diffusers' DDIM has no such key
    assert Sampling.from_name("heun").with_grid("karras") == Sampling.from_name("heun karras")
    with pytest.raises(ValueError, match="unknown grid 'round'"):
        Sampling.from_name("heun").with_grid("round")


def test_keys_that_were_only_defaults_do_not_carry_over():
    config = dict(diffusers.PNDMScheduler.from_config(SD15).config)  # holds timestep_spacing="leading" by default
    assert config["timestep_spacing"] == "leading"
    assert Sampling.from_name("euler", config).layout.spacing == "linspace"
    assert Sampling.from_name("euler", {**SD15, "timestep_spacing": "leading"}).layout.spacing == "leading"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatchEulerDiscreteScheduler' is not supported"),
        ({"_class_name": None}, "None is not supported"),
        ({"thresholding": True}, "thresholding=True is not supported: set it to False"),
        ({"algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver' is not supported"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"lambda_min_clipped": -5.1}, "lambda_min_clipped=-5.1"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type='one'"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ],
    ids=str,
)
def test_unsupported_values_are_named(change, message):
    config = {**SD15, "_class_name": "DPMSolverMultistepScheduler", **change}
    with pytest.raises(ValueError, match=message):
        Sampling.from_scheduler_config(config)


def test_options():
    assert Sampling.from_name("ddim").accepts("eta")
    assert Sampling.from_name("tcd").accepts("eta")
    assert not Sampling.from_name("dpmpp_2m").accepts("eta")
    assert not Sampling.from_name("lcm").accepts("times")
    assert Sampling.from_name("ddim").with_options(eta=0.5).options["eta"] == 0.5
    with pytest.raises(ValueError, match="dpmpp_2m has no option 'eta'; it has euler_at_final"):
        Sampling.from_name("dpmpp_2m").with_options(eta=0.5)
    process = NoiseSchedule(DiffusionConfig())
    tcd = Sampling.from_name("tcd").with_options(eta=1.5)
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        tcd.run(lambda x, sigma: x, torch.zeros(1), tcd.grid(process, 4), lambda: torch.zeros(1))


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_noise_process_of_a_configuration(name):
    """Missing keys by the class's own defaults; values survive JSON."""
    for given in ({}, {**SD15, "prediction_type": "v_prediction", "num_train_timesteps": 500}):
        scheduler = getattr(diffusers, name).from_config(given)
        config = json.loads(json.dumps({**given, "_class_name": name}))
        schedule = NoiseSchedule(diffusion_from_scheduler_config(config))
        alpha_bar = scheduler.alphas_cumprod
        assert torch.equal(torch.tensor(schedule.training_sigmas), ((1 - alpha_bar) / alpha_bar) ** 0.5)
        assert schedule.config.prediction == scheduler.config.prediction_type


def test_noise_process_of_unusual_configurations():
    betas = [0.001, 0.002, 0.003]
    config = {**SD15, "trained_betas": betas, "num_train_timesteps": 3, "rescale_betas_zero_snr": True}
    process = diffusion_from_scheduler_config(config)
    assert (process.trained_betas, process.train_steps, process.zero_terminal_snr) == (tuple(betas), 3, True)
    assert diffusion_from_scheduler_config({**SDXL, "prediction_type": "original_sample"}).prediction == "sample"
    with pytest.raises(ValueError, match="prediction_type='flow_prediction' is not supported"):
        diffusion_from_scheduler_config({**SDXL, "prediction_type": "flow_prediction"})


def test_a_class_that_cannot_sample_still_has_a_noise_process():
    config = {**SD15, "_class_name": "DPMSolverSinglestepScheduler"}
    assert diffusion_from_scheduler_config(config) == diffusion_from_scheduler_config(SD15)
    with pytest.raises(ValueError, match="DPMSolverSinglestepScheduler"):
        Sampling.from_scheduler_config(config)
    assert Sampling.from_name("euler", config).sampler == "euler"
    with pytest.raises(ValueError, match="FlowMatch"):
        diffusion_from_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    with pytest.raises(ValueError, match="clip_sample=True"):
        Sampling.from_scheduler_config({"_class_name": "DDIMScheduler", "clip_sample": True})
