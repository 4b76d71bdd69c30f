"""What bad input gets: an error that names the argument, says what is wrong and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines import TextToImagePipeline

PROMPT = "a cat holding a banana"
SMALL: dict[str, Any] = {"num_inference_steps": 4, "height": 64, "width": 64}


def draw(pipe: TextToImagePipeline, prompt: Any = PROMPT, **options: Any) -> Tensor:
    images: Tensor = pipe(prompt, **{"output_type": "pt", **SMALL, **options}).images
    return images


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prompt": None}, ValueError, "prompt"),
        ({"prompt": []}, ValueError, "empty"),
        ({"prompt": 3}, TypeError, "text"),
        ({"prompt": ["a", 3]}, TypeError, "3"),
        ({"negative_prompt": ["a"]}, TypeError, "negative_prompt is a list"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, ValueError, "1 texts for 2"),
        ({"height": 100}, ValueError, "64 x 96"),
        ({"width": 0}, ValueError, "width"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps"),
        ({"num_images_per_prompt": -1}, ValueError, "num_images_per_prompt"),
        ({"sampler": "dpmpp_2n"}, ValueError, "did you mean 'dpmpp_2m'"),
        ({"sampler": 3}, (TypeError, ValueError), "sampler"),
        ({"grid": "carras"}, ValueError, "unknown grid 'carras'"),
        ({"grid": 3}, TypeError, "grid"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale"),
        ({"guidance_scale": "7"}, ValueError, "guidance_scale"),
        ({"guidance_rescale": 2.0}, ValueError, "guidance_rescale"),
        ({"guidance_interval": (3, 1)}, ValueError, "guidance_interval"),
        ({"guidance_interval": 5}, ValueError, "guidance_interval"),
        ({"eta": -1}, ValueError, "eta"),
        ({"deep_cache": 0}, ValueError, "deep_cache is a whole number of at least 1"),
        ({"deep_cache": 2.5}, ValueError, "deep_cache"),
        ({"deep_cache": True}, ValueError, "deep_cache"),
        ({"deep_cache": None}, ValueError, "deep_cache"),
        ({"merge_tokens": 0.8}, ValueError, "merge_tokens is a share from 0 to 0.75"),
        ({"merge_tokens": "0.5"}, ValueError, "merge_tokens"),
        ({"merge_tokens": float("nan")}, ValueError, "merge_tokens"),
        ({"clip_skip": 1.5}, ValueError, "clip_skip"),
        ({"clip_skip": -1}, ValueError, "clip_skip"),
        ({"seed": True}, ValueError, "seed"),
        ({"original_size": (1, 2, 3)}, ValueError, "original_size"),
        ({"target_size": 512}, ValueError, "target_size"),
        ({"timesteps": 5}, ValueError, "timesteps"),
        ({"sigmas": ["a", "b"]}, ValueError, "sigmas"),
        ({"generator": 1}, TypeError, "generator"),
        ({"callback_on_step_end": 5}, TypeError, "callback_on_step_end"),
        ({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.int64)}, TypeError, "latents"),
        ({"prompt_embeds": torch.zeros(1, 77, 32)}, ValueError, "not both"),
        ({"prompt": None, "prompt_embeds": torch.full((1, 77, 32), float("inf"))}, ValueError, "prompt_embeds"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 32), "prompt_2": "a"}, ValueError, "prompt_2"),
        ({"negative_prompt": 3}, TypeError, "negative_prompt"),
        ({"guidance_scale": 3.0, "gamma": 2.0}, ValueError, "not both"),
        ({"timesteps": [900, 100], "sigmas": [3.0, 1.0]}, ValueError, "not both"),
        ({"timesteps": [100, 900]}, ValueError, "fall"),
        ({"seed": [1, 2]}, ValueError, "2 entries for 1"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "not both"),
        ({"generator": [torch.Generator()] * 3}, ValueError, "3 entries for 1"),
        ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, ValueError, "NaN"),
        ({"latents": torch.zeros(1, 4, 9, 8)}, ValueError, "shape"),
        ({"output_type": "jpeg"}, ValueError, "pil"),
        ({"prompt_syntax": "b1111"}, ValueError, "a1111"),
        ({"prompt_2": "a"}, ValueError, "one"),
        ({"denoising_end": 1.5}, ValueError, "denoising_end"),
        ({"clip_skip": 99}, ValueError, "clip_skip"),
        ({"callback_on_step_end": lambda *_: {}, "callback_on_step_end_tensor_inputs": ["x"]}, ValueError, "latents"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 33)}, ValueError, "32"),
    ],
)
def test_bad_input_is_named(
    pipe: TextToImagePipeline, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pipe(**{"prompt": PROMPT, **SMALL, **options})


def test_a_broken_network_is_named(pairs: Callable[[str], Any]) -> None:
    pipe = TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    pipe.model.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="NaN"):
        draw(pipe)


def test_loading_says_what_is_wrong(tmp_path: Path, pairs: Callable[[str], Any]) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TextToImagePipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="dtype"):
        TextToImagePipeline.from_pretrained(pairs("sd1").folder, dtype="int8")
    with pytest.raises(ValueError, match="cud"):
        TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cudda")
    with pytest.raises(ValueError, match="vae"):
        TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu", vea=None)
    with pytest.raises(RuntimeError, match="accelerator"):
        TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu").enable_model_cpu_offload(device="cpu")


def test_a_move_that_fails_leaves_the_pipeline_as_it_was(pipe: TextToImagePipeline) -> None:
    for place in ("meta", "float16", "mps:3"):
        with pytest.raises((ValueError, RuntimeError)):
            pipe.to(place)
    with pytest.raises(ValueError, match="dtype"):
        pipe.to(dtype="float7")
    assert draw(pipe, seed=1).isfinite().all()
