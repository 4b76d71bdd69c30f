"""Configurations against the libraries that define their files: what we write they build, what they write we read."""

from dataclasses import replace

import diffusers
import pytest
import torch
import transformers

from configs import presets
from configs.architecture import AutoencoderConfig, TextEncoderConfig, UNetConfig
from configs.interchange import (
    autoencoder_from_json,
    autoencoder_to_json,
    text_encoder_from_json,
    text_encoder_to_json,
    unet_from_json,
    unet_to_json,
)

UNETS = {name: value for name, value in vars(presets).items() if isinstance(value, UNetConfig)}
UNETS["LCM"] = replace(presets.UNET_SD15, guidance_dim=256)
UNETS["SSD_1B"] = replace(
    presets.UNET_SDXL,
    down_depths=((0, 0), (2, 2), (4, 4)),
    up_depths=((4, 4, 10), (2, 1, 1), (0, 0, 0)),
    mid="resnet",
    mid_depth=4,
)
UNETS["NO_MIDDLE"] = replace(presets.UNET_SD15, mid="none", mid_depth=1)
UNETS["TIMESTEP_CLASS"] = replace(presets.UNET_SD15, vector="class_timestep")
AUTOENCODERS = {name: value for name, value in vars(presets).items() if isinstance(value, AutoencoderConfig)}
AUTOENCODERS["PLAYGROUND"] = replace(presets.VAE_SDXL, latents_mean=(0.1,) * 4, latents_std=(5.0,) * 4)
AUTOENCODERS["SIXTEEN"] = replace(
    presets.VAE_KL_F8, latent_channels=16, shift_factor=0.1, quant_conv=False, post_quant_conv=False
)
TEXT_ENCODERS = {name: value for name, value in vars(presets).items() if isinstance(value, TextEncoderConfig)}


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_rebuilds_the_unet(name: str) -> None:
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(unet_to_json(UNETS[name]))
    assert unet_from_json(dict(theirs.config)) == UNETS[name]


@pytest.mark.parametrize(
    ("name", "tensors"),
    {"UNET_SD15": 686, "UNET_SD21": 686, "UNET_SDXL": 1680, "UNET_SDXL_REFINER": 1220, "UNET_UPSCALE_X4": 687}.items(),
)
def test_presets_have_the_published_number_of_tensors(name: str, tensors: int) -> None:
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(unet_to_json(UNETS[name]))
    assert len(theirs.state_dict()) == tensors


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_diffusers_rebuilds_the_autoencoder(name: str) -> None:
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL.from_config(autoencoder_to_json(AUTOENCODERS[name]))
    assert autoencoder_from_json(dict(theirs.config)) == AUTOENCODERS[name]


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_transformers_rebuilds_the_text_encoder(name: str) -> None:
    config = transformers.CLIPTextConfig(**text_encoder_to_json(TEXT_ENCODERS[name]))
    assert text_encoder_from_json(config.to_dict()) == TEXT_ENCODERS[name]


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("resnet_time_scale_shift", "scale_shift", "resnet_time_scale_shift"),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn", "mid_block_type"),
        ("down_block_types", ["AttnDownBlock2D"] * 4, "AttnDownBlock2D"),
        ("cross_attention_dim", [768, 768, 1024, 1024], "cross_attention_dim"),
        ("addition_embed_type", "image", "addition_embed_type"),
        ("encoder_hid_dim_type", "ip_image_proj", "encoder_hid_dim_type"),
        ("norm_num_groups", None, "norm_num_groups"),
    ],
)
def test_what_the_unet_cannot_do_is_refused_by_name(option: str, value: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        unet_from_json({**unet_to_json(presets.UNET_SD15), option: value})


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="block types"):
        autoencoder_from_json({"down_block_types": ["AttnDownEncoderBlock2D"]})
    with pytest.raises(ValueError, match="hidden_act"):
        text_encoder_from_json({"hidden_act": "relu"})
