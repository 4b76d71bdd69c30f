"""What a GPU wants of networks that are trained on it."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def suited(network: Network) -> Network:
    """The network, where there is a GPU with the kernels of its convolutions channels last, as tensor cores take them.

    There cuDNN then also tries its ways to convolve on the first batch of each shape: batches hardly change theirs.
    """
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
