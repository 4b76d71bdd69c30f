"""What is asked of a request's arguments. Each check raises ValueError or TypeError naming the argument and the fix."""

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    """Numbers are numbers and in their range."""
    for name, low in (("num_inference_steps", 1), ("num_images_per_prompt", 1), ("height", 1), ("width", 1)):
        _check_whole(name, getattr(request, name), low)
    _check_whole("clip_skip", request.clip_skip, 0)
    for name in ("guidance_scale", "gamma", "aesthetic_score", "negative_aesthetic_score"):
        _check_number(name, getattr(request, name))
    for name in ("guidance_rescale", "eta", "denoising_end"):
        _check_number(name, getattr(request, name), 0, 1)
    if request.denoising_end == 0:
        raise ValueError("denoising_end is the share of the noise process to run, above 0 and up to 1")
    _check_interval(request.guidance_interval)
    for name in ("original_size", "target_size", "negative_original_size", "negative_target_size"):
        _check_pair(name, getattr(request, name), 1)
    for name in ("crops_coords_top_left", "negative_crops_coords_top_left"):
        _check_pair(name, getattr(request, name) or (), 0)


def _check_whole(name: str, value: Any, low: int) -> None:
    if value is not None and not (_is_whole(value) and operator.index(value) >= low):
        raise ValueError(f"{name} is a whole number of at least {low}, not {value!r}")


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, (bool, Tensor))


def _check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    if value is None:
        return
    number = not isinstance(value, (bool, str, Tensor)) and hasattr(value, "__float__") and math.isfinite(value)
    if not number or not low <= value <= high:
        span = "" if low == -math.inf else f" from {low} to {high}"
        raise ValueError(f"{name} is a finite number{span}, not {value!r}")


def _check_interval(interval: Any) -> None:
    if interval is None:
        return
    try:
        low, high = interval
        good = 0 <= low < high
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"guidance_interval is (low, high) in noise levels, 0 <= low < high, not {interval!r}")


def _check_pair(name: str, pair: Any, low: int) -> None:
    if pair is None:
        return
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(_is_whole(v) and v >= low for v in pair)):
        raise ValueError(f"{name} is two whole numbers (height, width) of at least {low}, not {pair!r}")


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
    for name in ("timesteps", "sigmas"):
        levels = getattr(request, name)
        if levels is not None and not (hasattr(levels, "__len__") and not isinstance(levels, str)):
            raise TypeError(f"{name} is a sequence of falling numbers, not {levels!r}")
        for level in () if levels is None else levels:
            _check_number(name, level.item() if isinstance(level, Tensor) else level)
    callback = request.callback_on_step_end
    if callback is not None and not callable(callback):
        raise TypeError(f"callback_on_step_end is a function, not {callback!r}")


def check_noise(request: "TextToImageRequest") -> None:
    """Seeds, generators or latents fit the number of pictures."""
    if request.seed is not None and request.generator is not None:
        raise ValueError("give either a seed or a generator, and not both")
    for name in ("seed", "generator"):
        value = getattr(request, name)
        if isinstance(value, list) and len(value) != request.batch:
            raise ValueError(f"{name} has {len(value)} entries for {request.batch} pictures: give one for each")
    for seed in request.seed if isinstance(request.seed, list) else [request.seed]:
        if seed is not None and not (_is_whole(seed) and 0 <= operator.index(seed) < 2**32):
            raise ValueError(f"a seed is a whole number from 0 to 4294967295, not {seed!r}")
    for generator in request.generator if isinstance(request.generator, list) else [request.generator]:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator is a torch.Generator or a list of them, not {type(generator).__name__}")
    _check_tensor("latents", request.latents)
