"""Lossy shortcuts through the whole pipeline: off unless asked for, in the record, alike in any batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from configs.architecture import TinyConfig
from pipelines import TextToImagePipeline, TextToImageRequest
from pipelines.cli import main
from vae import AutoencoderTiny

PROMPT = "a cat holding a banana"
SMALL: dict[str, Any] = {"num_inference_steps": 7, "height": 64, "width": 72, "seed": 5, "output_type": "pt"}


def draw(pipe: TextToImagePipeline, **options: Any) -> Tensor:
    images: Tensor = pipe(**{"prompt": PROMPT, **SMALL, **options}).images
    return images


@pytest.fixture
def deep(pipe: TextToImagePipeline) -> Any:
    """The rows of each pass of the network's middle."""
    rows: list[int] = []
    handle = pipe.model.unet.mid_block.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    yield rows
    handle.remove()


def test_off_is_bitwise_what_it_was_and_no_word_in_the_record(pipe: TextToImagePipeline) -> None:
    plain = pipe(PROMPT, **SMALL)
    off = pipe(PROMPT, deep_cache=1, merge_tokens=0.0, **SMALL)
    assert torch.equal(off.images, plain.images)
    assert off.records == plain.records
    assert not {"deep_cache", "merge_tokens"} & set(plain.records[0])


def test_a_request_takes_numbers_of_other_libraries_and_no_others() -> None:
    request = TextToImageRequest(PROMPT, deep_cache=np.int64(2), merge_tokens=np.float32(0.5))  # type: ignore[arg-type]
    assert (type(request.deep_cache), type(request.merge_tokens)) == (int, float)
    for bad in ({"deep_cache": 0}, {"merge_tokens": 0.76}, {"merge_tokens": -0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TextToImageRequest(PROMPT, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"deep_cache": 3}, {"merge_tokens": 0.5}, {"deep_cache": 2, "merge_tokens": 0.25}])
def test_the_picture_and_its_record_know(pipe: TextToImagePipeline, options: dict[str, Any]) -> None:
    result = pipe(PROMPT, **options, **SMALL)
    assert options.items() <= result.records[0].items()
    assert not torch.allclose(result.images, draw(pipe), atol=1e-3)
    assert torch.equal(result.images, draw(pipe, **options))


@pytest.mark.parametrize(
    ("sampler", "whole"),
    [
        ("ddim", [0, 3, 6]),
        ("dpmpp_2m", [0, 3, 6]),
        ("heun", [0, 2, 3, 5, 6]),  # evaluates a step's end too, which is the next one's time
    ],
)
def test_which_steps_are_whole(pipe: TextToImagePipeline, deep: list[int], sampler: str, whole: list[int]) -> None:
    seen = []
    for step in pipe.stream(PROMPT, deep_cache=3, sampler=sampler, **SMALL):
        seen += [step.index] if deep else []
        deep.clear()
    assert seen == whole


def test_where_guidance_begins_and_ends_the_network_runs_whole(pipe: TextToImagePipeline, deep: list[int]) -> None:
    sigmas = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 0.0]
    options = {"deep_cache": 4, "guidance_interval": (5.5, 8.5), "sampler": "euler", "sigmas": sigmas}
    draw(pipe, num_inference_steps=None, **options)
    # whole: 10 (first), 8 (guided now), 6 (as every fourth), 5 (no longer guided), 3 (last)
    assert deep == [1, 2, 2, 1, 1]


def test_after_a_callback_that_changed_the_text_the_network_runs_whole(
    pipe: TextToImagePipeline, deep: list[int]
) -> None:
    def change(pipe: Any, index: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": 0.9 * tensors["prompt_embeds"]}

    options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    images = draw(pipe, deep_cache=4, **options)
    assert len(deep) == 7
    torch.testing.assert_close(images, draw(pipe, **options), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"deep_cache": 3}, {"merge_tokens": 0.5}])
def test_a_picture_depends_on_its_seed_alone(
    pipe: TextToImagePipeline, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = draw(pipe, num_images_per_prompt=3, **options)
    monkeypatch.setattr("ldm.batching._fitting", lambda *_: 2)
    pipe._batchings.clear()
    parts = draw(pipe, num_images_per_prompt=3, **options)
    for i in range(3):
        alone = draw(pipe, **{**options, "seed": 5 + i})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(parts[i : i + 1], alone, rtol=0, atol=1e-5)


def test_sdxl_takes_them_too(ours: Callable[[str], TextToImagePipeline]) -> None:
    pipe = ours("sdxl")
    exact = draw(pipe)
    for options in ({"deep_cache": 3}, {"merge_tokens": 0.5}):
        images = draw(pipe, **options)
        assert images.isfinite().all()
        assert not torch.allclose(images, exact, atol=1e-4)


def test_a_tiny_autoencoder_decodes_in_place_of_the_models(pairs: Callable[[str], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = AutoencoderTiny(TinyConfig((8,) * 4, (1, 1, 1, 1), (8,) * 4, (1, 1, 1, 1))).eval()
    save_file(tiny.state_dict(), tmp_path / "taesd.safetensors")
    folder, vae = str(pairs("sd1").folder), str(tmp_path / "taesd.safetensors")
    pipe = TextToImagePipeline.from_pretrained(folder, vae=vae, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    images = draw(pipe)
    with torch.no_grad():
        decoded = tiny.decode(draw(pipe, output_type="latent"))
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    words = ["-m", folder, "--vae", vae, "--steps", "7", "--size", "72x64", "--seed", "5", "--device", "cpu"]
    assert main([*PROMPT.split(), *words, "-o", str(tmp_path / "out.png")]) == 0
    with Image.open(tmp_path / "out.png") as image:
        found = np.asarray(image).astype(int)
    assert abs(found - images[0].permute(1, 2, 0).numpy() * 255).max() <= 1
