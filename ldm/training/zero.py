"""Runs whose gradients and optimizer are shared out among processes by DeepSpeed (ZeRO, stages 1 and 2; Rajbhandari et
al. 2020, 1910.02054).

Every process holds all weights, in float32 as everywhere in this trainer. Checkpoints have the processes' shares of the
optimizer side by side, so that a run goes on with as many processes as it began with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.optim import Optimizer

from configs.training import LoopConfig

_PIECE = 2**24  # values that are gathered at once


def is_zero(accelerator: Accelerator) -> bool:
    """Whether accelerate leaves the steps to DeepSpeed."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def configure(accelerator: Accelerator, loop: LoopConfig, players: int) -> None:
    """Tells DeepSpeed what the run file says. Raises ValueError for what it cannot do in this trainer."""
    plugin = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    offload = config["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    for wrong, problem in (
        (plugin.zero_stage not in (1, 2), f"zero_stage {plugin.zero_stage}: set 1 or 2, or take FSDP for more"),
        (offload != "none", "offload_optimizer_device: set none"),
        (loop.precision == "fp16", 'precision = "fp16": set "bf16"'),
        (loop.optimizer.kind != "adamw", f'optimizer.kind = "{loop.optimizer.kind}": set "adamw"'),
        (players > 1, "two networks that are trained in turns: run this stage without it"),
    ):
        if wrong:
            raise ValueError(f"with DeepSpeed this trainer has no {problem}")
    part = loop.batch // (accelerator.num_processes * loop.accumulation)
    config |= {
        "train_micro_batch_size_per_gpu": part,
        "train_batch_size": part * accelerator.num_processes,  # parts are counted and weighed by the trainer
        "gradient_accumulation_steps": 1,
        "gradient_clipping": loop.optimizer.clip,
        "bf16": {"enabled": False},  # nor fp16: it would cast the weights
        "fp16": {"enabled": False},
    }


def gathered_state(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """What the processes' optimizers remember, by group of parameters: tensors (processes, n) on the CPU, of which only
    those who keep them get content. All processes have to ask."""
    state = _base(optimizer).state_dict()["state"]
    rows = {i: {name: _gathered(value, keep) for name, value in each.items()} for i, each in state.items()}
    return {"state": rows, "processes": dist.get_world_size()}


def require_same(state: dict[str, Any], processes: int) -> None:
    """Raises ValueError where an optimizer was shared out among another number of processes; 0 for none."""
    if (before := state.get("processes", 0)) != processes:
        told = [f"DeepSpeed on {n} processes" if n else "no DeepSpeed" for n in (before, processes)]
        raise ValueError(f"it was begun with {told[0]}, and this is {told[1]}: start it as it was begun")


def restore_state(optimizer: Any, saved: dict[str, Any]) -> None:
    """Gives this process its rows of what `gathered_state` has found, and the optimizer the weights as they are now."""
    rank, base, state = dist.get_rank(), _base(optimizer), saved["state"]
    own = {i: {name: value[rank].clone() for name, value in each.items()} for i, each in state.items()}
    base.load_state_dict({"state": own, "param_groups": base.state_dict()["param_groups"]})
    optimizer.optimizer.refresh_fp32_params()


def _base(optimizer: Any) -> Optimizer:
    """The optimizer that DeepSpeed has given this process's share of the parameters."""
    base: Optimizer = optimizer.optimizer.optimizer
    return base


def _gathered(value: Tensor, keep: bool) -> Tensor:
    """(n,) or () of each process -> (processes, n) or (processes,)"""
    found = []
    for piece in torch.split(value.reshape(-1), _PIECE):
        rows = [torch.empty_like(piece) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, piece.contiguous())
        if keep:
            found.append(torch.stack(rows).cpu())
    return torch.cat(found, 1).reshape(-1, *value.shape) if keep else value.new_empty(0)
