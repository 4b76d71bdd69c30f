"""Scenes encoded beforehand: an autoencoder that is not trained any more need not see the same picture twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from ldm.training.device import suited
from ldm.training.interrupt import deaf
from vae import AutoencoderKL

SHARD = 10_000  # scenes of a file: what is lost when the encoding is interrupted
_BATCH = 64


@dataclass(frozen=True)
class _Shard:
    """A file of latents: of which scenes, and the key that says so and by which weights."""

    path: Path
    numbers: range
    key: str


def latents_of(
    autoencoder: AutoencoderKL, scenes: EmojiScenes, size: int, count: int, folder: Path, workers: int = 0
) -> Tensor:
    """Latents of the first `count` scenes at `size` pixels, (count, c, h, w) float16.

    They are kept in `folder`, `SHARD` scenes a file. What is missing there, damaged or of other scenes or weights is
    encoded; several processes share that work and then all read all files.
    """
    processes, common = PartialState(), (size, scenes.seed, scenes.held, scenes.world.config, _sum(autoencoder))
    shards = []
    for number, first in enumerate(range(0, count, SHARD)):
        numbers = range(first, min(first + SHARD, count))
        shards.append(_Shard(folder / f"{number:05d}.safetensors", numbers, str(digest(*common, first, len(numbers)))))
    mine = shards[processes.process_index :: processes.num_processes]
    todo = [shard for shard in mine if _key(shard.path) != shard.key]
    if todo:
        _encode(autoencoder, _Pictures(scenes, size), todo, workers)
    processes.wait_for_everyone()
    return _read(shards)


class _Pictures(Dataset[Tensor]):
    """Scene by scene (size, size, 3) uint8: a quarter of the bytes that workers would send as float32."""

    def __init__(self, scenes: EmojiScenes, size: int) -> None:
        self.scenes, self.size = scenes, size

    def __getitem__(self, index: int) -> Tensor:
        picture = render(self.scenes[index], self.size)
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(self.size, self.size, 3)


def _encode(autoencoder: AutoencoderKL, pictures: _Pictures, shards: Sequence[_Shard], workers: int) -> None:
    """Writes the files. One loader serves them all, so that its workers draw on while a file is written."""
    processes = PartialState()
    device = processes.device
    batches = [[*shard.numbers[i : i + _BATCH]] for shard in shards for i in range(0, len(shard.numbers), _BATCH)]
    loader = DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=deaf,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # of seeds for workers, which pictures do not use: not the run's own
    )
    network = suited(autoencoder.to(device))
    with tqdm(loader, "encoding scenes", unit_scale=_BATCH, disable=not processes.is_main_process) as shown:
        source = iter(shown)
        for shard in shards:
            parts = [_latents(network, next(source), device) for _ in range(0, len(shard.numbers), _BATCH)]
            _write(shard, torch.cat(parts).cpu())  # the only wait for the device
    autoencoder.cpu()


@torch.no_grad()
def _latents(autoencoder: AutoencoderKL, pictures: Tensor, device: torch.device) -> Tensor:
    """(b, size, size, 3) uint8 -> (b, c, h, w) float16 on the device."""
    images = 2 * (pictures.to(device, non_blocking=True).permute(0, 3, 1, 2) / 255) - 1
    with torch.autocast(device.type, torch.bfloat16):
        return autoencoder.encode(images).mode().half()


def _write(shard: _Shard, latents: Tensor) -> None:
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    draft = shard.path.with_suffix(".part")
    save_file({"latents": latents.contiguous()}, draft, {"key": shard.key})
    draft.replace(shard.path)


def _read(shards: Sequence[_Shard]) -> Tensor:
    """All files in one tensor of ordinary memory: forked workers see it without a copy, others get it shared."""
    latents = torch.empty(0)
    for shard in shards:
        with safe_open(shard.path, "pt") as file:
            part = file.get_tensor("latents")
        if not len(latents):
            latents = part.new_empty(shards[-1].numbers.stop, *part.shape[1:])
        latents[shard.numbers.start : shard.numbers.stop] = part
    return latents


def _key(path: Path) -> str | None:
    """The key of a file that is there and whole."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("key")
    except (FileNotFoundError, SafetensorError):  # cut off: encoded again
        return None


def _sum(autoencoder: AutoencoderKL) -> str:
    """A digest of the weights."""
    state = autoencoder.state_dict().values()
    return blake2b(b"".join(value.float().cpu().contiguous().numpy().tobytes() for value in state)).hexdigest()
