"""Single files of every family and format, tensor by tensor and image by image with the folder they came from."""

import socket
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.checkpoint import load_folder, load_model, load_single_file, save_folder
from pipelines import TextToImagePipeline
from tests.ldm.checkpoint.originals import UNET, assert_same, models, tiny, tiny_families, write

TINY = tiny_families()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 1: nothing is asked of the hub, for local files of any kind."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", TINY)
def test_every_family(name: str, tmp_path: Path) -> None:
    """The file against the folder, both written from the same model."""
    source, state = tiny(name)
    file = write(state, tmp_path / "model.safetensors")
    folder = load_folder(save_folder(source, tmp_path / "folder"))
    loaded = load_single_file(file, prediction_type="epsilon" if name == "sd2" else None)
    assert_same(loaded, folder)
    assert loaded.notes == ()
    assert loaded.source == str(file)
    if name not in ("sd2-depth", "x4-upscaler"):  # whose pipelines have parts that a folder of ours lacks
        assert {**folder.model_index, **loaded.model_index} == dict(folder.model_index)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_same_picture(name: str, tmp_path: Path) -> None:
    source, state = tiny(name)
    folder, file = save_folder(source, tmp_path / "folder"), write(state, tmp_path / "model.safetensors")
    one, other = (TextToImagePipeline.from_pretrained(path, device="cpu") for path in (folder, file))
    options: dict[str, Any] = {"num_inference_steps": 3, "height": 16, "width": 16, "seed": 1, "output_type": "np"}
    if name == "sd1":  # eight times smaller latents would not pass through the levels
        options |= {"height": 64, "width": 64}
    else:
        options |= {"height": 64, "width": 64, "negative_prompt": "a dog"}
    for pipe in (one, other):
        pipe.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(one("a cat!", **options).images, other("a cat!", **options).images)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_diffusers_reads_the_same(name: str, tmp_path: Path) -> None:
    """A second program on the same file, with the configurations of the folder."""
    import diffusers

    source, state = tiny(name)
    file = write(state, tmp_path / "model.safetensors")
    folder = save_folder(source, tmp_path / "folder")
    kind = diffusers.StableDiffusionXLPipeline if name == "sdxl" else diffusers.StableDiffusionPipeline
    theirs = kind.from_single_file(str(file), config=str(folder), local_files_only=True)
    loaded = load_single_file(file)
    torch.testing.assert_close(loaded.unet.state_dict(), dict(theirs.unet.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(loaded.autoencoder.state_dict(), dict(theirs.vae.state_dict()), rtol=0, atol=0)
    for encoder, other in zip(
        models(loaded.text_encoder), (theirs.text_encoder, getattr(theirs, "text_encoder_2", None)), strict=False
    ):
        expected = {
            f"text_model.{k}" if k.startswith(("emb", "enc", "final")) else k: v for k, v in other.state_dict().items()
        }
        expected = {k: v for k, v in expected.items() if "position_ids" not in k}
        torch.testing.assert_close(encoder.model.state_dict(), expected, rtol=0, atol=0)


def test_half_precision_stays_mapped(tmp_path: Path) -> None:
    """Views of the file, the three of OpenCLIP's rows too; other precisions are converted."""
    state = {key: tensor.half() for key, tensor in tiny("sdxl")[1].items()}
    file = write(state, tmp_path / "model.safetensors")
    loaded = load_single_file(file)
    assert loaded.dtype == torch.float16
    assert next(loaded.autoencoder.parameters()).dtype == torch.float16
    assert loaded.autoencoder.decode(torch.zeros(1, 4, 2, 2)).isfinite().all()
    assert next(loaded.autoencoder.parameters()).dtype == torch.float32  # it would overflow
    second = models(loaded.text_encoder)[1].model
    attention = second.text_model.encoder.layers[0].self_attn
    pointers = {p.weight.untyped_storage().data_ptr() for p in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(pointers) == 1
    exact = load_single_file(file, dtype=torch.float32)
    torch.testing.assert_close(
        exact.unet.conv_in.weight, state[f"{UNET}input_blocks.0.0.weight"].float(), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors", "model"])
def test_pickles_of_any_name(name: str, tmp_path: Path) -> None:
    """Decided by content; `state_dict` is unwrapped as often as it is there."""
    source, state = tiny("sd1")
    torch.save({"state_dict": {"state_dict": state}, "global_step": 470000, "epoch": 3}, tmp_path / name)
    assert_same(load_model(tmp_path / name), source)


def test_old_lightning_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 7: a callback object of a training program lies beside the weights. It stays what it is: nothing."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")

    class ModelCheckpoint:
        pass

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, part, types.ModuleType(part))
        patch.setitem(sys.modules, module.__name__, module)
        source, state = tiny("sd1")
        torch.save(
            {"state_dict": state, "callbacks": {ModelCheckpoint: {"best": ModelCheckpoint()}}}, tmp_path / "x.ckpt"
        )
    assert_same(load_single_file(tmp_path / "x.ckpt"), source)
    assert "pytorch_lightning" not in sys.modules
