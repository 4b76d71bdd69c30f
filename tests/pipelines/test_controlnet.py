"""ControlNets in whole pipelines: what people give, and what must not go stale, cost or break."""

import copy
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.extras import load_controlnet
from ldm.plan import Speed
from pipelines import TextToImagePipeline, TextToImageRequest
from pipelines.control_image import as_hint, pictures
from tests.pipelines.controlling import HINT, PROMPT, SIZE, differs, latents, picture, same
from unet import ControlNet

TWO = ["a cat", "a banana on a table"]
SWITCHES = [field.name for field in fields(Speed)]


def test_the_shapes_people_give() -> None:
    """All of a group say the same, for two prompts."""
    other = picture(1)
    pixels = [np.asarray(image) for image in (HINT, other)]
    tensors = [torch.from_numpy(pixel / np.float32(255)).permute(2, 0, 1) for pixel in pixels]
    for nets, forms in (
        (1, [[HINT, other], (HINT, other), pixels, np.stack(pixels), torch.stack(tensors), tensors, [[HINT], [other]]]),
        (2, [[HINT, other], pixels, tensors, [tensor[None] for tensor in tensors]]),
        (2, [[[HINT, HINT], [other, other]], [torch.stack(tensors)] * 2, [np.stack(pixels)] * 2]),
    ):
        found = [[as_hint(group, (72, 104), 3) for group in pictures(form, nets, 2)] for form in forms]
        for hints in found:
            assert len(hints) == nets
            torch.testing.assert_close(hints, found[0], rtol=0, atol=1e-6)
    greys = [np.full((72, 104), 128, np.uint8), torch.full((1, 72, 104), 128 / 255), Image.new("L", (9, 9), 128)]
    greys += [np.full((72, 104), 128 * 257, np.uint16), np.full((72, 104, 1), 128 / 255)]
    for grey in greys:
        hint = as_hint(pictures(grey, 1, 1)[0], (72, 104), 3)
        torch.testing.assert_close(hint, torch.full((1, 3, 72, 104), 128 / 255), rtol=0, atol=1e-6)


def test_a_depth_map_of_16_bits_keeps_them() -> None:
    ramp = np.linspace(0, 65535, 48 * 64, dtype=np.uint16).reshape(48, 64)
    group = pictures(Image.fromarray(ramp), 1, 1)[0]
    for channels in (1, 3):
        hint = as_hint(group, (48, 64), channels)
        expected = torch.from_numpy(ramp / np.float32(65535)).expand(1, channels, -1, -1)
        torch.testing.assert_close(hint, expected, rtol=0, atol=1e-6)
    assert len(as_hint(group, (24, 32), 3).unique()) > 700


# what else there is


def test_a_pipelines_own_and_a_calls(
    pairs: Callable[[str], Any], nets: Callable[..., Any], ours: Callable[[str], Any]
) -> None:
    theirs, folder = nets("sd1")
    given = {"control_image": HINT, "num_inference_steps": 2}
    expected = latents(ours("sd1"), controlnet=folder, **given)
    plain = latents(ours("sd1"), num_inference_steps=2)
    pipe = TextToImagePipeline.from_pretrained(pairs("sd1").folder, controlnet=str(folder), device="cpu")
    pipe.set_progress_bar_config(disable=True)
    for net in (pipe.controlnet, theirs, [load_controlnet(folder)]):
        pipe.controlnet = net
        assert isinstance(pipe.controlnet, ControlNet)
        assert torch.equal(latents(pipe, **given), expected)
    assert torch.equal(latents(pipe, controlnet=[], num_inference_steps=2), plain)
    other = latents(ours("sd1"), controlnet=nets("sd1", 1)[1], **given)
    assert torch.equal(latents(pipe, controlnet=nets("sd1", 1)[1], **given), other)
    multi = diffusers.MultiControlNetModel([theirs, nets("sd1", 1)[0]])
    pipe.controlnet = multi
    assert isinstance(pipe.controlnet, list)
    both = latents(pipe, control_image=[HINT, HINT], num_inference_steps=2)
    assert torch.equal(both, latents(ours("sd1"), **{**given, "control_image": [HINT] * 2}, controlnet=multi))
    pipe.controlnet = None
    assert torch.equal(latents(pipe, num_inference_steps=2), plain)


