import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from configs.architecture import AutoencoderConfig
from configs.interchange import autoencoder_to_json
from configs.presets import VAE_KL_F8, VAE_SDXL, VAE_UPSCALE
from vae import AutoencoderKL, DiagonalGaussian, canonical_keys

EXACT = {"rtol": 1e-5, "atol": 1e-5}
FOUR = {"channels": (8, 8, 16, 16), "layers": 1}
SDXL = {
    "scaling_factor": 0.13025,
    "latents_mean": (0.1, -0.2, 0.3, 0.05),
    "latents_std": (8.4, 5.5, 6.7, 7.9),
}
FLOW = {"latent_channels": 16, "quant_conv": False, "post_quant_conv": False, "shift_factor": 0.1159}
VARIANTS = [{}, FOUR, SDXL, FLOW, {"mid_attention": False}, {"post_quant_conv": False}, {"in_channels": 1}]


def images(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def scaled(z, config):
    """Raw latents to the denoiser's, as diffusers' pipelines write it."""
    if config.latents_std is None:
        return (z - (config.shift_factor or 0)) * config.scaling_factor
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
    return (z - mean) * config.scaling_factor / std


def unscaled(z, config):
    if config.latents_std is None:
        return z / config.scaling_factor + (config.shift_factor or 0)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
    return z * std / config.scaling_factor + mean


@pytest.mark.parametrize("preset", [VAE_KL_F8, VAE_SDXL, VAE_UPSCALE, AutoencoderConfig(**FLOW)])
def test_real_configurations_have_diffusers_tensors(preset):
    from diffusers import AutoencoderKL as Theirs

    with torch.device("meta"):
        ours, theirs = AutoencoderKL(preset), Theirs.from_config(autoencoder_to_json(preset))
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    if preset == VAE_KL_F8:
        assert len(shapes) == 248


@pytest.mark.parametrize("seed", [0, 1])
def test_every_block(pair, seed):
    ours, theirs = pair(seed)
    calls = {}
    for name, module in theirs.named_modules():
        if name and not isinstance(module, torch.nn.ModuleList):
            module.register_forward_hook(lambda _, args, out, name=name: calls.update({name: (args[0].clone(), out)}))
    theirs.decode(theirs.encode(images(seed, 2, 3, 20, 28)).latent_dist.mode())
    blocks = {name: module for name, module in ours.named_modules() if name in calls}
    expected = {"encoder.down_blocks.1.downsamplers.0", "decoder.up_blocks.0.upsamplers.0", "encoder.mid_block"}
    assert len(blocks) > 100
    assert expected | {"decoder.mid_block.attentions.0", "decoder.up_blocks.2.resnets.2"} <= set(blocks)
    for name, module in blocks.items():
        x, out = calls[name]
        assert_close(module(x), out, msg=lambda text, name=name: f"{name}: {text}", **EXACT)


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize(("seed", "size"), [(0, (40, 24)), (1, (72, 104))])
def test_encode(pair, fields, seed, size):
    ours, theirs = pair(seed, **fields)
    x = images(seed, 3, ours.config.in_channels, *size)
    latents, expected = ours.encode(x), theirs.encode(x).latent_dist
    assert_close(ours.posterior(x).mean, expected.mean, **EXACT)
    assert_close(ours.posterior(x).std, expected.std, **EXACT)
    assert_close(latents.mode(), scaled(expected.mode(), ours.config), **EXACT)
    assert_close(latents.std, scaled(expected.std, ours.config) - scaled(torch.zeros(1, 1, 1, 1), ours.config), **EXACT)
    assert_close(ours.posterior(x).kl(), expected.kl(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize(("seed", "size"), [(0, (5, 3)), (1, (9, 13))])
def test_decode(pair, fields, seed, size):
    ours, theirs = pair(seed, **fields)
    z = torch.randn(3, ours.config.latent_channels, *size, generator=torch.Generator().manual_seed(seed))
    assert_close(ours.decode(z), theirs.decode(unscaled(z, ours.config)).sample, **EXACT)


@pytest.mark.parametrize("fields", [{}, SDXL, FLOW])
def test_sample_draws_as_diffusers(pair, fields):
    ours, theirs = pair(2, **fields)
    x = images(2, 3, 3, 40, 24)
    ours_draw = ours.encode(x).sample(generator=torch.Generator().manual_seed(5))
    raw = theirs.encode(x).latent_dist.sample(torch.Generator().manual_seed(5))
    assert_close(ours_draw, scaled(raw, ours.config), **EXACT)
    ours_draw = ours.encode(x).sample(generator=[torch.Generator().manual_seed(i) for i in range(3)])
    one_by_one = [theirs.encode(x[i : i + 1]).latent_dist.sample(torch.Generator().manual_seed(i)) for i in range(3)]
    assert_close(ours_draw, scaled(torch.cat(one_by_one), ours.config), **EXACT)


def test_sample_takes_noise_and_the_global_generator():
    latents = DiagonalGaussian(torch.full((1, 2, 2, 2), 3.0), torch.full((1, 2, 2, 2), 0.5))
    assert_close(latents.sample(torch.full((1, 2, 2, 2), -2.0)), torch.full((1, 2, 2, 2), 2.0))
    torch.manual_seed(4)
    drawn = latents.sample()
    torch.manual_seed(4)
    assert_close(drawn, 3 + 0.5 * torch.randn(1, 2, 2, 2))
    with pytest.raises(ValueError, match="2 generators for 1 images"):
        latents.sample(generator=[torch.Generator(), torch.Generator()])


@pytest.mark.parametrize(("logvar", "std"), [(-1000.0, 3.059023205018258e-07), (1000.0, 22026.465794806718)])
def test_log_variance_is_clamped(pair, logvar, std):
    ours, _ = pair()
    ours.quant_conv.weight.data[4:] = 0
    ours.quant_conv.bias.data[4:] = logvar
    assert_close(ours.posterior(images(0, 1, 3, 8, 8)).std, torch.full((1, 4, 2, 2), std))


def test_gradients(pair):
    ours, theirs = pair(3)
    x = images(3, 1, 3, 16, 24)
    for model in (ours, theirs):
        model.requires_grad_(True)
    ours.decode(ours.encode(x).mode()).square().mean().backward()
    theirs.decode(theirs.encode(x).latent_dist.mode()).sample.square().mean().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_low_precision_weights_take_and_give_float32(pair):
    ours, _ = pair(4)
    x, z = images(4, 2, 3, 40, 24), torch.randn(2, 4, 10, 6, generator=torch.Generator().manual_seed(4))
    mean, image = ours.encode(x).mean, ours.decode(z)
    ours.to(torch.bfloat16)
    assert ours.encode(x).mean.dtype == ours.encode(x).std.dtype == ours.decode(z.bfloat16()).dtype == torch.float32
    assert (ours.encode(x).mean - mean).abs().max() < 0.05 * mean.abs().max()
    assert (ours.decode(z) - image).abs().max() < 0.05 * image.abs().max()


def test_compute_dtype():
    with torch.device("meta"):
        forced, free = (AutoencoderKL(AutoencoderConfig(channels=(32,), force_upcast=force)) for force in (True, False))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert free.compute_dtype(dtype) == dtype
    assert forced.compute_dtype(torch.float16) == forced.compute_dtype(torch.float32) == torch.float32
    assert forced.compute_dtype(torch.bfloat16) == torch.bfloat16


def test_bad_shapes_say_what_to_do(pair):
    ours, _ = pair()
    with pytest.raises(ValueError, match=r"30 x 21 pixels.*multiples of 4: resize or crop it to 28 x 20"):
        ours.encode(torch.zeros(1, 3, 21, 30))
    with pytest.raises(ValueError, match=r"resize or crop it to 4 x 4"):
        ours.encode(torch.zeros(1, 3, 3, 4))
    with pytest.raises(
        ValueError, match=r"images must have the shape \(batch, 3, height, width\), got \(1, 4, 16, 16\)"
    ):
        ours.encode(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match=r"latents must have the shape \(batch, 4, height, width\), got \(4, 16, 16\)"):
        ours.decode(torch.zeros(4, 16, 16))


@pytest.mark.parametrize("tail", [(), (1,), (1, 1)])
def test_legacy_attention_names(pair, tail):
    _, theirs = pair(5)
    legacy = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in theirs.state_dict().items():
        for new_name, old_name in legacy.items():
            if f".{new_name}." in name:
                name = name.replace(new_name, old_name)
                tensor = tensor.view(*tensor.shape, *tail) if name.endswith("weight") else tensor
        old[name] = tensor
    assert sum(".query." in name or ".proj_attn." in name for name in old) == 8
    found = canonical_keys(old)
    assert_close(found, theirs.state_dict(), rtol=0, atol=0)
    assert list(canonical_keys(found)) == list(found)
    assert (
        canonical_keys({"a.attentions.0.to_q.weight": torch.zeros(2, 2, *tail)})["a.attentions.0.to_q.weight"].ndim == 2
    )


def test_importing_the_package_loads_no_torch():
    code = (
        "import vae, sys; assert 'torch' not in sys.modules; vae.AutoencoderKL; assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu(pair, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ours, _ = pair(6, **SDXL)
    x, z = images(6, 2, 3, 72, 40), torch.randn(2, 4, 18, 10, generator=torch.Generator().manual_seed(6))
    ours.enable_tiling()
    latents, image = ours.encode(x), ours.decode(z)
    draw = latents.sample(generator=torch.Generator().manual_seed(1))
    ours.cuda()
    there = ours.encode(x.cuda())
    assert_close(there.mean.cpu(), latents.mean, rtol=1e-4, atol=1e-4)
    assert_close(there.sample(generator=torch.Generator().manual_seed(1)).cpu(), draw, rtol=1e-4, atol=1e-4)
    assert_close(ours.decode(z.cuda()).cpu(), image, rtol=1e-4, atol=1e-4)
    ours.half()
    assert (ours.decode(z.cuda()).cpu() - image).abs().max() < 0.05 * image.abs().max()


@pytest.mark.parametrize("upcast", [True, False])
def test_weights_in_float16_that_would_overflow_change_with_the_first_image(upcast):
    torch.manual_seed(0)
    vae = AutoencoderKL(AutoencoderConfig(**FOUR, norm_groups=4, force_upcast=upcast)).half()
    exact = AutoencoderKL(vae.config).requires_grad_(False)
    exact.load_state_dict(vae.state_dict())
    z = torch.randn(1, vae.config.latent_channels, 4, 4)
    assert vae.decoder.conv_in.weight.dtype == torch.float16
    found = vae.decode(z)
    assert vae.decoder.conv_in.weight.dtype == (torch.float32 if upcast else torch.float16)
    assert torch.equal(found, exact.float().decode(z)) == upcast
