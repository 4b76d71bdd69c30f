"""Latents that several texts share are given once: the result is that of latents repeated for each text."""

import pytest
import torch

from configs.interchange import unet_from_json
from tests.unet.test_unet import FAMILIES, inputs
from unet import ControlNet, UNet


@pytest.fixture
def network(randomise):
    return lambda family: randomise(UNet(unet_from_json({"cross_attention_dim": 24, **FAMILIES[family]})), 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_latents_stand_for_as_many_texts_as_there_are(family, rows, network, assert_same):
    unet = network(family)
    (x, _, context), conditions, _ = inputs(FAMILIES[family], (9, 13))
    found = unet(x[:1], 500.25, context, **conditions)
    assert_same(found, unet(x[:1].repeat(3, 1, 1, 1), torch.full((3,), 500.25), context, **conditions))
    twice = {name: torch.cat([value, value.flip(0)]) for name, value in conditions.items()}
    both = torch.cat([context, context.flip(0)])
    found = unet(x, torch.tensor([500.25] * 6)[: 2 * rows if rows == 3 else 1], both, **twice)
    assert_same(found, unet(x.repeat(2, 1, 1, 1), torch.full((6,), 500.25), both, **twice))


@pytest.mark.parametrize("family", ["sd1", "sdxl", "ssd-without-middle"])
@torch.no_grad()
def test_additions_of_either_number_of_rows(family, network, assert_same):
    unet = network(family)
    (x, _, context), conditions, _ = inputs(FAMILIES[family], (16, 8))
    one = x[:1]
    shapes = []
    hooks = [b.register_forward_hook(lambda _, __, out: shapes.extend(y.shape for y in out)) for b in unet.down_blocks]
    unet(x, 1.0, context, **conditions)
    for hook in hooks:
        hook.remove()
    shapes = [(3, 32, 16, 8), *shapes, shapes[-1]]
    residuals = [torch.randn(shape) for shape in shapes]
    levels = len(unet.config.channels)
    for b in (1, 3):
        given = {"residuals": [residual[:b] for residual in residuals]}
        full = {"residuals": [residual[:b].repeat(3 // b, 1, 1, 1) for residual in residuals]}
        assert_same(
            unet(one, 1.0, context, **given, **conditions),
            unet(one.repeat(3, 1, 1, 1), torch.ones(3), context, **full, **conditions),
        )
    sizes = ends_of_levels(unet, one, context, conditions)
    features = [torch.randn(3, *size) for size in sizes]
    assert len(features) == levels
    for b in (1, 3):
        found = unet(one, 1.0, context, features=[feature[:b] for feature in features], **conditions)
        full = [feature[:b].repeat(3 // b, 1, 1, 1) for feature in features]
        expected = unet(one.repeat(3, 1, 1, 1), torch.ones(3), context, features=full, **conditions)
        assert_same(found, expected)


def ends_of_levels(unet, x, context, conditions):
    """The shape of what a feature is added to: the last layer before the step down, or what is behind it."""
    shapes = []

    def note(block, _, out):
        before = len(block.attentions) and len(block.downsamplers)
        shapes.append(tuple(out[-2 if before else -1].shape[1:]))

    hooks = [block.register_forward_hook(note) for block in unet.down_blocks]
    unet(x, 1.0, context, **conditions)
    for hook in hooks:
        hook.remove()
    return shapes


@torch.no_grad()
def test_two_latents_of_four_texts_with_residuals_of_either(network, assert_same):
    unet = network("sd1")
    x, context = torch.randn(2, 4, 16, 8), torch.randn(4, 7, 24)
    shapes = []
    hooks = [
        b.register_forward_hook(lambda _, __, out: shapes.extend(y.shape[1:] for y in out)) for b in unet.down_blocks
    ]
    unet(x, 1.0, context)
    for hook in hooks:
        hook.remove()
    shapes = [(32, 16, 8), *shapes, shapes[-1]]
    for b in (2, 4):
        residuals = [torch.randn(b, *shape) for shape in shapes]
        full = [residual.repeat(4 // b, 1, 1, 1) for residual in residuals]
        expected = unet(x.repeat(2, 1, 1, 1), torch.ones(4), context, residuals=full)
        assert_same(unet(x, 1.0, context, residuals=residuals), expected)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.no_grad()
def test_a_controlnet_takes_them_too(family, network, randomise, assert_same):
    control = randomise(ControlNet.from_unet(network(family)), 1)
    (x, _, context), conditions, _ = inputs(FAMILIES[family], (16, 8))
    both, twice = context.repeat(2, 1, 1), {name: value.repeat(2, 1) for name, value in conditions.items()}
    hint = control.embed(torch.rand(3, 3, 128, 64))
    found = control(x, 500.25, both, hint, **twice)
    expected = control(x.repeat(2, 1, 1, 1), torch.full((6,), 500.25), both, hint.repeat(2, 1, 1, 1), **twice)
    for one, other in zip(found, expected, strict=True):
        assert_same(one.repeat(len(other) // len(one), 1, 1, 1), other)


def test_texts_that_no_number_of_latents_fits_are_refused(network):
    (x, t, context), _, _ = inputs(FAMILIES["sd1"], (8, 8))
    with pytest.raises(ValueError, match=r"context must have shape \(2, n, 24\), not \(3, 7, 24\)"):
        network("sd1")(x[:2], 1.0, context)
    with pytest.raises(ValueError, match=r"t must have shape \(3,\), not \(2,\)"):
        network("sd1")(x, t[:2], context)
