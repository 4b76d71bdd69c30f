"""Tiny autoencoders against diffusers' AutoencoderTiny."""

import pytest
import torch
from torch.testing import assert_close

from configs.architecture import TinyConfig
from configs.interchange_extras import tiny_from_json, tiny_to_json
from tests.vae.conftest import randomise
from vae import AutoencoderTiny
from vae.tiling import tiled

EXACT = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {"encoder_channels": (8,) * 4, "decoder_channels": (8,) * 4}
VARIANTS = [
    {},
    {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    {"encoder_layers": (1, 2), "encoder_channels": (8, 8), "decoder_layers": (2, 1), "decoder_channels": (8, 8)},
]


@pytest.fixture(params=VARIANTS)
def pair(request):
    from diffusers import AutoencoderTiny as Theirs

    config = TinyConfig(**{**SMALL, **request.param})
    theirs = Theirs.from_config(tiny_to_json(config))
    randomise(theirs, 0)
    ours = AutoencoderTiny(config)
    ours.load_state_dict(theirs.state_dict())
    return ours.requires_grad_(False), theirs.requires_grad_(False)


def test_encode_and_decode(pair):
    ours, theirs = pair
    config, factor = ours.config, ours.factor
    g = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 5 * factor, 3 * factor, generator=g) * 2 - 1
    latents, raw = ours.encode(image), theirs.encode(image).latents
    expected = (raw - config.shift_factor) * config.scaling_factor
    assert_close(latents.mode(), expected, **EXACT)
    assert_close(latents.sample(generator=g), expected, **EXACT)
    z = 4 * torch.randn(2, config.latent_channels, 5, 3, generator=g)
    assert_close(ours.decode(z), theirs.decode(z / config.scaling_factor + config.shift_factor).sample, **EXACT)


def test_parts(pair):
    ours, _ = pair
    z = torch.randn(2, ours.config.latent_channels, 12, 12, generator=torch.Generator().manual_seed(2))
    whole = ours.decode(z)
    ours.enable_slicing()
    assert_close(ours.decode(z), whole, **EXACT)
    ours.enable_tiling()
    ours.tile_size = 8 * ours.factor
    f = ours.factor
    assert_close(ours.decode(z), tiled(lambda x: ours.decoder(_raw(x, ours.config)), z, 8, (1, f)), **EXACT)


def _raw(z, config):
    return z / config.scaling_factor + config.shift_factor


def test_the_published_one_has_diffusers_tensors():
    from diffusers import AutoencoderTiny as Theirs

    with torch.device("meta"):
        ours, theirs = AutoencoderTiny(TinyConfig()).state_dict(), Theirs().state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert tiny_from_json(tiny_to_json(TinyConfig(latent_channels=16))) == TinyConfig(latent_channels=16)
    with pytest.raises(ValueError, match="act_fn = 'gelu', which is not supported"):
        tiny_from_json({"act_fn": "gelu"})


def test_low_precision_and_wrong_shapes():
    ours = AutoencoderTiny(TinyConfig(**SMALL)).bfloat16()
    assert ours.compute_dtype(torch.float16) == torch.float16
    assert ours.encode(torch.zeros(1, 3, 16, 16)).mean.dtype == torch.float32
    assert ours.decode(torch.zeros(1, 4, 2, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="multiples of 8: resize or crop it to 16 x 16"):
        ours.encode(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match=r"latents must have the shape \(batch, 4"):
        ours.decode(torch.zeros(1, 3, 2, 2))


def test_half_an_autoencoder():
    decoder = AutoencoderTiny(TinyConfig(**{**SMALL, "encoder_channels": (), "encoder_layers": ()}))
    assert decoder.decode(torch.zeros(1, 4, 2, 2)).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="decoder's file alone"):
        decoder.encode(torch.zeros(1, 3, 16, 16))
