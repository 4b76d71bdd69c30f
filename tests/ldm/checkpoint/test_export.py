"""Models as single files: what is written is what was loaded, to us and to diffusers, and says what it is."""

import hashlib
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import diffusers.loaders.single_file_utils as theirs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.architecture import TinyConfig
from configs.interchange import autoencoder_to_json, unet_to_json
from ldm.checkpoint import embedded, load_folder, load_single_file, save_folder, save_single_file
from ldm.checkpoint.export import _model_tensors
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.published import scheduler_config
from ldm.checkpoint.save import text_encoders
from ldm.model import LatentDiffusion
from pipelines import TextToImagePipeline
from tests.ldm.checkpoint.originals import (
    CLIP_SD2,
    Family,
    assert_same,
    meta_state,
    model,
    models,
    real_families,
    tiny,
    tiny_families,
)
from text_encoder import CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer
from text_encoder.inversion import add_words
from unet import UNet
from vae import AutoencoderKL, AutoencoderTiny

TINY = tiny_families()
UNREAD = (f"{CLIP_SD2}transformer.resblocks.2.", f"{CLIP_SD2}text_projection")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Names, shapes, dtypes and bits."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


@pytest.mark.parametrize("name", TINY)
def test_every_family_as_its_makers_published_it(name: str, tmp_path: Path) -> None:
    """The tensors of the original, but for those of SD 2 that nothing reads; and from them the same model again."""
    source, state = tiny(name)
    written = save_single_file(source, tmp_path / "model.safetensors")
    same(load_file(written), {key: tensor for key, tensor in state.items() if not key.startswith(UNREAD)})
    assert_same(load_single_file(written), source)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "refiner"])
def test_folder_to_file_to_folder(name: str, tmp_path: Path) -> None:
    first = save_folder(tiny(name)[0], tmp_path / "first")
    file = save_single_file(load_folder(first), tmp_path / "model.safetensors")
    second = save_folder(load_single_file(file), tmp_path / "second")
    for weights in first.rglob("*.safetensors"):
        assert weights.read_bytes() == (second / weights.relative_to(first)).read_bytes()
    assert json.loads((first / "unet/config.json").read_text()) == json.loads((second / "unet/config.json").read_text())


@pytest.mark.parametrize(
    ("name", "zero_snr", "marks"),
    [("sd1", False, set()), ("sd2", False, set()), ("sdxl", False, {"v_pred"}), ("sdxl", True, {"v_pred", "ztsnr"})],
)
def test_velocity_is_read_back(name: str, zero_snr: bool, marks: set[str], tmp_path: Path) -> None:
    """Without asking the U-Net. SDXL is marked as ComfyUI looks for it."""
    source = tiny(name)[0]
    config = scheduler_config(source.family, "", "v_prediction", zero_snr=zero_snr)
    written = save_single_file(replace(source, scheduler_config=config), tmp_path / "model.safetensors")
    assert {key for key in load_file(written) if "." not in key} == marks
    loaded = load_single_file(written)
    assert loaded.scheduler_config == config
    assert loaded.notes == ()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "refiner", "sd1-inpaint"])
def test_metadata(name: str, tmp_path: Path) -> None:
    said = metadata(save_single_file(tiny(name)[0], tmp_path / "a cat.safetensors"))
    data = (tmp_path / "a cat.safetensors").read_bytes()
    content = data[8 + int.from_bytes(data[:8], "little") :]
    assert said == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": "a cat",
        "modelspec.architecture": {
            "sd1": "stable-diffusion-v1",
            "sd2": "stable-diffusion-v2-512",
            "sdxl": "stable-diffusion-xl-v1-base",
            "refiner": "stable-diffusion-xl-v1-refiner",
            "sd1-inpaint": "stable-diffusion-v1-inpainting",
        }[name],
        "modelspec.implementation": said["modelspec.implementation"],
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "1024x1024" if name in ("sdxl", "refiner") else "512x512",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(content).hexdigest()}",
    }


