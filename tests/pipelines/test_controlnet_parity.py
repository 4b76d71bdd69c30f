"""ControlNets in whole pipelines, against diffusers' own: the same weights, images and generator, the same latents."""

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.plan import Speed
from tests.pipelines.controlling import FAMILIES, HINT, PROMPT, differs, generator, latents, picture, same

TWO = ["a cat", "a banana on a table"]
SWITCHES = [field.name for field in fields(Speed)]


@pytest.fixture
def their_latents(pairs: Callable[[str], Any], nets: Callable[..., Any]) -> Callable[..., Tensor]:
    """What diffusers draws with the ControlNets of these numbers."""

    def draw(
        family: str, numbers: tuple[int, ...], image: Any, prompt: Any = PROMPT, kind: Any = None, **options: Any
    ) -> Tensor:
        models = [nets(family, number, **(kind or {}))[0] for number in numbers]
        pipeline = {"sdxl": diffusers.StableDiffusionXLControlNetPipeline}.get(
            family, diffusers.StableDiffusionControlNetPipeline
        )
        parts = {name: part for name, part in pairs(family).theirs.components.items() if part is not None}
        extra = {} if family == "sdxl" else {"safety_checker": None, "feature_extractor": None}
        pipe = pipeline(**{**parts, **extra}, controlnet=models[0] if len(models) == 1 else models)
        pipe.set_progress_bar_config(disable=True)
        return latents(pipe, prompt, image=image, **options)

    return draw


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_one(
    family: str, guidance: float, nets: Callable[..., Any], ours: Callable[[str], Any], their_latents: Any
) -> None:
    options = {"guidance_scale": guidance, "controlnet_conditioning_scale": 0.8}
    found = latents(ours(family), controlnet=nets(family)[1], control_image=HINT, **options)
    same(found, their_latents(family, (0,), HINT, **options))
    assert differs(found, latents(ours(family), guidance_scale=guidance))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"controlnet_conditioning_scale": [0.4, 1.5]},
        {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.5, 1.0]},
        {"guess_mode": True},
    ],
    ids=str,
)
def test_several(
    family: str,
    options: dict[str, Any],
    nets: Callable[..., Any],
    ours: Callable[[str], Any],
    their_latents: Any,
) -> None:
    images = [HINT, picture(1)]
    given = {"controlnet": [nets(family, number)[1] for number in (0, 1)], "control_image": images}
    expected = {"controlnet_conditioning_scale": 1.0, **options}
    same(latents(ours(family), **given, **options), their_latents(family, (0, 1), images, **expected))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guess", [False, True])
def test_a_batch_with_every_switch(
    family: str,
    guess: bool,
    nets: Callable[..., Any],
    ours: Callable[[str], Any],
    their_latents: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two prompts, two pictures of each, a control image for each prompt; whole and in parts of 3."""
    options = {"num_images_per_prompt": 2, "guess_mode": guess, "num_inference_steps": 3}
    images, pipe = [HINT, picture(1)], ours(family)
    expected = their_latents(family, (0,), images, TWO, **options)
    given = {"controlnet": nets(family)[1], "control_image": images, **options}
    monkeypatch.setattr(pipe, "_batchings", {})
    for name in SWITCHES:
        monkeypatch.setattr(pipe, "speed", replace(Speed(), **{name: not getattr(Speed(), name)}))
        same(latents(pipe, TWO, **given), expected)
    monkeypatch.setattr(pipe, "speed", Speed())
    same(latents(pipe, TWO, **given), expected)
    for batching in pipe._batchings.values():
        batching.most = 3
    same(latents(pipe, TWO, **given), expected)


@pytest.mark.parametrize("guess", [False, True])
def test_guess_mode_without_a_prompt_and_one_image_for_all(
    guess: bool, nets: Callable[..., Any], ours: Callable[[str], Any], their_latents: Any
) -> None:
    options = {"num_images_per_prompt": 2, "guess_mode": guess, "guidance_scale": 3.0}
    found = latents(ours("sd1"), "", controlnet=nets("sd1")[1], control_image=HINT, **options)
    same(found, their_latents("sd1", (0,), HINT, "", **options))


@pytest.mark.parametrize("scheduler", [None, "PNDMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize(("start", "end", "steps"), [(0.0, 0.6, 5), (0.5, 1.0, 7), (0.45, 0.75, 8)])
def test_start_and_end(
    scheduler: str | None,
    start: float,
    end: float,
    steps: int,
    pairs: Callable[[str], Any],
    nets: Callable[..., Any],
    ours: Callable[[str], Any],
    their_latents: Any,
) -> None:
    """Also of samplers that evaluate more often than they step: the evaluations count. (Where one of these shares falls
    between two evaluations at the same time, diffusers tells them apart, and here they are one.)"""
    theirs = pairs("sd1").theirs
    own = theirs.scheduler
    options = {"control_guidance_start": start, "control_guidance_end": end, "num_inference_steps": steps}
    samplers = [scheduler]
    if scheduler is not None:
        skip = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
        theirs.scheduler = getattr(diffusers, scheduler).from_config(own.config, **skip)
        samplers = ["pndm" if skip else scheduler, copy.deepcopy(theirs.scheduler)]
    try:
        expected = their_latents("sd1", (0,), HINT, **options)
    finally:
        theirs.scheduler = own
    given = {"controlnet": nets("sd1")[1], "control_image": HINT, **options}
    for sampler in samplers:
        same(latents(ours("sd1"), sampler=sampler, **given), expected)
    assert differs(expected, latents(ours("sd1"), sampler=samplers[0], controlnet=[], num_inference_steps=steps))


@pytest.mark.parametrize("kind", [{"order": "bgr"}, {"pooled": True}, {"hint_in": 1}], ids=str)
def test_kinds(kind: dict[str, Any], nets: Callable[..., Any], ours: Callable[[str], Any], their_latents: Any) -> None:
    image: Any = torch.rand(1, 1, 72, 104, generator=generator(3)) if "hint_in" in kind else HINT
    found = latents(ours("sd1"), controlnet=nets("sd1", 2, **kind)[1], control_image=image)
    same(found, their_latents("sd1", (2,), image, kind=kind))


@pytest.mark.parametrize("size", [{}, {"height": 64, "width": 80}, {"width": 48}], ids=str)
@pytest.mark.parametrize("form", ["pil", "np", "pt", "grey"])
def test_sizes_are_the_control_images_or_it_is_resized(
    form: str, size: dict[str, int], nets: Callable[..., Any], ours: Callable[[str], Any], their_latents: Any
) -> None:
    image = picture(4, 77, 93)
    unit = np.asarray(image, dtype=np.float32)[None] / 255
    images = {"pil": image, "np": unit, "pt": torch.from_numpy(unit).permute(0, 3, 1, 2), "grey": image.convert("L")}
    options = {"height": None, "width": None, **size}
    found = latents(ours("sd1"), controlnet=nets("sd1")[1], control_image=images[form], **options)
    assert found.shape[2:] == (size.get("height", 72) // 8, size.get("width", 88) // 8)
    same(found, their_latents("sd1", (0,), images[form], **options))
