"""A plan gives what the plain network gives, computes constants once, and never meets a stale one."""

import gc
from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.interchange import unet_from_json
from ldm.conditioning import Conditioning
from ldm.model import LatentDiffusion
from ldm.plan import Plan, Speed
from tests.unet.test_unet import FAMILIES
from unet import UNet
from unet.attention import TransformerBlock

SWITCHES = [field.name for field in fields(Speed)]
CASES = ["sd1", "sdxl", "upscale", "lcm", "sd2-unclip", "class-timestep", "ssd-without-middle"]
NOTHING = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
TIMES = (951.0, 501.0, 1.0)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build(family: str, dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    json = {"cross_attention_dim": 24, **FAMILIES[family]}
    unet = UNet(unet_from_json(json)).eval().to(dtype)
    for name, parameter in unet.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.data = noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3 * noise + ("norm" in name)
    return LatentDiffusion(NOTHING, nn.Identity(), unet, {})  # type: ignore[arg-type]


def conditions(model: LatentDiffusion, b: int, masked: bool = False) -> Conditioning:
    config = model.unet.config
    vector: dict[str, Any] = {
        "none": None,
        "text_time": torch.randn(b, 20),
        "class_projection": torch.randn(b, config.vector_dim),
        "class_table": torch.arange(b) * 7,
        "class_timestep": torch.arange(b) * 11,
    }
    sizes = torch.randint(0, 1024, (b, 6)).float() if config.vector == "text_time" else None
    guidance = 6.5 * torch.rand(b) if config.guidance_dim else None
    mask = torch.rand(b, 7) > 0.3 if masked else None
    return Conditioning(torch.randn(b, 7, config.context_dim), mask, vector[config.vector], sizes, guidance)


def latents(model: LatentDiffusion, b: int, size: tuple[int, int] = (12, 8)) -> Tensor:
    return torch.randn(b, model.unet.config.in_channels, *size)


def plainly(model: LatentDiffusion, x: Tensor, t: float, cond: Conditioning) -> Tensor:
    """The network with one row of latents and one time for every row of the condition."""
    b = len(cond.context)
    return model.network(x.repeat(b // len(x), 1, 1, 1), torch.full((b,), t), cond)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * expected.abs().max().item())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 2])  # of the condition for each of the latents
@pytest.mark.parametrize("family", CASES)
@torch.no_grad()
def test_a_plan_is_the_plain_network(family: str, rows: int, masked: bool) -> None:
    model = build(family)
    x, cond = latents(model, 3), conditions(model, 3 * rows, masked)
    plan = Plan(model, TIMES)
    for t in (*TIMES, 333.25):  # the last is none that was announced
        same(plan(x, t, cond), plainly(model, x, t, cond))


@pytest.mark.parametrize("off", SWITCHES)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.no_grad()
def test_each_switch_alone_changes_nothing_but_the_way(family: str, off: str) -> None:
    model = build(family)
    x, cond = latents(model, 2), conditions(model, 4)
    same(Plan(model, TIMES, replace(Speed(), **{off: False}))(x, 501.0, cond), plainly(model, x, 501.0, cond))


@torch.no_grad()
def test_constants_are_computed_once() -> None:
    model = build("sd1")
    calls: dict[str, int] = {}
    for name, module in model.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v", "time_emb_proj", "time_embedding")):
            calls[name] = 0
            count = lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)  # noqa: E731
            module.register_forward_hook(count)
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    for t in TIMES:
        plan(x, t, cond)
    assert len(calls) > 20
    assert set(calls.values()) == {1}


@torch.no_grad()
def test_what_the_halves_of_guidance_share_is_computed_for_one() -> None:
    model = build("sd1")
    seen: dict[str, int] = {}
    for name, module in model.unet.named_modules():
        if name in ("conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"):
            module.register_forward_hook(lambda _, args, out, name=name: seen.__setitem__(name, len(out)))
    x, cond = latents(model, 2), conditions(model, 4)
    Plan(model, TIMES)(x, 1.0, cond)
    assert list(seen.values()) == [2, 2, 2]
    Plan(model, TIMES, Speed(shared_trunk=False))(x, 1.0, cond)
    assert list(seen.values()) == [4, 4, 4]


def in_place(model: LatentDiffusion, name: str) -> None:
    dict(model.unet.named_parameters())[name].mul_(1.5)


def replaced(model: LatentDiffusion, name: str) -> None:
    """As LoRAs are merged."""
    parameter = dict(model.unet.named_parameters())[name]
    parameter.data = 1.5 * parameter.data


def exchanged(model: LatentDiffusion, name: str) -> None:
    model.unet = build("sd1").unet


def cast(model: LatentDiffusion, name: str) -> None:
    model.unet.to(torch.float64)


NAMES = [
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.1.resnets.0.time_emb_proj.bias",
    "time_embedding.linear_2.weight",
    "conv_in.weight",  # none that constants are made of: the twin has it in common
]


@pytest.mark.parametrize("change", [in_place, replaced, exchanged, cast])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_changed_weights_never_meet_a_stale_constant(change: Callable[..., None], name: str) -> None:
    model = build("sd1")
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    before = plan(x, 501.0, cond)
    change(model, name)
    after = plan(x, 501.0, cond)
    same(after, plainly(model, x, 501.0, cond))
    assert change is cast or not torch.allclose(after, before, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_weights_that_are_freed_and_replaced_again_and_again_are_told_apart() -> None:
    model = build("sd1")
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    for _ in range(20):  # the allocator likes to give the same memory again
        replaced(model, NAMES[0])
        same(plan(x, 501.0, cond), plainly(model, x, 501.0, cond))


@torch.no_grad()
def test_another_prompt_batch_size_or_picture_size_never_meets_a_stale_constant() -> None:
    model = build("sdxl")
    plan = Plan(model, TIMES)
    kept = conditions(model, 2)
    for cond in (kept, conditions(model, 2), kept, conditions(model, 4), conditions(model, 2), kept):
        for size in ((12, 8), (9, 13)):
            x = latents(model, 2, size)
            same(plan(x, 951.0, cond), plainly(model, x, 951.0, cond))


@torch.no_grad()
def test_constants_are_forgotten_with_their_condition() -> None:
    model = build("sd1")
    plan, kept = Plan(model, TIMES), conditions(model, 2)
    for _ in range(9):
        plan(latents(model, 1), 1.0, kept)
        plan(latents(model, 1), 1.0, conditions(model, 2))
    gc.collect()
    assert list(plan._prepared) == [kept]


@torch.no_grad()
def test_the_network_itself_is_left_as_it_was() -> None:
    model = build("sd1")
    modules = [(name, id(module), type(module)) for name, module in model.unet.named_modules()]
    state = {name: (id(value), value.clone()) for name, value in model.unet.named_parameters()}
    Plan(model, TIMES)(latents(model, 1), 1.0, conditions(model, 2))
    assert modules == [(name, id(module), type(module)) for name, module in model.unet.named_modules()]
    for name, value in model.unet.named_parameters():
        assert id(value) == state[name][0]
        assert torch.equal(value, state[name][1])
    blocks = [module for module in model.unet.modules() if isinstance(module, TransformerBlock)]
    assert not any("keys_values" in vars(block.attn2) for block in blocks)


def hooked(unet: UNet, calls: list[str]) -> None:
    unet.register_forward_hook(lambda *_: calls.append("hook"))


def given_a_forward(unet: UNet, calls: list[str]) -> None:
    own = unet.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        calls.append("forward")
        return own(*args, **kwargs)

    unet.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [hooked, given_a_forward])
@torch.no_grad()
def test_what_people_did_to_the_network_is_respected(change: Callable[..., None]) -> None:
    model, calls = build("sd1"), list[str]()
    change(model.unet, calls)
    x, cond = latents(model, 1), conditions(model, 2)
    same(Plan(model, TIMES)(x, 1.0, cond), plainly(model, x, 1.0, cond))
    assert len(calls) == 2


@torch.no_grad()
def test_a_compiled_network_is_called_as_it_is() -> None:
    model, calls = build("sd1"), list[int]()

    def counting(module: Any, inputs: Any) -> Any:
        calls.append(1)
        return module.forward

    model.unet.mid_block.compile(backend=counting)
    x, cond = latents(model, 1), conditions(model, 2)
    same(Plan(model, TIMES)(x, 1.0, cond), plainly(model, x, 1.0, cond))
    assert calls


@torch.no_grad()
def test_times_by_row_go_to_the_network() -> None:
    model = build("sdxl")
    x, cond, t = latents(model, 2), conditions(model, 2), torch.tensor([1.0, 951.0])
    same(Plan(model, TIMES)(x, t, cond), model.network(x, t, cond))


@torch.no_grad()
def test_half_precision_is_no_further_from_float32() -> None:
    model = build("sd1", torch.bfloat16)
    x, cond = latents(model, 1), conditions(model, 2)
    planned, plain = Plan(model, TIMES)(x, 501.0, cond).float(), plainly(model, x, 501.0, cond).float()
    model.unet.float()
    exact = plainly(model, x, 501.0, cond)
    assert (planned - exact).norm() < 1.1 * (plain - exact).norm()
