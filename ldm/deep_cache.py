"""DeepCache (Ma et al. 2023, arXiv:2312.00858): what the deep layers of a U-Net make changes slowly from step to step,
so that in between only the outermost ones run."""

import copy
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from unet import UNet
from unet.unet import UpBlock

Acting: TypeAlias = tuple[int, ...]  # the ControlNets that are at work, by their numbers
Network = TypeVar("Network", bound=nn.Module)


class DeepCache:
    """Chooses, for a state and a time, between the whole of a U-Net and its outermost layers.

    The whole runs at every `every`-th step, the first included, and at the last one; at the others, only the first
    convolution and the last layer of the way up, on what came to that layer from below in the last whole pass.

    times: of the run's steps. An evaluation belongs to the step whose time is nearest, so that of samplers that
    evaluate several times in a step, all evaluations of a whole step are whole. Without times all are whole.

    What is remembered counts for the same shape of latents and the same ControlNets at work, and only since the last
    step that had to be whole: after a step back, or another network's turn (outside a guidance interval), the whole
    runs again. There is one DeepCache for each condition.
    """

    def __init__(self, unet: UNet, times: Sequence[float], every: int) -> None:
        self.times, self.every = tuple(times), every
        self._memory = Memory()
        self._step = 0
        self._kind: tuple[torch.Size, Acting] = torch.Size(), ()
        *deep, outer = unet.up_blocks
        assert isinstance(outer, UpBlock)
        below = having(outer, resnets=outer.resnets[:-1], attentions=outer.attentions[:-1])
        last = having(outer, resnets=outer.resnets[-1:], attentions=outer.attentions[-1:])
        self.whole = having(unet, up_blocks=nn.ModuleList([*deep, below, self._memory, last]))
        self.outermost = having(
            unet, down_blocks=nn.ModuleList(), mid_block=Recall(self._memory), up_blocks=nn.ModuleList([last])
        )

    def __call__(self, x: Tensor, t: float, acting: Acting = ()) -> UNet:
        """For x (b, c, h, w) at time t under these ControlNets; the network that it gives is to be run before the next
        is asked for."""
        step = min(range(len(self.times)), key=lambda i: abs(self.times[i] - t), default=0)
        due, kind = step - step % self.every, (x.shape, acting)
        if step not in (due, len(self.times) - 1) and self._knows(kind, due, step):
            return self.outermost
        self._memory.feature, self._step, self._kind = None, step, kind
        return self.whole

    def _knows(self, kind: tuple[torch.Size, Acting], due: int, step: int) -> bool:
        return self._memory.feature is not None and self._kind == kind and due <= self._step <= step


def own_residuals(network: UNet, residuals: Sequence[Tensor]) -> Sequence[Tensor]:
    """What a whole or outermost network takes of a ControlNet's residuals: what lies deeper is in the memory."""
    if len(network.down_blocks):
        return residuals
    return residuals[0], torch.zeros_like(residuals[-1][:1, :1, :1, :1])


class Memory(nn.Module):
    """Stands before the last layer of the way up as if it were a block, and remembers what passes, (b, c, h, w)."""

    feature: Tensor | None = None

    def forward(self, x: Tensor, *_: object) -> Tensor:
        self.feature = x
        return x


class Recall(nn.Module):
    """Stands for all that lies deeper: gives what the memory holds."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, x: Tensor, *_: object) -> Tensor:
        assert self.memory.feature is not None, "a whole pass comes first"
        return self.memory.feature


def having(module: Network, **children: nn.Module) -> Network:
    """The same module with other children; the first never sees them."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other
