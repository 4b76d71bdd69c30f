"""From the texts of a request to what the denoiser is told: the positive and the negative conditioning."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ldm.conditioning import Conditioning, text_time_vector
from ldm.model import LatentDiffusion
from pipelines.request import TextToImageRequest
from text_encoder import PairedTextEncoder, TextEmbedding


def encode(
    model: LatentDiffusion, request: TextToImageRequest, size: tuple[int, int], guidance: float
) -> tuple[Conditioning, Conditioning | None]:
    """(positive, negative) conditioning of every picture of the request; negative is None without guidance.

    size: (height, width) in pixels, SDXL's default size condition. guidance: the weight w.
    """
    distilled = model.unet.config.guidance_dim > 0
    guided = guidance > 1 and not distilled
    positive, negative = _embeddings(model, request, guided)
    cond = Conditioning(
        positive.tokens, positive.mask, _vector(model, positive.pooled, _size_ids(request, size, model))
    )
    if distilled:
        cond = replace(cond, guidance=torch.full((len(positive.tokens),), guidance - 1, device=positive.tokens.device))
    if negative is None:
        return cond.repeat(request.num_images_per_prompt), None
    ids = _negative_size_ids(request, size, model)
    uncond = Conditioning(negative.tokens, negative.mask, _vector(model, negative.pooled, ids))
    return cond.repeat(request.num_images_per_prompt), uncond.repeat(request.num_images_per_prompt)


def _embeddings(
    model: LatentDiffusion, request: TextToImageRequest, guided: bool
) -> tuple[TextEmbedding, TextEmbedding | None]:
    """Positive and negative text, one row for each prompt, padded to the same number of tokens."""
    if request.prompts is None:
        return _given_embeddings(model, request, guided)
    n = len(request.prompts)
    first, second = _texts(request, guided)
    both = _encode_texts(model, request, first, second, request.clip_skip)
    if not guided:
        return both, None
    positive, negative = _rows(both, slice(n)), _rows(both, slice(n, None))
    if request.clip_skip is not None:  # diffusers skips layers of the positive prompt alone
        negative = _rows(_encode_texts(model, request, first, second, None), slice(n, None))
    if request.negative_prompt_embeds is not None:
        negative = _given_negative(model, request, positive)
    elif request.negative_prompt is None and model.model_index.get("force_zeros_for_empty_prompt"):
        negative = _zeros(negative)
    return _same_mask(positive, negative)


def _texts(request: TextToImageRequest, guided: bool) -> tuple[list[str], list[str] | None]:
    """What the first and the second encoder read: the prompts, and behind them the negatives where they are used."""
    n = len(request.prompts or [])
    first = _as_list(request.prompt, n) + (_as_list(request.negative_prompt or "", n) if guided else [])
    if request.prompt_2 is None and request.negative_prompt_2 is None:
        return first, None
    prompt_2 = request.prompt if request.prompt_2 is None else request.prompt_2
    negative_2 = request.negative_prompt if request.negative_prompt_2 is None else request.negative_prompt_2
    return first, _as_list(prompt_2, n) + (_as_list(negative_2 or "", n) if guided else [])


def _as_list(text: str | list[str] | None, n: int) -> list[str]:
    return text if isinstance(text, list) else [text or ""] * n


def _encode_texts(
    model: LatentDiffusion, request: TextToImageRequest, first: list[str], second: list[str] | None, skip: int | None
) -> TextEmbedding:
    encoder, syntax = model.text_encoder, request.prompt_syntax
    if isinstance(encoder, PairedTextEncoder):
        return encoder.forward(first, second, clip_skip=skip, syntax=syntax)
    if second is not None:
        raise ValueError("prompt_2 and negative_prompt_2 are for models with two text encoders; this one has one")
    return encoder.forward(first, clip_skip=skip, syntax=syntax)


def _rows(text: TextEmbedding, rows: slice) -> TextEmbedding:
    mask, pooled = text.mask, text.pooled
    return TextEmbedding(
        text.tokens[rows], mask if mask is None else mask[rows], pooled if pooled is None else pooled[rows]
    )


def _zeros(text: TextEmbedding) -> TextEmbedding:
    pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
    return TextEmbedding(torch.zeros_like(text.tokens), text.mask, pooled)


def _same_mask(positive: TextEmbedding, negative: TextEmbedding) -> tuple[TextEmbedding, TextEmbedding]:
    """A token counts in both halves of a picture's guidance or in neither, whatever else is in the batch."""
    if positive.mask is None or negative.mask is None:
        return positive, negative
    mask = positive.mask | negative.mask
    return replace(positive, mask=mask), replace(negative, mask=mask)


