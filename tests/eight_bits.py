"""Weights in 8 bits where torchao is not installed: a tensor made as torch's protocol asks, and a stand-in for torchao.

The stand-in has the names that `ldm.quantize` takes from torchao, and shows what holds for any such tensor. What
torchao itself makes of weights is tested where it is installed.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
OF_PARTS = (aten.detach.default, aten.clone.default, aten.alias.default)


class Held(Tensor):
    """Weights (out, in) as int8 with a scale for each row (out, 1); multiplied, they are what they stand for."""

    @staticmethod
    def __new__(cls, data: Tensor, scale: Tensor, dtype: torch.dtype) -> "Held":
        made: Held = Tensor._make_wrapper_subclass(cls, data.shape, dtype=dtype, device=data.device)  # type: ignore
        return made

    def __init__(self, data: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        self.held, self.scale = data, scale

    def __tensor_flatten__(self) -> tuple[list[str], torch.dtype]:
        return ["held", "scale"], self.dtype

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], dtype: torch.dtype, *_: Any) -> "Held":
        return cls(inner["held"], inner["scale"], dtype)

    def whole(self) -> Tensor:
        return (self.held * self.scale).to(self.dtype)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is aten._to_copy.default:
            device = kwargs.get("device")
            return cls(args[0].held.to(device), args[0].scale.to(device), args[0].dtype)
        if function in OF_PARTS:
            return cls(function(args[0].held), function(args[0].scale), args[0].dtype)
        return function(*tree_map_only(cls, cls.whole, args), **tree_map_only(cls, cls.whole, kwargs))


def quantize_(network: nn.Module, config: Any) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            scale = weight.float().abs().amax(dim=1, keepdim=True) / 127.5
            held = (weight / scale).round().clamp(-128, 127).to(torch.int8)
            module.weight = nn.Parameter(Held(held, scale, weight.dtype), requires_grad=False)


@pytest.fixture(params=["stand-in", "torchao"])
def torchao(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """torchao, and what stands in for it."""
    name: str = request.param
    if name == "torchao":
        pytest.importorskip("torchao")
    else:
        stand_in = SimpleNamespace(Int8WeightOnlyConfig=SimpleNamespace, quantize_=quantize_)
        monkeypatch.setattr("ldm.quantize._torchao", lambda: stand_in)
    return name
