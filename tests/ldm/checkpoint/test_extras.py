"""Networks beside a model from every layout of their files, tensor by tensor."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from configs import presets
from configs.architecture import (
    AdapterConfig,
    AutoencoderConfig,
    ImagePromptConfig,
    TinyConfig,
)
from configs.interchange import autoencoder_to_json
from configs.interchange_extras import adapter_to_json, tiny_to_json
from ldm.checkpoint.extras import (
    ip_adapter_lora,
    load_adapter,
    load_ip_adapter,
    load_tiny,
)
from ldm.checkpoint.files import STEM
from ldm.checkpoint.names_compvis import to_original, vae_names
from ldm.checkpoint.separate_vae import load_vae
from tests.ldm.checkpoint.beside import same, write, write_folder
from tests.ldm.checkpoint.conftest import randomise
from tests.ldm.checkpoint.originals import tiny_families
from unet import UNet
from unet.adapter import Adapter
from unet.image_prompt import ImagePrompt
from vae import AutoencoderKL, AutoencoderTiny

VAE = AutoencoderConfig(channels=(16, 32, 32), norm_groups=16, sample_size=512)
UNET = tiny_families()["sd1"].unet


# VAE


@pytest.fixture(scope="module")
def vae():
    return randomise(AutoencoderKL(VAE), 1)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_vae_in_the_original_layout(prefix, suffix, vae, tmp_path):
    state = {prefix + name: tensor for name, tensor in to_original(vae_names(VAE), vae.state_dict())}
    assert state[f"{prefix}encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    if prefix:  # a whole model's file: the rest is left alone
        state["model.diffusion_model.out.2.weight"] = torch.zeros(4, 8, 3, 3)
    state |= {f"{prefix}loss.logvar": torch.zeros(()), f"{prefix}model_ema.decay": torch.zeros(())}
    found = load_vae(write(state, tmp_path / f"vae{suffix}"))
    assert found.config == VAE
    same(found, vae)


@pytest.mark.parametrize("legacy", [False, True])
def test_vae_in_diffusers_layout(legacy, vae, tmp_path):
    state = vae.state_dict()
    if legacy:
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, name in old.items():
            state = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in state.items()}
    found = load_vae(write(state, tmp_path / "vae.safetensors"))
    assert found.config == VAE
    same(found, vae)


def test_vae_folders_and_scales(vae, tmp_path):
    config = replace(VAE, scaling_factor=0.5, latents_mean=(1.0,) * 4, latents_std=(2.0,) * 4)
    folder = write_folder(vae, autoencoder_to_json(config), tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    for path in (folder, tmp_path, folder / f"{STEM}.safetensors"):
        found = load_vae(path)
        assert found.config == config
        same(found, vae)
    alone = write(vae.state_dict(), tmp_path / "alone.safetensors")
    assert load_vae(alone, like=config).config == replace(config, sample_size=512)
    marked = write(
        vae.state_dict(), tmp_path / "xl.safetensors", {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"}
    )
    assert load_vae(marked).config.scaling_factor == presets.VAE_SDXL.scaling_factor
    halves = {name: tensor.half() for name, tensor in vae.state_dict().items()}
    half = write(halves, tmp_path / "half.safetensors")
    assert next(load_vae(half).parameters()).dtype == torch.float32  # it would overflow
    assert next(load_vae(half, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


# T2I-Adapter


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig("full", 1, (8, 16, 16, 24), 2, 8),
        AdapterConfig("full_xl", 3, (8, 16, 24, 24), 2, 16),
        AdapterConfig("light", 3, (8, 16, 24), 4, 8),
    ],
)
def test_adapter_layouts(config, tmp_path):
    network = randomise(Adapter(config), 3)
    state = network.state_dict()
    first = write({published(name, config): tensor for name, tensor in state.items()}, tmp_path / "t2iadapter.pth")
    own = write(state, tmp_path / "own.safetensors")
    folder = write_folder(network, adapter_to_json(config), tmp_path / "adapter")
    for path in (first, own, folder):
        found = load_adapter(path)
        assert found.config == config
        same(found, network)


def published(name, config):
    """The name in TencentARC's files: one list of ResNets, two for each level, but for the light ones."""
    parts = name.removeprefix("adapter.").split(".")
    if parts[0] == "body" and parts[2] == "resnets" and config.kind != "light":
        return ".".join(["body", str(2 * int(parts[1]) + int(parts[3])), *parts[4:]])
    if parts[0] == "body" and parts[2] == "in_conv" and config.kind != "light":
        return ".".join(["body", str(2 * int(parts[1])), *parts[2:]])
    return ".".join(parts).replace(".resnets.", ".body.")


