"""Captions in training: token ids of a fixed size, which networks that are trained read anew each time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ldm.training.stage import Batch
from text_encoder import CLIPTextEncoder, PairedTextEncoder, TextEmbedding

MOST = 3  # chunks of 75 tokens that a caption may have


def encoders_of(encoder: CLIPTextEncoder | PairedTextEncoder) -> list[CLIPTextEncoder]:
    """SDXL's two, or the one."""
    return [encoder.first, encoder.second] if isinstance(encoder, PairedTextEncoder) else [encoder]


def chunks_of(encoder: CLIPTextEncoder | PairedTextEncoder, caption: str) -> int:
    """How many chunks of 75 tokens a caption takes."""
    return max(len(one.chunks([caption], "plain")[0]) for one in encoders_of(encoder))


def chunks_for(encoder: CLIPTextEncoder | PairedTextEncoder, captions: Iterable[str]) -> int:
    """Chunks that all of the captions fit into, at most MOST: what is longer is cut, which the check reports."""
    return min(max((chunks_of(encoder, caption) for caption in set(captions)), default=1), MOST)


def token_ids(encoder: CLIPTextEncoder | PairedTextEncoder, caption: str, chunks: int) -> Batch:
    """A caption as each encoder reads it, `ids`, `ids_2` (chunks, n), and the number of chunks that are its own, ()."""
    rows = [one.chunks([caption], "plain")[0][:chunks] for one in encoders_of(encoder)]
    read = {"own_chunks": torch.tensor(max(map(len, rows)))}
    for name, one, own in zip(("ids", "ids_2"), encoders_of(encoder), rows, strict=False):
        filled: Sequence[list[tuple[int, float]]] = [*own, *[[]] * (chunks - len(own))]
        framed = [one.tokenizer.frame([token for token, _ in chunk], one.length) for chunk in filled]
        read[name] = torch.tensor(framed)
    return read


def embed(encoder: CLIPTextEncoder | PairedTextEncoder, batch: Batch) -> TextEmbedding:
    """What the pipeline makes of the same captions: tokens (b, chunks * n, d), mask, pooled (b, p) or None."""
    found: list[Tensor] = []
    pooled: Tensor | None = None
    for name, one in zip(("ids", "ids_2"), encoders_of(encoder), strict=False):
        b, chunks, _ = batch[name].shape
        tokens, end = one.model(batch[name].flatten(0, 1), one.policy.skip, one.policy.norm)  # (b * chunks, n, d)
        found.append(tokens.reshape(b, chunks * one.length, -1))
        pooled = end[::chunks] if one.policy.pooled else None
    return TextEmbedding(torch.cat(found, dim=-1), own_mask(batch["own_chunks"], chunks, one.length), pooled)


def own_mask(own: Tensor, chunks: int, length: int) -> Tensor | None:
    """Hides the chunks beyond a caption's own: (b,) -> (b, chunks * length), None where there is but one."""
    if chunks == 1:
        return None
    return (torch.arange(chunks, device=own.device) < own[:, None]).repeat_interleave(length, dim=1)


def freeze_unread(encoder: CLIPTextEncoder | PairedTextEncoder) -> None:
    """Leaves out of training what no loss ever reaches: layers behind those that are read."""
    *others, last = encoders_of(encoder)
    for one in [*others, *([] if last.policy.pooled else [last])]:
        layers = one.model.text_model.encoder.layers
        unread: list[nn.Module] = list(layers)[len(layers) - one.policy.skip :] if one.policy.skip else []
        if not one.policy.norm:
            unread.append(one.model.text_model.final_layer_norm)
        if one.model.config.projection_dim is not None:
            unread.append(one.model.text_projection)
        for module in unread:
            module.requires_grad_(False)
