"""Scenes encoded beforehand: an autoencoder that is not trained any more need not see the same picture twice."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.keyed import digest
from ldm.data.emoji_scenes.rendering import render
from vae import AutoencoderKL
from vae.pixels import from_pil

_BATCH = 64


class _Pictures(Dataset[Tensor]):
    def __init__(self, scenes: EmojiScenes, size: int, count: int) -> None:
        self.scenes, self.size, self.count = scenes, size, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return from_pil([render(self.scenes[index], self.size)])[0]


def latents_of(
    autoencoder: AutoencoderKL, scenes: EmojiScenes, size: int, count: int, path: Path, workers: int = 0
) -> Tensor:
    """Latents of the first `count` scenes at `size` pixels, (count, c, h, w) float16, from `path` or, if the file there
    is of other scenes or weights, anew. On several processes the first one computes them."""
    key = str(digest(size, count, scenes.seed, scenes.held, scenes.world.config, _sum(autoencoder)))
    with PartialState().main_process_first():
        if not path.exists() or _key(path) != key:
            encoded = _encode(autoencoder, _Pictures(scenes, size, count), workers)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latents": encoded}, path.with_suffix(".part"), {"key": key})
            path.with_suffix(".part").replace(path)
    with safe_open(path, "pt") as file:
        latents: Tensor = file.get_tensor("latents")
    return latents


@torch.no_grad()
def _encode(autoencoder: AutoencoderKL, pictures: _Pictures, workers: int) -> Tensor:
    device = PartialState().device
    autoencoder = autoencoder.to(device)
    parts = []
    for images in tqdm(DataLoader(pictures, _BATCH, num_workers=workers), desc="encoding scenes", unit_scale=_BATCH):
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(autoencoder.encode(images.to(device)).mode().to("cpu", torch.float16))
    autoencoder.cpu()
    return torch.cat(parts)


def _key(path: Path) -> str | None:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("key")
    except SafetensorError:  # cut off: encoded again
        return None


def _sum(autoencoder: AutoencoderKL) -> str:
    """A digest of the weights."""
    state = autoencoder.state_dict().values()
    return blake2b(b"".join(value.float().cpu().contiguous().numpy().tobytes() for value in state)).hexdigest()