# tiny autoencoders


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tiny_layouts(suffix, tmp_path):
    config = TinyConfig((8,) * 4, (1, 3, 3, 3), (8,) * 4, (3, 3, 3, 1))
    network = randomise(AutoencoderTiny(config), 4)
    halves = {half: getattr(network, half).layers.state_dict() for half in ("encoder", "decoder")}
    halves["decoder"] = {shifted(name): tensor for name, tensor in halves["decoder"].items()}
    files = {half: write(state, tmp_path / f"taesd_{half}{suffix}") for half, state in halves.items()}
    own = write(network.state_dict(), tmp_path / "own.safetensors")
    folder = write_folder(network, tiny_to_json(replace(config, scaling_factor=0.5)), tmp_path / "tiny")
    for path in (*files.values(), own):
        found = load_tiny(path)
        assert found.config == config
        same(found, network)
    assert load_tiny(folder).config == replace(config, scaling_factor=0.5)
    files["encoder"].unlink()
    alone = load_tiny(files["decoder"])
    z = torch.randn(1, 4, 2, 2)
    assert_close(alone.decode(z), network.decode(z), rtol=0, atol=0)
    with pytest.raises(ValueError, match="cannot encode"):
        alone.encode(torch.zeros(1, 3, 16, 16))


def shifted(name):
    """The published decoder begins with a layer without weights."""
    number, _, rest = name.partition(".")
    return f"{int(number) + 1}.{rest}"


# IP-Adapter


def ip_config(kind, **fields):
    return ImagePromptConfig(kind, context_dim=64, attentions=(32, 32, 32, 32, 32, 64), **fields)


def test_ip_adapter_files(tmp_path):
    """Flat names as in safetensors, groups as in .bin files."""
    config = ip_config("plain", image_dim=20)
    prompt = randomise(ImagePrompt(config), 5)
    flat = prompt.state_dict()
    groups = {
        group: {name.removeprefix(f"{group}."): t for name, t in flat.items() if name.startswith(group)}
        for group in ("image_proj", "ip_adapter")
    }
    torch.save(groups, tmp_path / "ip.bin")
    for path in (write(flat, tmp_path / "ip.safetensors"), tmp_path / "ip.bin"):
        found = load_ip_adapter(path)
        assert found.config == config
        same(found, prompt)
    with pytest.raises(ValueError, match="is no IP-Adapter"):
        load_ip_adapter(write({"a": torch.zeros(1)}, tmp_path / "x.safetensors"))
    del flat["ip_adapter.3.to_k_ip.weight"]
    with pytest.raises(ValueError, match="not numbered 1, 3, 5"):
        load_ip_adapter(write(flat, tmp_path / "y.safetensors"))


def test_face_id_brings_its_lora(tmp_path, caplog):
    prompt = randomise(ImagePrompt(ip_config("face", image_dim=0, id_dim=12, id_width=24)), 6)
    lora = {
        "ip_adapter.2.to_q_lora.down.weight": torch.ones(4, 32),
        "ip_adapter.11.to_out_lora.up.weight": torch.ones(64, 4),
    }
    path = write({**prompt.state_dict(), **lora}, tmp_path / "face.safetensors")
    same(load_ip_adapter(path), prompt)
    assert "comes with a LoRA" in caplog.text
    with torch.device("meta"):
        unet = UNet(UNET)
    assert set(ip_adapter_lora(path, unet)) == {
        "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
    }


def test_a_tiny_autoencoder_in_a_model(tiny_sd_folder: Path, tmp_path: Path):
    """It stands in for the large one: the pipeline draws with it, and diffusers finds it in what is saved."""
    from diffusers import AutoencoderTiny as Theirs

    from pipelines import TextToImagePipeline

    tiny = AutoencoderTiny(TinyConfig((8,) * 4, (1, 1, 1, 1), (8,) * 4, (1, 1, 1, 1)))
    pipe = TextToImagePipeline.from_pretrained(tiny_sd_folder, device="cpu", vae=tiny)
    pipe.set_progress_bar_config(disable=True)
    found = pipe("a cat", num_inference_steps=1, seed=1, output_type="pt").images
    latents = pipe("a cat", num_inference_steps=1, seed=1, output_type="latent").images
    assert_close(found, ((tiny.decode(latents) + 1) / 2).clamp(0, 1))
    pipe.save_pretrained(tmp_path / "model")
    again = TextToImagePipeline.from_pretrained(tmp_path / "model", device="cpu").vae
    assert again.config == tiny.config
    same(again, tiny)
    theirs = Theirs.from_pretrained(tmp_path / "model", subfolder="vae")
    assert_close(tiny.decode(latents), theirs.decode(latents).sample, rtol=1e-5, atol=1e-5)
