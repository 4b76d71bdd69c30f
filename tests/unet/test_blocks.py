"""Levels and middle of the U-Net against diffusers' blocks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)

from configs.architecture import UNetConfig
from unet.unet import DownBlock, MidBlock, UpBlock

CONFIG = UNetConfig(
    channels=(16, 32, 64),
    down_depths=((0, 0), (1, 2), (2, 1)),
    up_depths=((1, 0, 2), (2, 1, 1), (0, 0, 0)),
    heads=(2, 4, 8),
    context_dim=24,
    linear_projection=True,
    only_cross_attention=(False, True, False),
    norm_groups=8,
)
COMMON = {"temb_channels": 64, "resnet_eps": 1e-5, "resnet_groups": 8}
CROSS = {"cross_attention_dim": 24, "use_linear_projection": True}
MASK = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] * 6 + [False]])
BIAS = -10000.0 * (~MASK).float()[:, None]  # (b, 1, n)
GENERATOR = torch.Generator().manual_seed(0)
TIME, TEXT = torch.randn(3, 64, generator=GENERATOR), torch.randn(3, 7, 24, generator=GENERATOR)
CONDITION = (F.silu(TIME), TEXT, BIAS[:, None])  # ours
THEIRS = {"encoder_hidden_states": TEXT, "encoder_attention_mask": BIAS}


def their_down(level: int):
    widths = {"in_channels": (16, 16, 32)[level], "out_channels": (16, 32, 64)[level]}
    shared = {**COMMON, **widths, "num_layers": 2, "add_downsample": level < 2}
    if level == 0:
        return DownBlock2D(**shared)
    depths, heads, only_cross = ((1, 2), 4, True) if level == 1 else ((2, 1), 8, False)
    return CrossAttnDownBlock2D(
        **shared,
        **CROSS,
        transformer_layers_per_block=depths,
        num_attention_heads=heads,
        only_cross_attention=only_cross,
    )


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_down_block(level, size, twins, assert_same):
    ours, theirs = DownBlock(CONFIG, level), their_down(level)
    twins(ours, theirs, level)
    x = torch.randn(3, (16, 16, 32)[level], *size)
    _, skips = theirs(x, TIME, **(THEIRS if level else {}))
    found = ours(x, *CONDITION)
    assert len(found) == len(skips)
    for mine, expected in zip(found, skips, strict=True):
        assert_same(mine, expected)


def their_up(level: int):
    widths = {"in_channels": (16, 16, 32)[level], "out_channels": (16, 32, 64)[level]}
    shared = {
        **COMMON,
        **widths,
        "prev_output_channel": (32, 64, 64)[level],
        "num_layers": 3,
        "add_upsample": level > 0,
    }
    if level == 0:
        return UpBlock2D(**shared)
    depths, heads, only_cross = ((2, 1, 1), 4, True) if level == 1 else ((1, 0, 2), 8, False)
    return CrossAttnUpBlock2D(
        **shared,
        **CROSS,
        transformer_layers_per_block=depths,
        num_attention_heads=heads,
        only_cross_attention=only_cross,
    )


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(("size", "finer"), [((8, 8), (16, 16)), ((5, 7), (9, 13))])
def test_up_block(level, size, finer, twins, assert_same):
    ours, theirs = UpBlock(CONFIG, level), their_up(level)
    twins(ours, theirs, level)
    c = (16, 32, 64)[level]
    x = torch.randn(3, (32, 64, 64)[level], *size)
    skips = [torch.randn(3, c_skip, *size) for c_skip in ((16, 16, 32)[level], c, c)]
    left = [torch.randn(3, 16, *finer)]
    stack = left + skips
    mine = ours(x, stack, *CONDITION)
    assert stack == left
    assert_same(mine, theirs(x, tuple(skips), TIME, upsample_size=finer, **(THEIRS if level else {})))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_mid_block_with_a_transformer(depth, twins, assert_same):
    ours = MidBlock(replace(CONFIG, mid_depth=depth))
    theirs = UNetMidBlock2DCrossAttn(64, **COMMON, **CROSS, transformer_layers_per_block=depth, num_attention_heads=8)
    twins(ours, theirs, depth)
    x = torch.randn(3, 64, 3, 5)
    assert_same(ours(x, *CONDITION), theirs(x, TIME, **THEIRS))


def test_mid_block_of_one_resnet(twins, assert_same):
    ours = MidBlock(replace(CONFIG, mid="resnet"))
    theirs = UNetMidBlock2D(64, **COMMON, num_layers=0, add_attention=False)
    twins(ours, theirs, 0)
    x = torch.randn(3, 64, 3, 5)
    assert_same(ours(x, *CONDITION), theirs(x, TIME))


def test_no_mid_block_leaves_all_as_it_is():
    block = MidBlock(replace(CONFIG, mid="none"))
    x = torch.randn(3, 64, 3, 5)
    assert not block.state_dict()
    assert torch.equal(block(x, *CONDITION), x)
