"""Trainable low-rank layers: peft computes the same, what they learn merges to the same, and they leave no trace."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.finetuning import LoraConfig
from ldm.conditioning import Conditioning
from ldm.lora.factors import weight_change
from ldm.lora.layers import LoraLayer, attach, detach, layers_of, lora_of
from ldm.lora.names import Names, parts_of
from ldm.model import LatentDiffusion
from ldm.plan import Plan
from tests.ldm.lora.conftest import same, state

peft = pytest.importorskip("peft")

Make = Callable[..., LatentDiffusion]
ALL = ("attention", "feedforward", "convolutions")
KINDS = {
    "attention": LoraConfig(rank=3),
    "feedforward": LoraConfig(rank=3, alpha=6.0, targets=("feedforward",)),
    "convolutions": LoraConfig(rank=3, alpha=1.5, targets=("convolutions",)),
    "dora": LoraConfig(rank=3, alpha=6.0, targets=ALL, dora=True),
}
CASES = [*(("sd1", kind) for kind in KINDS), ("sdxl", "attention"), ("sdxl", "dora")]
ENDS = {  # what peft is told
    "attention": ["to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"],
    "feedforward": ["ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "fc1", "fc2"],
    "convolutions": ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"],
}
BOTH = {"unet": True, "text": True, "seed": 5}


def trained(layers: dict[str, LoraLayer]) -> None:
    """As if they had learned."""
    generator = torch.Generator().manual_seed(1)
    for layer in layers.values():
        layer.up.data = 0.1 * torch.randn(layer.up.shape, generator=generator)
        if layer.magnitude is not None:
            layer.magnitude.data *= 1 + 0.3 * torch.randn(layer.magnitude.shape, generator=generator)


def inputs(model: LatentDiffusion) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    generator, config = torch.Generator().manual_seed(2), model.unet.config
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 5, config.context_dim, generator=generator)
    vector = torch.randn(2, config.vector_dim, generator=generator) if config.vector_dim else None
    return (x, torch.tensor([3, 700]), context), vector


def outputs(model: LatentDiffusion) -> list[Tensor]:
    args, vector = inputs(model)
    return [model.unet(*args, vector=vector), *_texts(model)]


def _texts(model: LatentDiffusion) -> list[Tensor]:
    ids = torch.arange(10).view(2, 5)
    return [tensor for name, text in parts_of(model).items() if name != "unet" for tensor in text(ids, skip=1)]


def into_peft(model: LatentDiffusion, config: LoraConfig, layers: dict[str, LoraLayer]) -> dict[str, Any]:
    """peft's layers in the place of the same ones, with the same factors; by own name."""
    ends = tuple(f".{end}" for kind in config.targets for end in ENDS[kind])
    found = {}
    for part, network in parts_of(model).items():
        own = {f"{part}.{p}": p for p, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        targets = [p for name, p in own.items() if p.endswith(ends) and (name in layers or not layers)]
        if not targets:
            continue
        alpha = config.alpha or config.rank
        settings = peft.LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=targets, use_dora=config.dora)
        peft.inject_adapter_in_model(settings, network)
        adapted = {p: m for p, m in network.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
        found |= {f"{part}.{path}": layer for path, layer in adapted.items()}
    assert not layers or found.keys() == layers.keys()
    for own, layer in layers.items():
        for theirs, mine in pairs(found[own], layer).values():
            theirs.data = mine.detach().clone().view_as(theirs)
    return found


def pairs(theirs: Any, mine: LoraLayer) -> dict[str, tuple[Tensor, Tensor]]:
    both = {"down": (theirs.lora_A["default"].weight, mine.down), "up": (theirs.lora_B["default"].weight, mine.up)}
    if mine.magnitude is not None:
        both["magnitude"] = (theirs.lora_magnitude_vector["default"].weight, mine.magnitude)
    return both


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_peft_computes_the_same(kind: str, family: str, make: Make) -> None:
    config, ours, theirs = KINDS[kind], make(family), make(family)
    layers = attach(ours, config, unet=True, text=kind != "convolutions", seed=5)
    trained(layers)
    adapted = into_peft(theirs, config, layers)
    for network in (*parts_of(ours).values(), *parts_of(theirs).values()):
        network.double()  # or rounding would hide small gradients
    mine, wanted = outputs(ours), outputs(theirs)
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)
    sum(tensor.square().mean() for tensor in mine).backward()  # type: ignore[union-attr]
    sum(tensor.square().mean() for tensor in wanted).backward()  # type: ignore[union-attr]
    for own, layer in layers.items():
        for role, (them, us) in pairs(adapted[own], layer).items():
            assert them.grad is not None
            assert us.grad is not None, (own, role)
            size = max(float(them.grad.abs().max()), 1e-10)  # some are 0 but for rounding
            torch.testing.assert_close(us.grad / size, them.grad.view_as(us.grad) / size, rtol=0, atol=1e-5)


