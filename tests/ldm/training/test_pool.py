"""Scenes encoded beforehand: the latents of the autoencoder, whatever was there before, by however many processes."""

from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor

from ldm.data.emoji_scenes import EmojiScenes, World, render
from ldm.training import pool
from ldm.training.pool import latents_of
from tests.ldm.training.conftest import RUN, two_processes
from vae import AutoencoderKL
from vae.pixels import from_pil

COUNT, SHARD = 10, 4
SCENES = EmojiScenes("train", 0, world=World(RUN.world))


@pytest.fixture
def one_thread():
    """As processes that share a machine have: more of them divide the sums otherwise, which rounds otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(pool, "SHARD", SHARD)
    monkeypatch.setattr(pool, "_BATCH", 3)  # divides neither the files nor the whole


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(RUN.autoencoder.model)


def encode(autoencoder: AutoencoderKL, folder: Path, count: int = COUNT, workers: int = 0) -> Tensor:
    return latents_of(autoencoder, SCENES, RUN.size, count, folder, workers)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("workers", [0, 2])
def test_latents_are_the_autoencoders_in_the_order_of_the_scenes(autoencoder, tmp_path, workers):
    found = encode(autoencoder, tmp_path, workers=workers)
    with torch.no_grad():
        images = from_pil([render(SCENES[i], RUN.size) for i in range(COUNT)])
        expected = autoencoder.encode(images).mode()
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)  # it ran in bfloat16
    assert [len(load_file(path)["latents"]) for path in sorted(tmp_path.iterdir())] == [4, 4, 2]
    differences = [(a - b).abs().max() for a, b in pairwise(expected)]
    assert min(differences) > 0.1  # or their order would not show


def test_an_interrupted_encoding_goes_on(autoencoder, tmp_path, monkeypatch):
    real = pool._latents
    asked: list[int] = []

    def cut_off(*args):
        if len(asked) == 3:  # in the second file
            raise KeyboardInterrupt
        asked.append(len(args[1]))
        return real(*args)

    monkeypatch.setattr(pool, "_latents", cut_off)
    with pytest.raises(KeyboardInterrupt):
        encode(autoencoder, tmp_path)
    before = times(tmp_path)
    assert list(before) == ["00000.safetensors"]
    monkeypatch.setattr(pool, "_latents", real)
    resumed = encode(autoencoder, tmp_path)
    assert times(tmp_path)["00000.safetensors"] == before["00000.safetensors"]
    assert torch.equal(resumed, encode(autoencoder, tmp_path.with_name("whole")))


def test_files_are_kept_until_the_weights_change(autoencoder, tmp_path):
    first = encode(autoencoder, tmp_path)
    before = times(tmp_path)
    assert torch.equal(encode(autoencoder, tmp_path), first)
    assert times(tmp_path) == before
    with torch.no_grad():
        autoencoder.encoder.conv_in.weight.mul_(2)
    assert not torch.equal(encode(autoencoder, tmp_path), first)
    assert all(time > before[name] for name, time in times(tmp_path).items())


def test_a_longer_pool_keeps_the_full_files(autoencoder, tmp_path):
    encode(autoencoder, tmp_path)
    before = times(tmp_path)
    longer = encode(autoencoder, tmp_path, COUNT + 1)
    changed = {name for name, time in times(tmp_path).items() if time != before[name]}
    assert changed == {"00002.safetensors"}
    assert torch.equal(longer[:COUNT], encode(autoencoder, tmp_path))


def test_a_file_that_is_damaged_or_another_is_made_anew(autoencoder, tmp_path):
    first = encode(autoencoder, tmp_path)
    path = tmp_path / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert torch.equal(encode(autoencoder, tmp_path), first)
    path.write_bytes((tmp_path / "00000.safetensors").read_bytes())
    assert torch.equal(encode(autoencoder, tmp_path), first)


def test_two_processes_share_the_files_and_read_them_all(one_thread, autoencoder, tmp_path):
    mp.spawn(_one_of_two, args=(tmp_path,), nprocs=2)
    alone = encode(autoencoder, tmp_path / "alone")
    for rank in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone)
    assert {path.read_text() for path in tmp_path.glob("wrote-*")} == {"00000 00002", "00001"}


def _one_of_two(rank: int, folder: Path) -> None:
    pool.SHARD = SHARD
    with two_processes(rank):
        PartialState(cpu=True)
        real, wrote = pool._write, []
        pool._write = lambda shard, latents: (wrote.append(shard.path.stem), real(shard, latents))[1]
        torch.manual_seed(0)
        latents = encode(AutoencoderKL(RUN.autoencoder.model), folder / "pair")
        torch.save(latents, folder / f"{rank}.pt")
        (folder / f"wrote-{rank}").write_text(" ".join(wrote))


def test_processes_that_are_not_forked_share_the_pool(autoencoder, tmp_path):
    """What they unpickle is the parent's memory: they see what it writes there later."""
    latents = encode(autoencoder, tmp_path)
    theirs = ForkingPickler.loads(ForkingPickler.dumps(latents))
    latents.fill_(3.0)
    assert latents.is_shared()
    assert torch.equal(theirs, latents)
