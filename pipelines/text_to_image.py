"""Text to image: noise, denoised under the guidance of a prompt."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from configs.architecture import DiffusionConfig
from ldm.batching import Batched
from ldm.controlled import Controlled
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.foreign import ForeignSampling, is_scheduler
from ldm.diffusion.grid import Grid
from ldm.diffusion.guidance import weight
from ldm.diffusion.noise import SeededNoise
from ldm.diffusion.prediction import prediction_of
from ldm.diffusion.registry import Sampling
from ldm.diffusion.schedule import NoiseSchedule
from ldm.diffusion.schedulers import diffusion_from_scheduler_config
from ldm.model import LatentDiffusion
from ldm.plan import Plan
from ldm.shortcuts import Shortcuts
from pipelines.control import evaluations
from pipelines.pipeline import Pipeline
from pipelines.problem import Problem
from pipelines.prompting import encode
from pipelines.request import Size, TextToImageRequest
from pipelines.stream import Stream, takes

WITH_ETA = ("ddim", "tcd")
DEFAULT_GUIDANCE = {"sdxl": 5.0, "sdxl_refiner": 5.0}  # 7.5 elsewhere, both as in diffusers


class TextToImagePipeline(Pipeline):
    """Draws pictures of prompts with any Stable Diffusion 1.x, 2.x or SDXL model.

        pipe = TextToImagePipeline.from_pretrained()  # the embedded model, or a path or hub id
        pipe("a cat holding a banana", guidance_scale=7.5, seed=1).images[0].save("cat.png")

    The arguments are those of `TextToImageRequest`; where diffusers has the name, it has the meaning, and the same
    `generator` gives the same picture.
    """

    @takes(TextToImageRequest)
    def __call__(self, request: TextToImageRequest) -> Any:
        """Draws: a Result with `images` and `records`, or a tuple without `return_dict`.

        Raises ValueError or TypeError naming the argument that does not fit the model.
        """
        result = self.finish(self.start(request))
        if request.return_dict:
            return result
        return (result.images,) if self.model.family.startswith("sdxl") else (result.images, None)

    @takes(TextToImageRequest)
    def stream(self, request: TextToImageRequest) -> Stream:
        """The same, step by step: `for step in pipe.stream("a cat"): step.preview()[0].show()`."""
        return self.start(request)

    @torch.no_grad()
    def prepare(self, request: TextToImageRequest) -> Problem:
        """Encodes the text, lays out the noise levels and draws the noise."""
        model, device = self.model, self.device
        steering = self.steering(request)
        h, w = latent_size(model, request, steering.size(model.autoencoder.factor))
        scale = weight(request.guidance_scale, request.gamma, default=DEFAULT_GUIDANCE.get(model.family, 7.5))
        # text
        with self.using("text_encoder"):
            size = h * model.autoencoder.factor, w * model.autoencoder.factor
            cond, uncond = encode(model, request, size, scale)
        # noise levels
        wanted = self.sampler if request.sampler is None else request.sampler
        process = noise_process(model.scheduler_config, wanted)
        sampling = choose_sampling(model.scheduler_config, wanted, request)
        grid, steps = lay_out(sampling, NoiseSchedule(process), request)
        # start
        noise = draw(request, (request.batch, model.latent_channels, h, w), device, model.dtype)
        x = grid.init_scale * given_or_drawn(request, noise).to(device, torch.float32)
        shortcuts = Shortcuts(request.deep_cache, request.merge_tokens)
        plan = Plan(model, grid.times[:steps], self.speed, shortcuts)
        # control
        with self.using("controlnet"):
            controls = steering.controls(h, w)
        network = Controlled(plan, controls, evaluations(sampling, grid) if steering.is_partial else ())
        part_by_part = Batched(network, self.batching(x, "unet", uncond is not None, len(controls)))
        return Problem(
            x=x,
            grid=grid,
            steps=steps,
            sampling=sampling,
            noise=noise,
            denoiser=Denoiser(part_by_part, prediction_of(process), grid.time, dtype=model.dtype),
            cond=cond.to(device),
            uncond=None if uncond is None else uncond.to(device),
            scale=scale,
            rescale=request.guidance_rescale,
            interval=request.guidance_interval,
            steering=steering,
            release=network.forget,
        )


def latent_size(model: LatentDiffusion, request: TextToImageRequest, default: Size | None = None) -> tuple[int, int]:
    """(h, w) in latent cells, from the request's pixels, a default (height, width), or the model's own."""
    config, factor = model.unet.config, model.autoencoder.factor
    if config.in_channels != model.latent_channels:
        raise ValueError(
            f"this U-Net takes {config.in_channels} channels where the autoencoder has {model.latent_channels}: it "
            "edits or enlarges pictures and cannot draw from text alone; use a text-to-image model"
        )
    own = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    default = default or (own[0] * factor, own[1] * factor)
    height, width = int(request.height or default[0]), int(request.width or default[1])
    if height % factor or width % factor:
        fit = (max(factor, round(side / factor) * factor) for side in (width, height))
        raise ValueError(
            f"a picture of {width} x {height} pixels does not fit this model: width and height must be multiples of "
            f"{factor}; the nearest size is {' x '.join(map(str, fit))}"
        )
    return height // factor, width // factor


def noise_process(config: Mapping[str, Any], wanted: Any) -> DiffusionConfig:
    """The model's noise process. A scheduler given as file or object changes what it says itself, not by default."""
    if isinstance(wanted, Mapping) or is_scheduler(wanted):
        given = wanted if isinstance(wanted, Mapping) else wanted.config
        defaults = given.get("_use_default_values", ())
        config = {**config, **{key: value for key, value in given.items() if key not in defaults}}
    return diffusion_from_scheduler_config(config)


