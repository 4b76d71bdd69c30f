"""Code written for diffusers: scheduler objects, `pipe.scheduler`, callbacks. The same pictures as there."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from pipelines import TextToImagePipeline

PROMPT = "a cat holding a banana"
SIZE = {"height": 72, "width": 104}
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe: Any, prompt: Any = PROMPT, **options: Any) -> Tensor:
    """Decoded pictures (b, 3, H, W) of either pipeline."""
    settings = {"num_inference_steps": 5, "output_type": "pt", **SIZE, **options}
    images: Tensor = pipe(prompt, **settings).images
    return images


def test_a_scheduler_object_of_diffusers(
    pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]
) -> None:
    theirs, mine = pairs("sd2").theirs, ours("sd2")
    names = ("DDIMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverSinglestepScheduler", "TCDScheduler")
    for name in names:
        own = theirs.scheduler
        theirs.scheduler = getattr(diffusers, name).from_config(own.config)
        try:
            expected = draw(theirs, generator=generator(), num_inference_steps=6)
        finally:
            theirs.scheduler = own
        scheduler = getattr(diffusers, name).from_config(own.config)
        got = draw(mine, generator=generator(), num_inference_steps=6, sampler=scheduler)
        torch.testing.assert_close(got, expected, **CLOSE)


def test_callbacks_that_write_in_place(pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]) -> None:
    def halve(pipe: Any, index: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["latents"].mul_(0.9)
        tensors["prompt_embeds"].add_(0.01)
        return tensors

    names = ["latents", "prompt_embeds"]
    settings = {"callback_on_step_end": halve, "callback_on_step_end_tensor_inputs": names}
    for family in ("sd1", "sdxl"):
        expected = draw(pairs(family).theirs, generator=generator(), **settings)
        torch.testing.assert_close(draw(ours(family), generator=generator(), **settings), expected, **CLOSE)


def test_what_a_callback_changes_counts_also_when_it_returns_nothing(
    ours: Callable[[str], TextToImagePipeline],
) -> None:
    def halve(pipe: Any, index: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["latents"].mul_(0.9)
        return tensors if pipe.answers else {}

    drawn = []
    for answers in (True, False):
        ours("sd1").answers = answers  # type: ignore[attr-defined]
        with torch.inference_mode():
            drawn.append(draw(ours("sd1"), generator=generator(), callback_on_step_end=halve))
    assert torch.equal(*drawn)


def test_callback_objects_of_diffusers(pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]) -> None:
    from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback

    for family, kind in {"sd1": SDCFGCutoffCallback, "sdxl": SDXLCFGCutoffCallback}.items():
        options = {"callback_on_step_end": kind(cutoff_step_ratio=0.4)}
        expected = draw(pairs(family).theirs, generator=generator(), **options)
        torch.testing.assert_close(draw(ours(family), generator=generator(), **options), expected, **CLOSE)


def test_the_published_recipe_for_ending_guidance(
    pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]
) -> None:
    def end(pipe: Any, index: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if index == int(pipe.num_timesteps * 0.4):
            for name in tensors:
                tensors[name] = tensors[name].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return tensors

    for family, more in {"sd1": [], "sdxl": ["add_text_embeds", "add_time_ids"]}.items():
        settings = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds", *more]}
        expected = draw(pairs(family).theirs, generator=generator(), **settings)
        torch.testing.assert_close(draw(ours(family), generator=generator(), **settings), expected, **CLOSE)


def test_setting_the_scheduler(pairs: Callable[[str], Any]) -> None:
    theirs = pairs("sd1").theirs
    mine = TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu")
    mine.set_progress_bar_config(disable=True)
    own = theirs.scheduler
    expected = []
    for pipe in (theirs, mine):
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config, use_karras_sigmas=True
        )
        expected.append(draw(pipe, generator=generator()))
    theirs.scheduler = own
    torch.testing.assert_close(expected[1], expected[0], **CLOSE)
