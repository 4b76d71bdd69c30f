"""From the texts of a request to what the denoiser is told: the positive and the negative conditioning."""

from dataclasses import replace

import torch
from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.model import LatentDiffusion
from pipelines.request import Size, TextToImageRequest
from text_encoder import PairedTextEncoder, TextEmbedding

Pair = tuple[TextEmbedding, TextEmbedding | None]


def encode(
    model: LatentDiffusion, request: TextToImageRequest, size: Size, guidance: float
) -> tuple[Conditioning, Conditioning | None]:
    """(positive, negative) conditioning of every picture of the request; negative is None without guidance.

    size: (height, width) in pixels, SDXL's default size condition. guidance: the weight w.
    """
    distilled = model.unet.config.guidance_dim > 0
    guided = guidance > 1 and not distilled
    positive, negative = _given(model, request, guided) if request.prompts is None else _read(model, request, guided)
    ids, negative_ids = _size_ids(model, request, size)
    cond = _conditioning(model, positive, ids)
    if distilled:
        cond = replace(cond, guidance=torch.full((len(cond.context),), guidance - 1, device=cond.context.device))
    uncond = None if negative is None else _conditioning(model, negative, negative_ids)
    n, hint = request.num_images_per_prompt, torch.arange(len(cond.context))  # each prompt may have its control image
    cond = replace(cond, hint=hint)
    uncond = None if uncond is None else replace(uncond, hint=hint)
    return cond.repeat(n), None if uncond is None else uncond.repeat(n)


def _conditioning(model: LatentDiffusion, text: TextEmbedding, ids: tuple[float, ...]) -> Conditioning:
    if model.unet.config.vector != "text_time":
        return Conditioning(text.tokens, text.mask)
    assert text.pooled is not None, "an SDXL text encoder pools"
    sizes = torch.tensor([ids], dtype=torch.float32, device=text.tokens.device).repeat(len(text.tokens), 1)  # (b, k)
    return Conditioning(text.tokens, text.mask, text.pooled, sizes)


# text


def _read(model: LatentDiffusion, request: TextToImageRequest, guided: bool) -> Pair:
    """Prompts and negative prompts, encoded in one call, so that all have the same number of tokens."""
    n = len(request.prompts or ())
    with_negative = guided and request.negative_prompt_embeds is None
    first = _as_list(request.prompt, n) + _as_list(request.negative_prompt, n) * with_negative
    second = _second(request, n, with_negative)
    both = _encode(model, request, first, second, request.clip_skip)
    positive = _rows(both, slice(n))
    if not guided:
        return positive, None
    if request.negative_prompt_embeds is not None:
        return _same_mask(positive, _given_negative(model, request, positive))
    if request.clip_skip:  # diffusers skips layers of the positive prompt alone
        both = _encode(model, request, first, second, None)
    negative = _rows(both, slice(n, None))
    return _same_mask(positive, _zeros(negative) if _zero_negative(model, request) else negative)


def _second(request: TextToImageRequest, n: int, with_negative: bool) -> list[str] | None:
    """What SDXL's second encoder reads, None for the same as the first."""
    if request.prompt_2 is None and request.negative_prompt_2 is None:
        return None
    prompt = request.prompt if request.prompt_2 is None else request.prompt_2
    negative = request.negative_prompt if request.negative_prompt_2 is None else request.negative_prompt_2
    return _as_list(prompt, n) + _as_list(negative, n) * with_negative


def _as_list(text: str | list[str] | None, n: int) -> list[str]:
    return text if isinstance(text, list) else [text or ""] * n


def _encode(
    model: LatentDiffusion, request: TextToImageRequest, first: list[str], second: list[str] | None, skip: int | None
) -> TextEmbedding:
    encoder, syntax = model.text_encoder, request.prompt_syntax
    if isinstance(encoder, PairedTextEncoder):
        return encoder.forward(first, second, clip_skip=skip, syntax=syntax)
    if second is not None:
        raise ValueError("prompt_2 and negative_prompt_2 are for models with two text encoders; this one has one")
    return encoder.forward(first, clip_skip=skip, syntax=syntax)


def _rows(text: TextEmbedding, rows: slice) -> TextEmbedding:
    mask = None if text.mask is None else text.mask[rows]
    return TextEmbedding(text.tokens[rows], mask, None if text.pooled is None else text.pooled[rows])


