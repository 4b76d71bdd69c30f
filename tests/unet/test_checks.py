"""What wrong inputs are told."""

from dataclasses import replace

import pytest
import torch

from configs import presets
from configs.architecture import UNetConfig
from unet import UNet

SMALL = UNetConfig(
    channels=(8, 8),
    down_depths=((1,), (0,)),
    up_depths=((0, 0), (1, 1)),
    heads=(2, 2),
    context_dim=768,
    only_cross_attention=(False, False),
    norm_groups=4,
)
X, T, TEXT = torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, 5, 768)


def tell(config=SMALL, x=X, t=T, context=TEXT, **conditions) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at the text
        UNet(config)(x, t, context, **conditions)
    return str(caught.value)


def test_right_inputs_pass():
    assert UNet(SMALL)(X, T, TEXT, mask=torch.ones(2, 5, dtype=torch.bool)).shape == X.shape


def test_latents():
    assert tell(x=torch.zeros(2, 9, 8, 8)) == "x must have shape (2, 4, h, w), not (2, 9, 8, 8): latents alone"
    assert "(2, 9, h, w)" in tell(replace(SMALL, in_channels=9))
    assert "masked image" in tell(replace(SMALL, in_channels=9))
    assert "(4, 4, h, w), not (4, 8, 8)" in tell(x=torch.zeros(4, 8, 8))


@pytest.mark.parametrize("t", [torch.tensor(3.0), torch.zeros(3), torch.zeros(2, 1)])
def test_times(t):
    assert "t must have shape (2,)" in tell(t=t)


@pytest.mark.parametrize(
    ("width", "family"), [(1024, "Stable Diffusion 2"), (1280, "the SDXL refiner"), (2048, "SDXL")]
)
def test_text_of_another_family_is_named(width, family):
    message = tell(context=torch.zeros(2, 5, width))
    assert f"must have shape (2, n, 768), not (2, 5, {width})" in message
    assert "made for Stable Diffusion 1" in message
    assert message.endswith(f"looks like the text of {family}")


def test_text_of_no_known_family():
    assert "looks like" not in tell(context=torch.zeros(2, 5, 7))
    assert "looks like" not in tell(context=torch.zeros(1, 5, 768))
    assert "Stable" not in tell(replace(SMALL, context_dim=24), context=torch.zeros(2, 5, 7))


def test_mask():
    assert "mask must have shape (2, 5), not (2, 4)" in tell(mask=torch.ones(2, 4, dtype=torch.bool))
    assert "mask must be bool" in tell(mask=torch.ones(2, 5))


def test_vector():
    sdxl = replace(SMALL, vector="text_time", vector_dim=2816)
    assert "needs vector=" in tell(sdxl)
    assert "(2, 2816)" in tell(sdxl)
    assert "pooled text" in tell(sdxl)
    assert "not (2, 2560)" in tell(sdxl, vector=torch.zeros(2, 2560))
    assert "takes no vector" in tell(vector=torch.zeros(2, 2816))
    assert "shape (2,), not (2, 3)" in tell(
        replace(SMALL, vector="class_table", vector_dim=10), vector=torch.zeros(2, 3)
    )


def test_guidance():
    assert "needs guidance=" in tell(replace(SMALL, guidance_dim=8))
    assert "guidance must have shape (2,)" in tell(replace(SMALL, guidance_dim=8), guidance=torch.tensor(6.5))
    assert "takes no guidance" in tell(guidance=torch.zeros(2))


def test_residuals():
    assert "takes 5 residuals" in tell(residuals=[torch.zeros(1)] * 13)


@pytest.mark.parametrize("name", ["UNET_SD15", "UNET_SDXL"])
def test_a_full_sized_mistake_costs_nothing(name):
    """Found before any arithmetic: the network here has no memory at all."""
    with torch.device("meta"):
        network = UNet(getattr(presets, name))
    with pytest.raises(ValueError, match="context must have shape"):
        network(X, T, torch.zeros(2, 77, 1024))
