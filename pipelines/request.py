"""A request for pictures: every argument of a call, checked, as one frozen value."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipelines.checks import check_choices, check_control, check_noise, check_numbers, check_prompts
from text_encoder.prompt import Syntax, parse

Size = tuple[int, int]
STEPS = 50


@dataclass(frozen=True, eq=False)
class TextToImageRequest:
    """The arguments of `TextToImagePipeline`, with diffusers' names, order and defaults where it has them.

    prompt, negative_prompt: one text or a list, of the same kind. The negative prompt acts only under guidance.
    height, width: pixels, divisible by 8; by default what the model was trained at.
    num_inference_steps: denoising steps (the model's own number, or 50). `timesteps` or `sigmas` give the grid itself.
    guidance_scale: w of classifier-free guidance, on above 1 (the model's own weight, or 7.5; SDXL 5.0); or
        `gamma` = w - 1, never both.
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
        a dictionary, or a scheduler object of diffusers; by default what the model names.
    grid: "karras", "exponential", "beta" or "ays" noise levels instead of the sampler's own.
    eta: share of fresh noise in DDIM and TCD, 0 to 1; other samplers ignore it, as in diffusers.
    prompt_syntax: "plain", or "a1111" for `(word:1.3)`, `[word]` and BREAK.
    output_type: "pil"; "np" (b, H, W, 3) and "pt" (b, 3, H, W), both in [0, 1]; "latent".
    callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; returns tensors to replace.
    denoising_end: stop at this share of the noise process, for a refiner to go on from.
    deep_cache: every how many steps the whole U-Net runs; in between only its outermost layers (DeepCache, arXiv
        2312.00858). Lossy; 1 is always.
    merge_tokens: share of tokens merged in the U-Net's finest self-attention, 0 to 0.75 (arXiv 2303.17604). Lossy.
    controlnet: instead of the pipeline's own: the path or hub id of a ControlNet, one that is loaded (diffusers' too)
        or a list. A path is read for this call alone. [] draws without.
    control_image: what the ControlNet is told, one for all prompts or one for each: PIL images of any size, or, with
        values from 0 to 1, tensors (3, h, w), arrays (h, w, 3) or batches of these; for several ControlNets a list with
        that for each of them. Where height and width are not given, the picture has the size of the first.
    controlnet_conditioning_scale: of what a ControlNet adds; this and the next two for all of them, or a list.
    control_guidance_start, control_guidance_end: shares of the steps between which it acts.
    guess_mode: for pictures without a prompt: the ControlNet acts on the conditional half of guidance alone.
    """

    prompt: str | list[str] | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    guidance_scale: float | None = None
    negative_prompt: str | list[str] | None = None
    num_images_per_prompt: int = 1
    eta: float = 0.0
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
    callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None
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
    deep_cache: int = 1
    merge_tokens: float = 0.0
    controlnet: Any = None
    control_image: Any = None
    controlnet_conditioning_scale: float | list[float] = 1.0
    control_guidance_start: float | list[float] = 0.0
    control_guidance_end: float | list[float] = 1.0
    guess_mode: bool = False

    def __post_init__(self) -> None:
        check_prompts(self)
        check_numbers(self)
        check_choices(self)
        check_control(self)
        check_noise(self)

    @property
    def prompts(self) -> list[str] | None:
        """The prompts as a list, None when embeddings stand in for them."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def texts(self) -> Iterator[str]:
        """Every text of the request as the text encoders read it, without weights."""
        for given in (self.prompt, self.negative_prompt, self.prompt_2, self.negative_prompt_2):
            for text in [given] if isinstance(given, str) else given or ():
                sections = [[(text, 1.0)]] if self.prompt_syntax == "plain" else parse(text)
                yield " ".join("".join(part for part, _ in section) for section in sections)

    def completed(self, defaults: Mapping[str, Any]) -> "TextToImageRequest":
        """With a model's defaults for arguments that are not given."""
        guided = self.guidance_scale is not None or self.gamma is not None
        given = {"guidance_scale": guided, "num_inference_steps": self.num_inference_steps is not None}
        given["sampler"] = self.sampler is not None
        values = {"num_inference_steps": STEPS, **defaults}
        return replace(self, **{name: value for name, value in values.items() if not given[name]})

    @property
    def batch(self) -> int:
        """Pictures in all."""
        if self.prompts is not None:
            return len(self.prompts) * self.num_images_per_prompt
        assert self.prompt_embeds is not None, "checked before"
        return len(self.prompt_embeds) * self.num_images_per_prompt

    @functools.cached_property
    def seeds(self) -> list[int] | None:
        """One seed for each picture; None under a generator. Without either, drawn from torch's global generator."""
        if self.generator is not None:
            return None
        if isinstance(self.seed, list):
            return self.seed
        first = int(torch.randint(2**32, (), dtype=torch.int64) if self.seed is None else self.seed)
        return [(first + i) % 2**32 for i in range(self.batch)]