@pytest.mark.parametrize("count", [1, 2])
def test_a_hint_is_embedded_once_a_call(count: int, nets: Callable[..., Any], ours: Callable[[str], Any]) -> None:
    loaded = [load_controlnet(nets("sd1", number)[1]) for number in range(count)]
    rows: list[tuple[int, int]] = []
    for number, net in enumerate(loaded):
        net.controlnet_cond_embedding.register_forward_hook(
            lambda _, __, out, number=number: rows.append((number, len(out)))
        )
    given = {"num_images_per_prompt": 2, "guidance_interval": (0.5, 5.0), "sampler": "heun", "deep_cache": 2}
    latents(ours("sd1"), TWO, controlnet=loaded, control_image=[HINT] * count, **given)
    assert rows == [(number, 1) for number in range(count)]
    rows.clear()
    latents(ours("sd1"), TWO, controlnet=loaded, control_image=[[HINT] * count, [picture(1)] * count], **given)
    assert rows == [(number, 2) for number in range(count)]


def test_nothing_stale_is_met(nets: Callable[..., Any], ours: Callable[[str], Any]) -> None:
    """Changed weights, another hint, ControlNet, size, or nothing of these: each call is as if it were the first."""
    pipe, net = ours("sd1"), load_controlnet(nets("sd1")[1])
    parts = ("controlnet_cond_embedding.conv_in.weight", "time_embedding.linear_1.weight")
    parts += ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", "controlnet_mid_block.bias")
    changed = {name: parameter for name, parameter in net.named_parameters() if name in parts}
    assert len(changed) == 4
    calls: list[dict[str, Any]] = [{}, {"control_image": picture(1)}, {"height": 64}, {"num_images_per_prompt": 2}, {}]
    given = {"controlnet": net, "control_image": HINT, "num_inference_steps": 2}
    before: list[Tensor] = []
    for name in (None, *parts):
        if name is not None:
            with torch.no_grad():
                changed[name].mul_(1.5)
        for options in [{}] if name else calls:
            found = latents(pipe, **{**given, **options})
            assert torch.equal(found, latents(pipe, **{**given, "controlnet": copy.deepcopy(net), **options}))
            before = before if options else [*before, found]
    assert torch.equal(before[0], before[1])
    assert not any(torch.equal(one, other) for one, other in pairwise(before[1:]))


def test_weights_changed_between_steps_are_noticed(nets: Callable[..., Any], ours: Callable[[str], Any]) -> None:
    found = []
    for speed in (Speed(), Speed(constants=False, shared_trunk=False, portions=False, channels_last=False)):
        pipe, net = ours("sd1"), load_controlnet(nets("sd1")[1])
        weight = net.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
        pipe.speed = speed
        options = {"num_inference_steps": 4, "output_type": "latent", "seed": 1, **SIZE}
        steps = pipe.stream(PROMPT, controlnet=net, control_image=HINT, **options)
        for step in steps:
            if step.index == 1:
                with torch.no_grad():
                    weight.mul_(3)
        found.append(steps.result.images)
    pipe.speed = Speed()
    same(found[0], found[1])
    assert differs(found[0], latents(pipe, controlnet=net, control_image=HINT, generator=None, seed=1))


@pytest.mark.parametrize("scale", [0.0, [0.0, 0.0]])
def test_scale_0_is_no_controlnet_and_costs_nothing(
    scale: Any, nets: Callable[..., Any], ours: Callable[[str], Any]
) -> None:
    loaded = [load_controlnet(nets("sd1")[1]) for _ in (scale if isinstance(scale, list) else [scale])]
    runs: list[int] = []
    for net in loaded:
        net.mid_block.register_forward_hook(lambda *_: runs.append(1))
    given = {"controlnet": loaded, "control_image": [HINT] * len(loaded)}
    assert torch.equal(latents(ours("sd1"), **given, controlnet_conditioning_scale=scale), latents(ours("sd1")))
    assert not runs


