"""What is written holds what was read, in either layout, tensor for tensor."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ldm.lora.formats import read_lora
from ldm.lora.names import Names
from ldm.lora.write import save_lora
from ldm.model import LatentDiffusion
from tests.ldm.lora.conftest import MODULES, kohya, low_rank, same, spelled, state, write

Make = Callable[..., LatentDiffusion]
SDXL = {
    "unet.down_blocks.1.attentions.0.proj_in": "lora_unet_input_blocks_4_1_proj_in",
    "unet.down_blocks.1.resnets.0.conv1": "lora_unet_input_blocks_4_0_in_layers_2",
    "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "text_encoder_2.text_model.encoder.layers.1.mlp.fc2": "lora_te2_text_model_encoder_layers_1_mlp_fc2",
}


@pytest.fixture(scope="module")
def names(make: Make) -> Names:
    return Names.of(make("sd1"))


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def round_trip(tensors: dict[str, Tensor], names: Names, folder: Path) -> tuple[Path, Path]:
    """The file as kohya wrote it, as peft would have, and as kohya again: the first and the last."""
    said = {"ss_network_dim": "from the trainer", "modelspec.title": "style", "format": "pt"}
    first = write(folder / "first.safetensors", tensors, said)
    second = save_lora(read_lora(first, names), folder / "second.safetensors", names, layout="peft")
    assert all(".lora_A.weight" in key or ".lora_B.weight" in key or "magnitude" in key for key in load_file(second))
    return first, save_lora(read_lora(second, names), folder / "third.safetensors", names, layout="kohya")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kohya_to_peft_to_kohya(dtype: torch.dtype, names: Names, tmp_path: Path) -> None:
    tensors = kohya(low_rank(names, MODULES, dtype=dtype), spelled)
    first, third = round_trip(tensors, names, tmp_path)
    assert same(load_file(third), tensors)
    assert metadata(first).items() <= metadata(third).items()
    assert "lora_adapter_metadata" not in metadata(third)


def test_sdxl_to_peft_and_back(make: Make, tmp_path: Path) -> None:
    names = Names.of(make("sdxl"))
    tensors = kohya(low_rank(names, SDXL), SDXL.__getitem__)
    _, third = round_trip(tensors, names, tmp_path)
    assert same(load_file(third), tensors)


def test_dora_to_peft_and_back(names: Names, tmp_path: Path) -> None:
    own = [MODULES[2], MODULES[4]]
    tensors = kohya(low_rank(names, own), spelled)
    tensors[f"{spelled(own[0])}.dora_scale"] = torch.rand(8, 1)
    tensors[f"{spelled(own[1])}.dora_scale"] = torch.rand(12, 1, 1, 1)
    _, third = round_trip(tensors, names, tmp_path)
    assert same(load_file(third), tensors)


def test_an_alpha_that_half_precision_would_round_is_kept(names: Names, tmp_path: Path) -> None:
    tensors = kohya(low_rank(names, MODULES[:2], dtype=torch.float16), spelled)
    tensors[f"{spelled(MODULES[0])}.alpha"] = torch.tensor(0.1)
    _, third = round_trip(tensors, names, tmp_path)
    assert same(load_file(third), tensors)


def test_what_peft_is_told(names: Names, tmp_path: Path) -> None:
    made = low_rank(names, MODULES)
    lora = read_lora(write(tmp_path / "a.safetensors", kohya(made, spelled)), names)
    settings = json.loads(metadata(save_lora(lora, tmp_path / "b.safetensors", names))["lora_adapter_metadata"])
    for own, (down, _, alpha) in made.changes.items():
        part, _, path = own.partition(".")
        path = path.removeprefix("text_model.")
        assert settings[f"{part}.rank_pattern"].get(path, settings[f"{part}.r"]) == len(down)
        assert settings[f"{part}.alpha_pattern"].get(path, settings[f"{part}.lora_alpha"]) == alpha
        assert path in settings[f"{part}.target_modules"]


def test_lycoris_stays_in_kohyas_layout(names: Names, tmp_path: Path) -> None:
    own = spelled(MODULES[2])
    tensors = {f"{own}.lokr_w1": torch.randn(2, 2), f"{own}.lokr_w2": torch.randn(4, 4)}
    tensors |= {"lora_unet_conv_out.diff_b": torch.randn(4), "lora_unet_conv_out.diff": torch.randn(4, 8, 3, 3)}
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), names)
    assert same(load_file(save_lora(lora, tmp_path / "b.safetensors", names, layout="kohya")), tensors)
    assert metadata(tmp_path / "b.safetensors")["ss_network_module"] == "lycoris.kohya"
    with pytest.raises(ValueError, match=r"no place for .*lokr_w1, lokr_w2 of .*to_q.*: save it as kohya's"):
        save_lora(lora, tmp_path / "c.safetensors", names)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_dora_that_peft_cannot_hold(names: Names, tmp_path: Path) -> None:
    tensors = kohya(low_rank(names, MODULES[2:4]), spelled)
    some = {**tensors, f"{spelled(MODULES[2])}.dora_scale": torch.rand(8, 1)}
    inputs = kohya(low_rank(names, MODULES[3:4]), spelled) | {f"{spelled(MODULES[3])}.dora_scale": torch.rand(1, 8)}
    for file, held, message in (("a", some, "for all modules of the unet or for none"), ("b", inputs, "along inputs")):
        lora = read_lora(write(tmp_path / f"{file}.safetensors", held), names)
        with pytest.raises(ValueError, match=message):
            save_lora(lora, tmp_path / "out.safetensors", names)


def test_places(names: Names, tmp_path: Path) -> None:
    lora = read_lora(write(tmp_path / "a.safetensors", kohya(low_rank(names, MODULES[:1]), spelled)), names)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_lora(lora, tmp_path / "a.safetensors", names)
    with pytest.raises(ValueError, match=r"name it b\.safetensors"):
        save_lora(lora, tmp_path / "b.pt", names)
    with pytest.raises(ValueError, match='"peft" or "kohya", not \'a1111\''):
        save_lora(lora, tmp_path / "b.safetensors", names, layout="a1111")
    save_lora(lora, tmp_path / "a.safetensors", names, layout="kohya", overwrite=True)  # over the file it is read from
    (tmp_path / "made as others are").touch()
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_peft_computes_what_is_merged(make: Make, tmp_path: Path) -> None:
    """peft, put into our own networks by the file's settings, as the second reader of alphas, ranks and magnitudes."""
    peft = pytest.importorskip("peft")
    model, plain = make("sd2"), make("sd2")
    names = Names.of(model)
    tensors = kohya(low_rank(names, MODULES), spelled)
    for own in MODULES[:11]:  # DoRA in the U-Net
        weight = names.modules[own].weight
        assert isinstance(weight, Tensor)
        tensors[f"{spelled(own)}.dora_scale"] = torch.rand(len(weight), *[1] * (weight.ndim - 1)) + 0.5
    model.loras.load(write(tmp_path / "a.safetensors", tensors))
    file = save_lora(model.loras["a"], tmp_path / "b.safetensors", names)
    settings, written = json.loads(metadata(file)["lora_adapter_metadata"]), load_file(file)
    for part, network in {"unet": plain.unet, "text_encoder": plain.text_encoder.model}.items():
        config = {key.removeprefix(f"{part}."): v for key, v in settings.items() if key.startswith(f"{part}.")}
        factors = {key.removeprefix(f"{part}."): v for key, v in written.items() if key.startswith(f"{part}.")}
        peft.inject_adapter_in_model(peft.LoraConfig(**config), network)
        loaded = peft.set_peft_model_state_dict(network, factors)
        assert not loaded.unexpected_keys
        for layer in [m for m in network.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]:
            layer.merge()
        merged = {key.replace(".base_layer", ""): v for key, v in network.state_dict().items() if "lora_" not in key}
        ours = model.unet if part == "unet" else model.text_encoder.model
        torch.testing.assert_close(merged, dict(ours.state_dict()), atol=2e-6, rtol=1e-5)
    assert not same(state(model), state(make("sd2")))
