"""Files that are damaged, for other models, or no LoRAs: a clear error, and the model is as it was."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.checkpoint.errors import CheckpointError
from ldm.lora.formats import read_lora
from ldm.lora.names import Names
from ldm.model import LatentDiffusion
from tests.ldm.lora.conftest import MODULES, kohya, low_rank, same, spelled, state, write

TO_Q = spelled(MODULES[2])
TO_K = spelled(MODULES[3])
DOWN, UP = "lora_down.weight", "lora_up.weight"


@pytest.fixture(scope="module")
def model(make: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    return make("sd1")


@pytest.fixture(scope="module")
def good(model: LatentDiffusion) -> dict[str, Tensor]:
    return kohya(low_rank(Names.of(model), MODULES), spelled)


def refused(model: LatentDiffusion, file: Path, *messages: str) -> None:
    before = state(model)
    with pytest.raises(CheckpointError) as caught:
        model.loras.load(file)
    for message in (str(file), *messages):
        assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(state(model), before)
    assert len(model.loras) == 0


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated(kept: float, model: LatentDiffusion, good: dict[str, Tensor], tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", good)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    refused(model, file)


def test_missing(model: LatentDiffusion, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no LoRA at"):
        model.loras.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="holds 0 safetensors files"):
        model.loras.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "shape", "guess"),
    [
        ("lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k.lora_down.weight", (4, 2048), "2048 (SDXL)"),
        ("lora_unet_strange_attn2_to_v.lora_down.weight", (4, 768), "768 (Stable Diffusion 1)"),
        ("unet.strange.attn2.to_k.lora_A.weight", (4, 1024), "1024 (Stable Diffusion 2)"),
        ("unet.strange.attn2.processor.to_k_lora.down.weight", (4, 1280), "1280 (the SDXL refiner)"),
        ("lora_te2_strange.lora_down.weight", (4, 8), "a LoRA for SDXL"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", (4, 8), "a LoRA for Flux"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", (4, 8), "a LoRA for Stable Diffusion 3"),
        ("transformer.strange.lora_A.weight", (4, 8), "another architecture"),
        ("emb_params", (1, 768), "a textual inversion, not a LoRA"),
        ("first_stage_model.decoder.conv_in.weight", (4, 4), "something else than a LoRA"),
    ],
)
def test_nothing_matches(key: str, shape: tuple[int, int], guess: str, model: LatentDiffusion, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", {key: torch.zeros(shape)}, {"ss_base_model_version": "some base"})
    refused(model, file, "none of its 1 keys", key, guess, "'some base'")


def test_empty(model: LatentDiffusion, tmp_path: Path) -> None:
    refused(model, write(tmp_path / "a.safetensors", {}), "none of its 0 keys")


def test_the_same_names_at_other_widths(model: LatentDiffusion, good: dict[str, Tensor], tmp_path: Path) -> None:
    """SD 1 and SD 2 name their modules alike."""
    wider = {f"{TO_K}.lora_down.weight": torch.zeros(1, 1024), f"{TO_K}.lora_up.weight": torch.zeros(12, 1)}
    tensors = {key: value for key, value in good.items() if not key.startswith(TO_K)} | wider
    file = write(tmp_path / "a.safetensors", tensors)
    refused(model, file, f"1 of its {len(MODULES)} modules", MODULES[3], "(12, 1024)", "1024 (Stable Diffusion 2)")


@pytest.mark.parametrize(
    ("tensors", "messages"),
    [
        ({DOWN: (2, 8), UP: (9, 2)}, ["unet.down_blocks.0", "(9, 8)", "(8, 8)"]),
        ({DOWN: (2, 8), UP: (8, 3)}, ["unet.down_blocks.0"]),
        ({DOWN: (), UP: ()}, ["unet.down_blocks.0"]),
        ({DOWN: (2, 8), UP: (8, 2), "dora_scale": (3, 1)}, ["dora_scale has the shape (3, 1)"]),
        ({DOWN: (2, 8), UP: (8, 2), "diff_b": (8,)}, ["to_q", "has no bias"]),
        ({DOWN: (2, 8)}, ["lacks up"]),
        ({DOWN: (2, 8), "lora_mid.weight": (2, 2, 1, 1)}, ["lacks up"]),
        ({"dora_scale": (8, 1), "alpha": ()}, ["lacks up and down"]),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8)}, ["lacks hada_w2_a, hada_w2_b"]),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2)}, ["lacks lokr_w2_b"]),
        ({DOWN: (2, 8), UP: (8, 2), "alpha": (2,)}, ["alpha must be one finite number"]),
        ({"lokr_w1": (100_000, 1), "lokr_w2": (100_000, 1)}, ["(10000000000, 1)"]),  # 40 GB, refused by its shape
    ],
)
def test_wrong_shapes_and_missing_halves_name_the_module(
    tensors: dict[str, tuple[int, ...]], messages: list[str], model: LatentDiffusion, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.safetensors", {f"{TO_Q}.{key}": torch.zeros(shape) for key, shape in tensors.items()})
    refused(model, file, *messages)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_no_numbers(value: float, role: str, model: LatentDiffusion, good: dict[str, Tensor], tmp_path: Path) -> None:
    spoilt = good[f"{TO_K}.{role}"].clone()
    spoilt.view(-1)[-1] = value
    file = write(tmp_path / "a.safetensors", {**good, f"{TO_K}.{role}": spoilt})
    refused(model, file, TO_K if role == "alpha" else MODULES[3])


def test_one_module_in_two_spellings(model: LatentDiffusion, good: dict[str, Tensor], tmp_path: Path) -> None:
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight"
    file = write(tmp_path / "a.safetensors", {**good, key: good[f"{TO_Q}.lora_up.weight"]})
    refused(model, file, "twice", key, f"{TO_Q}.lora_up.weight")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8])
def test_an_alpha_may_be_a_whole_number(
    dtype: torch.dtype, model: LatentDiffusion, good: dict[str, Tensor], tmp_path: Path
) -> None:
    """As sd-scripts writes it."""
    key = f"{TO_Q}.alpha"
    lora = read_lora(write(tmp_path / "a.safetensors", {**good, key: torch.tensor(16, dtype=dtype)}), Names.of(model))
    assert lora.modules[MODULES[2]].alpha == 16.0
    assert isinstance(lora.modules[MODULES[2]].alpha, float)


def test_a_lone_alpha_is_left_out(model: LatentDiffusion, good: dict[str, Tensor], tmp_path: Path) -> None:
    lone = {key: tensor for key, tensor in good.items() if not key.startswith(f"{TO_Q}.lora_")}
    lora = read_lora(write(tmp_path / "a.safetensors", lone), Names.of(model))
    assert lora.foreign == (f"{TO_Q}.alpha",)
    assert lora.modules.keys() == {*MODULES} - {MODULES[2]}


def test_whole_numbers(model: LatentDiffusion, good: dict[str, Tensor], tmp_path: Path) -> None:
    key = f"{TO_Q}.lora_up.weight"
    refused(model, write(tmp_path / "a.safetensors", {**good, key: good[key].int()}), key, "I32")


@pytest.mark.parametrize(
    "settings",
    ["{", "[1]", "[" * 100_000, json.dumps({"unet.lora_alpha": "8"}), json.dumps({"unet.alpha_pattern": [1]})],
)
def test_settings_that_are_none(settings: str, model: LatentDiffusion, tmp_path: Path) -> None:
    tensors = {f"{MODULES[2]}.lora_A.weight": torch.zeros(2, 8), f"{MODULES[2]}.lora_B.weight": torch.zeros(8, 2)}
    refused(model, write(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": settings}))


def test_patterns_are_no_expressions(model: LatentDiffusion, tmp_path: Path) -> None:
    """An expression of a stranger may run for ever; (a+)+$ is the classic one."""
    pattern = json.dumps({"unet.alpha_pattern": {"(([a-z_0-9.])+)+!": 3.0}, "unet.lora_alpha": 2})
    tensors = {f"{MODULES[2]}.lora_A.weight": torch.zeros(2, 8), f"{MODULES[2]}.lora_B.weight": torch.zeros(8, 2)}
    model.loras.load(write(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": pattern}), "harmless")
    model.loras.unload()


def test_overflow(make: Callable[..., LatentDiffusion], good: dict[str, Tensor], tmp_path: Path) -> None:
    """It comes out only while merging, when other modules are merged already."""
    model = make("sd1", torch.float16)
    first = write(tmp_path / "a.safetensors", good)
    model.loras.load(first, "first", 0.5)
    before = state(model)
    with pytest.raises(ValueError, match=r"becomes infinite in torch\.float16: lower the scale"):
        model.loras.load(first, "second", 1e7)
    with pytest.raises(ValueError, match="becomes infinite"):
        model.loras.set_scales({"first": 1e7})
    assert same(state(model), before)
    assert model.loras.scales == {"first": 0.5}
