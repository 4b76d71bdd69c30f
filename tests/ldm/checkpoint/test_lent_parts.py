"""VAEs and text encoders by path, in the place of a model's own: how they are read, and what they are taken for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from configs import presets
from configs.architecture import AutoencoderConfig
from ldm.checkpoint import load_model
from ldm.checkpoint.convert import Options, convert
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.names_compvis import to_original, vae_names
from ldm.checkpoint.separate_vae import load_vae
from tests.ldm.checkpoint.conftest import randomise
from tests.ldm.checkpoint.originals import CLIP_SD1, UNET, VAE, tiny, write
from vae import AutoencoderKL


def part(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def test_lent_parts_keep_every_tensors_dtype(tmp_path: Path) -> None:
    """Of a model in half precision with an exact text encoder, and a VAE that is in part exact."""
    state = tiny("sd1")[1]
    exact = (CLIP_SD1, f"{VAE}decoder.conv_in")
    mixed = {name: tensor if name.startswith(exact) else tensor.half() for name, tensor in state.items()}
    lender = write(mixed, tmp_path / "lender.safetensors")
    bare = write(part(state, UNET), tmp_path / "unet.safetensors")
    written = load_file(convert(bare, tmp_path / "new.safetensors", Options(vae=lender, text_encoder=lender)))
    torch.testing.assert_close(written, part(mixed, VAE, CLIP_SD1) | part(state, UNET), rtol=0, atol=0)


class Unknown:
    """Of a training program that nobody has heard of."""


def test_lent_pickles_that_name_code(tmp_path: Path) -> None:
    source, state = tiny("sd1")
    model = write(state, tmp_path / "model.safetensors")
    lent = tmp_path / "lent.ckpt"
    torch.save({"state_dict": state, "trainer": Unknown()}, lent)
    for name in ("vae", "text_encoder"):
        given: dict[str, Any] = {"components": {name: lent}}
        with pytest.raises(CheckpointError, match="refers to code"):
            load_model(model, **given)
        loaded = load_model(model, allow_unknown_globals=True, **given)
        torch.testing.assert_close(loaded.text_encoder.state_dict(), source.text_encoder.state_dict())


def test_a_file_that_is_no_model_is_named_when_a_vae_is_given(tmp_path: Path) -> None:
    vae = write(part(tiny("sd1")[1], VAE), tmp_path / "vae.safetensors")
    lora = write({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors: it is a LoRA"):
        load_model(lora, components={"vae": vae})


def test_the_vae_of_a_whole_model_has_its_familys_scale(tmp_path: Path) -> None:
    whole = write(tiny("sdxl")[1], tmp_path / "whole.safetensors")
    assert load_vae(whole).config == tiny("sdxl")[0].autoencoder.config
    assert load_vae(whole).config.scaling_factor == presets.VAE_SDXL.scaling_factor
    alone = write(part(tiny("sdxl")[1], VAE), tmp_path / "alone.safetensors")
    assert load_vae(alone).config.scaling_factor == presets.VAE_KL_F8.scaling_factor


def mended(tmp_path: Path, name: str, notes: dict[str, str]) -> tuple[bool, torch.dtype]:
    config = AutoencoderConfig(channels=(16, 32, 32), norm_groups=16)
    vae = randomise(AutoencoderKL(config), 1).half()
    state = dict(to_original(vae_names(config), vae.state_dict()))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    loaded = load_vae(write(state, path, notes), like=presets.VAE_SDXL)
    return loaded.config.force_upcast, next(loaded.parameters()).dtype


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("sdxl-vae-fp16-fix.safetensors", ""),
        ("sdxl_vae_fp16fix.safetensors", ""),
        ("sdxl.vae-FP16_Fix.safetensors", ""),
        ("models--madebyollin--sdxl-vae-fp16-fix/sdxl.vae.safetensors", ""),
        ("vae.safetensors", "SDXL VAE fp16-fix"),
    ],
)
def test_a_vae_that_does_not_overflow_runs_in_half_precision(tmp_path: Path, name: str, title: str) -> None:
    assert mended(tmp_path, name, {"modelspec.title": title}) == (False, torch.float16)
    assert mended(tmp_path, "sdxl_vae_fp16.safetensors", {}) == (True, torch.float32)


def test_it_is_told_again_after_a_conversion(tmp_path: Path) -> None:
    mended(tmp_path, "sdxl-vae-fp16-fix.safetensors", {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})
    written = convert(tmp_path / "sdxl-vae-fp16-fix.safetensors", tmp_path / "vae.safetensors")
    assert not load_vae(written).config.force_upcast
