"""Small U-Nets with random weights, and what a plan of one is compared with."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from configs.interchange import unet_from_json
from ldm.conditioning import Conditioning
from ldm.model import LatentDiffusion
from tests.unet.test_unet import FAMILIES
from unet import UNet

NOTHING = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
TIMES = (951.0, 501.0, 1.0)


def build(family: str, dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    json = {"cross_attention_dim": 24, **FAMILIES[family]}
    unet = UNet(unet_from_json(json)).eval().to(dtype)
    for name, parameter in unet.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.data = noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3 * noise + ("norm" in name)
    return LatentDiffusion(NOTHING, nn.Identity(), unet, {})  # type: ignore[arg-type]


def conditions(model: LatentDiffusion, b: int, masked: bool = False) -> Conditioning:
    config = model.unet.config
    vector: dict[str, Any] = {
        "none": None,
        "text_time": torch.randn(b, 20),
        "class_projection": torch.randn(b, config.vector_dim),
        "class_table": torch.arange(b) * 7,
        "class_timestep": torch.arange(b) * 11,
    }
    sizes = torch.randint(0, 1024, (b, 6)).float() if config.vector == "text_time" else None
    guidance = 6.5 * torch.rand(b) if config.guidance_dim else None
    mask = torch.rand(b, 7) > 0.3 if masked else None
    return Conditioning(torch.randn(b, 7, config.context_dim), mask, vector[config.vector], sizes, guidance)


def latents(model: LatentDiffusion, b: int, size: tuple[int, int] = (12, 8)) -> Tensor:
    return torch.randn(b, model.unet.config.in_channels, *size)


def plainly(model: LatentDiffusion, x: Tensor, t: float, cond: Conditioning) -> Tensor:
    """The network with one row of latents and one time for every row of the condition."""
    b = len(cond.context)
    return model.network(x.repeat(b // len(x), 1, 1, 1), torch.full((b,), t), cond)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * expected.abs().max().item())
