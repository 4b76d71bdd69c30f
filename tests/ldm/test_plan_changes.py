"""Networks that are changed, before or while a plan runs them: no stale constant, and what people did is respected."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from ldm.model import LatentDiffusion
from ldm.plan import Plan
from tests.ldm.plans import TIMES, build, conditions, latents, plainly, same
from unet import UNet
from unet.attention import TransformerBlock
from unet.resnet import ResNet


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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
def test_a_compiled_network_is_compiled_once() -> None:
    model, calls = build("sd1"), list[int]()

    def counting(module: Any, inputs: Any) -> Any:
        calls.append(1)
        return module.forward

    model.unet.compile(backend=counting, dynamic=False)
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model)
    for t in range(12):
        same(plan(x, float(t), cond), plainly(model, x, float(t), cond))
    assert len(calls) == 1


def compiled_part(unet: UNet) -> None:
    unet.mid_block = torch.compile(unet.mid_block, backend="eager")  # type: ignore[assignment]


def another_forward(unet: UNet) -> None:
    resnet = unet.down_blocks[0].resnets[0]
    own = resnet.forward
    resnet.forward = lambda *args: 1.5 * own(*args)  # type: ignore[method-assign, assignment]


def another_kind(unet: UNet) -> None:
    class Odd(ResNet):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return super().forward(x, torch.relu(time))

    unet.down_blocks[0].resnets[0].__class__ = Odd


def shared_part(unet: UNet) -> None:
    blocks = [module for module in unet.modules() if isinstance(module, TransformerBlock)]
    alike = [block for block in blocks if block.norm1.normalized_shape == blocks[0].norm1.normalized_shape]
    alike[1].ff = alike[0].ff


def weight_normed(unet: UNet) -> None:
    torch.nn.utils.parametrizations.weight_norm(unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v)


@pytest.mark.parametrize("change", [compiled_part, another_forward, another_kind, shared_part, weight_normed])
@torch.no_grad()
def test_parts_that_are_no_longer_what_they_were_are_called_as_they_are(change: Callable[[UNet], None]) -> None:
    model = build("sd1")
    x, cond = latents(model, 1), conditions(model, 2)
    change(model.unet)
    same(Plan(model, TIMES)(x, 501.0, cond), plainly(model, x, 501.0, cond))


@torch.no_grad()
def test_layers_put_into_a_network_at_work_are_noticed() -> None:
    model = build("sd1")
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    before = plan(x, 501.0, cond)
    attention = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_v = nn.Linear(24, attention.to_v.out_features, bias=False)
    after = plan(x, 501.0, cond)
    same(after, plainly(model, x, 501.0, cond))
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_adapters_of_peft_are_followed() -> None:
    model = build("sd1")
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    plan(x, 501.0, cond)
    config = peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model.unet)
    layers = [module for module in model.unet.modules() if isinstance(module, peft.tuners.lora.Linear)]
    for scale in (1.0, 5.0):
        for layer in layers:
            layer.set_scale("default", scale)
        same(plan(x, 501.0, cond), plainly(model, x, 501.0, cond))
    for layer in layers:
        layer.merge()
    same(plan(x, 501.0, cond), plainly(model, x, 501.0, cond))


@torch.no_grad()
def test_a_text_changed_in_place_is_noticed() -> None:
    model = build("sd1")
    x, cond, plan = latents(model, 1), conditions(model, 2), Plan(model, TIMES)
    plan(x, 501.0, cond)
    cond.context.mul_(3)
    same(plan(x, 501.0, cond), plainly(model, x, 501.0, cond))
