"""Every spelling of the same LoRA gives the same changes of the same modules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs import presets
from configs.architecture import ModelConfig
from ldm.checkpoint.meta import on_meta
from ldm.lora.factors import Factors, weight_change
from ldm.lora.formats import read_lora
from ldm.lora.names import Names
from ldm.model import LatentDiffusion
from tests.ldm.lora.conftest import MODULES, Made, kohya, low_rank, spelled, write
from text_encoder import CLIPTextModel
from unet import UNet

Make = Callable[..., LatentDiffusion]


@pytest.fixture(scope="module")
def names(make: Make) -> Names:
    return Names.of(make("sd1"))


@pytest.fixture(scope="module")
def made(names: Names) -> Made:
    return low_rank(names, MODULES)


def dotted(made: Made, down: str, up: str, spell: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors of a file without alphas."""
    tensors = {}
    for own, (a, b, _) in made.changes.items():
        tensors[f"{spell(own)}.{down}"] = a
        tensors[f"{spell(own)}.{up}"] = b
    return tensors


def bare(own: str) -> str:
    return own.replace("text_model.", "")


def processors(own: str) -> str:
    """diffusers' first files: attention layers were processors, those of text encoders had plain names."""
    for layer in ("to_q", "to_k", "to_v", "to_out"):
        own = own.replace(f".{layer}", f".processor.{layer}_lora").replace("_lora.0", "_lora")
    return own.replace("self_attn.q_proj", "self_attn.to_q_lora")


def check(file: Path, names: Names, made: Made, scaled: bool = True) -> None:
    """The file changes exactly these modules, by alpha / rank * up @ down (or up @ down alone)."""
    lora = read_lora(file, names)
    assert lora.foreign == ()
    assert set(lora.modules) == set(made.changes)
    for own, (down, _, alpha) in made.changes.items():
        weight = names.modules[own].weight
        assert isinstance(weight, Tensor)
        found = weight_change(lora.modules[own], weight).flatten(1).double()
        torch.testing.assert_close(found, made.delta(own) * (1 if scaled else len(down) / alpha), atol=1e-6, rtol=1e-5)


def test_kohya_with_mixed_ranks_and_alphas(names: Names, made: Made, tmp_path: Path) -> None:
    """diffusers gives the commonest alpha to modules whose alphas differ."""
    check(write(tmp_path / "a.safetensors", kohya(made, spelled)), names, made)


@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_"])
def test_text_encoder_prefixes(prefix: str, names: Names, made: Made, tmp_path: Path) -> None:
    tensors = kohya(made, lambda own: spelled(own).replace("lora_te_", prefix))
    check(write(tmp_path / "a.safetensors", tensors), names, made)


@pytest.mark.parametrize("shorten", [str, bare])
@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
    ],
)
def test_peft_and_diffusers(
    down: str, up: str, shorten: Callable[[str], str], names: Names, made: Made, tmp_path: Path
) -> None:
    """With `text_model.` and, as transformers from 5.6 on, without; no alphas: the change as it is."""
    check(write(tmp_path / "a.safetensors", dotted(made, down, up, shorten)), names, made, scaled=False)


def test_attention_processors_with_and_without_the_part(names: Names, tmp_path: Path) -> None:
    made = low_rank(names, [own for own in MODULES if "attn" in own])
    file = write(tmp_path / "a.safetensors", dotted(made, "down.weight", "up.weight", processors))
    check(file, names, made, scaled=False)
    unet = Made({own: change for own, change in made.changes.items() if own.startswith("unet.")})
    tensors = dotted(unet, "down.weight", "up.weight", lambda own: processors(own).removeprefix("unet."))
    check(write(tmp_path / "b.safetensors", tensors), names, unet, scaled=False)


def test_a_torch_file(names: Names, made: Made, tmp_path: Path) -> None:
    torch.save({"state_dict": kohya(made, spelled)}, tmp_path / "a.pt")
    check(tmp_path / "a.pt", names, made)


# alphas in settings


def settings(made: Made, spell: Callable[[str], str]) -> dict[str, Any]:
    pattern = {spell(own): alpha for own, (_, _, alpha) in made.changes.items() if alpha != 4.0}
    return {"r": 2, "lora_alpha": 4.0, "alpha_pattern": pattern}


