"""Every folder that cannot be loaded is refused with a message that names the thing and the remedy."""

import json
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.checkpoint import load_folder
from ldm.checkpoint.errors import CheckpointError

Copied = Callable[..., Path]
UNET = "unet/diffusion_pytorch_model.safetensors"


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(path)
    edit(state)
    save_file(state, path)


# folders


def test_a_missing_folder_is_named_with_what_is_nearby(copied: Copied) -> None:
    folder = copied()
    with pytest.raises(FileNotFoundError, match=rf"no folder .*sd11; did you mean {folder}\?"):
        load_folder(folder.parent / "sd11")
    with pytest.raises(FileNotFoundError, match=r"no folder /nowhere/at/all$"):
        load_folder("/nowhere/at/all")


def test_the_folder_above_or_below_is_suggested(copied: Copied) -> None:
    folder = copied()
    with pytest.raises(ValueError, match=rf"no model_index.json; did you mean {folder}\?"):
        load_folder(folder.parent)
    with pytest.raises(
        ValueError, match=rf"no model_index.json; did you mean {folder}\?.*holds diffusion_pytorch_model"
    ):
        load_folder(folder / "unet")
    with pytest.raises(FileNotFoundError, match=rf"no folder {folder}/main; did you mean {folder}\?"):
        load_folder(folder, subfolder="main")


def test_a_single_file_is_told_from_a_folder(copied: Copied) -> None:
    with pytest.raises(ValueError, match=r"is a single file; this reads folders"):
        load_folder(copied() / UNET)


@pytest.mark.parametrize("content", ["{", "", "[1]", "\xff", "[" * 100_000, "null"])
def test_a_broken_index_is_named(copied: Copied, content: str) -> None:
    index = copied() / "model_index.json"
    index.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=f"{index} (is not valid JSON|holds a JSON)"):
        load_folder(index.parent)


@pytest.mark.parametrize("name", ["FluxPipeline", None, ["StableDiffusionPipeline"], {}])
def test_an_unknown_pipeline_is_named(copied: Copied, name: Any) -> None:
    folder = copied()
    edit_json(folder / "model_index.json", _class_name=name)
    with pytest.raises(ValueError, match=rf"a model for {re.escape(repr(name))}; supported are Stable Diffusion 1, 2"):
        load_folder(folder)


def test_an_unknown_class_of_a_part_is_named_and_never_imported(copied: Copied) -> None:
    folder = copied()
    edit_json(folder / "model_index.json", vae=["os", "system"])
    with pytest.raises(ValueError, match="its vae is a system; supported is AutoencoderKL"):
        load_folder(folder)


@pytest.mark.parametrize("entry", [[None, None], None, "AutoencoderKL", ["diffusers"], {}])
def test_a_part_that_the_index_does_not_list(copied: Copied, entry: Any) -> None:
    folder = copied()
    edit_json(folder / "model_index.json", vae=entry)
    with pytest.raises(ValueError, match=r"lists no vae; pass vae="):
        load_folder(folder)


def test_a_model_without_text_encoder_is_refused(copied: Copied) -> None:
    folder = copied()
    edit_json(folder / "model_index.json", text_encoder=[None, None])
    with pytest.raises(ValueError, match=r"lists no text_encoder; pass text_encoder="):
        load_folder(folder)


@pytest.mark.parametrize(
    "file", ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
)
def test_missing_and_broken_configurations_are_named(copied: Copied, file: str) -> None:
    path = copied() / file
    path.write_text("{broken")
    with pytest.raises(ValueError, match=f"{path} is not valid JSON"):
        load_folder(path.parent.parent)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing"):
        load_folder(path.parent.parent)


def test_a_configuration_that_makes_no_network_is_named(copied: Copied) -> None:
    folder = copied()
    edit_json(folder / "unet/config.json", block_out_channels="many")
    with pytest.raises(ValueError, match=f"{folder / 'unet/config.json'} describes no network"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("part", "key"),
    [("vae", "layers_per_block"), ("unet", "transformer_layers_per_block"), ("text_encoder", "num_hidden_layers")],
)
def test_a_configuration_with_millions_of_layers_is_refused_at_once(copied: Copied, part: str, key: str) -> None:
    folder = copied()
    edit_json(folder / part / "config.json", **{key: 10**7})
    with pytest.raises(CheckpointError, match=f"{folder / part / 'config.json'}: {key} asks for more than 64 layers"):
        load_folder(folder)


def test_a_configuration_that_cannot_be_read_is_named(copied: Copied) -> None:
    folder = copied()
    edit_json(folder / "vae/config.json", latents_mean=3)
    with pytest.raises(ValueError, match=f"{folder / 'vae/config.json'}: malformed"):
        load_folder(folder)
    edit_json(folder / "vae/config.json", latents_mean=None, act_fn="relu")
    with pytest.raises(ValueError, match=f"{folder / 'vae/config.json'}: .*act_fn = 'relu'"):
        load_folder(folder)


# weights


def test_pickled_weights_under_another_name_are_refused_with_a_hint(copied: Copied) -> None:
    folder = copied()
    torch.save(load_file(folder / UNET), folder / "unet/model.pt")
    (folder / UNET).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds only model.pt; name it diffusion_pytorch_model.bin"):
        load_folder(folder)


def test_a_folder_without_weights_says_what_was_looked_for(copied: Copied) -> None:
    folder = copied()
    (folder / "text_encoder/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights: looked for model.safetensors"):
        load_folder(folder)