def test_peft_initialises_the_same(make: Make) -> None:
    """up is 0, down uniform up to 1 / sqrt(fan_in), the magnitude that of the weights."""
    ours, theirs = make("sd1"), make("sd1")
    layers = attach(ours, KINDS["dora"], **BOTH)
    found = into_peft(theirs, KINDS["dora"], {})
    assert layers.keys() == found.keys()
    for own, layer in layers.items():
        bound = layer.down[0].numel() ** -0.5
        for down in (layer.down, found[own].lora_A["default"].weight):
            assert 0.5 * bound < down.abs().max() <= bound
        for role, (them, us) in pairs(found[own], layer).items():
            assert them.shape == us.shape or role == "magnitude"
            if role != "down":
                torch.testing.assert_close(us, them.view_as(us))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_what_they_learn_merges_to_the_same(kind: str, family: str, make: Make) -> None:
    live, merged, config = make(family), make(family), KINDS[kind]
    text = kind != "convolutions"
    before = outputs(merged)
    layers = attach(live, config, unet=True, text=text, seed=5)
    torch.testing.assert_close(outputs(live), before, rtol=1e-5, atol=1e-5)  # nothing is changed at first
    trained(layers)
    modules = Names.of(merged).modules
    for own, factors in lora_of(layers).items():
        weight: Any = modules[own].weight
        change = weight_change(factors, weight)
        torch.testing.assert_close(layers[own].weight_change(), change, rtol=1e-5, atol=1e-6)
        weight.data += change
    after = outputs(merged)
    assert (after[0] - before[0]).abs().max() > 0.01
    torch.testing.assert_close(outputs(live), after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["convolutions", "dora"])
