"""A request for pictures: every argument of a call, checked, as one frozen value."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_encoder.prompt import Syntax

Size = tuple[int, int]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, eq=False)
class TextToImageRequest:
    """The arguments of `TextToImagePipeline`, with diffusers' names, order and defaults where it has them.

    prompt, negative_prompt: one text or a list, of the same kind. The negative prompt acts only under guidance.
    height, width: pixels, divisible by 8; by default what the model was trained at.
    num_inference_steps: denoising steps (50). `timesteps` or `sigmas` give the grid itself instead.
    guidance_scale: w of classifier-free guidance, on above 1 (7.5; SDXL 5.0); or `gamma` = w - 1, never both.
    guidance_rescale: how much of the unguided contrast is restored, 0 to 1 (Lin et al., arXiv 2305.08891).
    guidance_interval: (low, high) noise levels sigma between which guidance acts, everywhere by default.
    num_images_per_prompt: pictures of each prompt, next to each other in the result.
    generator: a torch.Generator, or one for each picture, drawing the noise that diffusers would draw.
    seed: picture i has seed + i, or a list with one for each; it depends neither on its batch nor on the device.
    latents: (b, c, h, w) initial noise of unit variance, instead of drawing it.
    prompt_embeds, ...: text already encoded, (prompts, n, d); pooled: (prompts, p), for SDXL.
    prompt_2, negative_prompt_2: what SDXL's second encoder reads, by default the same.
    clip_skip: text layers to skip, counted as diffusers does.
    original_size, crops_coords_top_left, target_size, negative_*: SDXL's size conditions, (height, width) pixels.
    aesthetic_score, negative_aesthetic_score: the refiner's condition.
    sampler: a name such as "dpmpp_2m", "DPM++ 2M Karras" or "DPMSolverMultistepScheduler", a `scheduler_config.json` as
        a dictionary, or a scheduler object of diffusers; by default what the checkpoint names.
    grid: "karras", "exponential", "beta" or "ays" noise levels instead of the sampler's own.
    eta: share of fresh noise in the samplers that have one (DDIM 0, ancestral 1); ignored, as in diffusers, by others.
    prompt_syntax: "plain", or "a1111" for `(word:1.3)`, `[word]` and BREAK.
    output_type: "pil"; "np" (b, H, W, 3) and "pt" (b, 3, H, W), both in [0, 1]; "latent".
    callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; returns tensors to replace.
    denoising_end: stop at this share of the noise process, for a refiner to go on from.
    """

    prompt: str | list[str] | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    guidance_scale: float | None = None
    negative_prompt: str | list[str] | None = None
    num_images_per_prompt: int = 1
    eta: float | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    output_type: str = "pil"
    return_dict: bool = True
    guidance_rescale: float = 0.0
    clip_skip: int | None = None
    callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor]] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    prompt_2: str | list[str] | None = None
    negative_prompt_2: str | list[str] | None = None
    denoising_end: float | None = None
    original_size: Size | None = None
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None
    negative_original_size: Size | None = None
    negative_crops_coords_top_left: Size = (0, 0)
    negative_target_size: Size | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    gamma: float | None = None
    guidance_interval: tuple[float, float] | None = None
    seed: int | list[int] | None = None
    sampler: Any = None
    grid: str | None = None
    prompt_syntax: Syntax = "plain"

    def __post_init__(self) -> None:
        check_prompts(self)
        check_numbers(self)
        check_noise(self)

    @property
    def prompts(self) -> list[str] | None:
        """The prompts as a list, None when embeddings stand in for them."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def batch(self) -> int:
        """Pictures in all."""
        count = len(self.prompts) if self.prompts is not None else len(_given(self.prompt_embeds))
        return count * self.num_images_per_prompt

    @functools.cached_property
    def seeds(self) -> list[int] | None:
        """One seed for each picture; None under a generator. Without either, drawn from torch's global generator."""
        if self.generator is not None:
            return None
        if isinstance(self.seed, list):
            return self.seed
        first = int(torch.randint(2**32, (), dtype=torch.int64)) if self.seed is None else self.seed
        return [(first + i) % 2**32 for i in range(self.batch)]