@pytest.mark.parametrize("mark", ["", "^"])
def test_alphas_in_the_metadata_of_diffusers(mark: str, names: Names, made: Made, tmp_path: Path) -> None:
    """They are lost by readers that look at tensors alone."""
    parts = {}
    for part in ("unet", "text_encoder"):
        inside = Made({own: c for own, c in made.changes.items() if own.startswith(f"{part}.")})
        path = {own: mark + bare(own.partition(".")[2]) for own in inside.changes}
        parts |= {f"{part}.{key}": value for key, value in settings(inside, path.__getitem__).items()}
    tensors = dotted(made, "lora_A.weight", "lora_B.weight", bare)
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(parts)}
    check(write(tmp_path / "a.safetensors", tensors, metadata), names, made)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_folder_of_peft(part: str, names: Names, made: Made, tmp_path: Path) -> None:
    inside = Made({own: c for own, c in made.changes.items() if own.startswith(f"{part}.")})

    def path(own: str) -> str:
        return own.partition(".")[2]

    tensors = dotted(inside, "lora_A.weight", "lora_B.weight", lambda own: f"base_model.model.{path(own)}")
    write(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings(inside, path)))
    check(tmp_path, names, inside)


def test_rank_stabilised_scaling(names: Names, tmp_path: Path) -> None:
    made = low_rank(names, MODULES[:3])
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.use_rslora": True})}
    file = write(tmp_path / "a.safetensors", dotted(made, "lora_A.weight", "lora_B.weight", str), metadata)
    factors = read_lora(file, names).modules
    assert [factors[own].scale for own in MODULES[:3]] == pytest.approx([2, 2 / 2**0.5, 2 / 3**0.5])


# SDXL and its neighbours


def test_sdxl_in_the_spelling_of_the_original_checkpoints(make: Make, tmp_path: Path) -> None:
    names = Names.of(make("sdxl"))
    spellings = {
        "unet.down_blocks.1.attentions.0.proj_in": "input_blocks_4_1_proj_in",
        "unet.down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "unet.up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
        "unet.up_blocks.1.resnets.2.conv1": "output_blocks_5_0_in_layers_2",
        "unet.mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
        "unet.mid_block.attentions.0.proj_out": "middle_block_1_proj_out",
        "unet.time_embedding.linear_1": "time_embed_0",
        "unet.add_embedding.linear_1": "label_emb_0_0",
        "unet.add_embedding.linear_2": "label_emb_0_2",
        "unet.conv_in": "input_blocks_0_0",
        "unet.conv_out": "out_2",
    }
    text = {
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": "te1_text_model_encoder_layers_0_self_attn_q_proj",
        "text_encoder_2.text_model.encoder.layers.1.mlp.fc2": "te2_text_model_encoder_layers_1_mlp_fc2",
        "text_encoder_2.text_projection": "te2_text_projection",
    }
    full = {own: f"lora_unet_{name}" for own, name in spellings.items()}
    full |= {own: f"lora_{name}" for own, name in text.items()}
    made = low_rank(names, full)
    check(write(tmp_path / "a.safetensors", kohya(made, full.__getitem__)), names, made)


def test_both_layers_of_the_add_embedding_in_diffusers_naming(make: Make, tmp_path: Path) -> None:
    """In diffusers the two collapse to one name, and one is lost."""
    names = Names.of(make("sdxl"))
    made = low_rank(names, ["unet.add_embedding.linear_1", "unet.add_embedding.linear_2"])
    check(write(tmp_path / "a.safetensors", kohya(made, spelled)), names, made)


@pytest.mark.parametrize("family", ["sd1", "sdxl_refiner"])
def test_block_1_is_not_block_10_or_11(family: str, make: Make, tmp_path: Path) -> None:
    names = Names.of(make(family))
    made = low_rank(names, [f"unet.{path}" for path in ("down_blocks.0.resnets.0.conv1", *UP, *DOWN)])
    spell = {
        "unet.down_blocks.0.resnets.0.conv1": "lora_unet_input_blocks_1_0_in_layers_2",
        "unet.down_blocks.3.resnets.0.conv1": "lora_unet_input_blocks_10_0_in_layers_2",
        "unet.down_blocks.3.resnets.1.conv1": "lora_unet_input_blocks_11_0_in_layers_2",
        "unet.up_blocks.0.resnets.1.conv1": "lora_unet_output_blocks_1_0_in_layers_2",
        "unet.up_blocks.3.resnets.1.conv1": "lora_unet_output_blocks_10_0_in_layers_2",
        "unet.up_blocks.3.resnets.2.conv1": "lora_unet_output_blocks_11_0_in_layers_2",
    }
    check(write(tmp_path / "a.safetensors", kohya(made, spell.__getitem__)), names, made)