def test_a_distilled_model_is_read_back_as_one(tmp_path: Path) -> None:
    config = scheduler_config("sdxl", "", "epsilon", zero_snr=False, distilled="turbo")
    source = replace(tiny("sdxl")[0], scheduler_config=config, defaults={"num_inference_steps": 4})
    assert load_single_file(save_single_file(source, tmp_path / "m.safetensors")).scheduler_config == config
    ordinary = load_single_file(save_single_file(replace(source, defaults={}), tmp_path / "o.safetensors"))
    assert ordinary.defaults == {}


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_diffusers_reads_the_same(name: str, tmp_path: Path) -> None:
    """Networks by themselves, text encoders through its pipeline, and the picture that it then draws."""
    source = tiny(name)[0]
    file, folder = save_single_file(source, tmp_path / "m.safetensors"), save_folder(source, tmp_path / "folder")
    options: dict[str, Any] = {"config": str(folder), "local_files_only": True}
    unet = diffusers.UNet2DConditionModel.from_single_file(str(file), subfolder="unet", **options)
    vae = diffusers.AutoencoderKL.from_single_file(str(file), subfolder="vae", **options)
    same(dict(unet.state_dict()), source.unet.state_dict())
    same(dict(vae.state_dict()), source.autoencoder.state_dict())
    kind = diffusers.StableDiffusionXLPipeline if name == "sdxl" else diffusers.StableDiffusionPipeline
    pipe = kind.from_single_file(str(file), **options)
    found = [pipe.text_encoder, *([pipe.text_encoder_2] if name == "sdxl" else [])]
    for encoder, other in zip(models(source.text_encoder), found, strict=True):
        state = {key if "text_" in key else f"text_model.{key}": tensor for key, tensor in other.state_dict().items()}
        same({key: tensor for key, tensor in state.items() if "position_ids" not in key}, encoder.model.state_dict())
    side = 2 * source.autoencoder.factor
    noise = torch.randn(1, source.latent_channels, 2, 2, generator=torch.Generator().manual_seed(1))
    call: dict[str, Any] = {"num_inference_steps": 2, "latents": noise, "output_type": "pt", "height": side}
    pipe.scheduler = diffusers.DDIMScheduler.from_config(source.scheduler_config)
    drawn = TextToImagePipeline(source, device="cpu")("a cat", width=side, sampler=pipe.scheduler, **call).images
    torch.testing.assert_close(drawn, pipe("a cat", width=side, **call).images, rtol=0, atol=1e-4)


REAL = {name: family for name, family in real_families().items() if name in ("sd1", "sd2-v", "sdxl")}


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_by_name_and_shape(name: str) -> None:
    """On meta: the published file's list, of which diffusers' own converters make every tensor of its networks."""
    family = REAL[name]
    whole = on_meta("", lambda _: model_of(family), None)
    found = dict(_model_tensors(whole, text_encoders(whole)))
    published = meta_state(family)
    last = (f"{CLIP_SD2}transformer.resblocks.23.", f"{CLIP_SD2}text_projection")
    expected = {key: tensor for key, tensor in published.items() if not key.startswith(last)}
    assert shapes(found) == shapes(expected)
    unet = theirs.convert_ldm_unet_checkpoint(dict(found), unet_to_json(family.unet))
    assert shapes(unet) == shapes(dict(whole.unet.state_dict()))
    vae = theirs.convert_ldm_vae_checkpoint(dict(found), autoencoder_to_json(family.vae))
    assert shapes(vae) == shapes(dict(whole.autoencoder.state_dict()))


def model_of(family: Family) -> LatentDiffusion:
    encoders = [CLIPTextEncoder(Tokenizer.clip(), CLIPTextModel(text)) for text in family.texts.values()]
    encoder = PairedTextEncoder(*encoders) if len(encoders) == 2 else encoders[0]
    return LatentDiffusion(AutoencoderKL(family.vae), encoder, UNet(family.unet), {}, family.family)


# dtypes


def test_a_dtype_converts_every_tensor(tmp_path: Path) -> None:
    source, state = tiny("sdxl")
    written = save_single_file(source, tmp_path / "half.safetensors", dtype=torch.float16)
    same(load_file(written), {key: tensor.half() for key, tensor in state.items()})