def test_nothing_else_learns_and_no_trace_is_left(kind: str, make: Make) -> None:
    model, text = make("sdxl"), kind != "convolutions"
    before, tree = state(model), [type(module) for module in model.unet.modules()]
    layers = attach(model, KINDS[kind], unet=True, text=text, seed=5)
    trained(layers)
    for tensor in outputs(model):
        if tensor.requires_grad:
            tensor.square().mean().backward(retain_graph=True)
    networks = parts_of(model).items()
    learning = {f"{part}.{name}": p for part, n in networks for name, p in n.named_parameters() if p.requires_grad}
    assert {id(p) for p in learning.values()} == {id(p) for layer in layers.values() for p in layer.parameters(False)}
    assert all(name.endswith((".down", ".up", ".magnitude")) for name in learning)
    assert all(parameter.dtype == torch.float32 for parameter in learning.values())
    optimizer = torch.optim.AdamW(learning.values(), lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert not all(layer.up.abs().max() < 0.05 for layer in layers.values())
    assert Names.of(model).own == Names.of(make("sdxl")).own  # files fit meanwhile
    detach(model)
    assert same(state(model), before)
    assert tree == [type(module) for module in model.unet.modules()]
    assert layers_of(model) == {}


def test_layers_that_are_not_read_are_left_out(make: Make) -> None:
    """SDXL reads the last but one layer of both encoders, and the pooled text of the second."""
    layers = attach(make("sdxl"), KINDS["dora"], **BOTH)
    read = {own.split(".self_attn")[0] for own in layers if "self_attn" in own}
    first, second = "text_encoder.text_model.encoder.layers", "text_encoder_2.text_model.encoder.layers"
    assert read == {f"{first}.0", f"{second}.0", f"{second}.1"}
    assert any(own.startswith("text_encoder_2") for own in attach(make("sdxl_refiner"), KINDS["dora"], **BOTH))


def test_initial_values_depend_on_seed_and_name_alone(make: Make) -> None:
    one, two = attach(make("sd1"), KINDS["dora"], **BOTH), attach(make("sd1"), KINDS["attention"], **BOTH)
    assert two.keys() < one.keys()
    for own in two:
        torch.testing.assert_close(one[own].down, two[own].down, rtol=0, atol=0)
    other = attach(make("sd1"), KINDS["attention"], unet=True, text=True, seed=6)
    assert not any(torch.equal(other[own].down, two[own].down) for own in two)
    firsts = {float(layer.down.detach().flatten()[0]) for layer in two.values()}
    assert len(firsts) == len(two)


@pytest.mark.parametrize(("kind", "autocast"), [("convolutions", False), ("dora", False), ("dora", True)])
def test_half_precision_under_float32_factors(kind: str, autocast: bool, make: Make) -> None:
    exact, half = make("sd1"), make("sd1", torch.bfloat16)
    text = kind != "convolutions"
    for model in (exact, half):
        trained(attach(model, KINDS[kind], unet=True, text=text, seed=5))
    assert all(p.dtype == torch.float32 for layer in layers_of(half).values() for p in layer.parameters(False))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = outputs(half)
    assert all(tensor.dtype == torch.bfloat16 for tensor in found)
    for mine, wanted in zip(found, outputs(exact), strict=True):
        assert (mine.float() - wanted).norm() < 0.05 * wanted.norm()
    found[0].float().square().mean().backward()
    own = "unet.mid_block.resnets.0.conv1" if kind == "convolutions" else next(iter(layers_of(half)))
    assert layers_of(half)[own].up.grad is not None


def test_pictures_can_be_drawn_meanwhile(make: Make) -> None:
    """A plan keeps nothing of a layer that learns."""
    model = make("sd1")
    layers = attach(model, KINDS["dora"], **BOTH)
    (x, _, context), _ = inputs(model)
    plan, cond = Plan(model), Conditioning(context)
    with torch.no_grad():
        first = plan(x, 3.0, cond)
        torch.testing.assert_close(first, model.network(x, 3.0, cond), rtol=1e-5, atol=1e-5)
        trained(layers)
        second = plan(x, 3.0, cond)
        torch.testing.assert_close(second, model.network(x, 3.0, cond), rtol=1e-5, atol=1e-5)
    assert (first - second).abs().max() > 0.01


def test_a_copy_learns_by_itself(make: Make) -> None:
    model = make("sd1")
    layers = attach(model, KINDS["attention"], **BOTH)
    other = copy.deepcopy(model.unet)
    trained(layers)
    assert all(not module.up.any() for module in other.modules() if isinstance(module, LoraLayer))


def test_what_is_refused(make: Make) -> None:
    model = make("sd1")
    with pytest.raises(ValueError, match=r"\['convolutions'\] names no layer of the text_encoder: add another kind"):
        attach(model, KINDS["convolutions"], **BOTH)
    assert layers_of(model) == {}
    assert all(parameter.requires_grad for parameter in model.unet.parameters())
    attach(model, KINDS["attention"], **BOTH)
    with pytest.raises(ValueError, match=r"trainable low-rank layers already: detach\(model\)"):
        attach(model, KINDS["attention"], **BOTH)
