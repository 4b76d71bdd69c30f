"""`ldm "PROMPT" --controlnet ... --control-image ...`: draws what the pipeline draws, and says before what is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from pipelines import TextToImagePipeline
from pipelines.cli import parser
from pipelines.result import read_record
from tests.pipelines.conftest import randomise

Command = Callable[..., Any]
NET, IMAGE = ("--controlnet", "net"), ("--control-image", "hint.png")


@pytest.fixture
def draw(ldm: Command, tiny_sd_folder: Path, tmp_path: Path) -> Command:
    """With two ControlNets, `net` and `other`, and a control image beside, which a camera has laid on its side."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(tiny_sd_folder / "unet")
    for number, name in enumerate(("net", "other")):
        model = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 6, 8, 10))
        randomise(model, number).save_pretrained(tmp_path / name)
    pixels = np.random.default_rng(0).integers(0, 256, (72, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "hint.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    return lambda *line: ldm(
        "a cat", "-m", str(tiny_sd_folder), "--steps", "2", "--device", "cpu", "--seed", "7", *line
    )


def test_draws_what_the_pipeline_draws(draw: Command, tmp_path: Path, tiny_sd_folder: Path) -> None:
    second = ("--controlnet", "other", "--control-image", "upright.png")
    settings = ("--control-scale", "0.5", "--control-scale", "2", "--control-start", "0.1", "--control-end", "0.9")
    ran = draw(*NET, *IMAGE, *second, *settings, "--steps", "4")
    assert (ran.status, ran.out, ran.err) == (0, "a-cat-7.png\n", "")
    pipe = TextToImagePipeline.from_pretrained(tiny_sd_folder, device="cpu")
    expected = pipe(
        "a cat",
        seed=7,
        num_inference_steps=4,
        controlnet=[tmp_path / "net", tmp_path / "other"],
        control_image=[Image.open(tmp_path / "upright.png")] * 2,
        controlnet_conditioning_scale=[0.5, 2.0],
        control_guidance_start=0.1,
        control_guidance_end=0.9,
    )
    with Image.open(tmp_path / "a-cat-7.png") as image:
        assert image.size == (64, 72)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.images[0]))
    assert read_record(tmp_path / "a-cat-7.png") == expected.records[0]
    with Image.open(tmp_path / draw(*NET, *IMAGE, "--size", "80x48").out.strip()) as image:
        assert image.size == (80, 48)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (NET, "there are 1 of --controlnet and 0 of --control-image: give one for each"),
        (IMAGE, "there are 0 of --controlnet and 1 of --control-image"),
        ((*NET, *IMAGE, *NET), "there are 2 of --controlnet and 1 of --control-image"),
        (
            (*NET, *IMAGE, "--control-scale", "1", "--control-scale", "2"),
            "there are 1 of --controlnet and 2 of --control-scale",
        ),
        (("--control-end", "0.5"), "there are 0 of --controlnet and 1 of --control-end"),
        ((*NET, "--control-image", "missing.png"), "missing.png is no picture that can be read"),
        ((*NET, "--control-image", "net/config.json"), "net/config.json is no picture that can be read"),
        (("--controlnet", "hint.png", *IMAGE), "hint.png"),
        (("--controlnet", "missing", *IMAGE), "missing"),
        ((*NET, *IMAGE, "--control-start", "0.5", "--control-end", "0.5"), "0.5 is not below"),
    ],
)
def test_bad_input_is_said_before_anything_is_drawn(
    draw: Command, tmp_path: Path, line: tuple[str, ...], words: str
) -> None:
    ran = draw(*line)
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.err
    assert ran.err.startswith("ldm: ")
    assert "Traceback" not in ran.err
    assert not list(tmp_path.glob("a-cat*"))


def test_a_controlnet_of_another_model(draw: Command, tmp_path: Path) -> None:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=1024,
        attention_head_dim=4,
        layers_per_block=1,
    )
    shutil.rmtree(tmp_path / "net")
    options = {"conditioning_embedding_out_channels": (4, 6, 8, 10)}
    diffusers.ControlNetModel.from_unet(unet, **options).save_pretrained(tmp_path / "net")
    ran = draw(*NET, *IMAGE)
    assert ran.status == 2
    assert "made for Stable Diffusion 2, and the model is one whose text is 16 wide" in ran.err


def test_options_are_read() -> None:
    line = "a cat --controlnet one --control-image 1.png --controlnet two --control-image 2.png --control-scale 0.5"
    args = parser.parse([*line.split(), "--control-start", "0.25", "--control-end", "1"])
    assert (args.controlnets, args.control_images) == (["one", "two"], ["1.png", "2.png"])
    assert (args.control_scales, args.control_starts, args.control_ends) == ([0.5], [0.25], [1.0])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["a", "--control-scale", "nan"], "'nan' is not a number"),
        (["a", "--control-start", "1.5"], "'1.5' is not a share from 0 to 1, such as 0.5"),
        (["a", "--control-end", "x"], "'x' is not a share"),
    ],
)
def test_bad_numbers(line: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse(line)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
