"""Training on a GPU: every stage, resumed and compiled, without a step that waits for it. Run by `pytest -m cuda`."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.training import STAGES, OptimizerConfig, RunConfig
from ldm.checkpoint import load_folder
from ldm.data.emoji_scenes import EmojiScenes, World, render
from ldm.training.examples import batches
from ldm.training.muon import Muon
from ldm.training.pool import latents_of
from ldm.training.run import train
from ldm.training.stages import BUILDERS
from ldm.training.trainer import Trainer
from tests.ldm.training.conftest import RUN, with_loop
from vae import AutoencoderKL
from vae.pixels import from_pil

pytestmark = pytest.mark.cuda
SCENES = EmojiScenes("train", 0, world=World(RUN.world))


def in_bf16(run: RunConfig) -> RunConfig:
    """Three steps of each stage, the adversary in the last of them."""
    changes = {"steps": 3, "precision": "bf16", "workers": 2}
    tables = {name: getattr(run, name) for name in STAGES}
    run = replace(run, **{name: replace(table, loop=replace(table.loop, **changes)) for name, table in tables.items()})
    return replace(run, autoencoder=replace(run.autoencoder, adversarial_from=0.5))


SHORT = in_bf16(RUN)


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def output(_gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train(SHORT, folder, progress=False)
    return folder


def losses(folder: Path) -> list[float]:
    """Of every player in every step, from a stage's log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [value for line in lines for name, value in line.items() if name.endswith("/loss")]


def denoise(run: RunConfig, output: Path, folder: Path, until: int | None = None) -> dict[str, Tensor]:
    """The weights after training the denoiser on what the other stages left, or after leaving it at a step."""
    torch.manual_seed(0)
    stage, _ = BUILDERS["denoiser"](run, SCENES, output)
    for report in Trainer(stage, folder):
        if report.step == until:
            break
    return {name: value.cpu() for name, value in stage.players[0].module.state_dict().items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum((a[name] - b[name]).square().sum().item() for name in a))


def test_every_stage_trains_in_bf16(output):
    counts = {"classifier": 3, "autoencoder": 3 + 1, "text": 3, "denoiser": 3}  # the adversary comes in the last step
    found = {name: losses(output / name) for name in STAGES}
    assert {name: len(values) for name, values in found.items()} == counts
    assert all(math.isfinite(value) for values in found.values() for value in values)
    networks = load_folder(output / "model").networks().values()
    assert all(value.isfinite().all() for network in networks for value in network.state_dict().values())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_is_the_uninterrupted_one(output, tmp_path, kind):
    """To rounding: sums on a GPU have no fixed order."""
    run = with_loop(SHORT, steps=6, checkpoint_every=2, optimizer=OptimizerConfig(kind, rate=1e-2, warmup=2))
    whole = denoise(run, output, tmp_path / "whole")
    other = denoise(replace(run, seed=1), output, tmp_path / "other")
    denoise(run, output, tmp_path / "cut", until=5)
    resumed = denoise(run, output, tmp_path / "cut")
    assert distance(whole, resumed) < 0.2 * distance(whole, other)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_compiled_networks_learn_what_plain_ones_do(output, tmp_path, kind):
    run = with_loop(SHORT, steps=3, optimizer=OptimizerConfig(kind, rate=1e-2, warmup=2))
    plain = denoise(run, output, tmp_path / "plain")
    other = denoise(replace(run, seed=1), output, tmp_path / "other")
    compiled = denoise(replace(run, denoiser=replace(run.denoiser, compile=True)), output, tmp_path / "compiled")
    assert distance(plain, compiled) < 0.2 * distance(plain, other)


def test_the_pool_is_that_of_the_cpu(tmp_path):
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(RUN.autoencoder.model)
    with torch.no_grad():
        expected = autoencoder.encode(from_pil([render(SCENES[i], RUN.size) for i in range(6)])).mode()
    found = latents_of(autoencoder, SCENES, RUN.size, 6, tmp_path, workers=2)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    assert next(autoencoder.parameters()).device.type == "cpu"  # where examples are made without a pool


@contextmanager
def never_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["classifier", "autoencoder", "denoiser"])
def test_a_step_does_not_wait_for_the_gpu(output, tmp_path, name):
    run = with_loop(SHORT, optimizer=OptimizerConfig("muon", rate=1e-3))
    stage, _ = BUILDERS[name](run, SCENES, output)
    trainer = Trainer(stage, tmp_path)
    source = [trainer._here(batch) for batch in batches(stage, 0, 0, 1)]
    trainer._train(iter(source[:1]))  # the first makes what the others find
    trainer.step = 2
    trainer._train(iter(source[1:2]))
    with never_waiting():
        numbers = trainer._train(iter(source[2:]))
    assert all(value.isfinite() for value in numbers.values())


def test_kernels_lie_channels_last(output):
    stage, _ = BUILDERS["denoiser"](SHORT, SCENES, output)
    kernels = [p for p in stage.players[0].module.parameters() if p.ndim == 4]
    assert len(kernels) > 10
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_goes_where_it_goes_on_the_cpu(layout):
    shapes = [(8, 4, 3, 3), (16, 24), (24, 16), (16, 24)]
    starts = [torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n, shape in enumerate(shapes)]
    ended = []
    for device in ("cpu", "cuda"):
        params = [torch.nn.Parameter(start.to(device)) for start in starts]
        params[0].data = params[0].data.to(memory_format=layout)
        optimizer = Muon(params, lr=0.02)
        for step in range(1, 4):
            for n, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(99 * step + n)).to(device)
            optimizer.step()
        ended.append([p.detach().cpu() for p in params])
    for mine, theirs in zip(*ended, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02 * 0.02)