def _given(embeds: Tensor | None) -> Tensor:
    assert embeds is not None, "checked by check_prompts"
    return embeds


def check_prompts(request: TextToImageRequest) -> None:
    """Raises ValueError or TypeError where prompts, their embeddings and their counts do not go together."""
    if (request.prompt is None) == (request.prompt_embeds is None):
        raise ValueError("give either a prompt or prompt_embeds, and not both")
    if not isinstance(request.prompt, (str, list, type(None))):
        raise TypeError(f"prompt is a text or a list of texts, not {type(request.prompt).__name__}")
    if isinstance(request.prompt, list) and not request.prompt:
        raise ValueError("the list of prompts is empty: give at least one")
    for text in request.prompts or []:
        if not isinstance(text, str):
            raise TypeError(f"every prompt is a text, and {text!r} is not")
    for name in ("negative_prompt", "prompt_2", "negative_prompt_2"):
        _check_beside_prompt(request, name)
    _check_embeds(request)


def _check_beside_prompt(request: TextToImageRequest, name: str) -> None:
    other = getattr(request, name)
    if other is None:
        return
    if request.prompt is not None and type(other) is not type(request.prompt):
        kinds = type(other).__name__, type(request.prompt).__name__
        raise TypeError(f"{name} is a {kinds[0]} but prompt a {kinds[1]}: give both as texts or both as lists")
    if isinstance(other, list) and isinstance(request.prompt, list) and len(other) != len(request.prompt):
        raise ValueError(f"{name} has {len(other)} texts for {len(request.prompt)} prompts: give one for each")


def _check_embeds(request: TextToImageRequest) -> None:
    positive, negative = request.prompt_embeds, request.negative_prompt_embeds
    if negative is not None and request.negative_prompt is not None:
        raise ValueError("give either negative_prompt or negative_prompt_embeds, and not both")
    if positive is not None and negative is not None and positive.shape != negative.shape:
        shapes = tuple(positive.shape), tuple(negative.shape)
        raise ValueError(f"prompt_embeds {shapes[0]} and negative_prompt_embeds {shapes[1]} must have the same shape")


def check_numbers(request: TextToImageRequest) -> None:
    """Raises ValueError for numbers out of range, naming the argument."""
    for name in ("num_inference_steps", "num_images_per_prompt"):
        value = getattr(request, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is a whole number of at least 1, not {value!r}")
    for name in ("height", "width"):
        value = getattr(request, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is a positive number of pixels, not {value!r}")
    if request.output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is one of {', '.join(OUTPUT_TYPES)}, not {request.output_type!r}")
    if request.prompt_syntax not in ("plain", "a1111"):
        raise ValueError(f'prompt_syntax is "plain" or "a1111", not {request.prompt_syntax!r}')
    if request.timesteps is not None and request.sigmas is not None:
        raise ValueError("give either timesteps or sigmas, and not both")
    if request.denoising_end is not None and not 0 < request.denoising_end < 1:
        raise ValueError(f"denoising_end is a share of the noise process between 0 and 1, not {request.denoising_end}")


def check_noise(request: TextToImageRequest) -> None:
    """Raises ValueError where seeds, generators or latents do not fit the number of pictures."""
    if request.seed is not None and request.generator is not None:
        raise ValueError("give either a seed or a generator, and not both")
    for name in ("seed", "generator"):
        value = getattr(request, name)
        if isinstance(value, list) and len(value) != request.batch:
            raise ValueError(f"{name} has {len(value)} entries for {request.batch} pictures: give one for each")
    for seed in request.seed if isinstance(request.seed, list) else [request.seed]:
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
            raise ValueError(f"a seed is a whole number from 0 to 4294967295, not {seed!r}")
    if request.latents is not None and not request.latents.isfinite().all():
        raise ValueError("latents contain NaN or infinity: give finite noise of unit variance, or leave latents out")
