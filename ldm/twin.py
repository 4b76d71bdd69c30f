"""A second tree of modules over the weights of a U-Net, and what a plan puts in the place of its modules."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from unet import UNet
from unet.resnet import ResNet

Network = TypeVar("Network", bound=nn.Module)


def twin(module: Network) -> Network:
    """A second tree of modules over the same parameters: what takes the place of its modules, the first never sees."""
    other = copy.copy(module)
    other._modules = {name: None if child is None else twin(child) for name, child in module._modules.items()}
    return other


def is_plain(unet: UNet) -> bool:
    """Whether a U-Net does what its classes say, so that a twin does the same: nobody compiled a part of it, gave it
    another `forward`, put one part in two places, or has layers of another kind make something of the time."""
    modules = list(unet.modules())
    timed = [module for module in modules if isinstance(module, ResNet)]
    layers: list[nn.Module] = [resnet.time_emb_proj for resnet in timed]
    for embedding in (unet.time_embedding, unet.class_embedding, unet.add_embedding):
        layers += embedding.children() if embedding is not None else ()
    return (
        type(unet) is UNet
        and all(type(resnet) is ResNet for resnet in timed)
        and all(type(layer) in (nn.Linear, nn.Embedding) for layer in layers)
        and len(modules) == sum(1 for _ in unet.named_modules(remove_duplicate=False))
        and not any(map(_is_changed, modules))
        and not any(parameter.is_inference() for parameter in unet.parameters())
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
