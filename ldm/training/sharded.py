"""Runs whose weights are shared out among processes (FSDP): each holds, trains and steps a part of every tensor.

Checkpoints hold whole tensors all the same, so that a run may go on with more processes, fewer or one; and averages are
whole on every process, so that each step puts every trained weight together once.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether accelerate shares weights out."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def require_known(accelerator: Accelerator, kind: str) -> None:
    """Raises ValueError for ways to share out a network that this trainer has not. kind: of optimizer."""
    if accelerator.distributed_type == DistributedType.MEGATRON_LM:
        raise ValueError(
            "the trainer shares networks out by FSDP or DeepSpeed, not by Megatron: choose one in `accelerate config`"
        )
    if not is_sharded(accelerator):
        return
    if not accelerator.is_fsdp2:
        raise ValueError("the trainer needs FSDP's second version: set fsdp_version: 2 in accelerate's config")
    if isinstance(accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("the trainer's FSDP keeps weights on the GPU: set fsdp_offload_params: false")
    if kind == "adamw8bit":
        raise ValueError('optimizer.kind = "adamw8bit" knows no FSDP: set "adamw"')


def compute_in(module: nn.Module, accelerator: Accelerator, precision: str) -> None:
    """Has a module compute in a precision, where accelerate would cast batch, weights and gradients for that (FSDP), or
    DeepSpeed leaves it out: inside its forward pass, which neither looks into."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is not None:
        cast = torch.autocast(accelerator.device.type, dtype)
        module.forward = cast(module.forward)


def prepare_sharing(module: nn.Module, accelerator: Accelerator) -> None:
    """Before accelerate shares a module out. Raises ValueError for one that FSDP cannot share out."""
    if single := [name for name, parameter in module.named_parameters() if not parameter.ndim]:
        raise ValueError(f"FSDP cannot share out a single number ({single[0]}): run this stage without it")
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


@torch.no_grad()
def blend(averages: list[Tensor], values: list[Tensor], share: float) -> None:
    """Moves averages towards values by a share of the way; those that are shared out are put together one by one."""
    if not any(isinstance(value, DTensor) for value in values):
        torch._foreach_lerp_(averages, values, share)
        return
    for average, value in zip(averages, values, strict=True):
        average.lerp_(whole(value), share)


def kept(value: Tensor, keep: bool) -> Tensor:
    """A whole tensor for whoever keeps it, on the CPU where it had to be put together; nothing for others, who have to
    ask for it all the same."""
    full = whole(value)
    if not keep:
        return full.new_empty(0)
    return full if full is value else full.cpu()


def whole(value: Tensor) -> Tensor:
    """A tensor of which processes hold shares, put together; any other as it is. All processes have to ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def share(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, cut as another one is; all of it where that is whole."""
    if not isinstance(like, DTensor):
        return value
    moved = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def kept_state(state: Any, keep: bool) -> Any:
    """An optimizer's state dict, as `kept`."""
    return tree_map(lambda value: kept(value, keep) if isinstance(value, Tensor) else value, state)


def share_state(state: dict[int, Any], optimizer: Optimizer) -> dict[int, Any]:
    """An optimizer's state by parameter, each tensor of a parameter's shape cut as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def cut(value: Any, parameter: Tensor) -> Any:
        return share(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value

    return {i: {name: cut(value, parameters[i]) for name, value in each.items()} for i, each in state.items()}
