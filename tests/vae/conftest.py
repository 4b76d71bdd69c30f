"""Our autoencoder and diffusers' with the same random weights."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from configs.architecture import AutoencoderConfig
from configs.interchange import autoencoder_to_json
from vae import AutoencoderKL

Pair = Callable[..., tuple[AutoencoderKL, Any]]


def randomise(module: nn.Module, seed: int) -> None:
    """No parameter at its initial value, activations of order one."""
    g = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=g)
        fan_in = math.prod(parameter.shape[1:])
        parameter.data = noise / math.sqrt(fan_in) if parameter.ndim > 1 else 0.2 * noise
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.data += 1


@pytest.fixture(scope="session")
def pair() -> Pair:
    from diffusers import AutoencoderKL as Theirs

    def build(seed: int = 0, **fields: Any) -> tuple[AutoencoderKL, Any]:
        config = AutoencoderConfig(**{"channels": (8, 16, 24), "norm_groups": 4, "sample_size": 32, **fields})
        theirs = Theirs.from_config(autoencoder_to_json(config))
        randomise(theirs, seed)
        ours = AutoencoderKL(config)
        ours.load_state_dict(theirs.state_dict())
        return ours.requires_grad_(False), theirs.requires_grad_(False)

    return build