def test_missing_and_unexpected_keys_and_wrong_shapes_are_one_error(copied: Copied) -> None:
    folder = copied()

    def damage(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if name.startswith("mid_block")][:12]:
            del state[name]
        state["extra.weight"] = torch.zeros(1)
        state["conv_in.bias"] = torch.zeros(9)

    edit_weights(folder / UNET, damage)
    with pytest.raises(ValueError, match=r"do not fit the config\.json") as caught:
        load_folder(folder)
    message = str(caught.value)
    assert str(folder / "unet") in message
    assert "12 missing keys: mid_block." in message
    assert message.count("mid_block.") == 10
    assert ", ... (12 in all)" in message
    assert "1 unexpected keys: extra.weight" in message
    assert "1 wrong shapes: conv_in.bias (file (9,), expected (8,))" in message


@pytest.mark.parametrize("part", ["vae/diffusion_pytorch_model", "text_encoder/model"])
def test_one_key_too_few_or_too_many_in_any_network(copied: Copied, part: str) -> None:
    file = copied() / f"{part}.safetensors"
    name = sorted(load_file(file))[0]
    edit_weights(file, lambda state: state.update({"other": state.pop(name)}))
    with pytest.raises(ValueError, match=r"1 missing keys: .*; 1 unexpected keys: other"):
        load_folder(file.parent.parent)


def test_a_name_in_both_spellings_is_refused(copied: Copied) -> None:
    file = copied() / "text_encoder/model.safetensors"
    bare = "final_layer_norm.weight"
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    save_file(state | {bare: state[f"text_model.{bare}"].clone()}, file)
    with pytest.raises(ValueError, match=f"holds text_model.{bare} in two spellings"):
        load_folder(file.parent.parent)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_an_unreadable_dtype_are_refused(copied: Copied, dtype: torch.dtype) -> None:
    file = copied() / UNET
    edit_weights(file, lambda state: state.update({"conv_in.bias": state["conv_in.bias"].to(dtype)}))
    with pytest.raises(ValueError, match=r"stores weights as (I8|F8_E4M3); read are BF16, F16, F32, F64"):
        load_folder(file.parent.parent)


WIDE = {"cross_attention_dim": 1024, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def test_weights_of_another_family_are_recognised(copied: Copied) -> None:
    folder = copied()
    other = diffusers.UNet2DConditionModel(**WIDE, **BLOCKS)
    save_file(other.state_dict(), folder / UNET)
    with pytest.raises(ValueError, match=r"attend to text of width 1024 \(Stable Diffusion 2\), not 16"):
        load_folder(folder)


def test_parts_of_two_families_are_recognised(copied: Copied) -> None:
    folder = copied()
    diffusers.UNet2DConditionModel(**WIDE, **BLOCKS).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match=r"width 1024 \(Stable Diffusion 2\), but the text encoders give 16;"):
        load_folder(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, 5000, -1])
def test_truncated_weights_are_named(copied: Copied, kept: int) -> None:
    file = copied() / UNET
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{file} .*fetch it again"):
        load_folder(file.parent.parent)


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "header of 2^63 bytes": safetensors(b"{}", length=2**63),
    "header longer than the file": safetensors(b"{}", length=100),
    "no header": safetensors(b""),
    "header is no JSON": safetensors(b"not json"),
    "header is a pickle": b"\x80\x02}q\x00." + bytes(64),
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>" * 9,
    "deep JSON": safetensors(b'{"a":' * 100_000),
    "past the end": safetensors(json.dumps({"a": entry(0, 400, [100])}).encode(), bytes(4)),
    "overflowing offsets": safetensors(json.dumps({"a": entry(0, 2**64 + 4, [1])}).encode(), bytes(4)),
    "overlap": safetensors(json.dumps({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}).encode(), bytes(4)),
    "negative offset": safetensors(json.dumps({"a": entry(-4, 0, [1])}).encode(), bytes(4)),
    "hole": safetensors(json.dumps({"a": entry(4, 8, [1])}).encode(), bytes(8)),
    "trailing bytes": safetensors(json.dumps({"a": entry(0, 4, [1])}).encode(), bytes(8)),
    "shape is not the bytes": safetensors(json.dumps({"a": entry(0, 4, [2])}).encode(), bytes(4)),
    "unknown dtype": safetensors(json.dumps({"a": entry(0, 4, [1], "F99")}).encode(), bytes(4)),
    "duplicate": safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), bytes(4)),
    "huge and empty": safetensors(json.dumps({"conv_in.weight": entry(0, 0, [0, 2**40])}).encode()),
    "header of 26 MB": safetensors(b"{" + b" " * 26 * 2**20 + b"}"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_weights_are_refused_quickly(copied: Copied, what: str) -> None:
    file = copied() / UNET
    file.write_bytes(HOSTILE[what])
    start = time.perf_counter()
    with pytest.raises(ValueError, match=str(file.parent)):
        load_folder(file.parent.parent)
    assert time.perf_counter() - start < 2


def test_too_many_tensors_are_refused_before_they_are_listed(copied: Copied) -> None:
    file = copied() / UNET
    header = json.dumps({f"t{i}": entry(0, 0, [0]) for i in range(60_000)}).encode()
    file.write_bytes(safetensors(header.replace(b"data_offsets", b"\\u0064ata_offsets")))
    with pytest.raises(ValueError, match=f"{file} claims more than 50,000 tensors"):
        load_folder(file.parent.parent)


def test_pipes_and_folders_are_no_weights(copied: Copied) -> None:
    file = copied() / UNET
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=f"{file} is not a regular file"):
        load_folder(file.parent.parent)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=f"{file} is not a regular file"):
        load_folder(file.parent.parent)
