"""Small U-Nets of two families for the tests of what is added to them, as diffusers' options."""

from typing import Any

import torch
from torch import Tensor

from unet.embedding import sinusoid

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD1: dict[str, Any] = {
    "block_out_channels": (32, 64, 64, 96),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,  # several channels each: a group of one would hide the time
}
SDXL: dict[str, Any] = {
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("DownBlock2D", CROSS_DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, CROSS_UP, "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "layers_per_block": 2,
    "cross_attention_dim": 40,
    "attention_head_dim": (2, 4, 6),
    "use_linear_projection": True,
    "norm_num_groups": 8,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}


def conditions(
    json: dict[str, Any], size: tuple[int, int]
) -> tuple[tuple[Tensor, ...], dict[str, Any], dict[str, Any]]:
    """(latents, times, text) of two pictures, and the further conditions in our words and in diffusers'."""
    args = (torch.randn(2, 4, *size), torch.tensor([1.0, 500.0]), torch.randn(2, 7, json["cross_attention_dim"]))
    if "addition_embed_type" not in json:
        return args, {}, {"added_cond_kwargs": {}}
    pooled, sizes = torch.randn(2, 20), torch.randint(0, 1024, (2, 6))
    vector = torch.cat([pooled, sinusoid(sizes.flatten(), 8).view(2, -1)], dim=1)
    return args, {"vector": vector}, {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
