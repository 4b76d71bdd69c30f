"""ControlNets against diffusers' ControlNetModel: every residual, and what a U-Net makes of them."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from configs import presets
from configs.architecture import ControlNetConfig
from configs.interchange import unet_from_json
from configs.interchange_extras import controlnet_from_json, controlnet_to_json
from tests.unet.families import SD1, SDXL, conditions
from unet import UNet
from unet.checks import check_controlnet
from unet.controlnet import ControlNet

HINT = {"conditioning_embedding_out_channels": (4, 6, 8, 10)}
XL = {key: value for key, value in SDXL.items() if key != "up_block_types"}
FAMILIES = {
    "sd1": {**SD1, **HINT},
    "sd2": {**SD1, **HINT, "attention_head_dim": (2, 4, 4, 6), "use_linear_projection": True},
    "sdxl": {**XL, **HINT},
    "sdxl-small": {**XL, **HINT, "down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"},
    "sdxl-mid": {**XL, **HINT, "transformer_layers_per_block": (0, 0, 1)},
    "bgr": {**SD1, **HINT, "controlnet_conditioning_channel_order": "bgr", "conditioning_channels": 3},
    "pooled": {**SD1, **HINT, "global_pool_conditions": True},
}


@pytest.fixture
def pair(twins):
    def build(family, seed=0):
        theirs = ControlNetModel(**FAMILIES[family])
        ours = ControlNet(controlnet_from_json(dict(theirs.config)))
        twins(ours, theirs, seed)
        return ours, theirs

    return build


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"scale": 0.6, "guess": True}])
@torch.no_grad()
def test_residuals(family, options, pair, assert_same):
    ours, theirs = pair(family)
    args, mine, yours = conditions(FAMILIES[family], (8, 12))
    hint = torch.rand(2, 3, 64, 96)
    found = ours(*args, ours.embed(hint), **mine, **options)
    scale = {"conditioning_scale": options["scale"], "guess_mode": True} if options else {}
    expected = theirs(*args, hint, **yours, **scale)
    assert len(found) == len(expected.down_block_res_samples) + 1
    for residual, wanted in zip(found, [*expected.down_block_res_samples, expected.mid_block_res_sample], strict=True):
        assert_same(residual, wanted)


@pytest.mark.parametrize(("family", "json"), [("sd1", SD1), ("sdxl", SDXL), ("pooled", SD1)])
@torch.no_grad()
def test_the_unet_takes_them(family, json, pair, twins, assert_same):
    ours, theirs = pair(family)
    their_unet = UNet2DConditionModel(**json)
    unet = UNet(unet_from_json(dict(their_unet.config)))
    twins(unet, their_unet, 1)
    args, mine, yours = conditions(json, (8, 12))
    hint = torch.rand(2, 3, 64, 96)
    residuals = ours(*args, ours.embed(hint), **mine)
    down, mid = theirs(*args, hint, **yours, return_dict=False)
    options = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    assert_same(unet(*args, residuals=residuals, **mine), their_unet(*args, **options, **yours).sample)


@torch.no_grad()
def test_a_new_one_is_a_copy_that_changes_nothing(randomise, assert_same):
    their_unet = randomise(UNet2DConditionModel(**SDXL), 3)
    unet = UNet(unet_from_json(dict(their_unet.config)))
    unet.load_state_dict(their_unet.state_dict())
    ours = ControlNet.from_unet(unet.bfloat16(), hint_channels=(4, 6, 8, 10))
    expected = ControlNetModel.from_unet(their_unet, **HINT).state_dict()
    found = ours.state_dict()
    assert found.keys() == expected.keys()
    copied = [name for name in found if not name.startswith("controlnet_cond_embedding.")]
    for name in copied:
        torch.testing.assert_close(found[name], expected[name].bfloat16(), rtol=0, atol=0)
    args, mine, _ = conditions(SDXL, (8, 8))
    residuals = ours(*args, ours.embed(torch.rand(2, 3, 64, 64)), **mine)
    assert all(residual.abs().max() == 0 for residual in residuals)
    torch.testing.assert_close(unet(*args, residuals=residuals, **mine), unet(*args, **mine), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["UNET_SD15", "UNET_SD21", "UNET_SDXL"])
def test_real_families_have_the_parameters_of_diffusers(name):
    config = ControlNetConfig(unet=getattr(presets, name))
    with torch.device("meta"):
        ours = ControlNet(config).state_dict()
        theirs = ControlNetModel.from_config(controlnet_to_json(config)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert ("add_embedding.linear_1.weight" in ours) == (name == "UNET_SDXL")


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_go_both_ways(family):
    json = {"conditioning_channels": 3, "mid_block_type": "UNetMidBlock2DCrossAttn", **FAMILIES[family]}
    config = controlnet_from_json(json)
    assert controlnet_from_json(controlnet_to_json(config)) == config


def test_wrong_inputs_are_named(pair):
    ours, _ = pair("sd1")
    with pytest.raises(ValueError, match=r"60 x 64 pixels, but must be multiples of 8"):
        ours.embed(torch.rand(1, 3, 64, 60))
    with pytest.raises(ValueError, match=r"hint must have shape \(b, 3, h, w\)"):
        ours.embed(torch.rand(1, 1, 64, 64))
    (x, t, context), _, _ = conditions(SD1, (8, 8))
    with pytest.raises(ValueError, match="context must have shape"):
        ours(x, t, context[..., :20], ours.embed(torch.rand(2, 3, 64, 64)))
    with pytest.raises(ValueError, match="channel_order = 'hsv' is not supported"):
        controlnet_from_json({**SD1, "controlnet_conditioning_channel_order": "hsv"})


@pytest.mark.parametrize(
    ("own", "unet", "words"),
    [
        (
            "UNET_SD15",
            "UNET_SDXL",
            "made for Stable Diffusion 1, and the model is SDXL: take a ControlNet of the model's",
        ),
        ("UNET_SDXL", "UNET_SD21", "made for SDXL, and the model is Stable Diffusion 2"),
        ("UNET_SD21", "UNET_SD15", "made for Stable Diffusion 2, and the model is Stable Diffusion 1"),
    ],
)
def test_another_family_is_named(own, unet, words):
    with pytest.raises(ValueError, match=words):
        check_controlnet(ControlNetConfig(unet=getattr(presets, own)), getattr(presets, unet))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"channels": (320, 640, 1280, 640)},
            r"channels by level \(320, 640, 1280, 640\), and the model \(320, 640, 1280, 1280\)",
        ),
        ({"down_depths": ((1,),) * 4}, r"layers by level \(1, 1, 1, 1\), and the model \(2, 2, 2, 2\)"),
        ({"in_channels": 9}, r"channels of the latents \(9,\), and the model \(4,\)"),
        ({"vector": "text_time", "vector_dim": 2816}, r"needs 2816 numbers \(the pooled text embedding"),
    ],
)
def test_another_network_is_named(fields, words):
    config = ControlNetConfig(unet=replace(presets.UNET_SD15, **fields))
    with pytest.raises(ValueError, match=words):
        check_controlnet(config, presets.UNET_SD15)
    check_controlnet(ControlNetConfig(unet=presets.UNET_SD15), presets.UNET_SD15)
    check_controlnet(ControlNetConfig(unet=replace(presets.UNET_SD15, up_depths=())), presets.UNET_SD15)
