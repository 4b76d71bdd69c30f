from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vae.tiling import tiled

EXACT = {"rtol": 1e-5, "atol": 1e-5}
CASES = [  # one row or one column of tiles, where diffusers' blend has no corners
    ({"sample_size": 32}, (104, 24)),
    ({"sample_size": 32}, (24, 128)),
    ({"sample_size": 32}, (24, 100)),  # the last tile is narrower than the overlap
    ({"sample_size": 16}, (12, 60)),
    ({"sample_size": 64, "channels": (8, 8, 16, 16)}, (48, 136)),
    ({"sample_size": 32, "quant_conv": False, "post_quant_conv": False, "mid_attention": False}, (64, 24)),
]


def images(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("slicing", [False, True])
@pytest.mark.parametrize(("fields", "size"), CASES)
def test_tiles_as_diffusers(pair, fields, size, slicing):
    ours, theirs = pair(1, **fields)
    x = images(1, 2, 3, *size)
    whole = ours.encode(x).mean, ours.decode(torch.randn_like(ours.encode(x).mean))
    for model in (ours, theirs):
        model.enable_tiling()
        if slicing:
            model.enable_slicing()
    found, expected = ours.posterior(x), theirs.encode(x).latent_dist
    assert_close(found.mean, expected.mean, **EXACT)
    assert_close(found.std, expected.std, **EXACT)
    assert (ours.encode(x).mean - whole[0]).abs().max() > 1e-3  # the tiles were really used
    z = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(1))
    assert_close(ours.decode(z), theirs.decode(z / ours.config.scaling_factor).sample, **EXACT)
    assert ours.decode(z).shape == whole[1].shape


def test_up_to_one_tile_nothing_changes(pair):
    ours, _ = pair(2)
    x, z = images(2, 1, 3, 32, 32), torch.randn(1, 4, 8, 8)
    mean, image = ours.encode(x).mean, ours.decode(z)
    ours.enable_tiling()
    assert_close(ours.encode(x).mean, mean, rtol=0, atol=0)
    assert_close(ours.decode(z), image, rtol=0, atol=0)
    ours.tile_size = 16
    assert (ours.decode(z) - image).abs().max() > 1e-3
    ours.disable_tiling()
    assert_close(ours.decode(z), image, rtol=0, atol=0)


def test_slicing_runs_one_image_at_a_time(pair):
    ours, theirs = pair(3)
    x, z = images(3, 3, 3, 24, 32), torch.randn(3, 4, 6, 8)
    sizes = []
    for network in (ours.encoder, ours.decoder):
        network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    ours.enable_slicing()
    assert_close(ours.posterior(x).mean, theirs.encode(x).latent_dist.mean, **EXACT)
    assert_close(ours.decode(z), theirs.decode(z / ours.config.scaling_factor).sample, **EXACT)
    assert sizes == [1] * 6
    ours.disable_slicing()
    ours.decode(z)
    assert sizes[-1] == 3


@pytest.mark.parametrize("tile", [4, 5, 8, 11])
@pytest.mark.parametrize("size", [(12, 9), (23, 17), (4, 30)])
def test_tiles_of_a_local_network_make_the_whole(tile, size):
    """A network that sees one latent cell at a time cannot notice the tiles: any misplaced pixel shows."""
    z = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(tile))

    def decode(z):
        return F.pixel_shuffle(z.repeat(1, 4, 1, 1).sin() * torch.arange(12).view(12, 1, 1), 2)

    def encode(x):
        return F.pixel_unshuffle(x, 2).cos()

    assert_close(tiled(decode, z, tile, (1, 2)), decode(z))
    assert_close(tiled(encode, decode(z), tile, (2, 1)), encode(decode(z)))


@pytest.mark.parametrize("size", [(4, 40), (40, 4)])
def test_no_seam_between_tiles_of_different_brightness(size):
    """Tile k comes out with brightness k everywhere: the result must climb by even steps, never by a jump."""
    tile, factor = 8, 4
    brightness = count()

    def level(z):
        return torch.full((1, 1, factor * z.shape[2], factor * z.shape[3]), float(next(brightness)))

    image = tiled(level, torch.zeros(1, 1, *size), tile, (1, factor)).squeeze(1)
    profile = image[0].mean(0 if size[0] < size[1] else 1)
    steps = profile.diff()
    shared = tile // 4 * factor
    assert profile[0] == 0
    assert profile[-1] == next(brightness) - 1
    assert_close(steps[steps > 0], torch.full(((steps > 0).sum(),), 1 / shared), rtol=1e-4, atol=1e-5)
    assert (steps >= 0).all()


def test_no_seam_where_four_tiles_meet():
    """Four flat tiles blend as the product of two ramps, whose steepest step is 1 / overlap."""
    brightness = iter([0.0, 1.0, 1.0, 0.0])

    def level(z):
        return torch.full((1, 1, 4 * z.shape[2], 4 * z.shape[3]), next(brightness))

    image = tiled(level, torch.zeros(1, 1, 12, 12), 8, (1, 4))[0, 0]  # (48, 48), tiles meet from 24 to 32
    ramp = ((torch.arange(48) - 24) / 8).clamp(0, 1)
    down, right = ramp[:, None], ramp[None, :]
    assert_close(image, down * (1 - right) + (1 - down) * right)
    assert image.diff(dim=0).abs().max() <= 1 / 8 + 1e-6
    assert image.diff(dim=1).abs().max() <= 1 / 8 + 1e-6
