"""T2I-Adapters against diffusers': every feature map, and what a U-Net makes of them."""

import pytest
import torch
from diffusers import T2IAdapter, UNet2DConditionModel

from configs.architecture import AdapterConfig
from configs.interchange import unet_from_json
from configs.interchange_extras import adapter_from_json, adapter_to_json
from tests.unet.families import SD1, SDXL, conditions
from unet import UNet
from unet.adapter import Adapter

KINDS = {
    "full": {"channels": [32, 64, 64, 96], "num_res_blocks": 2, "downscale_factor": 8, "in_channels": 1},
    "full_xl": {"channels": [32, 64, 96, 96], "num_res_blocks": 2, "downscale_factor": 16, "in_channels": 3},
    "light": {"channels": [32, 64, 64], "num_res_blocks": 3, "downscale_factor": 8, "in_channels": 3},
}


@pytest.fixture
def pair(twins):
    def build(kind):
        theirs = T2IAdapter(**KINDS[kind], adapter_type=f"{kind.replace('_xl', '')}_adapter{'_xl' * ('xl' in kind)}")
        ours = Adapter(adapter_from_json(dict(theirs.config)))
        twins(ours, theirs, 0)
        return ours, theirs

    return build


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (80, 48)])
@torch.no_grad()
def test_features(kind, size, pair, assert_same):
    ours, theirs = pair(kind)
    hint = torch.rand(2, KINDS[kind]["in_channels"], *size)
    found, expected = ours(hint, scale=0.5), theirs(hint)
    assert len(found) == len(expected) == 4
    for feature, wanted in zip(found, expected, strict=True):
        assert_same(feature, 0.5 * wanted)


@pytest.mark.parametrize(("kind", "json"), [("full", SD1), ("full_xl", SDXL)])
@torch.no_grad()
def test_the_unet_adds_them_where_they_were_trained(kind, json, pair, twins, assert_same):
    """With residuals of a ControlNet beside them, which join every skip connection."""
    ours, theirs = pair(kind)
    their_unet = UNet2DConditionModel(**json)
    unet = UNet(unet_from_json(dict(their_unet.config)))
    twins(unet, their_unet, 1)
    args, mine, yours = conditions(json, (16, 8))
    hint = torch.rand(2, KINDS[kind]["in_channels"], 128, 64)
    features, plain = ours(hint), unet(*args, **mine)
    found = unet(*args, features=features, **mine)
    assert_same(found, their_unet(*args, down_intrablock_additional_residuals=theirs(hint), **yours).sample)
    assert (found - plain).abs().max() > 0.01
    without_last = unet(*args, features=[*features[:-1], torch.zeros_like(features[-1])], **mine)
    assert (found - without_last).abs().max() > 1e-3
    down = [torch.randn(2, 32, 16, 8)] + [torch.zeros(1)] * (
        len(unet.config.channels) + sum(map(len, unet.config.down_depths)) - 1
    )
    both = unet(*args, features=features, residuals=[*down, torch.zeros(1)], **mine)
    options = {"down_block_additional_residuals": down, "mid_block_additional_residual": torch.zeros(1)}
    assert_same(both, their_unet(*args, down_intrablock_additional_residuals=theirs(hint), **options, **yours).sample)


@pytest.mark.parametrize("kind", KINDS)
def test_configurations_go_both_ways(kind):
    config = AdapterConfig(kind, 1, (8, 16, 16, 16), 3, 4)
    assert adapter_from_json(adapter_to_json(config)) == config


def test_wrong_inputs_are_named(pair, twins):
    ours, _ = pair("full")
    with pytest.raises(ValueError, match=r"shape \(b, 1, h, w\), not \(2, 3, 64, 64\): make them grey"):
        ours(torch.rand(2, 3, 64, 64))
    with pytest.raises(ValueError, match=r"60 x 64 pixels.*multiples of 8"):
        ours(torch.rand(2, 1, 64, 60))
    unet = UNet(unet_from_json(SD1))
    args, _, _ = conditions(SD1, (16, 8))
    with pytest.raises(ValueError, match=r"takes 4 features \(for each level\) or 5"):
        unet(*args, features=ours(torch.rand(2, 1, 128, 64))[:3])
    with pytest.raises(ValueError, match="adapter_type = 'other' is not supported"):
        adapter_from_json({"adapter_type": "other"})
