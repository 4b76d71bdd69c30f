"""Small files and configurations that claim networks which would take minutes to build: refused at once."""

from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint import infer, load_folder
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.infer_extras import adapter_config, tiny_config
from ldm.checkpoint.inspection import inspected
from ldm.checkpoint.names_controlnet import controlnet_config
from ldm.checkpoint.separate_vae import load_vae
from tests.ldm.checkpoint.test_errors import Copied, edit_json

Shapes = dict[str, tuple[int, ...]]


def clip_claims(layers: int) -> Shapes:
    return {f"text_model.encoder.layers.{i}.x": (1,) for i in range(layers)} | {
        "text_model.embeddings.token_embedding.weight": (99, 8),
        "text_model.embeddings.position_embedding.weight": (77, 8),
        "text_model.encoder.layers.0.mlp.fc1.weight": (16, 8),
    }


def blocks_claims(levels: int, blocks: int, depth: int) -> Shapes:
    """The beginning of a U-Net or a ControlNet with so many levels, so many blocks in each, so deep."""
    shapes: Shapes = {"input_blocks.0.0.weight": (8, 4, 3, 3), "input_hint_block.0.weight": (8, 3, 3, 3)}
    i = 0
    for _ in range(levels):
        for _ in range(blocks):
            i += 1
            shapes[f"input_blocks.{i}.0.in_layers.2.weight"] = (8, 8, 3, 3)
            shapes |= {f"input_blocks.{i}.1.transformer_blocks.{k}.attn2.to_k.weight": (8, 8) for k in range(depth)}
        i += 1
        shapes[f"input_blocks.{i}.0.op.weight"] = (8, 8, 3, 3)
    shapes[f"input_blocks.{i + 1}.0.in_layers.2.weight"] = (8, 8, 3, 3)
    return shapes


def vae_claims(levels: int, blocks: int) -> Shapes:
    shapes: Shapes = {f"encoder.down.0.block.{j}.x": (1,) for j in range(blocks)}
    shapes |= {f"encoder.down.{i}.block.0.conv2.weight": (8, 8, 3, 3) for i in range(levels)}
    ends = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
    return shapes | dict.fromkeys(ends, (8, 8, 3, 3))


def openclip_claims(layers: int) -> Shapes:
    clip = {f"transformer.resblocks.{i}.x": (1,) for i in range(layers)}
    ends = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    return clip | dict.fromkeys(ends, (9, 8))


ADAPTER = {"adapter.conv_in.weight": (8, 64, 3, 3)}
CLAIMS = {
    "autoencoder of many levels": (infer.autoencoder_config, vae_claims(11, 1)),
    "autoencoder of many layers": (infer.autoencoder_config, vae_claims(1, 65)),
    "autoencoder of many blocks": (infer.autoencoder_config, vae_claims(10, 26)),
    "text encoder": (partial(infer.clip_config, gelu=True), clip_claims(65)),
    "OpenCLIP": (partial(infer.openclip_config, projected=False), openclip_claims(65)),
    "U-Net of many levels": (infer.unet_config, blocks_claims(11, 1, 0)),
    "ControlNet of many levels": (controlnet_config, blocks_claims(11, 1, 0)),
    "ControlNet of many layers": (controlnet_config, blocks_claims(1, 257, 0)),
    "ControlNet of deep transformers": (controlnet_config, blocks_claims(1, 1, 65)),
    "ControlNet of many transformers": (controlnet_config, blocks_claims(2, 3, 50)),
    "hints": (
        controlnet_config,
        blocks_claims(1, 1, 1) | {f"input_hint_block.{i}.weight": (8,) * 4 for i in range(99)},
    ),
    "adapter of many levels": (
        adapter_config,
        ADAPTER | {f"adapter.body.{i}.resnets.0.block1.weight": (8, 8, 3, 3) for i in range(11)},
    ),
    "adapter of many layers": (
        adapter_config,
        ADAPTER | {f"adapter.body.0.resnets.{i}.block1.weight": (8, 8, 3, 3) for i in range(65)},
    ),
    "tiny of many levels": (tiny_config, {f"encoder.layers.{i}.weight": (8, 3, 3, 3) for i in range(14)}),
    "tiny of many layers": (tiny_config, {f"encoder.layers.{i}.conv.0.weight": (8, 8, 3, 3) for i in range(300)}),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_names_that_claim_more_than_any_network_has(what: str) -> None:
    """A short file whose network would take minutes to build and to list."""
    read, shapes = CLAIMS[what]
    with pytest.raises(CheckpointError, match=r"claims \d+ (blocks|levels)"):
        read(shapes)


def test_only_numbers_are_counted() -> None:
    for words in ("x", "10000", "\u00b2"):
        clip = clip_claims(3) | {f"text_model.encoder.layers.{words}.x": (1,)}
        assert infer.clip_config(clip, gelu=True).layers == 3
        openclip = openclip_claims(3) | {f"transformer.resblocks.{words}.x": (1,)}
        assert infer.openclip_config(openclip, projected=False).layers == 3


# files


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_file_of_many_levels_and_layers_is_refused_at_once(prefix: str, tmp_path: Path) -> None:
    """It hung: every level has as many layers as the first, and each is listed and built."""
    shapes = vae_claims(500, 1000) | {f"encoder.down.0.block.{i}.y": (1,) for i in range(1000, 5000)}
    tensors = {f"{prefix}{name}": torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    start = process_time()
    with pytest.raises(CheckpointError, match=r"vae\.safetensors: it claims 500 blocks like"):
        load_vae(tmp_path / "vae.safetensors")
    assert "it claims 500 blocks like" in " ".join(inspected(tmp_path / "vae.safetensors").damage)
    assert process_time() - start < 4


# folders


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("unet", {"layers_per_block": 64, "transformer_layers_per_block": 64}),
        ("unet", {"layers_per_block": [1, 64], "transformer_layers_per_block": [1, 64]}),
        ("unet", {"transformer_layers_per_block": [[1], [10] * 1000]}),
        ("unet", {"transformer_layers_per_block": [[0], [0] * 10**6]}),
        ("unet", {"transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": [[64] * 64, 1]}),
        ("vae", {"block_out_channels": [8] * 10**5}),
        ("vae", {"block_out_channels": [8] * 10, "layers_per_block": 64}),
    ],
)
def test_layers_of_layers_are_refused_at_once(copied: Copied, part: str, fields: dict[str, Any]) -> None:
    folder = copied()
    edit_json(folder / part / "config.json", **fields)
    start = process_time()
    with pytest.raises(
        CheckpointError, match=rf"{folder / part / 'config.json'} asks for more than \d+ (blocks|levels)"
    ):
        load_folder(folder)
    assert process_time() - start < 2


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("unet", {"layers_per_block": 64, "transformer_layers_per_block": 2}),
        ("unet", {"layers_per_block": 2, "transformer_layers_per_block": 64}),
        ("vae", {"layers_per_block": 64}),
        ("text_encoder", {"num_hidden_layers": 64}),
    ],
)
def test_the_largest_accepted_configurations_are_done_with_quickly(
    copied: Copied, part: str, fields: dict[str, Any]
) -> None:
    folder = copied()
    edit_json(folder / part / "config.json", **fields)
    start = process_time()
    with pytest.raises(CheckpointError, match="missing keys"):
        load_folder(folder)
    assert process_time() - start < 5
