"""Whole pipelines against diffusers: the same folder, the same generator, the same picture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pipelines import TextToImagePipeline

PROMPT = "a cat holding a banana"
SIZE = {"height": 72, "width": 104}  # latents of 9 x 13: nothing divides by 64
CLOSE = {"rtol": 1e-5, "atol": 2e-5}

SCHEDULERS = [
    ("DDIMScheduler", {}),
    ("DDPMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DEISMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("LCMScheduler", {}),
    ("TCDScheduler", {}),
]
KARRAS = [
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe: Any, prompt: Any = PROMPT, **options: Any) -> Tensor:
    """Decoded pictures (b, 3, H, W) of either pipeline."""
    settings = {"num_inference_steps": 5, "output_type": "pt", **SIZE, **options}
    images: Tensor = pipe(prompt, **settings).images
    return images


@pytest.fixture
def compare(pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]) -> Callable[..., None]:
    """Draws with both and compares; a scheduler is named for us and made for diffusers."""

    def check(
        family: str,
        prompt: Any = PROMPT,
        *,
        scheduler: str | None = None,
        config: dict[str, Any] | None = None,
        seeds: list[int] | None = None,
        **options: Any,
    ) -> None:
        theirs, mine = pairs(family).theirs, ours(family)
        draws = [generator() if seeds is None else [generator(s) for s in seeds] for _ in range(2)]
        own_scheduler, sampler = theirs.scheduler, None
        if scheduler is not None:
            theirs.scheduler = getattr(diffusers, scheduler).from_config(own_scheduler.config, **(config or {}))
            sampler = {"_class_name": scheduler, **theirs.scheduler.config} if config else scheduler
        try:
            expected = draw(theirs, prompt, generator=draws[0], **options)
        finally:
            theirs.scheduler = own_scheduler
        got = draw(mine, prompt, generator=draws[1], sampler=sampler, **options)
        scale = expected.abs().max().clamp(min=1)
        torch.testing.assert_close(got / scale, expected / scale, **CLOSE)  # latents in the middle of a run reach 35

    return check


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_as_loaded(compare: Callable[..., None], family: str, scale: float) -> None:
    compare(family, guidance_scale=scale)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize(("scheduler", "config"), SCHEDULERS, ids=lambda value: str(value))
def test_every_scheduler(compare: Callable[..., None], family: str, scheduler: str, config: dict[str, Any]) -> None:
    compare(family, scheduler=scheduler, config=config)


@pytest.mark.parametrize("scheduler", KARRAS)
def test_karras(compare: Callable[..., None], scheduler: str) -> None:
    compare("sd1", scheduler=scheduler, config={"use_karras_sigmas": True})


def test_negative_prompt_batch_and_images_per_prompt(compare: Callable[..., None]) -> None:
    prompts, negatives = ["a cat", "a banana on a table"], ["dog", ""]
    for family in ("sd1", "sdxl"):
        compare(family, prompts, negative_prompt=negatives, num_images_per_prompt=2)


def test_a_generator_for_each_picture(compare: Callable[..., None]) -> None:
    compare("sd1", ["a cat", "a dog", "a banana"], seeds=[3, 1, 4])
    compare("sd1", ["a cat", "a dog"], seeds=[3, 1], scheduler="EulerAncestralDiscreteScheduler")


def test_guidance_rescale_and_eta(compare: Callable[..., None]) -> None:
    compare("sd2", guidance_rescale=0.7)
    compare("sd1", eta=0.6)


def test_own_timesteps_and_sigmas(compare: Callable[..., None]) -> None:
    compare("sdxl", timesteps=[901, 640, 333, 20])
    compare("sdxl", sigmas=[12.0, 5.0, 1.5, 0.4])


def test_size_conditions_and_second_prompts(compare: Callable[..., None]) -> None:
    sizes = {"original_size": (512, 640), "crops_coords_top_left": (8, 16), "target_size": (300, 200)}
    negative = {"negative_original_size": (100, 80), "negative_target_size": (64, 72)}
    compare("sdxl", **sizes, **negative)
    compare("sdxl", prompt_2="a dog", negative_prompt="blue", negative_prompt_2="green")


@pytest.mark.parametrize(
    "scheduler",
    [
        "EulerDiscreteScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    ],
)
def test_denoising_end(
    compare: Callable[..., None], pairs: Callable[[str], Any], ours: Callable[[str], Any], scheduler: str
) -> None:
    settings = {"denoising_end": 0.6, "num_inference_steps": 10, "output_type": "latent"}
    config = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
    compare("sdxl", scheduler=scheduler, config={**config, "steps_offset": 1}, **settings)
    made = getattr(diffusers, scheduler).from_config(pairs("sdxl").theirs.scheduler.config, **config)
    expected = draw(ours("sdxl"), generator=generator(), sampler={"_class_name": scheduler, **made.config}, **settings)
    got = draw(ours("sdxl"), generator=generator(), sampler=made, **settings)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_an_index_without_zeros_key_means_zeros(
    pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline], tmp_path: Path
) -> None:
    folder = shutil.copytree(pairs("sdxl").folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    assert index.pop("force_zeros_for_empty_prompt") is True
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = TextToImagePipeline.from_pretrained(folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(pipe, seed=1), draw(ours("sdxl"), seed=1), rtol=0, atol=0)
    assert not torch.allclose(draw(pipe, seed=1), draw(pipe, seed=1, negative_prompt=""), atol=1e-3)


def test_given_latents_and_embeddings(pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]) -> None:
    latents = torch.randn(1, 4, 9, 13, generator=generator(5))
    for family in ("sd1", "sdxl"):
        width = ours(family).model.unet.config.context_dim
        text = torch.randn(2, 1, 77, width, generator=generator(6))
        options = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1], "latents": latents}
        if family == "sdxl":
            pooled = torch.randn(2, 1, 48, generator=generator(7))
            options |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
        expected = draw(pairs(family).theirs, None, **options)
        torch.testing.assert_close(draw(ours(family), None, **options), expected, **CLOSE)


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip(skip: int, pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]) -> None:
    """diffusers' own clip_skip fails under transformers 5, so the skipped states are handed to it as embeddings."""
    theirs, mine = pairs("sd1").theirs, ours("sd1")
    encoder, tokenize = theirs.text_encoder, theirs.tokenizer
    with torch.no_grad():
        ids = tokenize([PROMPT, "blue"], padding="max_length", max_length=77, return_tensors="pt").input_ids
        states = encoder(ids, output_hidden_states=True).hidden_states
        positive = encoder.final_layer_norm(states[-(skip + 1)])[:1]
        negative = encoder.final_layer_norm(states[-1])[1:]
    expected = draw(theirs, None, prompt_embeds=positive, negative_prompt_embeds=negative, generator=generator())
    got = draw(mine, clip_skip=skip, negative_prompt="blue", generator=generator())
    torch.testing.assert_close(got, expected, **CLOSE)
    assert not torch.allclose(got, draw(mine, negative_prompt="blue", generator=generator()), atol=1e-3)


