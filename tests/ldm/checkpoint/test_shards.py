"""Indexes of sharded weights that lie, escape or leave something out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint import load_folder


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..safetensors", "model.bin", "C:\\x"]
)
def test_an_index_names_no_file_outside_its_folder(resaved: Callable[..., Path], name: str) -> None:
    folder = resaved("sd1", max_shard_size="50KB")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["conv_in.weight"] = name
    index.write_text(json.dumps(content))
    save_file({"conv_in.weight": torch.zeros(8, 4, 3, 3)}, folder / "outside.safetensors")
    with pytest.raises(ValueError, match="a shard is a plain file name"):
        load_folder(folder)


def test_missing_and_left_over_shards_are_named(resaved: Callable[..., Path]) -> None:
    folder = resaved("sd1", max_shard_size="50KB")
    first, second = sorted((folder / "unet").glob("*.safetensors"))[:2]
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {second.name}"):
        load_folder(folder)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=f"is both in {first} and in {second}"):
        load_folder(folder)
    second.write_bytes(content)
    load_folder(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "{"])
def test_a_broken_index_of_shards_is_named(resaved: Callable[..., Path], content: str) -> None:
    folder = resaved("sd1", max_shard_size="50KB")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ValueError, match=str(index)):
        load_folder(folder)
