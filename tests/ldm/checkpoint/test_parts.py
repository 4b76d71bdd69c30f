"""Parts named by path: a VAE, tiny autoencoder or text encoder from elsewhere, in place of a model's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.architecture import TinyConfig
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.load import load_autoencoder, load_model
from ldm.checkpoint.names_compvis import to_original, vae_names
from tests.ldm.checkpoint.originals import CLIP_SD1, VAE, assert_same, randomised, sd2_file, tiny, write
from vae import AutoencoderKL, AutoencoderTiny


def vae_file(network: AutoencoderKL, path: Path) -> Path:
    names = vae_names(network.config)
    return write({name: value.contiguous() for name, value in to_original(names, network.state_dict())}, path)


def without(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}


@pytest.mark.parametrize("family", ["sd1", "sdxl", "x4-upscaler"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_vae_file_is_scaled_as_its_family_says(tmp_path: Path, family: str, whole: bool) -> None:
    source, state = tiny(family)
    model = write(state if whole else without(state, VAE), tmp_path / "model.safetensors")
    other = randomised(AutoencoderKL(replace(source.autoencoder.config, sample_size=8)), 9)
    found = load_model(model, components={"vae": str(vae_file(other, tmp_path / "vae.safetensors"))})
    assert found.autoencoder.config.scaling_factor == source.autoencoder.config.scaling_factor
    torch.testing.assert_close(dict(found.autoencoder.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def test_the_vae_of_a_folder_lends_its_scale(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied("sdxl")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.5}))
    model = load_model(folder)
    other = vae_file(randomised(AutoencoderKL(model.autoencoder.config), 9), tmp_path / "vae.safetensors")
    found = load_model(folder, components={"vae": other}).autoencoder
    assert found.config.scaling_factor == 0.5
    assert not torch.equal(found.decoder.conv_in.weight, model.autoencoder.decoder.conv_in.weight)


def test_a_tiny_autoencoder_by_path(folders: dict[str, Path], tmp_path: Path) -> None:
    network = randomised(AutoencoderTiny(TinyConfig((8,) * 4, (1, 1, 1, 1), (8,) * 4, (1, 1, 1, 1))), 1)
    file = write(network.state_dict(), tmp_path / "taesd.safetensors")
    found = load_model(folders["sd1"], components={"vae": file}).autoencoder
    assert isinstance(found, AutoencoderTiny)
    torch.testing.assert_close(dict(found.state_dict()), dict(network.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_another_model_lends_its_text_encoder(tmp_path: Path, dtype: torch.dtype | None) -> None:
    source, state = tiny("sd1")
    lender = write(state, tmp_path / "whole.safetensors")
    model = write(without(state, CLIP_SD1), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no text encoder: pass .* --text-encoder \(text_encoder=\.\.\.\)"):
        load_model(model)
    found = load_model(model, dtype=dtype, components={"text_encoder": lender})
    if dtype is None:
        assert_same(found, source)
    dtypes = {parameter.dtype for network in found.networks().values() for parameter in network.parameters()}
    assert torch.float32 in dtypes if dtype is None else dtypes == {dtype}


def test_a_text_encoder_of_another_family_is_refused(tmp_path: Path) -> None:
    _, state = tiny("sdxl")
    model = write(without(state, "conditioner."), tmp_path / "model.safetensors")
    lender = write(tiny("sd1")[1], tmp_path / "sd1.safetensors")
    with pytest.raises(CheckpointError, match="they belong to different families"):
        load_model(model, components={"text_encoder": lender})


def test_lending_does_not_ask_what_the_lender_predicts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lender = sd2_file(tmp_path / "lender.safetensors", -2.0)
    model = write(without(tiny("sd2")[1], "cond_stage_model."), tmp_path / "model.safetensors")
    load_model(model, prediction_type="epsilon", components={"text_encoder": lender})
    assert "taken for" not in caplog.text


def test_what_is_no_vae_is_named(tmp_path: Path) -> None:
    other = write({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors holds no VAE"):
        load_autoencoder(other)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_autoencoder(tmp_path / "none.safetensors")


def test_unknown_code_in_a_model_may_be_passed_over(tmp_path: Path) -> None:
    source, state = tiny("sd1")
    marker, file = tmp_path / "ran", tmp_path / "model.ckpt"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {marker}",)

    torch.save({"state_dict": state, "hook": Evil()}, file)
    with pytest.raises(CheckpointError, match=r"posix\.system.*allow_unknown_globals=True"):
        load_model(file)
    found = load_model(
        file, components={"vae": vae_file(source.autoencoder, tmp_path / "vae.safetensors")}, allow_unknown_globals=True
    )
    assert_same(found, source)
    assert not marker.exists()
