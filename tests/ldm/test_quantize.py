"""Weights in 8 bits: what becomes of a network, and that nothing takes them for whole ones."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ldm.quantize
from ldm.checkpoint import save_folder, save_single_file, weights_hash
from ldm.model import LatentDiffusion
from ldm.plan import Plan
from ldm.quantize import parts_of, quantize, quantized, require_possible, require_unquantized
from ldm.shortcuts import Shortcuts
from ldm.twin import is_plain
from tests.eight_bits import torchao as torchao
from tests.ldm.plans import TIMES, build, conditions, latents, plainly, same
from unet.attention import Transformer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def linear(model: LatentDiffusion) -> dict[str, nn.Linear]:
    """The linear layers of the transformers, by name."""
    return {
        f"{name}.{inner}": layer
        for name, module in model.unet.named_modules()
        if isinstance(module, Transformer)
        for inner, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_weight_is_held_to_half_a_step_of_its_channel(torchao: str, family: str) -> None:
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    quantize(model, "int8", CPU)
    layers = linear(model)
    assert len(layers) > 20
    assert quantized(model.unet) == "int8"
    for name, layer in layers.items():
        weight, whole = before.pop(f"{name}.weight"), layer(torch.eye(layer.in_features)).T
        whole = whole if layer.bias is None else whole - layer.bias[:, None]
        assert torch.int8 in {part.dtype for part in parts_of(layer.weight)}
        step = weight.abs().amax(dim=1, keepdim=True) / 127.5
        assert ((whole - weight).abs() <= 0.51 * step).all()
        assert not torch.allclose(whole, weight, atol=1e-4)
    now = model.unet.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd1", "sdxl", "upscale"])
@torch.no_grad()
def test_a_plan_runs_them_with_all_its_constants(torchao: str, family: str, dtype: torch.dtype) -> None:
    model = build(family, dtype)
    x, cond, exact = latents(model, 2), conditions(model, 4), Plan(model, TIMES)
    x, cond = x.to(dtype), replace(cond, context=cond.context.to(dtype))
    whole = exact(x, 501.0, cond)
    quantize(model, "int8", CPU)
    assert is_plain(model.unet)
    plan, known = Plan(model, TIMES), None
    for t in TIMES:
        found, expected = plan(x, t, cond).float(), plainly(model, x, t, cond).float()
        error = (found - expected).norm() / expected.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.03)
        known = known or plan.told(cond)
        assert plan.told(cond) is known
    error = (plan(x, 501.0, cond) - whole).norm() / whole.norm()
    assert 1e-3 < error < 0.1


@pytest.mark.parametrize("shortcuts", [Shortcuts(deep_cache=2), Shortcuts(merge_tokens=0.5)], ids=str)
@torch.no_grad()
def test_other_shortcuts_go_with_it(torchao: str, shortcuts: Shortcuts) -> None:
    model = build("sd1")
    x, cond = latents(model, 1), conditions(model, 2)
    exact = [Plan(model, TIMES, shortcuts=shortcuts)(x, t, cond) for t in TIMES]
    quantize(model, "int8", CPU)
    for t, whole in zip(TIMES, exact, strict=True):
        error = (Plan(model, TIMES, shortcuts=shortcuts)(x, t, cond) - whole).norm() / whole.norm()
        assert 1e-4 < error < 0.1


@torch.no_grad()
def test_changed_weights_never_meet_a_stale_constant(torchao: str) -> None:
    model = build("sd1")
    quantize(model, "int8", CPU)
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    before, known = plan(x, 501.0, cond), plan.told(cond)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    held = max(parts_of(linear(model)[name].weight), key=Tensor.numel)
    held.copy_(held.flip(0))
    after = plan(x, 501.0, cond)
    same(after, plainly(model, x, 501.0, cond))
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)
    assert plan.told(cond) is not known
    known = plan.told(cond)
    model.unet._apply(torch.clone)  # as when it is moved to a device
    assert plan.told(cond) is not known
    assert torch.equal(plan(x, 501.0, cond), after)


def test_the_hash_is_that_of_the_weights_they_were_made_of(torchao: str) -> None:
    model = build("sd1")
    digest = weights_hash(model)
    quantize(model, "int8", CPU)
    assert weights_hash(model) == digest
    model.unet._apply(torch.clone)
    assert weights_hash(model) == digest
    by_another = build("sd1")
    ldm.quantize._torchao().quantize_(by_another.unet, require_possible("int8", CPU, torch.float32))
    assert quantized(by_another.unet) == "int8"
    assert len(weights_hash(by_another)) == 64
    assert weights_hash(by_another) != digest


def test_what_takes_them_for_whole_weights_is_refused(torchao: str, tmp_path: Path) -> None:
    model = build("sd1")
    quantize(model, "int8", CPU)
    tries: dict[str, Callable[[], Any]] = {
        "changed by a LoRA": lambda: model.loras.load(tmp_path / "missing.safetensors"),
        "saved": lambda: save_folder(model, tmp_path / "model"),
        "saved ": lambda: save_single_file(model, tmp_path / "model.safetensors"),
        "quantised again": lambda: quantize(model, "int8", CPU),
    }
    for use, attempt in tries.items():
        with pytest.raises(ValueError, match=rf"8 bits \(int8\) cannot be {use.strip()}: load the model without"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_whole_weights_are_told_from_others() -> None:
    unet = build("sd1").unet
    assert quantized(unet) == ""
    require_unquantized(unet, "saved")
    weight = unet.conv_in.weight
    assert parts_of(weight) == [weight]


def test_nothing_to_quantise(torchao: str) -> None:
    model = build("sd1")
    for block in (*model.unet.down_blocks, *model.unet.up_blocks, model.unet.mid_block):
        block._modules.pop("attentions", None)
    with pytest.raises(ValueError, match="no linear layer that int8 fits"):
        quantize(model, "int8", CPU)


def test_loras_come_out_or_become_the_models_own_first(torchao: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("sd1")
    monkeypatch.setattr(type(model.loras), "__len__", lambda _: 1)
    with pytest.raises(ValueError, match=r"fuse_lora\(\) or unload_lora\(\)"):
        quantize(model, "int8", CPU)
    assert quantized(model.unet) == ""


@pytest.mark.parametrize(
    ("kind", "device", "dtype", "said"),
    [
        ("int4", "cpu", torch.float32, 'quantize is "int8" or "fp8", not \'int4\''),
        (8, "cpu", torch.float32, "not 8"),
        ("fp8", "cpu", torch.bfloat16, "fp8 needs a GPU of compute capability 8.9"),
        ("fp8", "cuda", torch.bfloat16, "fp8 needs a GPU of compute capability 8.9"),
        ("int8", "cpu", torch.float32, 'pip install "ldm-pipelines\\[quantize]"'),
    ],
)
def test_bad_input(kind: Any, device: str, dtype: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(ValueError, match=said):
        require_possible(kind, torch.device(device), dtype)


def test_fp8_goes_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(ValueError, match=r"fp8 goes with a model in bfloat16, and this one is in torch\.float16"):
        require_possible("fp8", torch.device("cuda"), torch.float16)


def test_float8_weights_of_torchao_are_known_too() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = build("sd1")
    quantization.quantize_(model.unet, quantization.Float8WeightOnlyConfig(set_inductor_config=False))
    assert quantized(model.unet) == "fp8"
    with pytest.raises(ValueError, match=r"8 bits \(fp8\)"):
        require_unquantized(model.unet, "saved")


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@torch.no_grad()
def test_on_a_gpu(kind: str) -> None:
    pytest.importorskip("torchao")
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU that multiplies float8")
    model = build("sd1", torch.bfloat16)
    model.unet.to("cuda")
    x, cond = latents(model, 2).cuda(), conditions(model, 4).to("cuda")
    whole = Plan(model, TIMES)(x, 501.0, cond).float()
    quantize(model, kind, torch.device("cuda"))
    assert quantized(model.unet) == kind
    error = (Plan(model, TIMES)(x, 501.0, cond).float() - whole).norm() / whole.norm()
    assert 1e-3 < error < 0.2