UP = ("up_blocks.0.resnets.1.conv1", "up_blocks.3.resnets.1.conv1", "up_blocks.3.resnets.2.conv1")
DOWN = ("down_blocks.3.resnets.0.conv1", "down_blocks.3.resnets.1.conv1")


@pytest.mark.parametrize(
    ("config", "modules"),
    [(presets.SD15, 282), (presets.SD21_V, 282), (presets.SDXL, 794), (presets.SDXL_REFINER, 554)],
)
def test_no_two_modules_share_a_name_at_full_size(config: ModelConfig, modules: int) -> None:
    parts: dict[str, nn.Module] = {"unet": on_meta("", UNet, config.unet)}
    for i, text in enumerate(config.text_encoders):
        suffix = "_2" if i or config is presets.SDXL_REFINER else ""
        parts[f"text_encoder{suffix}"] = on_meta("", CLIPTextModel, text)
    names = Names(parts)
    kinds = (nn.Linear, nn.Conv2d)
    assert sum(own.startswith("unet.") and isinstance(m, kinds) for own, m in names.modules.items()) == modules
    assert sum(len({*names._spellings(own)}) for own in names.modules) == len(names.own)


# LyCORIS


def test_kinds_of_lycoris_in_kohyas_naming_beside_foreign_keys(names: Names, tmp_path: Path) -> None:
    """diffusers refuses LoHa and cores, drops dora_scale, and fails on one foreign key."""
    convolution, linear = MODULES[4], MODULES[2]
    tensors = {
        f"{spelled(convolution)}.lora_up.weight": torch.randn(12, 2, 1, 1),
        f"{spelled(convolution)}.lora_mid.weight": torch.randn(2, 2, 3, 3),
        f"{spelled(convolution)}.lora_down.weight": torch.randn(2, 8, 1, 1),
        f"{spelled(linear)}.hada_w1_a": torch.randn(8, 2),
        f"{spelled(linear)}.hada_w1_b": torch.randn(2, 8),
        f"{spelled(linear)}.hada_w2_a": torch.randn(8, 2),
        f"{spelled(linear)}.hada_w2_b": torch.randn(2, 8),
        f"{spelled(linear)}.dora_scale": torch.randn(8, 1),
        f"{spelled(linear)}.alpha": torch.tensor(1.0),
        f"{spelled(MODULES[6])}.lokr_w1": torch.randn(2, 4),
        f"{spelled(MODULES[6])}.lokr_w2": torch.randn(6, 8),
        "lora_unet_conv_norm_out.w_norm": torch.randn(8),
        "lora_unet_conv_norm_out.b_norm": torch.randn(8),
        "lora_unet_conv_out.diff": torch.randn(4, 8, 3, 3),
        "lora_unet_conv_out.diff_b": torch.randn(4),
        "bundle_emb.style.string_to_param.*": torch.randn(1, 8),
        "lora_unet_conv_out.oft_blocks": torch.randn(2, 2),
    }
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), names)
    assert {own: factors.kinds for own, factors in lora.modules.items()} == {
        convolution: ["lora"],
        linear: ["loha"],
        MODULES[6]: ["lokr"],
        "unet.conv_norm_out": ["diff"],
        "unet.conv_out": ["diff"],
    }
    assert lora.modules["unet.conv_out"].changes == ["weight", "bias"]
    assert "dora_scale" in lora.modules[linear].tensors
    assert sorted(lora.foreign) == ["bundle_emb.style.string_to_param.*", "lora_unet_conv_out.oft_blocks"]
    assert "2 of 17 keys" in lora.note
    assert "oft_blocks" in lora.note


def test_pefts_magnitudes_are_along_outputs(names: Names, tmp_path: Path) -> None:
    """(out,) of a linear layer, (1, out, 1, 1) of a convolution, which looks like inputs."""
    made, tensors = low_rank(names, [MODULES[2], MODULES[4]]), {}
    tensors |= dotted(made, "lora_A.weight", "lora_B.weight", str)
    tensors[f"{MODULES[2]}.lora_magnitude_vector"] = torch.rand(8) + 1
    tensors[f"{MODULES[4]}.lora_magnitude_vector"] = torch.rand(1, 12, 1, 1) + 1
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), names)
    for own in (MODULES[2], MODULES[4]):
        factors: Factors = lora.modules[own]
        weight = names.modules[own].weight
        assert isinstance(weight, Tensor)
        merged = weight + weight_change(factors, weight)
        magnitude = tensors[f"{own}.lora_magnitude_vector"].flatten()
        torch.testing.assert_close(merged.flatten(1).norm(dim=1), magnitude)
