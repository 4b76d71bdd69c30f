"""A scheduler object driven by us against the same object in diffusers' own loop."""

import inspect

import diffusers
import pytest
import torch
from torch.testing import assert_close

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.foreign import ForeignSampling, is_scheduler
from ldm.diffusion.noise import SeededNoise
from ldm.diffusion.prediction import prediction_of
from ldm.diffusion.registry import Sampling
from ldm.diffusion.schedule import NoiseSchedule
from ldm.diffusion.schedulers import diffusion_from_scheduler_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SHAPE = (2, 4, 6, 5)
NAMES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
]


def network(x, t, cond):
    return 0.8 * torch.sin(2 * x) + 0.3 * x.flip(-1) + 0.1 * torch.cos(torch.as_tensor(t) / 100).reshape(-1, 1, 1, 1)


def make(name, **config):
    return getattr(diffusers, name).from_config({**BETAS, "clip_sample": False, **config})


def loop(scheduler, x, begin=0, **options):
    """The denoising loop of diffusers' pipelines."""
    for t in scheduler.timesteps[begin:]:
        output = network(scheduler.scale_model_input(x, t), t.float().expand(len(x)), None)
        x = scheduler.step(output, t, x, **options, return_dict=False)[0]
    return x


def theirs(scheduler, generators, **request):
    scheduler.set_timesteps(**request)
    x = diffusers.utils.torch_utils.randn_tensor(SHAPE, generator=generators) * scheduler.init_noise_sigma
    drawn = "generator" in inspect.signature(scheduler.step).parameters
    return loop(scheduler, x, **({"generator": generators} if drawn else {}))


def schedule_of(scheduler):
    config = dict(scheduler.config)
    return NoiseSchedule(diffusion_from_scheduler_config({**config, "_class_name": "DDIMScheduler"}))


def denoise_on(grid):
    denoiser = Denoiser(network, prediction_of(grid.schedule.config), grid.time)
    return lambda x, sigma: denoiser(x, sigma, None)


def ours(scheduler, generators, steps=None, **request):
    sampling = ForeignSampling(scheduler)
    grid = sampling.grid(schedule_of(scheduler), steps, **request)
    noise = SeededNoise(SHAPE, generator=generators)
    x = grid.init_scale * noise()
    for step in sampling.run(denoise_on(grid), x, grid, noise):
        x = step.x
    return grid.outside(x, grid.sigmas[-1])


def generators(seed, several):
    made = [torch.Generator().manual_seed(seed + i) for i in range(SHAPE[0])]
    return made if several else made[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("prediction_type", "several"), [("epsilon", False), ("v_prediction", True), ("sample", False)]
)
def test_equals_the_loop_of_diffusers(name, prediction_type, several):
    unsupported = {"EulerAncestralDiscreteScheduler", "PNDMScheduler", "KDPM2DiscreteScheduler"}
    if prediction_type == "sample" and name in {*unsupported, "KDPM2AncestralDiscreteScheduler"}:
        pytest.skip("diffusers does not implement it")
    for steps in (4, 11):
        config = {"prediction_type": prediction_type}
        expected = theirs(make(name, **config), generators(7, several), num_inference_steps=steps)
        got = ours(make(name, **config), generators(7, several), steps)
        assert_close(got, expected, rtol=0, atol=5e-6 * expected.abs().max())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": "trailing"}),
    ],
)
def test_configured_schedulers(name, config):
    config = {**config, "prediction_type": "v_prediction"}
    expected = theirs(make(name, **config), generators(8, False), num_inference_steps=10)
    assert_close(
        ours(make(name, **config), generators(8, False), 10), expected, rtol=0, atol=5e-6 * expected.abs().max()
    )


def test_custom_timesteps_and_sigmas():
    for name, request in [
        ("DPMSolverMultistepScheduler", {"timesteps": [999, 800, 300, 20]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.0, 5.0, 1.0, 0.1, 0.0]}),
    ]:
        expected = theirs(make(name), generators(9, False), **request)
        got = ours(make(name), generators(9, False), **request)
        assert_close(got, expected, rtol=0, atol=5e-6 * expected.abs().max())


def test_runs_can_be_repeated():
    sampling = ForeignSampling(make("DPMSolverMultistepScheduler"))
    grid = sampling.grid(schedule_of(sampling.scheduler), 6)
    x = grid.init_scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    runs = [list(sampling.run(denoise_on(grid), x, grid, SeededNoise(SHAPE)))[-1].x for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_a_shortened_grid_starts_in_the_middle(name):
    """Image to image: diffusers noises to the k-th timestep and runs the rest."""
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    scheduler = make(name)
    scheduler.set_timesteps(10)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(4)
    expected = loop(scheduler, scheduler.add_noise(clean, noise, scheduler.timesteps[4:5].repeat(2)), begin=4)
    sampling = ForeignSampling(make(name))
    grid = sampling.grid(schedule_of(scheduler), 10).skip(4)
    *_, last = sampling.run(denoise_on(grid), clean + grid.sigmas[0] * noise, grid, SeededNoise(SHAPE))
    assert len(_) == 5
    assert_close(last.x, expected, rtol=0, atol=5e-6 * expected.abs().max())


def test_steps_agree_with_our_own_sampler():
    """States, levels and estimates on the way are in the coordinates of every other sampler."""
    scheduler = make("DDIMScheduler")
    schedule = schedule_of(scheduler)
    foreign, own = (
        ForeignSampling(scheduler),
        Sampling.from_scheduler_config({**BETAS, "_class_name": "DDIMScheduler", "clip_sample": False}),
    )
    records = []
    for sampling in (foreign, own):
        grid = sampling.grid(schedule, 8)
        x = grid.init_scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
        records.append(list(sampling.run(denoise_on(grid), x, grid, SeededNoise(SHAPE))))
    for mine, other in zip(*records, strict=True):
        assert mine.index == other.index
        assert_close(mine.sigma, other.sigma, rtol=2e-7, atol=0)
        assert_close(mine.x, other.x, rtol=1e-5, atol=1e-5)
        assert_close(mine.denoised, other.denoised, rtol=1e-5, atol=2e-5)


def test_a_change_made_in_place_steers_the_run():
    sampling = ForeignSampling(make("EulerDiscreteScheduler"))
    grid = sampling.grid(schedule_of(sampling.scheduler), 3)
    seen = []

    def denoise(x, sigma):
        seen.append(x.clone())
        return 0.5 * x

    for step in sampling.run(denoise, torch.ones(SHAPE), grid, SeededNoise(SHAPE)):
        step.x.fill_(2.0 + step.index)
    assert [float(x.mean()) for x in seen] == [1.0, 2.0, 3.0]


def test_options_and_bad_input():
    ddim, euler = ForeignSampling(make("DDIMScheduler")), ForeignSampling(make("EulerDiscreteScheduler"))
    assert is_scheduler(ddim.scheduler)
    assert not is_scheduler("DDIMScheduler")
    assert ddim.accepts("eta")
    assert ddim.with_options(eta=1.0).options == {"eta": 1.0}
    with pytest.raises(ValueError, match="EulerDiscreteScheduler has no option 'eta'"):
        euler.with_options(eta=1.0)
    schedule = schedule_of(ddim.scheduler)
    with pytest.raises(ValueError, match="DDIMScheduler does not take timesteps"):
        ddim.grid(schedule, timesteps=[900, 100])
    with pytest.raises(ValueError, match="exactly one"):
        ddim.grid(schedule, 5, sigmas=[1.0, 0.0])
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no"):
        ForeignSampling(flow).grid(schedule, 5)
