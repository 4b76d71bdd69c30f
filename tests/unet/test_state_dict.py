"""Names and shapes of the real families' parameters, on `meta`."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from configs import presets
from configs.interchange import unet_to_json
from unet import UNet

SIZES = {
    "UNET_SD15": 686,
    "UNET_SD15_INPAINT": 686,
    "UNET_SD15_INSTRUCT": 686,
    "UNET_SD21": 686,
    "UNET_SD2_DEPTH": 686,
    "UNET_SD2_UNCLIP": 690,
    "UNET_SDXL": 1680,
    "UNET_SDXL_REFINER": 1220,
    "UNET_UPSCALE_X4": 687,
}


@pytest.mark.parametrize(("name", "tensors"), SIZES.items())
def test_real_families_have_the_parameters_of_diffusers(name, tensors):
    config = getattr(presets, name)
    with torch.device("meta"):
        ours = UNet(config).state_dict()
        theirs = UNet2DConditionModel.from_config(unet_to_json(config)).state_dict()
    assert len(ours) == tensors
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_sd15_has_its_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(presets.UNET_SD15).parameters()) == 859_520_964
