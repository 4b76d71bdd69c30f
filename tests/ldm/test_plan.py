"""A plan gives what the plain network gives, computes constants once, and never meets a stale one."""

import gc
from dataclasses import fields, replace

import pytest
import torch

from ldm.plan import Plan, Speed
from tests.ldm.plans import TIMES, build, conditions, latents, plainly, same
from unet.attention import TransformerBlock

SWITCHES = [field.name for field in fields(Speed)]
CASES = ["sd1", "sdxl", "upscale", "lcm", "sd2-unclip", "class-timestep", "ssd-without-middle"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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


def test_gradients_reach_every_weight_and_the_text() -> None:
    model = build("sd1")
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    with torch.no_grad():
        plan(x, 501.0, cond)
    for _ in range(2):  # a second time through what the first has left
        found = torch.autograd.grad(plan(x, 501.0, cond).square().sum(), list(model.unet.parameters()))
        expected = torch.autograd.grad(plainly(model, x, 501.0, cond).square().sum(), list(model.unet.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = build("sd1")
        x, cond = latents(model, 1), conditions(model, 2)
        same(Plan(model, TIMES)(x, 501.0, cond), plainly(model, x, 501.0, cond))


@torch.no_grad()
def test_what_is_forgotten_is_made_again() -> None:
    model = build("sd1")
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    before = plan(x, 501.0, cond)
    plan.forget()
    assert not plan._prepared
    assert torch.equal(plan(x, 501.0, cond), before)


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


@torch.no_grad()
def test_kernels_lie_as_images_do_in_half_precision() -> None:
    """Else each convolution brings them into that order at each step."""
    for dtype, expected in ((torch.bfloat16, True), (torch.float32, False)):
        model = build("sd1", dtype)
        x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
        before = plainly(model, x, 501.0, cond).float()
        found = plan(x, 501.0, cond).float()
        weight = model.unet.mid_block.resnets[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is expected
        assert weight.is_contiguous() is not expected
        torch.testing.assert_close(
            found, before, rtol=0, atol=(3e-6 if not expected else 0.1) * before.abs().max().item()
        )
