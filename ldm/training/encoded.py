"""What does not change in training, encoded once: the latents of pictures and the tokens of captions, on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from tqdm import tqdm

from ldm.checkpoint.hash import hash_of_state
from ldm.data.pictures.cache import Cache, key_of
from ldm.data.pictures.set import Outline, Pictures
from ldm.model import LatentDiffusion
from ldm.training.reading import embed, token_ids
from ldm.training.stage import Batch
from vae.pixels import from_pil


@torch.no_grad()
def encode_pictures(
    model: LatentDiffusion,
    examples: Sequence[tuple[Pictures, Outline]],
    folder: Path,
    *,
    device: torch.device,
    progress: bool = True,
) -> Cache:
    """The distribution of each example's latents, `mean` and `std` (c, h, w) float32, under its key.

    The cache is that of these weights of the autoencoder, in this precision. Processes share the work.
    """
    autoencoder = model.autoencoder.to(device)
    cache = Cache(folder / "latents" / identity(autoencoder))
    state = PartialState()
    mine = examples[state.process_index :: state.num_processes]
    for pictures, outline in tqdm(mine, "encoding pictures", disable=not progress, leave=False):
        if cache.get(outline.key) is None:
            found = autoencoder.encode(from_pil([pictures.opened(outline).image]).to(device))
            try:
                cache.put(outline.key, {"mean": found.mean[0], "std": found.std[0]})
            except ValueError as error:
                raise ValueError(
                    f"the autoencoder makes no numbers of {outline.name}: leave it out ({error})"
                ) from error
    state.wait_for_everyone()
    return cache


@torch.no_grad()
def encode_texts(
    model: LatentDiffusion, captions: Iterable[str], chunks: int, folder: Path, *, device: torch.device
) -> Cache:
    """`tokens` (chunks * n, d) and `pooled` (p,), where there is one, of each caption, under `text_key`."""
    encoder = model.text_encoder.to(device)
    cache = Cache(folder / "texts" / f"{identity(encoder)}-{chunks}")
    state = PartialState()
    for caption in sorted({*captions, ""})[state.process_index :: state.num_processes]:
        ids = token_ids(encoder, caption, chunks)
        if cache.get(text_key(ids)) is None:
            text = embed(encoder, {name: value[None].to(device) for name, value in ids.items()})
            entry = {"tokens": text.tokens[0].cpu()}
            if text.pooled is not None:
                entry["pooled"] = text.pooled[0].cpu()
            cache.put(text_key(ids), entry)
    state.wait_for_everyone()
    return cache


def identity(network: nn.Module) -> str:
    """16 hex digits of a network's weights, their precision, and what it makes of them."""
    parts = [(repr(getattr(part, "config", "")), repr(getattr(part, "policy", ""))) for part in network.modules()]
    return key_of(hash_of_state(network), [part for part in parts if part != ("''", "''")])[:16]


def text_key(ids: Batch) -> str:
    """The key of a caption's entry: what the encoders read of it."""
    return key_of(*(ids[name].tolist() for name in sorted(ids)))
