"""Numbers to vectors: the time, and what is added to it (guidance weight, picture size, class)."""

# mypy: no-warn-return-any

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import UNetConfig


def sinusoid(t: Tensor, width: int) -> Tensor:
    """t (b,) -> (b, width) float32: cosines, then sines, of t at `width / 2` frequencies from 1 down towards 1e-4.

    Ho et al. 2020 (arXiv:2006.11239), appendix B; `flip_sin_to_cos` with a frequency shift of 0 in diffusers.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies  # (b, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def guidance_sinusoid(guidance: Tensor, width: int) -> Tensor:
    """guidance (b,) -> (b, width) float32, as distilled models learned it (Luo et al. 2023, arXiv:2310.04378).

    Unlike `sinusoid`: sines first, the last frequency exactly 1e-4, and the weight counted in thousandths.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, device=guidance.device))
    angles = 1000 * guidance.float()[:, None] * frequencies  # (b, width / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class VectorEmbedding(nn.Module):
    """Two layers on a vector: (b, v) -> (b, d)."""

    def __init__(self, v: int, d: int):
        super().__init__()
        self.linear_1 = nn.Linear(v, d)
        self.linear_2 = nn.Linear(d, d)

    def forward(self, vector: Tensor) -> Tensor:
        vector = vector.to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(vector)))


class TimeEmbedding(VectorEmbedding):
    """Two layers on the sinusoid of a time (b,), with the guidance weight (b,) mixed in if `guidance_dim` is set."""

    def __init__(self, v: int, d: int, guidance_dim: int = 0):
        super().__init__(v, d)
        if guidance_dim:
            self.cond_proj = nn.Linear(guidance_dim, v, bias=False)

    def forward(self, t: Tensor, guidance: Tensor | None = None) -> Tensor:
        dtype = self.linear_1.weight.dtype
        vector = sinusoid(t, self.linear_1.in_features).to(dtype)  # (b, v)
        if guidance is not None:
            vector = vector + self.cond_proj(guidance_sinusoid(guidance, self.cond_proj.in_features).to(dtype))
        return super().forward(vector)


def class_embedding(config: UNetConfig) -> nn.Module | None:
    """The module that takes the U-Net's `vector`, unless it is the text and size vector of SDXL."""
    d = 4 * config.channels[0]
    match config.vector:
        case "class_table":
            return nn.Embedding(config.vector_dim, d)
        case "class_timestep":
            return TimeEmbedding(config.channels[0], d)
        case "class_projection":
            return VectorEmbedding(config.vector_dim, d)
        case _:
            return None