def test_tensors_keep_their_own(tmp_path: Path) -> None:
    """Of a file with three dtypes, loaded as it is stored, and views of one row block among them."""
    state = {
        key: tensor.half() if key.startswith("model.") else tensor.bfloat16() if "embedders.1" in key else tensor
        for key, tensor in tiny("sdxl")[1].items()
    }
    save_file(state, tmp_path / "mixed.safetensors")
    loaded = load_single_file(tmp_path / "mixed.safetensors", as_stored=True)
    same(load_file(save_single_file(loaded, tmp_path / "again.safetensors")), state)


def test_a_weight_too_large_for_the_dtype_is_named(tmp_path: Path) -> None:
    source = model(TINY["sd1"])
    with torch.no_grad():
        source.unet.conv_out.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"out\.2\.bias has weights up to 1e\+06"):
        save_single_file(source, tmp_path / "half.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


# what is refused


def test_the_embedded_model_has_words_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="carries no tokenizer"):
        save_single_file(load_folder(embedded()), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("tiny autoencoder", "its tiny autoencoder"),
        ("words", r"unload_textual_inversion\(\)"),
        ("heads", r"its unet has heads \(4, 4\), where readers of such files take \(8, 8\)"),
        ("scale", "its vae has scaling_factor 0.5"),
        ("betas", "its scheduler has beta_schedule linear"),
        ("sample", "predicts 'sample'"),
        ("name", r"safetensors only.*model\.safetensors"),
    ],
)
def test_what_would_be_read_as_something_else(change: str, text: str, tmp_path: Path) -> None:
    source, name = model(TINY["sd1"]), "model.safetensors"
    match change:
        case "tiny autoencoder":
            source.autoencoder = AutoencoderTiny(TinyConfig((8, 8), (1, 1), (8, 8), (1, 1)))
        case "words":
            add_words(models(source.text_encoder)[0], {"<moon>": torch.zeros(1, 64)})
        case "heads":
            source.unet.config = replace(source.unet.config, heads=(4, 4))
        case "scale":
            source.autoencoder.config = replace(source.autoencoder.config, scaling_factor=0.5)  # type: ignore[type-var]
        case "betas":
            source.scheduler_config = {**source.scheduler_config, "beta_schedule": "linear"}
        case "sample":
            source.scheduler_config = {**source.scheduler_config, "prediction_type": "sample"}
        case _:
            name = "model.ckpt"
    with pytest.raises(ValueError, match=text):
        save_single_file(source, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# the file


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    source = tiny("sd1")[0]
    (tmp_path / "m.safetensors").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_single_file(source, tmp_path / "m.safetensors")
    with pytest.raises(FileExistsError, match="choose another name"):
        save_single_file(source, tmp_path / "folder.safetensors", overwrite=True)
    assert (tmp_path / "m.safetensors").read_text() == "mine"
    written = save_single_file(source, tmp_path / "m.safetensors", overwrite=True)
    loaded = load_single_file(written)
    assert save_single_file(loaded, written, overwrite=True) == written  # which it is mapped from
    assert_same(load_single_file(written), source)
    umask = os.umask(0)
    os.umask(umask)
    assert written.stat().st_mode & 0o777 == 0o666 & ~umask


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """As on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("mine")
    with no_more_than(100_000), pytest.raises(OSError, match="cannot be written"):
        save_single_file(tiny("sd1")[0], tmp_path / "m.safetensors", overwrite=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_pipeline_with_a_lora_must_say_whether_it_belongs_to_the_model(tmp_path: Path) -> None:
    pipe = TextToImagePipeline(model(TINY["sd1"]), device="cpu")
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(1, 64), f"{name}.lora_up.weight": torch.ones(96, 1)}, tmp_path / "l"
    )
    pipe.load_lora(tmp_path / "l")
    with pytest.raises(ValueError, match=r"fuse_lora\(\)"):
        pipe.save_single_file(tmp_path / "m.safetensors")
    pipe.fuse_lora()
    assert_same(load_single_file(pipe.save_single_file(tmp_path / "m.safetensors")), pipe.model)
