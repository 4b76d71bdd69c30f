"""A second tree of modules over the weights of a network, and what a plan puts in the place of its modules."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from unet import ControlNet, UNet
from unet.resnet import ResNet
from unet.unet import Trunk

Network = TypeVar("Network", bound=nn.Module)


def twin(module: Network) -> Network:
    """A second tree of modules over the same parameters: what takes the place of its modules, the first never sees."""
    other = copy.copy(module)
    other._modules = {name: None if child is None else twin(child) for name, child in module._modules.items()}
    return other


def moved(module: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """A second tree of modules whose parameters are elsewhere or in another precision: the first keeps its own."""
    other = twin(module)
    for own, part in zip(module.modules(), other.modules(), strict=True):
        there = {name: None if p is None else p.detach().to(device, dtype) for name, p in own._parameters.items()}
        part._parameters = {name: None if p is None else nn.Parameter(p, False) for name, p in there.items()}
    return other


def is_plain(network: Trunk) -> bool:
    """Whether a U-Net or ControlNet does what its classes say, so that a twin does the same: nobody compiled a part of
    it, gave it another `forward`, put one part in two places, or has layers of another kind make something of the
    time."""
    modules = list(network.modules())
    timed = [module for module in modules if isinstance(module, ResNet)]
    layers: list[nn.Module] = [resnet.time_emb_proj for resnet in timed]
    for embedding in (network.time_embedding, network.class_embedding, network.add_embedding):
        layers += embedding.children() if embedding is not None else ()
    return (
        type(network) in (UNet, ControlNet)
        and all(type(resnet) is ResNet for resnet in timed)
        and all(type(layer) in (nn.Linear, nn.Embedding) for layer in layers)
        and len(modules) == sum(1 for _ in network.named_modules(remove_duplicate=False))
        and not any(map(_is_changed, modules))
        and not any(parameter.is_inference() for parameter in network.parameters())
    )


def _is_changed(module: nn.Module) -> bool:
    wrapped = "_orig_mod" in module._modules or "parametrizations" in module._modules
    return wrapped or "forward" in vars(module) or module._compiled_call_impl is not None


class Columns(nn.Module):
    """Cuts a ResNet's own columns out of what has been computed for all of them: (b, d) -> (b, c)."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, row: Tensor) -> Tensor:
        return row[:, self.start : self.end]


class Portions(nn.Module):
    """A layer applied to some tokens at a time, (b, n, d) -> (b, n, d): what it makes of them in between stays in the
    caches, and needs less memory."""

    TOKENS = 1024

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        portions = x.flatten(0, 1).chunk(-(-x.shape[0] * x.shape[1] // self.TOKENS))
        return torch.cat([self.layer(portion) for portion in portions]).view_as(x)
