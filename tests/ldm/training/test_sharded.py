"""Runs whose weights are shared out among processes are the run of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.multiprocessing as mp
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType

from configs.finetuning import FineTuneConfig
from configs.training import LoopConfig, OptimizerConfig
from ldm.training import trainer
from ldm.training.checkpoint import newest
from ldm.training.finetune import finetune
from ldm.training.sharded import require_known
from ldm.training.verify import tensors_of
from ldm.training.zero import configure
from tests.ldm.training.conftest import two_processes
from tests.ldm.training.tuning import assert_alike, config_of, pictures, plain, train

STAGE = 2


class Sharding(Accelerator):
    """accelerate's with FSDP, which it otherwise enables on GPUs alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        self.state.distributed_type = DistributedType.FSDP
        assert self.is_fsdp2


class Stepping(Accelerator):
    """accelerate's with DeepSpeed, likewise."""

    def __init__(self, *, cpu: bool, **options: Any) -> None:
        PartialState(cpu=cpu)
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu"}
        plugin = DeepSpeedPlugin(zero_stage=STAGE, gradient_accumulation_steps=1)
        super().__init__(deepspeed_plugin=plugin, **options)
        assert self.distributed_type == DistributedType.DEEPSPEED


@contextmanager
def two_shares(rank: int, kind: type[Accelerator]) -> Iterator[None]:
    with two_processes(rank), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Accelerator", kind)
        yield


def _runs_of_two(rank: int, kind: type[Accelerator], configs: list[FineTuneConfig], folder: Path) -> None:
    with two_shares(rank, kind):
        for config in configs:
            train(config, folder / config.mode, until=4)
            results = finetune(config, folder / config.mode, plain, progress=False)  # goes on, and reads what it writes
            assert bool(results) == (rank == 0)


@pytest.mark.parametrize("kind", [Sharding, Stepping])
def test_two_shares_are_one_process(tmp_path, tiny_sd_folder, kind):
    """Interrupted, and gone on with."""
    if kind is Stepping:
        pytest.importorskip("deepspeed")
    place = pictures(tmp_path / "pictures")
    loop, prior = {"batch": 4, "ema_lengths": [0.1]}, {"prompts": ["a square"], "count": 20}
    configs = [
        config_of(tiny_sd_folder, place, "full", loop=loop),
        config_of(tiny_sd_folder, place, "lora", loop=loop | {"ema": 0.0, "precision": "bf16"}, prior=prior),
    ]
    mp.spawn(_runs_of_two, args=(kind, configs, tmp_path / "pair"), nprocs=2)
    for config in configs:
        alone = train(config, tmp_path / "alone" / config.mode)
        found = newest(tmp_path / "pair" / config.mode / "checkpoints")
        assert found is not None
        pair = tensors_of(found)
        shared = {name for name in pair if name == "random" or (kind is Stepping and "optimizer" in name)}
        one, other = ({n: v for n, v in each.items() if n not in shared} for each in (alone, pair))
        assert all(other[name].shape == value.shape for name, value in one.items() if "optimizer" not in name)
        assert_alike(one, other, 0.05 if config.loop.precision == "no" else 0.1)
    drawn = sorted((tmp_path / "pair" / "lora").glob("prior-*/*.png"))
    assert [path.name for path in drawn] == [f"class-{number:05d}.png" for number in range(20)]  # each by one of both


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="by FSDP or DeepSpeed, not by Megatron"):
        require_known(SimpleNamespace(distributed_type=DistributedType.MEGATRON_LM))
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        require_known(SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False))


@pytest.mark.parametrize(
    ("stage", "device", "loop", "players", "told"),
    [
        (3, "none", {}, 1, "zero_stage 3: set 1 or 2, or take FSDP"),
        (2, "cpu", {}, 1, "offload_optimizer_device: set none"),
        (2, "none", {"precision": "fp16"}, 1, 'precision = "fp16": set "bf16"'),
        (2, "none", {"optimizer": OptimizerConfig("muon")}, 1, 'optimizer.kind = "muon"'),
        (2, "none", {}, 2, "two networks that are trained in turns"),
    ],
)
def test_what_deepspeed_cannot_do_here_is_named(stage, device, loop, players, told):
    config = {"zero_optimization": {"offload_optimizer": {"device": device}}}
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config=config)
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), num_processes=2)
    with pytest.raises(ValueError, match=told):
        configure(accelerator, LoopConfig(steps=1, batch=4, **loop), players)