def _given_embeddings(
    model: LatentDiffusion, request: TextToImageRequest, guided: bool
) -> tuple[TextEmbedding, TextEmbedding | None]:
    """The caller's own embeddings; a missing negative is the empty prompt."""
    positive = _given(model, request.prompt_embeds, request.pooled_prompt_embeds, "prompt_embeds")
    if not guided:
        return positive, None
    if request.negative_prompt_embeds is not None:
        return positive, _given_negative(model, request, positive)
    empty = _encode_texts(model, request, _as_list(request.negative_prompt or "", len(positive.tokens)), None, None)
    zeros = request.negative_prompt is None and model.model_index.get("force_zeros_for_empty_prompt")
    return positive, _zeros(empty) if zeros else empty


def _given_negative(model: LatentDiffusion, request: TextToImageRequest, positive: TextEmbedding) -> TextEmbedding:
    embeds, pooled = request.negative_prompt_embeds, request.negative_pooled_prompt_embeds
    negative = _given(model, embeds, pooled, "negative_prompt_embeds")
    if negative.tokens.shape != positive.tokens.shape:
        shapes = tuple(negative.tokens.shape), tuple(positive.tokens.shape)
        raise ValueError(f"negative_prompt_embeds {shapes[0]} must have the shape of the prompt's, {shapes[1]}")
    return negative


def _given(model: LatentDiffusion, tokens: Tensor | None, pooled: Tensor | None, name: str) -> TextEmbedding:
    assert tokens is not None
    width = model.unet.config.context_dim
    if tokens.ndim != 3 or tokens.shape[-1] != width:
        raise ValueError(f"{name} must be (prompts, tokens, {width}) for this model, not {tuple(tokens.shape)}")
    if model.unet.config.vector == "text_time" and pooled is None:
        raise ValueError(f"{name} of an SDXL model needs its pooled vector too: give {_pooled_name(name)}")
    pooled = None if pooled is None else pooled.to(model.device, model.dtype)
    return TextEmbedding(tokens.to(model.device, model.dtype), None, pooled)


def _pooled_name(name: str) -> str:
    return name.replace("prompt_embeds", "pooled_prompt_embeds")


def _vector(model: LatentDiffusion, pooled: Tensor | None, ids: Sequence[float]) -> Tensor | None:
    if model.unet.config.vector != "text_time":
        return None
    assert pooled is not None, "an SDXL text encoder pools"
    return text_time_vector(pooled, ids, model.unet.config.size_dim)


def _size_ids(request: TextToImageRequest, size: tuple[int, int], model: LatentDiffusion) -> tuple[float, ...]:
    original, target = request.original_size or size, request.target_size or size
    last = (request.aesthetic_score,) if model.model_index.get("requires_aesthetics_score") else target
    return (*original, *request.crops_coords_top_left, *last)


def _negative_size_ids(request: TextToImageRequest, size: tuple[int, int], model: LatentDiffusion) -> tuple[float, ...]:
    """SDXL's own ids for the negative prompt: used, as in diffusers, only when both negative sizes are given."""
    if request.negative_original_size and request.negative_target_size:
        request = replace(
            request,
            original_size=request.negative_original_size,
            crops_coords_top_left=request.negative_crops_coords_top_left,
            target_size=request.negative_target_size,
        )
    return _size_ids(replace(request, aesthetic_score=request.negative_aesthetic_score), size, model)
