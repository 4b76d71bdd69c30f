"""Residual blocks and samplers against diffusers'."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from configs.architecture import UNetConfig
from unet.resnet import Downsample, ResNet, Upsample

SIZES = [(8, 8), (9, 13), (1, 2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("c_out", [32, 64])  # without and with a convolution on the shortcut
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_resnet(size, c_out, eps, twins, assert_same):
    config = UNetConfig(channels=(16,), norm_groups=8, norm_eps=eps)
    ours = ResNet(config, 32, c_out)
    theirs = ResnetBlock2D(in_channels=32, out_channels=c_out, temb_channels=64, groups=8, eps=eps)
    twins(ours, theirs, c_out)
    x, time = torch.randn(3, 32, *size), torch.randn(3, 64)
    assert_same(ours(x, F.silu(time)), theirs(x, time))


@pytest.mark.parametrize("size", SIZES)
def test_downsample(size, twins, assert_same):
    ours, theirs = Downsample(16), Downsample2D(16, use_conv=True, out_channels=16, padding=1, name="op")
    twins(ours, theirs, 0)
    x = torch.randn(3, 16, *size)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("odd", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_upsample_to_any_size(size, odd, twins, assert_same):
    ours, theirs = Upsample(16), Upsample2D(16, use_conv=True)
    twins(ours, theirs, 0)
    x = torch.randn(3, 16, *size)
    target = (2 * size[0] - odd[0], 2 * size[1] - odd[1])
    assert_same(ours(x, target), theirs(x, None if odd == (0, 0) else target))