def test_clip_skip_of_sdxl(compare: Callable[..., None]) -> None:
    compare("sdxl", clip_skip=1)


def test_refiner(pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]) -> None:
    """diffusers runs the refiner on pictures only; a picture of zeros under full noise is text to image."""
    theirs, mine = pairs("sdxl_refiner").theirs, ours("sdxl_refiner")
    noise = torch.randn(1, 4, 9, 13, generator=generator(8))
    theirs.scheduler.set_timesteps(5)
    sigma = theirs.scheduler.sigmas[0]
    settings = {"num_inference_steps": 5, "guidance_scale": 5.0, "negative_prompt": "blue", "output_type": "pt"}
    sizes = {"original_size": (72, 104), "target_size": (72, 104)}
    expected = theirs(PROMPT, image=noise * sigma, denoising_start=1e-4, **settings, **sizes).images
    got = mine(PROMPT, latents=noise * sigma / theirs.scheduler.init_noise_sigma, **SIZE, **settings).images
    torch.testing.assert_close(got, expected, **CLOSE)


def test_embeddings_without_a_negative(pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]) -> None:
    """SDXL's absent negative is zeros of the prompt's own length."""
    text, pooled = torch.randn(1, 154, 96, generator=generator(6)), torch.randn(1, 48, generator=generator(7))
    options = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    expected = draw(pairs("sdxl").theirs, None, generator=generator(), **options)
    torch.testing.assert_close(draw(ours("sdxl"), None, generator=generator(), **options), expected, **CLOSE)


def test_pil_and_numpy(pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline]) -> None:
    theirs, mine = pairs("sd1").theirs, ours("sd1")
    settings: dict[str, Any] = {"num_inference_steps": 3, **SIZE}
    expected = theirs(PROMPT, generator=generator(), output_type="np", **settings).images
    got = mine(PROMPT, generator=generator(), output_type="np", **settings).images
    torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(expected), **CLOSE)
    image = mine(PROMPT, generator=generator(), **settings).images[0]
    assert image.size == (104, 72)
    assert image.mode == "RGB"
    close = (torch.from_numpy(expected[0]) * 255 - torch.tensor(list(image.tobytes())).view(72, 104, 3)).abs()
    assert close.max() <= 0.51
