"""ControlNets from every layout of their files, tensor by tensor."""

from dataclasses import replace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from configs import presets
from configs.architecture import ControlNetConfig
from configs.interchange_extras import controlnet_to_json
from ldm.checkpoint.export_parts import write_controlnet
from ldm.checkpoint.extras import load_controlnet
from ldm.checkpoint.files import STEM
from ldm.checkpoint.names_compvis import to_original
from ldm.checkpoint.names_controlnet import controlnet_config, controlnet_names, original_spelling
from tests.ldm.checkpoint.beside import same, write, write_folder
from tests.ldm.checkpoint.conftest import randomise
from tests.ldm.checkpoint.originals import tiny_families
from unet.controlnet import ControlNet

UNET = tiny_families()["sd1"].unet
UNET_2 = replace(UNET, channels=(64, 128), heads=(1, 2), linear_projection=True, context_dim=1024)
UNET_XL = replace(
    UNET_2,
    down_depths=((0, 0), (2, 2)),
    up_depths=((2, 2, 2), (0, 0, 0)),
    mid_depth=2,
    context_dim=2048,
    vector="text_time",
    vector_dim=96,
)
BARE_XL = replace(
    UNET_XL, down_depths=((0, 0), (0, 0)), up_depths=((0,) * 3,) * 2, mid="resnet", linear_projection=False
)
MID_XL = replace(
    UNET_XL,
    channels=(64, 128, 128),
    down_depths=((0, 0), (0, 0), (1, 1)),
    up_depths=((1, 1, 1), (0, 0, 0), (0, 0, 0)),
    mid_depth=1,
    heads=(1, 2, 2),
    only_cross_attention=(False,) * 3,
)
HINT = (4, 6, 8, 10)
CONTROLNETS = {
    "sd1": ControlNetConfig(UNET, (False, False), HINT),
    "sd2": ControlNetConfig(UNET_2, (False, False), HINT, hint_in=1),
    "sdxl": ControlNetConfig(UNET_XL, (False, False), HINT),
    "sdxl-small": ControlNetConfig(replace(BARE_XL, heads=(8, 8), mid_depth=0), (False, False), HINT),
    "sdxl-mid": ControlNetConfig(MID_XL, (False, True, False), HINT),
}


def original(network, config, prefix):
    return {prefix + name: tensor for name, tensor in to_original(controlnet_names(config), network.state_dict())}


@pytest.mark.parametrize("family", CONTROLNETS)
def test_controlnet_layouts(family, tmp_path):
    """`control_model.` as first published, bare as thibaud's, diffusers' names; SDXL keeps its label_emb."""
    config = CONTROLNETS[family]
    network = randomise(ControlNet(config), 2)
    whole = original(network, config, "control_model.") | {"model.diffusion_model.out.2.weight": torch.zeros(1)}
    files = {
        "whole.pth": whole,
        "bare.safetensors": original(network, config, ""),
        "own.safetensors": network.state_dict(),
    }
    for name, state in files.items():
        found = load_controlnet(write(state, tmp_path / name))
        assert found.config == config, name
        same(found, network)
    odd = replace(config, order="bgr", pooled=True)
    folder = write_folder(network, controlnet_to_json(odd), tmp_path / "controlnet")
    for path in (folder, folder / f"{STEM}.safetensors"):
        found = load_controlnet(path)
        assert found.config == odd
        same(found, network)


def test_shuffle_is_known_by_its_name(tmp_path, caplog):
    """Its tensors are like all others'; a folder's configuration goes before names."""
    config = CONTROLNETS["sd1"]
    network = randomise(ControlNet(config), 2)
    state = original(network, config, "control_model.")
    assert load_controlnet(write(state, tmp_path / "control_v11p_sd15_canny.safetensors")).config == config
    assert caplog.text == ""
    shuffle = write(state, tmp_path / "control_v11e_sd15_Shuffle.safetensors")
    found = load_controlnet(shuffle)
    assert found.config == replace(config, pooled=True)
    assert f"{shuffle} is taken for ControlNet Shuffle" in caplog.text
    folder = write_folder(network, controlnet_to_json(config), tmp_path / "shuffle")
    assert not load_controlnet(folder).config.pooled
    again = tmp_path / "again-shuffle.safetensors"
    write_controlnet(found, again, {}, dtype=None, overwrite=False)
    assert load_controlnet(again).config == found.config
    with pytest.raises(ValueError, match="pooled"):
        write_controlnet(found, tmp_path / "other.safetensors", {}, dtype=None, overwrite=False)


@pytest.mark.parametrize("name", ["UNET_SD15", "UNET_SD21", "UNET_SDXL"])
def test_controlnet_names_at_real_size(name):
    """Every original name is read by diffusers' own conversion as the same tensor, but for the label_emb it drops."""
    unet = getattr(presets, name)
    config = ControlNetConfig(unet)
    with torch.device("meta"):
        own = ControlNet(config).state_dict()
    there = original_meta(own, config)
    theirs = convert_controlnet_checkpoint(there, controlnet_to_json(config))
    table = {name.original: name.own for name in controlnet_names(config)}
    assert len(table) == len(own)
    label = {key for key in own if key.startswith("add_embedding.")}
    assert len(label) == (4 if name == "UNET_SDXL" else 0)
    assert {key: value.shape for key, value in theirs.items() if value is not None} == {
        key: value.shape for key, value in own.items() if key not in label
    }
    shapes = {key: tuple(value.shape) for key, value in there.items()}
    read = controlnet_config(shapes)
    assert replace(
        read, unet=replace(read.unet, sample_size=unet.sample_size, upcast_attention=unet.upcast_attention)
    ) == (replace(config, hollow=(False,) * len(unet.channels)))
    assert original_spelling({key: tuple(value.shape) for key, value in own.items()}) == shapes


def original_meta(own, config):
    return {name.original: own[name.own] for name in controlnet_names(config)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_controlnet", "a control-LoRA"),
        ("difference", "the difference from Stable Diffusion 1.5"),
        ("control_model.task_embedding", "a ControlNet-Union"),
        ("lllite_unet_down_blocks.0", "a ControlNet-LLLite"),
        ("encoder.conv_in.weight", "is no ControlNet: its names begin encoder.conv_in.weight"),
    ],
)
def test_other_control_files_are_refused_by_name(name, kind, tmp_path):
    path = write({name: torch.zeros(4, 4, 3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=kind):
        load_controlnet(path)


def test_an_incomplete_controlnet_lists_what_is_missing(tmp_path):
    config = CONTROLNETS["sd1"]
    state = original(ControlNet(config), config, "control_model.")
    del state["control_model.zero_convs.1.0.bias"]
    path = write(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors.*1 missing keys: controlnet_down_blocks.1.bias"):
        load_controlnet(path)