def _same_mask(positive: TextEmbedding, negative: TextEmbedding) -> Pair:
    """A token counts in both halves of a picture's guidance or in neither, whatever else is in the batch."""
    masks = [text.mask for text in (positive, negative) if text.mask is not None]
    mask = masks[0] | masks[-1] if masks else None
    return replace(positive, mask=mask), replace(negative, mask=mask)


def _zero_negative(model: LatentDiffusion, request: TextToImageRequest) -> bool:
    """Whether an absent negative prompt is zeros instead of the empty text: SDXL's way, unless its index says no."""
    xl = model.unet.config.vector == "text_time"
    absent = request.negative_prompt is None and request.negative_prompt_2 is None
    return absent and bool(model.model_index.get("force_zeros_for_empty_prompt", xl))


def _zeros(text: TextEmbedding) -> TextEmbedding:
    pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
    return TextEmbedding(torch.zeros_like(text.tokens), text.mask, pooled)


# embeddings that the caller brings


def _given(model: LatentDiffusion, request: TextToImageRequest, guided: bool) -> Pair:
    """The caller's own embeddings; a negative that is not given is read, or zeros."""
    positive = _checked(model, request.prompt_embeds, request.pooled_prompt_embeds, "prompt_embeds")
    if not guided:
        return positive, None
    if request.negative_prompt_embeds is not None:
        return positive, _given_negative(model, request, positive)
    if _zero_negative(model, request):
        return positive, _zeros(positive)
    n = len(positive.tokens)
    second = None if request.negative_prompt_2 is None else _as_list(request.negative_prompt_2, n)
    negative = _encode(model, request, _as_list(request.negative_prompt, n), second, None)
    return positive, replace(_fitting(negative, positive, "the negative prompt"), mask=None)


def _given_negative(model: LatentDiffusion, request: TextToImageRequest, positive: TextEmbedding) -> TextEmbedding:
    name = "negative_prompt_embeds"
    negative = _checked(model, request.negative_prompt_embeds, request.negative_pooled_prompt_embeds, name)
    return _fitting(negative, positive, name)


def _fitting(negative: TextEmbedding, positive: TextEmbedding, name: str) -> TextEmbedding:
    ours, theirs = tuple(negative.tokens.shape), tuple(positive.tokens.shape)
    if ours != theirs:
        raise ValueError(
            f"{name} has the shape {ours} and the prompt {theirs} (prompts, tokens, width): make them equal"
        )
    return negative


def _checked(model: LatentDiffusion, tokens: Tensor | None, pooled: Tensor | None, name: str) -> TextEmbedding:
    assert tokens is not None
    width, place = model.unet.config.context_dim, next(model.text_encoder.parameters())
    if tokens.ndim != 3 or tokens.shape[-1] != width:
        raise ValueError(f"{name} must be (prompts, tokens, {width}) for this model, not {tuple(tokens.shape)}")
    tokens = tokens.to(place)
    if model.unet.config.vector != "text_time":
        return TextEmbedding(tokens)
    ids = 5 if model.model_index.get("requires_aesthetics_score") else 6
    shape = (len(tokens), model.unet.config.vector_dim - ids * model.unet.config.size_dim)
    if pooled is None or tuple(pooled.shape) != shape:
        found = "nothing" if pooled is None else tuple(pooled.shape)
        raise ValueError(
            f"{name} of an SDXL model needs {name.replace('prompt', 'pooled_prompt')} {shape}, got {found}"
        )
    return TextEmbedding(tokens, None, pooled.to(place))


# SDXL's size conditions


def _size_ids(
    model: LatentDiffusion, request: TextToImageRequest, size: Size
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The ids of the positive and of the negative half.

    Those of the negative are the same unless, as in diffusers, both of its sizes are given; the refiner has its own.
    """
    original, target = request.original_size or size, request.target_size or size
    crop, negative_crop = request.crops_coords_top_left, request.negative_crops_coords_top_left
    if model.model_index.get("requires_aesthetics_score"):
        negative = request.negative_original_size or original
        return (
            (*original, *crop, request.aesthetic_score),
            (*negative, *negative_crop, request.negative_aesthetic_score),
        )
    ids = (*original, *crop, *target)
    if request.negative_original_size is None or request.negative_target_size is None:
        return ids, ids
    return ids, (*request.negative_original_size, *negative_crop, *request.negative_target_size)
