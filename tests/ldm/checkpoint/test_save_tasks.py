"""Folders of models that do more than draw from text: each is written as what it is."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ldm.checkpoint import load_folder, save_folder
from pipelines.interop import from_diffusers, to_diffusers
from tests.ldm.checkpoint.originals import assert_same, tiny


def index(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd1-inpaint", "StableDiffusionInpaintPipeline"),
        ("sd1-instruct", "StableDiffusionInstructPix2PixPipeline"),
        ("sdxl-inpaint", "StableDiffusionXLInpaintPipeline"),
        ("refiner", "StableDiffusionXLImg2ImgPipeline"),
        ("sd2-depth", "StableDiffusionDepth2ImgPipeline"),
        ("x4-upscaler", "StableDiffusionUpscalePipeline"),
    ],
)
def test_each_task_has_its_pipeline(name: str, kind: str, tmp_path: Path) -> None:
    folder = save_folder(tiny(name)[0], tmp_path / "model")
    assert index(folder)["_class_name"] == kind
    assert_same(load_folder(folder), tiny(name)[0])
    assert index(save_folder(load_folder(folder), tmp_path / "again")) == index(folder)


def test_diffusers_enlarges_with_an_upscaler_we_wrote(tmp_path: Path) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(save_folder(tiny("x4-upscaler")[0], tmp_path / "model"))
    assert isinstance(pipe, diffusers.StableDiffusionUpscalePipeline)
    assert isinstance(pipe.low_res_scheduler, diffusers.DDPMScheduler)
    assert (pipe.low_res_scheduler.config.beta_end, pipe.config.max_noise_level) == (0.02, 350)
    pipe.set_progress_bar_config(disable=True)
    small = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    image = pipe("a cat", image=small, noise_level=1, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)


def test_diffusers_asks_for_the_depth_estimator_that_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="depth_estimator"):
        diffusers.DiffusionPipeline.from_pretrained(save_folder(tiny("sd2-depth")[0], tmp_path / "model"))


def test_folders_of_a_plain_pipeline_are_mended(tmp_path: Path) -> None:
    """As they were written once, and with an upscaler's own numbers."""
    folder = save_folder(tiny("x4-upscaler")[0], tmp_path / "model")
    old = index(folder) | {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(old | {"max_noise_level": 100}))
    written = index(save_folder(load_folder(folder), tmp_path / "again"))
    assert written["_class_name"] == "StableDiffusionUpscalePipeline"
    assert written["max_noise_level"] == 100
    assert "requires_safety_checker" not in written


def test_interop_gives_an_upscaler_its_second_schedule(tmp_path: Path) -> None:
    pipe = to_diffusers(tiny("x4-upscaler")[0])
    assert isinstance(pipe, diffusers.StableDiffusionUpscalePipeline)
    assert pipe.low_res_scheduler.config.beta_end == 0.02
    back = from_diffusers(pipe)
    assert (back.family, back.unet.config) == ("sd2", tiny("x4-upscaler")[0].unet.config)
    assert back.model_index["_class_name"] == "StableDiffusionUpscalePipeline"
