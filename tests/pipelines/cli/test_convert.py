"""`ldm convert`, as a person meets it: a path on standard output, or one line on standard error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.ldm.checkpoint.originals import tiny

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "last.ckpt"
    torch.save({"state_dict": {**tiny("sd1")[1], "model_ema.decay": torch.tensor(0.9)}}, path)
    return path


def test_a_checkpoint_to_a_pruned_file_in_half_precision(ldm: Command, tmp_path: Path, checkpoint: Path) -> None:
    ran = ldm("convert", str(checkpoint), "model.safetensors", "--half", "--prune")
    assert (ran.status, ran.out, ran.err) == (0, "model.safetensors\n", "")
    state = {key: tensor.half() for key, tensor in tiny("sd1")[1].items()}
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), state, rtol=0, atol=0)


def test_nothing_is_overwritten_unasked(ldm: Command, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious.txt").write_text("mine")
    refused = ldm("convert", str(checkpoint), "model")
    assert (refused.status, refused.out) == (2, "")
    assert "--overwrite" in refused.err
    assert len(list(tmp_path.rglob("*"))) == 2
    assert ldm("convert", str(checkpoint), "model", "--overwrite").out == "model\n"
    assert (tmp_path / "model" / "model_index.json").exists()


def test_what_was_left_out_or_guessed_is_a_note(ldm: Command, tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {f"{name}.lora_down.weight": torch.ones(1, 768), f"{name}.lora_up.weight": torch.ones(320, 1)}
    save_file({**lora, "lora_unet_nowhere.lora_up.weight": torch.ones(2, 1)}, tmp_path / "lora.safetensors")
    ran = ldm("convert", "lora.safetensors", "peft.safetensors")
    assert (ran.status, ran.out) == (0, "peft.safetensors\n")
    assert ran.err.startswith("ldm: note: lora.safetensors: 1 of 3 keys fit nothing here")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("absent.ckpt", "x"), "there is no file absent.ckpt"),
        (("junk.safetensors", "x"), "junk.safetensors"),
        (("moon.safetensors", "x.ckpt"), "name it x.safetensors"),
        (("moon.safetensors", "x", "--dtype", "int3"), "dtype is"),
        (("moon.safetensors", "x", "--prune"), "--prune is for a model"),
        (("moon.safetensors", "x", "--half", "--dtype", "float32"), "not allowed with"),
        (("moon.safetensors", "moon.safetensors/x"), "moon.safetensors"),
        (("moon.safetensors",), "required: DST"),
    ],
)
def test_bad_input_is_one_line(ldm: Command, tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"\0" * 100)
    save_file({"<moon>": torch.ones(1, 768)}, tmp_path / "moon.safetensors")
    ran = ldm("convert", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("ldm: ")
    assert text in ran.err
    assert ran.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junk.safetensors", "moon.safetensors"]


def test_help_says_what_goes_to_what(ldm: Command) -> None:
    ran = ldm("convert", "--help")
    assert ran.status == 0
    assert all(word in ran.out for word in ("SRC", "DST", "textual inversion", "--extract-ema", "--half"))
