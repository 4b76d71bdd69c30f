"""Runs whose weights are shared out among processes are the run of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.multiprocessing as mp
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType

from configs.finetuning import FineTuneConfig
from ldm.training import trainer
from ldm.training.checkpoint import newest
from ldm.training.finetune import finetune
from ldm.training.sharded import require_known
from ldm.training.verify import tensors_of
from tests.ldm.training.conftest import two_processes
from tests.ldm.training.tuning import assert_alike, config_of, pictures, plain, train


class Sharding(Accelerator):
    """accelerate's with FSDP, which it otherwise enables on GPUs alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        self.state.distributed_type = DistributedType.FSDP


@contextmanager
def two_shares(rank: int) -> Iterator[None]:
    with two_processes(rank), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Accelerator", Sharding)
        yield


def _runs_of_two(rank: int, configs: list[FineTuneConfig], folder: Path) -> None:
    with two_shares(rank):
        for config in configs:
            train(config, folder / config.mode, until=4)
            results = finetune(config, folder / config.mode, plain, progress=False)  # goes on, and reads what it writes
            assert bool(results) == (rank == 0)


def test_two_shares_are_one_process(tmp_path, tiny_sd_folder):
    """Interrupted, and gone on with."""
    place = pictures(tmp_path / "pictures")
    loop, prior = {"batch": 4, "ema_lengths": [0.1]}, {"prompts": ["a square"], "count": 20}
    configs = [
        config_of(tiny_sd_folder, place, "full", loop=loop),
        config_of(tiny_sd_folder, place, "lora", loop=loop | {"ema": 0.0}, prior=prior),
    ]
    mp.spawn(_runs_of_two, args=(configs, tmp_path / "pair"), nprocs=2)
    for config in configs:
        alone = train(config, tmp_path / "alone" / config.mode)
        found = newest(tmp_path / "pair" / config.mode / "checkpoints")
        assert found is not None
        pair = tensors_of(found)
        pair["random"] = pair["random"][:1]  # of each process
        assert {name: value.shape for name, value in pair.items()} == {n: value.shape for n, value in alone.items()}
        assert_alike(alone, pair)
    drawn = sorted((tmp_path / "pair" / "lora").glob("prior-*/*.png"))
    assert [path.name for path in drawn] == [f"class-{number:05d}.png" for number in range(20)]  # each by one of both


def test_other_ways_to_share_are_refused():
    for kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        with pytest.raises(ValueError, match=f"by FSDP, not by {kind.value}: run `accelerate config`"):
            require_known(SimpleNamespace(distributed_type=kind))
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        require_known(SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False))