def test_precision_and_what_a_caller_keeps(pairs: Callable[[str], Any], nets: Callable[..., Any]) -> None:
    """A pipeline in half precision casts its own ControlNet; one that a call brings stays as it was."""
    folder, options = nets("sd1")[1], {"device": "cpu", "dtype": torch.bfloat16}
    pipe = TextToImagePipeline.from_pretrained(pairs("sd1").folder, controlnet=folder, **options)
    pipe.set_progress_bar_config(disable=True)
    net = load_controlnet(folder)
    state = {name: (id(value), value.data_ptr(), value.dtype) for name, value in net.named_parameters()}
    few = {"num_inference_steps": 2, "generator": None, "seed": 1}
    found = latents(pipe, control_image=HINT, **few)
    assert isinstance(pipe.controlnet, ControlNet)
    assert pipe.controlnet.conv_in.weight.dtype == torch.bfloat16
    assert torch.equal(latents(pipe, controlnet=net, control_image=HINT, **few), found)
    assert state == {name: (id(value), value.data_ptr(), value.dtype) for name, value in net.named_parameters()}
    assert differs(found, latents(pipe, controlnet=[], **few))
    pipe.to(torch.float32)
    assert pipe.controlnet.conv_in.weight.dtype == torch.float32
    assert (latents(pipe, control_image=HINT, **few) - found).norm() < 0.1 * found.norm()


@pytest.mark.parametrize("part", ["conv_in", "mid_block.attentions.0.transformer_blocks.0.attn2", ""])
def test_what_people_did_to_a_controlnet_is_respected(
    part: str, nets: Callable[..., Any], ours: Callable[[str], Any]
) -> None:
    net, calls = load_controlnet(nets("sd1")[1]), list[int]()
    expected = latents(ours("sd1"), controlnet=net, control_image=HINT)
    net.get_submodule(part).register_forward_hook(lambda *_: calls.append(1))
    same(latents(ours("sd1"), controlnet=net, control_image=HINT), expected)
    assert len(calls) == 3


def test_a_compiled_one_is_called(nets: Callable[..., Any], ours: Callable[[str], Any]) -> None:
    net = load_controlnet(nets("sd1")[1])
    given = {"control_image": HINT, "num_inference_steps": 1}
    expected = latents(ours("sd1"), controlnet=net, **given)
    same(latents(ours("sd1"), controlnet=torch.compile(net, backend="eager"), **given), expected)


def test_deep_cache_takes_the_outermost_residual_alone(nets: Callable[..., Any], ours: Callable[[str], Any]) -> None:
    pipe, given = ours("sd1"), {"controlnet": nets("sd1")[1], "control_image": HINT, "num_inference_steps": 7}
    exact = latents(pipe, **given)
    found = latents(pipe, deep_cache=2, **given)
    assert differs(found, exact)
    assert (found - exact).norm() < (latents(pipe, num_inference_steps=7, deep_cache=2) - exact).norm()
    middle: list[int] = []
    handle = pipe.model.unet.mid_block.register_forward_hook(lambda *_: middle.append(1))
    latents(pipe, deep_cache=7, control_guidance_start=0.4, control_guidance_end=0.6, **given)
    handle.remove()
    assert len(middle) == 4  # the first, where it begins and ends to act, the last


def test_the_record_names_them(nets: Callable[..., Any], ours: Callable[[str], Any]) -> None:
    folders = [nets("sd1", number)[1] for number in (0, 1)]
    options = {"controlnet_conditioning_scale": [0.5, 1.0], "control_guidance_end": 0.8, "guess_mode": True}
    short = {"num_inference_steps": 1, "output_type": "latent", "seed": 1, **SIZE}
    record = ours("sd1")(PROMPT, controlnet=folders, control_image=[HINT, HINT], **options, **short).records[0]
    hashes = [entry.pop("hash") for entry in record["controlnets"]]
    assert record["controlnets"] == [
        {"name": "net0", "scale": 0.5, "start": 0.0, "end": 0.8},
        {"name": "net1", "scale": 1.0, "start": 0.0, "end": 0.8},
    ]
    assert record["guess_mode"] is True
    assert not [name for name in record if "conditioning" in name or "guidance_end" in name]
    import hashlib

    files = [folder / "diffusion_pytorch_model.safetensors" for folder in folders]
    assert hashes == [hashlib.sha256(file.read_bytes()).hexdigest()[:10] for file in files]
    assert "controlnets" not in ours("sd1")(PROMPT, **short).records[0]


