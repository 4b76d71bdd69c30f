"""What is asked of a request's arguments. Each check raises ValueError or TypeError naming the argument and the fix."""

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.token_merging import MOST

if TYPE_CHECKING:
    from pipelines.request import TextToImageRequest

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
SYNTAXES = ("plain", "a1111")


def check_prompts(request: "TextToImageRequest") -> None:
    """Prompts, their embeddings and their counts go together."""
    if (request.prompt is None) == (request.prompt_embeds is None):
        raise ValueError("give either a prompt or prompt_embeds, and not both")
    if isinstance(request.prompt, list) and not request.prompt:
        raise ValueError("the list of prompts is empty: give at least one")
    for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"):
        _check_texts(name, getattr(request, name))
        _check_beside_prompt(request, name)
    _check_embeds(request)


def _check_texts(name: str, texts: Any) -> None:
    if not isinstance(texts, (str, list, type(None))):
        raise TypeError(f"{name} is a text or a list of texts, not {type(texts).__name__}")
    for text in texts if isinstance(texts, list) else ():
        if not isinstance(text, str):
            raise TypeError(f"every {name} is a text, and {text!r} is not")


def _check_beside_prompt(request: "TextToImageRequest", name: str) -> None:
    texts, prompt = getattr(request, name), request.prompt
    if texts is None or prompt is None:
        return
    if type(texts) is not type(prompt):
        kinds = type(texts).__name__, type(prompt).__name__
        raise TypeError(f"{name} is a {kinds[0]} but prompt a {kinds[1]}: give both as texts or both as lists")
    if isinstance(texts, list) and len(texts) != len(prompt):
        raise ValueError(f"{name} has {len(texts)} texts for {len(prompt)} prompts: give one for each")


def _check_embeds(request: "TextToImageRequest") -> None:
    names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    for name in names:
        _check_tensor(name, getattr(request, name))
    if request.prompt_embeds is not None and request.prompt_2 is not None:
        raise ValueError("give either prompt_2 or prompt_embeds, and not both")
    if request.prompt_embeds is None and request.pooled_prompt_embeds is not None:
        raise ValueError("pooled_prompt_embeds goes with prompt_embeds: give both, or a prompt")
    if request.negative_prompt_embeds is None and request.negative_pooled_prompt_embeds is not None:
        raise ValueError("negative_pooled_prompt_embeds goes with negative_prompt_embeds: give both, or neither")
    texts = (request.negative_prompt, request.negative_prompt_2)
    if request.negative_prompt_embeds is not None and texts != (None, None):
        raise ValueError("give either a negative prompt or negative_prompt_embeds, and not both")


def _check_tensor(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} is a floating-point tensor, not {kind}")
    if not value.isfinite().all():
        raise ValueError(f"{name} contains NaN or infinity: give finite values, or leave it out")


def check_numbers(request: "TextToImageRequest") -> None:
    """Numbers are numbers and in their range; those of other libraries become Python's own."""
    for name in ("num_inference_steps", "num_images_per_prompt", "height", "width", "deep_cache"):
        _set(request, name, lambda value: _whole(value, 1), "a whole number of at least 1")
    _set(request, "clip_skip", lambda value: _whole(value, 0), "a whole number of at least 0")
    for name in ("guidance_scale", "gamma", "aesthetic_score", "negative_aesthetic_score"):
        _set(request, name, _number, "a finite number")
    for name in ("guidance_rescale", "eta", "denoising_end"):
        _set(request, name, lambda value: _number(value, 0, 1), "a number from 0 to 1")
    _set(request, "merge_tokens", lambda value: _number(value, 0, MOST), f"a share from 0 to {MOST}")
    if request.denoising_end == 0:
        raise ValueError("denoising_end is the share of the noise process to run, above 0 and up to 1")
    _set(request, "guidance_interval", _interval, "(low, high) in noise levels, 0 <= low < high")
    for name in ("original_size", "target_size", "negative_original_size", "negative_target_size"):
        _set(request, name, lambda value: _pair(value, 1), "(height, width) in whole pixels")
    for name in ("crops_coords_top_left", "negative_crops_coords_top_left"):
        _set(request, name, lambda value: _pair(value, 0), "(top, left) in whole pixels")
    for name in ("timesteps", "sigmas"):
        _set(request, name, lambda values: [_number(value) for value in values], "a sequence of falling numbers")


