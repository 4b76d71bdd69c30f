"""What single files are known to do to those who load them, a test each. Numbers are those of the list of traps."""

import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoint import load_model, load_single_file, save_folder, weights_hash
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.probe import predicts_velocity
from ldm.diffusion.schedulers import diffusion_from_scheduler_config
from tests.ldm.checkpoint.originals import (
    CLIP_SD1,
    CLIP_SD2,
    UNET,
    assert_same,
    model,
    models,
    original_state,
    sd2_file,
    tiny,
    tiny_families,
    write,
)
from text_encoder import CLIPTextEncoder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 1: nothing is asked of the hub, for local files of any kind."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(("offset", "kind", "size"), [(-2.0, "v_prediction", 96), (0.0, "epsilon", 64)])
def test_probe(tmp_path: Path, caplog: pytest.LogCaptureFixture, offset: float, kind: str, size: int) -> None:
    """Trap 2: where nothing tells, the U-Net is asked once, and the answer is told."""
    file = sd2_file(tmp_path / "model.safetensors", offset)
    with caplog.at_level(logging.WARNING):
        loaded = load_single_file(file)
    assert loaded.scheduler_config["prediction_type"] == kind
    assert loaded.unet.config.sample_size == size
    assert f"answers {offset:+.2f}, so it is taken for {kind}" in loaded.notes[0]
    assert loaded.notes[0] in caplog.text
    assert predicts_velocity(loaded.unet) == (kind == "v_prediction", pytest.approx(offset))


def test_given_prediction_type_decides(tmp_path: Path) -> None:
    """And trap 4: the noise schedule stays, in this load and the next."""
    file = sd2_file(tmp_path / "model.safetensors", -2.0)
    plain = diffusion_from_scheduler_config(load_single_file(file, prediction_type="epsilon").scheduler_config)
    given = load_single_file(file, prediction_type="v_prediction")
    process = diffusion_from_scheduler_config(given.scheduler_config)
    assert (process.prediction, plain.prediction) == ("v_prediction", "epsilon")
    assert given.notes == ()
    assert (process.beta_start, process.beta_end) == (plain.beta_start, plain.beta_end) == (0.00085, 0.012)
    folder = save_folder(given, tmp_path / "folder")
    assert load_model(folder, prediction_type="epsilon").scheduler_config["prediction_type"] == "epsilon"


def test_step_of_sd2_base(tmp_path: Path) -> None:
    state = tiny("sd2")[1] | {f"{UNET}out.2.bias": torch.full((4,), -9.0)}
    torch.save({"state_dict": state, "global_step": 875000}, tmp_path / "512-base.ckpt")
    loaded = load_single_file(tmp_path / "512-base.ckpt")
    assert loaded.scheduler_config["prediction_type"] == "epsilon"
    assert loaded.notes == ()


def test_markers_of_sdxl(tmp_path: Path) -> None:
    """Trap 3."""
    markers = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    loaded = load_single_file(write(tiny("sdxl")[1] | markers, tmp_path / "model.safetensors"))
    process = diffusion_from_scheduler_config(loaded.scheduler_config)
    assert (process.prediction, process.zero_terminal_snr) == ("v_prediction", True)
    assert loaded.scheduler_config["timestep_spacing"] == "trailing"
    assert loaded.notes == ()


def test_without_text_model(tmp_path: Path) -> None:
    """Trap 8, with the position ids that old files have."""
    source, state = tiny("sd1")
    bare = {key.replace("transformer.text_model.", "transformer."): tensor for key, tensor in state.items()}
    bare[f"{CLIP_SD1}embeddings.position_ids"] = torch.arange(77.0)[None]
    assert_same(load_single_file(write(bare, tmp_path / "model.safetensors")), source)


def test_tensors_missing_or_unknown(tmp_path: Path) -> None:
    """Trap 9: by name, before anything is read."""
    state = dict(tiny("sd1")[1])
    lost = state.pop(f"{UNET}middle_block.1.proj_in.weight")
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of its tensors: model\.diffusion_model\.middle_block\.1\.proj_in"
    ):
        load_single_file(write(state, tmp_path / "a.safetensors"))
    whole = {**state, f"{UNET}middle_block.1.proj_in.weight": lost}
    with pytest.raises(CheckpointError, match=r"unknown tensors in its U-Net .1.: model\.diffusion_model\.extra"):
        load_single_file(write({**whole, f"{UNET}extra": lost.clone()}, tmp_path / "b.safetensors"))
    with pytest.raises(CheckpointError, match=r"tensors of a shape that .*middle_block\.1\.proj_in\.weight \(3,\)"):
        load_single_file(
            write({**whole, f"{UNET}middle_block.1.proj_in.weight": torch.ones(3)}, tmp_path / "c.safetensors")
        )


