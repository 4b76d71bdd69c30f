"""Shortcuts leave out what they say and nothing else, and off they are not there."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.deep_cache import DeepCache
from ldm.model import LatentDiffusion
from ldm.plan import Plan
from ldm.shortcuts import Shortcuts
from ldm.token_merging import Merging
from ldm.twin import twin
from tests.ldm.plans import build, conditions, latents
from tests.ldm.test_plan_changes import cast, exchanged, given_a_forward, hooked, in_place, replaced
from unet import UNet
from unet.unet import text_bias

TIMES = tuple(float(t) for t in range(951, 0, -50))  # 20 steps
FAMILIES = ["sd1", "sdxl", "upscale", "ssd-without-middle", "lcm"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def passes(model: LatentDiffusion) -> dict[str, int]:
    """How often parts of the network have run since."""
    counts = {"conv_in": 0, "down_blocks.0.resnets.0": 0, "conv_out": 0}
    modules = dict(model.unet.named_modules())
    for name in counts:
        modules[name].register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
    return counts


def run(plan: Plan, model: LatentDiffusion, cond: Any, times: tuple[float, ...] = TIMES) -> list[Tensor]:
    torch.manual_seed(1)
    return [plan(latents(model, 2), t, cond) for t in times]


# off, and what is refused


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_off_is_bitwise_the_plan_without(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    cond = conditions(model, 4)
    off = [run(Plan(model, TIMES, None, given), model, cond, TIMES[:3]) for given in (Shortcuts(1, 0.0), None)]
    monkeypatch.setattr(Shortcuts, "through", lambda self, twin, times: lambda *_: twin)
    without = run(Plan(model, TIMES), model, cond, TIMES[:3])
    assert all(torch.equal(found, expected) for given in off for found, expected in zip(given, without, strict=True))


@pytest.mark.parametrize(
    "values", [(0, 0.0), (-1, 0.0), (1.5, 0.0), ("2", 0.0), (1, -0.1), (1, 0.8), (1, float("nan")), (1, "0.5"), (None,)]
)
def test_bad_values_are_named(values: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"deep_cache is a whole|merge_tokens is a share") as error:
        Shortcuts(*values)
    assert "leave it off" in str(error.value)


@pytest.mark.parametrize("change", [hooked, given_a_forward])
def test_a_network_that_must_run_as_it_is_takes_none(change: Callable[..., None]) -> None:
    model = build("sd1")
    change(model.unet, [])
    Plan(model, TIMES)
    with pytest.raises(ValueError, match="leave out deep_cache"):
        Plan(model, TIMES, None, Shortcuts(deep_cache=2))


# DeepCache: which passes are whole


@pytest.mark.parametrize("every", [2, 3, 5, 7, 100])
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 20])
@torch.no_grad()
def test_the_deep_part_runs_at_every_nth_step_the_first_and_the_last(every: int, steps: int) -> None:
    model = build("sd1")
    counts = passes(model)
    run(Plan(model, TIMES[:steps], None, Shortcuts(every)), model, conditions(model, 4), TIMES[:steps])
    assert counts["conv_in"] == counts["conv_out"] == steps
    assert counts["down_blocks.0.resnets.0"] == math.ceil((steps - 1) / every) + 1


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_whole_passes_are_bitwise_the_network_and_others_are_not(family: str) -> None:
    model = build(family)
    cond = conditions(model, 4, masked=True)
    exact = run(Plan(model, TIMES), model, cond)
    cached = run(Plan(model, TIMES, None, Shortcuts(deep_cache=4)), model, cond)
    for i, (found, expected) in enumerate(zip(cached, exact, strict=True)):
        assert torch.equal(found, expected) == (i % 4 == 0 or i == len(TIMES) - 1), i


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_is_exact_where_what_lies_deeper_does_not_change(family: str) -> None:
    model = build(family)
    below = model.unet.up_blocks[-1].resnets[-2]
    for layer in (below.conv2, below.conv_shortcut):
        layer.weight.zero_()
    if len(model.unet.up_blocks[-1].attentions):
        model.unet.up_blocks[-1].attentions[-2].proj_out.weight.zero_()
    cond = conditions(model, 4)
    exact = run(Plan(model, TIMES), model, cond)
    cached = run(Plan(model, TIMES, None, Shortcuts(deep_cache=10)), model, cond)
    for found, expected in zip(cached, exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * expected.abs().max().item())


@torch.no_grad()
def test_in_between_the_outermost_layers_run_on_what_came_from_below() -> None:
    model = build("sd1")
    unet, cond, (x, y) = model.unet, conditions(model, 2), (latents(model, 2), latents(model, 2))
    seen: list[Tensor] = []
    unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    plan = Plan(model, TIMES, None, Shortcuts(deep_cache=2))
    plan(x, TIMES[0], cond)
    found = plan(y, TIMES[1], cond)
    both = torch.cat([seen[0][:, :-32], unet.conv_in(y)], dim=1)  # 32 channels are the skip connection's
    torch.testing.assert_close(seen[1], both)
    time, context = unet.embed_time(torch.tensor([TIMES[1]]), None, None), cond.context
    z = unet.up_blocks[-1].layer(len(unet.up_blocks[-1].resnets) - 1, both, time, context, text_bias(None, x.dtype))
    torch.testing.assert_close(found, unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(z))))


@torch.no_grad()
def test_evaluations_belong_to_the_nearest_step() -> None:
    """Of samplers that evaluate twice in a step, once between two or at the next."""
    model = build("sd1")
    cond = conditions(model, 2)
    counts = passes(model)
    plan = Plan(model, (900.0, 600.0, 300.0, 1.0), None, Shortcuts(deep_cache=2))
    whole = []
    for t in (900.0, 800.0, 700.0, 600.0, 480.0, 300.001, 299.999, 200.0, 130.0, 1.0, 0.5):
        before = counts["down_blocks.0.resnets.0"]
        plan(latents(model, 2), t, cond)
        whole.append(counts["down_blocks.0.resnets.0"] > before)
    assert whole == [True, True, False, False, False, True, True, True, True, True, True]


@torch.no_grad()
def test_times_that_are_not_known_are_whole() -> None:
    model = build("sd1")
    counts = passes(model)
    run(Plan(model, (), None, Shortcuts(deep_cache=3)), model, conditions(model, 2))
    assert counts["down_blocks.0.resnets.0"] == len(TIMES)


# DeepCache: nothing stale


def after(
    first: Callable[[Plan], Any], change: Callable[[], Any], x: Tensor, cond: Any, model: LatentDiffusion
) -> None:
    """Checks that a step in between is whole where `change` came before it."""
    plan = Plan(model, TIMES, None, Shortcuts(deep_cache=20))
    first(plan)
    change()
    assert torch.equal(plan(x, TIMES[5], cond), Plan(model, TIMES)(x, TIMES[5], cond))


@pytest.mark.parametrize("shape", [(1, (12, 8)), (4, (12, 8)), (2, (8, 12)), (2, (9, 13))])
@torch.no_grad()
def test_another_size_or_batch_never_meets_a_stale_feature(shape: tuple[int, tuple[int, int]]) -> None:
    model = build("sd1")
    cond = conditions(model, 4)
    after(lambda plan: plan(latents(model, 2), TIMES[0], cond), lambda: None, latents(model, *shape), cond, model)


@torch.no_grad()
def test_another_condition_never_meets_a_stale_feature() -> None:
    model = build("sd1")
    first, second = conditions(model, 4), conditions(model, 4)
    after(lambda plan: plan(latents(model, 2), TIMES[0], first), lambda: None, latents(model, 2), second, model)


@pytest.mark.parametrize("change", [in_place, replaced, exchanged, cast])
@torch.no_grad()
def test_changed_weights_never_meet_a_stale_feature(change: Callable[..., None]) -> None:
    model = build("sd1")
    cond, name = conditions(model, 4), "mid_block.resnets.0.conv1.weight"  # none that constants are made of
    x = latents(model, 2)
    after(lambda plan: plan(x, TIMES[0], cond), lambda: change(model, name), x, cond, model)


@torch.no_grad()
def test_a_feature_of_an_earlier_stretch_or_of_a_later_step_is_not_met() -> None:
    """As where a guidance interval begins and ends, or where the same plan is run again from the middle."""
    model = build("sd1")
    cond, x = conditions(model, 4), latents(model, 2)
    for then in (TIMES[6], TIMES[2]):
        plan = Plan(model, TIMES, None, Shortcuts(deep_cache=5))
        plan(latents(model, 2), TIMES[3], cond)
        assert torch.equal(plan(x, then, cond), Plan(model, TIMES)(x, then, cond))


@torch.no_grad()
def test_a_pass_that_failed_leaves_nothing_behind() -> None:
    model = build("sd1")
    cond, x = conditions(model, 4), latents(model, 2)
    plan = Plan(model, TIMES, None, Shortcuts(deep_cache=5))
    plan(latents(model, 2), TIMES[0], cond)
    handle = model.unet.mid_block.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plan(x, TIMES[5], cond)
    handle.remove()
    assert torch.equal(plan(x, TIMES[6], cond), Plan(model, TIMES)(x, TIMES[6], cond))


def test_the_network_that_is_shortened_is_left_as_it_was() -> None:
    unet = twin(build("sd1").unet)
    before = [(name, id(module)) for name, module in unet.named_modules()]
    DeepCache(unet, TIMES, 3)
    assert before == [(name, id(module)) for name, module in unet.named_modules()]


# token merging in a network


@pytest.mark.parametrize(
    ("family", "level", "size"),  # the finest level with self-attention, and how large the picture is there
    [("sd1", 0, (24, 20)), ("sdxl", 1, (12, 10)), ("ssd-without-middle", 1, (12, 10)), ("upscale", 3, (3, 3))],
)
@torch.no_grad()
def test_tokens_are_merged_at_the_finest_level_alone(family: str, level: int, size: tuple[int, int]) -> None:
    model = build(family)
    seen: dict[str, set[int]] = {}
    for name, module in model.unet.named_modules():
        if name.endswith("attn1.to_q") and not model.unet.get_submodule(name[: -len(".attn1.to_q")]).only_cross:
            key = name.split(".transformer_blocks")[0]
            module.register_forward_hook(lambda _, args, out, key=key: seen.setdefault(key, set()).add(out.shape[1]))
    cond, x = conditions(model, 4), latents(model, 2, (24, 20))
    Plan(model, TIMES)(x, 1.0, cond)
    exact, _ = {**seen}, seen.clear()
    plan, n = Plan(model, TIMES, None, Shortcuts(merge_tokens=0.5)), size[0] * size[1]
    plan(x, 1.0, cond)
    levels = (f"down_blocks.{level}.", f"up_blocks.{len(model.unet.up_blocks) - 1 - level}.")
    assert seen == {key: {n - n // 2} if key.startswith(levels) else count for key, count in exact.items()}
    assert {n} in exact.values()
    sizes = [module.size for module in plan.told(cond).twin.modules() if isinstance(module, Merging)]
    assert set(sizes) == {size}


@pytest.mark.parametrize("family", ["sd1", "sdxl", "ssd-without-middle"])
@pytest.mark.parametrize("size", [(9, 13), (1, 1), (1, 8), (16, 8)])
@torch.no_grad()
def test_any_size_is_merged_and_the_network_left_as_it_was(family: str, size: tuple[int, int]) -> None:
    model = build(family)
    cond, x = conditions(model, 4), latents(model, 2, size)
    exact = Plan(model, TIMES)(x, 501.0, cond)
    found = Plan(model, TIMES, None, Shortcuts(merge_tokens=0.5))(x, 501.0, cond)
    assert found.shape == exact.shape
    assert found.isfinite().all()
    assert size == (1, 1) or not torch.allclose(found, exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(Plan(model, TIMES)(x, 501.0, cond), exact)
    assert not any(isinstance(module, Merging) for module in model.unet.modules())


@torch.no_grad()
def test_a_picture_is_merged_alike_alone_and_beside_others_and_every_time() -> None:
    model = build("sd1")
    cond, x = conditions(model, 2), latents(model, 2)
    both = Plan(model, TIMES, None, Shortcuts(merge_tokens=0.5))(x, 501.0, cond)
    again = Plan(model, TIMES, None, Shortcuts(merge_tokens=0.5))(x, 501.0, cond)
    assert torch.equal(again, both)
    alone = Plan(model, TIMES, None, Shortcuts(merge_tokens=0.5))(x[1:], 501.0, cond.rows([1]))
    torch.testing.assert_close(alone[0], both[1], rtol=0, atol=1e-5 * both.abs().max().item())


@torch.no_grad()
def test_a_network_without_self_attention_takes_no_merging() -> None:
    model = build("upscale")
    model.unet = UNet(replace(model.unet.config, only_cross_attention=(True,) * 4))
    with pytest.raises(ValueError, match="leave merge_tokens out"):
        Plan(model, TIMES, None, Shortcuts(merge_tokens=0.5))(latents(model, 1), 1.0, conditions(model, 1))


@torch.no_grad()
def test_both_together() -> None:
    model = build("sd1")
    counts, cond = passes(model), conditions(model, 4)
    found = run(Plan(model, TIMES, None, Shortcuts(3, 0.5)), model, cond)
    merged = run(Plan(model, TIMES, None, Shortcuts(1, 0.5)), model, cond)
    assert counts["down_blocks.0.resnets.0"] == 8 + 20
    assert [torch.equal(*pair) for pair in zip(found, merged, strict=True)] == [
        i % 3 == 0 or i == 19 for i in range(20)
    ]