class Elsewhere:
    """Has the signature of no picture."""


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"controlnet": "NET"}, ValueError, "controlnet needs control_image"),
        ({"control_image": HINT}, ValueError, "control_image is for a ControlNet"),
        ({"controlnet": Elsewhere(), "control_image": HINT}, TypeError, "a list of these, not Elsewhere"),
        ({"controlnet": "nowhere/at/all", "control_image": HINT}, (OSError, ValueError), "nowhere"),
        ({"controlnet": "NET", "control_image": Elsewhere()}, TypeError, "a PIL image, .* not Elsewhere"),
        ({"controlnet": "NET", "control_image": []}, ValueError, "empty"),
        (
            {"controlnet": "NET", "control_image": [HINT, HINT]},
            ValueError,
            "2 control images for 1 prompts: give it one$",
        ),
        ({"controlnet": ["NET", "NET"], "control_image": HINT}, ValueError, "2 ControlNets and one control image"),
        ({"controlnet": ["NET", "NET"], "control_image": [HINT] * 3}, ValueError, "2 ControlNets and 3 control images"),
        ({"controlnet": ["NET"], "control_image": [[HINT, HINT]]}, ValueError, "each with 1 images"),
        ({"controlnet": "NET", "control_image": torch.rand(3, 72, 104) * 255}, ValueError, "from 0.* to 25.*to 0 to 1"),
        ({"controlnet": "NET", "control_image": torch.full((3, 72, 104), float("nan"))}, ValueError, "nan"),
        ({"controlnet": "NET", "control_image": torch.rand(72, 104)}, ValueError, r"not \(72, 104\)"),
        ({"controlnet": "NET", "control_image": torch.rand(2, 72, 104)}, ValueError, "of 3 channels, not 2"),
        (
            {"controlnet": "NET", "control_image": picture(0, 4, 4)} | dict.fromkeys(SIZE),
            ValueError,
            "4 x 4 .*too small",
        ),
        ({"controlnet": "XL", "control_image": HINT}, ValueError, "made for one whose text is 96 wide.*family"),
        ({"controlnet_conditioning_scale": "much"}, ValueError, "controlnet_conditioning_scale"),
        ({"controlnet_conditioning_scale": float("nan")}, ValueError, "controlnet_conditioning_scale"),
        ({"control_guidance_start": -0.1}, ValueError, "control_guidance_start"),
        ({"control_guidance_end": [1.2]}, ValueError, "control_guidance_end"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, ValueError, "0.5 is not below"),
        ({"control_guidance_start": [0.1, 0.2], "control_guidance_end": [0.5]}, ValueError, "equally many"),
        ({"guess_mode": 1}, TypeError, "guess_mode"),
        (
            {"controlnet": "NET", "control_image": HINT, "controlnet_conditioning_scale": [1, 2]},
            ValueError,
            "2 entries for 1 ControlNet",
        ),
        (
            {"controlnet": "NET", "control_image": HINT, "control_guidance_end": [0.5, 0.6]},
            ValueError,
            "2 entries for 1 ControlNet",
        ),
    ],
)
def test_bad_input_is_named(
    options: dict[str, Any], error: Any, words: str, nets: Callable[..., Any], ours: Callable[[str], Any]
) -> None:
    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(one) for one in value]
        return {"NET": nets("sd1")[1], "XL": nets("sdxl")[1]}.get(value, value) if isinstance(value, str) else value

    with pytest.raises(error, match=words):
        latents(ours("sd1"), **{name: found(value) for name, value in options.items()})


def test_numbers_of_other_libraries_become_pythons() -> None:
    request = TextToImageRequest(
        PROMPT,
        controlnet_conditioning_scale=(np.float32(0.5), 1),  # type: ignore[arg-type]
        control_guidance_start=np.float64(0.25),
    )
    assert request.controlnet_conditioning_scale == [0.5, 1.0]
    assert type(request.control_guidance_start) is float