def test_foreign_tensors_are_told(tmp_path: Path) -> None:
    state = tiny("sd1")[1] | {
        "somebody.else": torch.ones(2),
        "betas": torch.ones(1000),
        "model_ema.decay": torch.ones(1),
    }
    loaded = load_single_file(write(state, tmp_path / "model.safetensors"))
    assert loaded.notes == ("tensors that belong to no part of a model were left out (1): somebody.else",)


def test_missing_parts_are_named_and_taken(tmp_path: Path) -> None:
    """Trap 10."""
    source, state = tiny("sd1")
    file = write({k: v for k, v in state.items() if k.startswith(UNET)}, tmp_path / "pruned.safetensors")
    expected = r"no autoencoder and no text encoder: pass one with --vae \(vae=\.\.\.\) and .* lends .*--text-encoder"
    with pytest.raises(CheckpointError, match=expected):
        load_single_file(file)
    for text in (source.text_encoder, models(source.text_encoder)[0].model):
        loaded = load_single_file(file, components={"vae": source.autoencoder, "text_encoder": text})
        assert_same(loaded, source)
        assert loaded.autoencoder is source.autoencoder


def test_missing_parts_of_sdxl(tmp_path: Path) -> None:
    """The size of the pooled text, which the U-Net's vector begins with, comes from the given encoder."""
    source, state = tiny("sdxl")
    first, second = models(source.text_encoder)
    file = write({k: v for k, v in state.items() if "conditioner" not in k}, tmp_path / "pruned.safetensors")
    with pytest.raises(CheckpointError, match=r"pass a model that lends .*--text-encoder \(text_encoder=\.\.\.\), of"):
        load_single_file(file)
    assert_same(load_single_file(file, components={"text_encoder": source.text_encoder}), source)
    second_slot = {k: v for k, v in state.items() if "conditioner.embedders.1." not in k}
    with pytest.raises(CheckpointError, match="no second text encoder: pass a model that lends its own with --text-en"):
        load_single_file(write(second_slot, tmp_path / "first.safetensors"))
    parts = {"text_encoder": first.model, "text_encoder_2": second.model}
    assert_same(load_single_file(file, components=parts), source)


def test_parts_of_another_family(tmp_path: Path) -> None:
    other = models(tiny("sd2")[0].text_encoder)[0]
    text = replace(other.model.config, width=96)
    wrong = CLIPTextEncoder(other.tokenizer, type(other.model)(text))
    file = write(tiny("sd1")[1], tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="width 64, but the text encoders give 96"):
        load_single_file(file, components={"text_encoder": wrong})


def test_averaged_weights(tmp_path: Path) -> None:
    """Trap 12: alone, or beside others if asked for."""
    source, state = tiny("sd1")
    flat = {f"model_ema.{k.removeprefix('model.').replace('.', '')}": v for k, v in state.items() if UNET in k}
    rest = {k: v for k, v in state.items() if UNET not in k}
    assert_same(load_single_file(write(rest | flat, tmp_path / "ema.safetensors")), source)
    both = write({k: v + 1 if UNET in k else v for k, v in state.items()} | flat, tmp_path / "both.safetensors")
    averaged, plain = load_single_file(both, ema=True), load_single_file(both)
    assert_same(averaged, source)
    assert weights_hash(averaged) != weights_hash(plain)
    torch.testing.assert_close(plain.unet.conv_in.weight, source.unet.conv_in.weight + 1, rtol=0, atol=0)


def test_unclip_is_refused(tmp_path: Path) -> None:
    """Recognised, not taken for Stable Diffusion 2."""
    family = tiny_families()["sd2"]
    family = replace(family, unet=replace(family.unet, vector="class_projection", vector_dim=24))
    file = write(original_state(model(family), family), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="unCLIP"):
        load_single_file(file)


def test_sd2_drops_the_last_layer(tmp_path: Path) -> None:
    """Whether the file has it or not, the same tensors are read."""
    source, state = tiny("sd2")
    last = [key for key in state if key.startswith(f"{CLIP_SD2}transformer.resblocks.2.") or "text_projection" in key]
    assert last
    without = {key: tensor for key, tensor in state.items() if key not in last}
    file = write(without, tmp_path / "model.safetensors")
    assert_same(load_single_file(file, prediction_type="epsilon"), source)


def test_hash_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    file = write(tiny("sd1")[1], tmp_path / "model.safetensors")
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights_hash(load_single_file(file)) == weights_hash(file) == expected
