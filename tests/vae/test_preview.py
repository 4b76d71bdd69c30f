import numpy as np
import pytest
import torch

from vae.preview import preview


def latents(c, seed=0):
    return torch.randn(2, c, 5, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["sdxl", "sdxl_refiner"])
def test_sdxl_colours_are_the_published_ones(family):
    z = latents(4)
    weights = torch.tensor([[60.0, -60, 25, -70], [60, -5, 15, -50], [60, 10, -5, -35]])
    levels = torch.einsum("rc,bchw->bhwr", weights, z) + torch.tensor([150.0, 140, 130])
    found = np.stack(preview(z, family)).astype(float)
    assert found.shape == (2, 5, 7, 3)
    assert np.abs(found - levels.clamp(0, 255).numpy()).max() < 1


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_sd1_colours_channel_by_channel(family):
    """Unit steps of a single channel move red, green and blue by its column of the map."""
    columns = [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]]
    z = torch.eye(4).view(4, 4, 1, 1)
    levels = (np.array(columns) / 2 + 0.5) * 255
    assert np.abs(np.stack(preview(z, family))[:, 0, 0] - levels).max() <= 0.5


@pytest.mark.parametrize(("c", "family"), [(1, "sd1"), (2, "sd1"), (3, "sd1"), (16, "sdxl"), (4, "something else")])
def test_other_latents_show_three_channels_at_equal_contrast(c, family):
    z = latents(c) * 5 + 3
    found = np.stack(preview(z, family)) / 127.5 - 1
    for i in range(3):
        channel = z[:, min(i, c - 1)].numpy()
        mean, std = channel.mean((1, 2), keepdims=True), channel.std((1, 2), keepdims=True)
        assert np.abs(found[..., i] - ((channel - mean) / std / 2).clip(-1, 1)).max() < 0.01


def test_enlarged_without_smoothing():
    small, large = preview(latents(4), "sd1"), preview(latents(4), "sd1", scale=3)
    assert large[0].size == (21, 15)
    assert np.array_equal(np.array(large[1]), np.array(small[1]).repeat(3, 0).repeat(3, 1))


def test_broken_latents_still_give_a_picture():
    z = latents(4)
    z[0, :, 0, 0] = torch.nan
    z[1, 0, 0, 0] = torch.inf
    assert np.array(preview(z, "sd1")[0])[0, 0].tolist() == [128, 128, 128]
    assert preview(torch.full((1, 16, 2, 2), 7.0).half(), "flux")[0].size == (2, 2)