def choose_sampling(config: Mapping[str, Any], wanted: Any, request: TextToImageRequest) -> Sampling | ForeignSampling:
    """The sampler that is wanted, by default the checkpoint's own, with the request's grid and eta."""
    sampling = _sampling(config, config if wanted is None else wanted)
    if request.grid is not None:
        if isinstance(sampling, ForeignSampling):
            raise ValueError("grid= cannot change a scheduler object: name a sampler, or set the grid in the scheduler")
        sampling = sampling.with_grid(request.grid)
    takes_eta = sampling.accepts("eta") if isinstance(sampling, ForeignSampling) else sampling.sampler in WITH_ETA
    return sampling.with_options(eta=request.eta) if takes_eta else sampling


def _sampling(config: Mapping[str, Any], wanted: Any) -> Sampling | ForeignSampling:
    if isinstance(wanted, str):
        return Sampling.from_name(wanted, config)
    if isinstance(wanted, Mapping):
        return Sampling.from_scheduler_config(wanted)
    if is_scheduler(wanted):
        return ForeignSampling(wanted)
    raise TypeError(f"sampler is a name, a scheduler_config.json or a scheduler of diffusers, not {wanted!r}")


def lay_out(
    sampling: Sampling | ForeignSampling, schedule: NoiseSchedule, request: TextToImageRequest
) -> tuple[Grid, int]:
    """The grid of the request, and how many of its steps to take: `denoising_end` leaves the rest to a refiner."""
    given = request.timesteps is not None or request.sigmas is not None
    steps = None if given else request.num_inference_steps
    grid = sampling.grid(schedule, steps, timesteps=request.timesteps, sigmas=request.sigmas)
    if request.denoising_end in (None, 1):
        return grid, grid.steps
    assert request.denoising_end is not None
    cutoff = round(schedule.train_steps - request.denoising_end * schedule.train_steps)
    kept = sum(t >= cutoff for t in grid.times)
    if kept == 0:
        raise ValueError(f"denoising_end = {request.denoising_end} leaves no step of {grid.steps}: take more steps")
    return grid, kept


def draw(
    request: TextToImageRequest, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
) -> SeededNoise:
    """The request's source of noise. A generator draws in the network's precision, as it does in diffusers."""
    if request.generator is not None:
        return SeededNoise(shape, generator=request.generator, device=device, dtype=dtype)
    return SeededNoise(shape, seeds=request.seeds, device=device)


def given_or_drawn(request: TextToImageRequest, noise: SeededNoise) -> Tensor:
    """The noise that the run starts from, (b, c, h, w)."""
    if request.latents is None:
        return noise()
    if tuple(request.latents.shape) != noise.shape:
        raise ValueError(f"latents have the shape {tuple(request.latents.shape)}; this request needs {noise.shape}")
    return request.latents