def _set(request: "TextToImageRequest", name: str, read: Callable[[Any], Any], wanted: str) -> None:
    """Puts what `read` makes of an argument in its place; ValueError saying what is wanted when it cannot."""
    value = getattr(request, name)
    if value is None:
        return
    try:
        object.__setattr__(request, name, read(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} is {wanted}, not {value!r}") from None


def _whole(value: Any, low: int) -> int:
    number = operator.index(value)
    if isinstance(value, bool) or number < low:
        raise ValueError
    return number


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, (bool, str)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError
    return number


def _interval(value: Any) -> tuple[float, float]:
    low, high = (float(level) for level in value)
    if not 0 <= low < high:
        raise ValueError
    return low, high


def _pair(value: Any, low: int) -> tuple[int, int]:
    first, second = (_whole(side, low) for side in value)
    return first, second


def check_choices(request: "TextToImageRequest") -> None:
    """Words are among those there are, and what is called can be called."""
    if request.output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is one of {', '.join(OUTPUT_TYPES)}, not {request.output_type!r}")
    if request.prompt_syntax not in SYNTAXES:
        raise ValueError(f'prompt_syntax is "plain" or "a1111", not {request.prompt_syntax!r}')
    if request.grid is not None and not isinstance(request.grid, str):
        raise TypeError(f'grid is a name such as "karras", not {request.grid!r}')
    if request.timesteps is not None and request.sigmas is not None:
        raise ValueError("give either timesteps or sigmas, and not both")
    callback, names = request.callback_on_step_end, request.callback_on_step_end_tensor_inputs
    if callback is not None and not callable(callback):
        raise TypeError(f"callback_on_step_end is a function, not {callback!r}")
    if callback is not None and not isinstance(names, (list, tuple)):
        raise TypeError(f"callback_on_step_end_tensor_inputs is a list of names, not {names!r}")


def check_control(request: "TextToImageRequest") -> None:
    """What ControlNets are told are numbers, or lists of them, and they end later than they start."""
    given = request.controlnet is not None and request.controlnet not in ([], ())
    if given and request.control_image is None:
        raise ValueError("controlnet needs control_image=, what it is to follow")
    _set(request, "controlnet_conditioning_scale", lambda value: _each(value, _number), "a number, or a list of them")
    for name in ("control_guidance_start", "control_guidance_end"):
        _set(
            request, name, lambda value: _each(value, lambda one: _number(one, 0, 1)), "a share from 0 to 1, or a list"
        )
    starts, ends = request.control_guidance_start, request.control_guidance_end
    starts = starts if isinstance(starts, list) else [starts] * (len(ends) if isinstance(ends, list) else 1)
    ends = ends if isinstance(ends, list) else [ends] * len(starts)
    if len(starts) != len(ends):
        raise ValueError(
            f"{len(starts)} of control_guidance_start and {len(ends)} of control_guidance_end: give equally many"
        )
    for start, end in zip(starts, ends, strict=True):
        if start >= end:
            raise ValueError(f"control_guidance_start = {start} is not below control_guidance_end = {end}")
    if not isinstance(request.guess_mode, bool):
        raise TypeError(f"guess_mode is True or False, not {request.guess_mode!r}")


def _each(value: Any, read: Callable[[Any], float]) -> float | list[float]:
    return [read(one) for one in value] if isinstance(value, (list, tuple)) else read(value)


SEEDS = "a whole number from 0 to 4294967295, or a list of them"


def _seed(value: Any) -> int:
    seed = _whole(value, 0)
    if seed >= 2**32:
        raise ValueError
    return seed


def check_noise(request: "TextToImageRequest") -> None:
    """Seeds, generators or latents fit the number of pictures."""
    if request.seed is not None and request.generator is not None:
        raise ValueError("give either a seed or a generator, and not both")
    for name in ("seed", "generator"):
        value = getattr(request, name)
        if isinstance(value, list) and len(value) != request.batch:
            raise ValueError(f"{name} has {len(value)} entries for {request.batch} pictures: give one for each")
    several = isinstance(request.seed, list)
    _set(request, "seed", lambda value: [_seed(v) for v in value] if several else _seed(value), SEEDS)
    for generator in request.generator if isinstance(request.generator, list) else [request.generator]:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator is a torch.Generator or a list of them, not {type(generator).__name__}")
    _check_tensor("latents", request.latents)
