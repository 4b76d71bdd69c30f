"""ControlNets around a U-Net give what the plain networks give, compute constants once, and meet nothing stale."""

import gc
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.batching import Batched, Batching
from ldm.conditioning import Conditioning
from ldm.controlled import Control, Controlled
from ldm.model import LatentDiffusion
from ldm.plan import Plan, Speed
from ldm.shortcuts import Shortcuts
from ldm.twin import moved
from tests.ldm.plans import TIMES, build, conditions, latents, same
from unet import ControlNet
from unet.resnet import as_many

SWITCHES = [field.name for field in fields(Speed)]
NAMES = [
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "down_blocks.1.resnets.0.time_emb_proj.bias",
    "time_embedding.linear_2.weight",
    "controlnet_down_blocks.2.weight",
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def control(model: LatentDiffusion, images: int = 1, size: tuple[int, int] = (12, 8), **options: Any) -> Control:
    """A ControlNet for the U-Net with random weights, and embedded control images."""
    net = ControlNet.from_unet(model.unet, hint_channels=(4, 6, 8, 10), **options.pop("config", {})).eval()
    for name, parameter in net.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.data = noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3 * noise + ("norm" in name)
    with torch.no_grad():
        hint = net.embed(torch.rand(images, 3, *(8 * side for side in size)))
    return Control(net, hint, **options)


def hinted(model: LatentDiffusion, b: int, of: list[int] | None = None) -> Conditioning:
    return replace(conditions(model, b), hint=None if of is None else torch.tensor(of))


def plainly(
    model: LatentDiffusion, controls: list[Control], x: Tensor, t: float, cond: Conditioning, halves: int = 1
) -> Tensor:
    """Every network with a row of everything for every row of the condition, and none that was told before.

    halves: of the condition; in guess mode only the last is controlled.
    """
    rows, b = len(cond.context), len(x)
    x, times, total = x.repeat(rows // b, 1, 1, 1), torch.full((rows,), t), None
    for each in controls:
        hint = each.hint.expand(rows, -1, -1, -1) if cond.hint is None else each.hint[cond.hint]
        told = {"mask": cond.mask, "vector": model.vector(cond), "scale": each.scale, "guess": each.guess}
        own = each.network(x, times, cond.context, hint, **told)
        if each.guess and halves > 1:
            own = [torch.cat([0 * residual[:-b], residual[-b:]]) for residual in own]
        total = own if total is None else [one + other for one, other in zip(total, own, strict=True)]
    return model.network(x, times, cond, total)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.no_grad()
def test_it_is_the_plain_networks_with_every_switch_on_and_off(family: str) -> None:
    model = build(family)
    first, second = control(model, 2, scale=0.7), control(model, 2)
    for guess in (False, True):
        controls = [replace(first, guess=guess), second]
        for halves in (1, 2):
            x, cond = latents(model, 3, (8, 4)), hinted(model, 3 * halves, [1, 0, 1] * halves)
            given = [replace(each, hint=each.hint[:, :, :8, :4]) for each in controls]
            expected = {t: plainly(model, given, x, t, cond, halves) for t in (501.0, 333.25)}  # the last unannounced
            for off in (None, *SWITCHES):
                speed = Speed() if off is None else replace(Speed(), **{off: not getattr(Speed(), off)})
                network = Controlled(Plan(model, TIMES[1:2], speed), given)
                for t, wanted in expected.items():
                    same(network(x, t, cond), wanted)


@pytest.mark.parametrize("config", [{"pooled": True}, {"hint_in": 3, "order": "bgr"}])
@torch.no_grad()
def test_other_kinds(config: dict[str, Any]) -> None:
    model = build("sd1")
    controls = [control(model, config=config)]
    x, cond = latents(model, 2), hinted(model, 4)
    same(Controlled(Plan(model, TIMES), controls)(x, 501.0, cond), plainly(model, controls, x, 501.0, cond, 2))


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("guess", [False, True])
@torch.no_grad()
def test_in_parts_each_row_keeps_its_control_image(most: int, guess: bool) -> None:
    model, batching = build("sd1"), Batching()
    controls = [control(model, 3, guess=guess), control(model, 1)]
    x, cond = latents(model, 3), hinted(model, 6, [2, 0, 1, 2, 0, 1])
    network = Controlled(Plan(model, TIMES), controls)
    batching.most = most
    same(Batched(network, batching)(x, 501.0, cond), network(x, 501.0, cond))


@torch.no_grad()
def test_constants_are_computed_once_and_the_halves_share_their_trunk() -> None:
    model = build("sd1")
    steered, calls = control(model), dict[str, int]()
    rows: list[int] = []
    for name, module in steered.network.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v", "time_emb_proj", "time_embedding")):
            calls[name] = 0
            count = lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)  # noqa: E731
            module.register_forward_hook(count)
    steered.network.conv_in.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    x, cond = latents(model, 1), hinted(model, 2)
    network = Controlled(Plan(model, TIMES), [steered])
    for t in TIMES:
        network(x, t, cond)
    assert len(calls) > 12
    assert set(calls.values()) == {1}
    assert rows == [1] * len(TIMES)


@torch.no_grad()
def test_who_acts_when() -> None:
    """As diffusers counts: by the place of an evaluation among all of them."""
    model = build("sd1")
    evaluations = [901.0, 701.0, 701.0, 501.0, 301.0, 101.0]
    shares = [(0.0, 1.0), (0.0, 0.5), (0.34, 0.9), (0.9, 1.0), (0.5, 0.51)]
    steered = control(model)
    for start, end in shares:
        one = replace(steered, start=start, end=end)
        for i, t in enumerate(evaluations):
            i = 1 if i == 2 else i  # the same time, so the same
            keep = 1.0 - float(i / 6 < start or (i + 1) / 6 > end)
            assert one.acts(t, evaluations) == bool(keep)
            assert one.acts(t + 40, evaluations) == bool(keep)
        assert replace(one, scale=0.0).acts(901.0, evaluations) is False
    assert steered.acts(5.0, ())
    controls = [replace(steered, end=0.5), replace(control(model), start=0.5)]
    network = Controlled(Plan(model, evaluations), controls, evaluations)
    x, cond = latents(model, 1), hinted(model, 2)
    for t, acting in zip(evaluations, [[0], [0], [0], [1], [1], [1]], strict=True):
        same(network(x, t, cond), plainly(model, [controls[i] for i in acting], x, t, cond))


@torch.no_grad()
def test_scale_0_is_the_plan_alone() -> None:
    model = build("sd1")
    x, cond, plan = latents(model, 2), hinted(model, 4), Plan(model, TIMES)
    network = Controlled(plan, [control(model, scale=0.0)])
    assert torch.equal(network(x, 501.0, cond), plan(x, 501.0, cond))


def in_place(net: ControlNet, name: str) -> None:
    dict(net.named_parameters())[name].mul_(1.5)


def replaced(net: ControlNet, name: str) -> None:
    parameter = dict(net.named_parameters())[name]
    parameter.data = 1.5 * parameter.data


@pytest.mark.parametrize("change", [in_place, replaced])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_changed_weights_never_meet_a_stale_constant(change: Callable[..., None], name: str) -> None:
    model = build("sd1")
    controls = [control(model)]
    x, cond = latents(model, 1), hinted(model, 2)
    network = Controlled(Plan(model, TIMES), controls)
    before = network(x, 501.0, cond)
    change(controls[0].network, name)
    after = network(x, 501.0, cond)
    same(after, plainly(model, controls, x, 501.0, cond))
    assert not torch.equal(after, before)


@torch.no_grad()
def test_another_precision_in_between() -> None:
    model = build("sd1")
    controls = [control(model)]
    x, cond = latents(model, 1), hinted(model, 2)
    network = Controlled(Plan(model, TIMES), controls)
    before = network(x, 501.0, cond)
    model.unet.double()
    controls[0].network.double()
    after = network(x, 501.0, cond)
    assert after.dtype == torch.float64
    same(after.float(), before)


@pytest.mark.parametrize("guess", [False, True])
@torch.no_grad()
def test_another_text_size_or_batch_never_meets_a_stale_constant(guess: bool) -> None:
    model = build("sdxl")
    kept = hinted(model, 2)
    for size in ((12, 8), (9, 13)):
        controls = [control(model, 1, size, guess=guess)]
        network = Controlled(Plan(model, TIMES), controls)
        for cond in (kept, hinted(model, 2), kept, hinted(model, 4), kept):
            halves = len(cond.context) // 2
            x = latents(model, 2, size)
            same(network(x, 951.0, cond), plainly(model, controls, x, 951.0, cond, halves))
    x = latents(model, 1, size)
    network(x, 951.0, kept)
    kept.context.mul_(3)
    same(network(x, 951.0, kept), plainly(model, controls, x, 951.0, kept, 2))


@torch.no_grad()
def test_constants_are_forgotten_with_their_condition() -> None:
    model = build("sd1")
    network, kept = Controlled(Plan(model, TIMES), [control(model, guess=True)]), hinted(model, 2)
    for _ in range(5):
        network(latents(model, 1), 1.0, kept)
        network(latents(model, 1), 1.0, hinted(model, 2))
    gc.collect()
    assert [len(plan._prepared) for plan in (network.plan, *network._plans)] == [1, 1]
    network.forget()
    assert [len(plan._prepared) for plan in (network.plan, *network._plans)] == [0, 0]


@torch.no_grad()
def test_deep_cache_runs_whole_where_what_acts_changes() -> None:
    model = build("sd1")
    times = tuple(float(t) for t in range(901, 0, -100))
    middle: list[int] = []
    model.unet.mid_block.register_forward_hook(lambda *_: middle.append(1))
    controls = [control(model, start=0.3, end=0.6)]
    network = Controlled(Plan(model, times, None, Shortcuts(deep_cache=10)), controls, times)
    x, cond, whole = latents(model, 1), hinted(model, 2), []
    for i, t in enumerate(times):
        middle.clear()
        network(x, t, cond)
        whole += [i] if middle else []
    assert whole == [0, 3, 6, 9]


@torch.no_grad()
def test_the_outermost_layers_take_the_finest_residual() -> None:
    """In between, what lies deeper is remembered with what was added to it."""
    model = build("sd1")
    controls = [control(model)]
    network = Controlled(Plan(model, TIMES, None, Shortcuts(deep_cache=3)), controls)
    x, cond = latents(model, 2), hinted(model, 4)
    network(x, TIMES[0], cond)
    found, (finest, *deeper) = network(x, TIMES[1], cond), controls[0].network.controlnet_down_blocks
    for layer in (*deeper, controls[0].network.controlnet_mid_block):
        layer.weight.mul_(2)
    assert torch.equal(network(x, TIMES[1], cond), found)
    finest.weight.mul_(2)
    assert not torch.equal(network(x, TIMES[1], cond), found)


def test_gradients_reach_both_networks() -> None:
    model = build("sd1")
    controls = [control(model, guess=True)]
    x, cond = latents(model, 1), hinted(model, 2)
    network = Controlled(Plan(model, TIMES), controls)
    with torch.no_grad():
        network(x, 501.0, cond)
    weights = [model.unet.conv_in.weight, *controls[0].network.controlnet_mid_block.parameters()]
    found = torch.autograd.grad(network(x, 501.0, cond).square().sum(), weights)
    expected = torch.autograd.grad(plainly(model, controls, x, 501.0, cond, 2).square().sum(), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@torch.no_grad()
def test_times_by_row() -> None:
    model = build("sd1")
    controls = [control(model, 2)]
    x, cond, t = latents(model, 2), hinted(model, 2, [1, 0]), torch.tensor([1.0, 951.0])
    residuals = controls[0].network(x, t, cond.context, controls[0].hint[[1, 0]])
    same(Controlled(Plan(model, TIMES), controls)(x, t, cond), model.network(x, t, cond, residuals))


@torch.no_grad()
def test_a_copy_elsewhere_leaves_the_network_as_it_is() -> None:
    net = control(build("sd1")).network
    state = {name: (id(value), value.dtype, value.requires_grad) for name, value in net.named_parameters()}
    copy = moved(net, torch.device("cpu"), torch.float64)
    assert state == {name: (id(value), value.dtype, value.requires_grad) for name, value in net.named_parameters()}
    for (name, own), (other, there) in zip(net.named_parameters(), copy.named_parameters(), strict=True):
        assert (name, there.dtype) == (other, torch.float64)
        assert torch.equal(own.double(), there)
    x, context = torch.randn(1, 4, 8, 8), torch.randn(2, 7, 24)
    hint = net.embed(torch.rand(1, 3, 64, 64))
    for one, other in zip(net(x, 1.0, context, hint), copy(x, 1.0, context, hint.double()), strict=True):
        same(other.float(), as_many(one, other))
