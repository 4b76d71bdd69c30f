"""Runs whose weights are shared out among processes are the run of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch import nn

from configs.finetuning import FineTuneConfig
from configs.training import LoopConfig, OptimizerConfig
from ldm.training import trainer
from ldm.training.checkpoint import newest
from ldm.training.finetune import finetune
from ldm.training.sharded import prepare_sharing, require_known
from ldm.training.verify import tensors_of
from ldm.training.zero import configure, require_same
from tests.ldm.training.conftest import two_processes
from tests.ldm.training.tuning import assert_alike, config_of, pictures, plain, train


class Sharding(Accelerator):
    """accelerate's with FSDP, which it otherwise enables on GPUs alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        plugin = FullyShardedDataParallelPlugin(2, auto_wrap_policy="transformer_based_wrap")
        if self.mixed_precision != "no":  # as accelerate does
            plugin.set_mixed_precision(self.mixed_precision)
        self.state.fsdp_plugin = plugin
        self.state.distributed_type = DistributedType.FSDP
        assert self.is_fsdp2


class Stepping(Accelerator):
    """accelerate's with DeepSpeed, likewise."""

    stage = 2

    def __init__(self, *, cpu: bool, **options: Any) -> None:
        PartialState(cpu=cpu)
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu"}
        plugin = DeepSpeedPlugin(zero_stage=self.stage, gradient_accumulation_steps=1)
        super().__init__(deepspeed_plugin=plugin, **options)
        assert self.distributed_type == DistributedType.DEEPSPEED


class SteppingFirst(Stepping):
    stage = 1


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


@pytest.mark.parametrize("kind", [Sharding, Stepping, SteppingFirst])
def test_two_shares_are_one_process(tmp_path, tiny_sd_folder, kind):
    """Interrupted, and gone on with."""
    if kind is not Sharding:
        pytest.importorskip("deepspeed")
    place = pictures(tmp_path / "pictures")
    loop, prior = {"batch": 4, "ema_lengths": [0.1]}, {"prompts": ["a square"], "count": 20}
    configs = [
        config_of(tiny_sd_folder, place, "full", loop=loop | {"accumulation": 2}),
        config_of(tiny_sd_folder, place, "lora", loop=loop | {"ema": 0.0, "precision": "bf16"}, prior=prior),
    ]
    mp.spawn(_runs_of_two, args=(kind, configs, tmp_path / "pair"), nprocs=2)
    for config in configs:
        alone = train(config, tmp_path / "alone" / config.mode)
        found = newest(tmp_path / "pair" / config.mode / "checkpoints")
        assert found is not None
        pair = tensors_of(found)
        shared = {name for name in pair if name == "random" or (kind is not Sharding and "optimizer" in name)}
        one, other = ({n: v for n, v in each.items() if n not in shared} for each in (alone, pair))
        assert all(other[name].shape == value.shape for name, value in one.items() if "optimizer" not in name)
        assert_alike(one, other)
    drawn = sorted((tmp_path / "pair" / "lora").glob("prior-*/*.png"))
    assert [path.name for path in drawn] == [f"class-{number:05d}.png" for number in range(20)]  # each by one of both


def _half_of_two(rank: int, kind: type[Accelerator], config: FineTuneConfig, folder: Path, refused: str) -> None:
    """Goes on with a run of one process, where it can; and leaves the half of another."""
    with two_shares(rank, kind):
        with pytest.raises(ValueError, match=refused) if refused else nullcontext():
            train(config, folder / "one")
        train(config, folder / "two", until=4)


@pytest.mark.parametrize("kind", [Sharding, Stepping])
def test_a_run_goes_on_shared_out_or_not(tmp_path, tiny_sd_folder, kind):
    refused = "" if kind is Sharding else "was begun with no DeepSpeed, and this is DeepSpeed on 2 processes"
    if refused:
        pytest.importorskip("deepspeed")
    config = config_of(tiny_sd_folder, pictures(tmp_path / "pictures"), "lora")
    alone = train(config, tmp_path / "alone")
    train(config, tmp_path / "one", until=4)
    mp.spawn(_half_of_two, args=(kind, config, tmp_path, refused), nprocs=2)
    if refused:
        with pytest.raises(ValueError, match="was begun with DeepSpeed on 2 processes, and this is no DeepSpeed"):
            train(config, tmp_path / "two")
        return
    found = newest(tmp_path / "one" / "checkpoints")
    assert found is not None
    assert found.step == 6
    assert_alike(alone, tensors_of(found))
    assert_alike(alone, train(config, tmp_path / "two"))


def test_what_cannot_be_shared_out_is_refused():
    def accelerator(kind: DistributedType, version: int = 2, **options: Any) -> Any:
        plugin = FullyShardedDataParallelPlugin(2, **options)
        state = SimpleNamespace(fsdp_plugin=plugin)
        return SimpleNamespace(distributed_type=kind, is_fsdp2=version == 2, state=state)

    fsdp = DistributedType.FSDP
    with pytest.raises(ValueError, match="by FSDP or DeepSpeed, not by Megatron"):
        require_known(accelerator(DistributedType.MEGATRON_LM), "adamw")
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        require_known(accelerator(fsdp, 1), "adamw")
    with pytest.raises(ValueError, match="fsdp_offload_params: false"):
        require_known(accelerator(fsdp, cpu_offload=True), "adamw")
    with pytest.raises(ValueError, match='"adamw8bit" knows no FSDP'):
        require_known(accelerator(fsdp), "adamw8bit")
    with pytest.raises(ValueError, match=r"a single number \(temperature\): run this stage without it"):
        prepare_sharing(nn.ParameterDict({"temperature": nn.Parameter(torch.ones(()))}), accelerator(fsdp))
    require_known(accelerator(fsdp), "adamw")


def test_an_optimizer_shared_out_otherwise_is_named():
    require_same({"state": {}}, 0)
    require_same({"state": {}, "processes": 2}, 2)
    with pytest.raises(ValueError, match="begun with DeepSpeed on 2 processes, and this is no DeepSpeed"):
        require_same({"state": {}, "processes": 2}, 0)
    with pytest.raises(ValueError, match="begun with no DeepSpeed, and this is DeepSpeed on 4 processes"):
        require_same({"state": {}}, 4)


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
