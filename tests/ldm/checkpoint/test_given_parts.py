"""Parts that a caller passes instead of having them read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ldm.checkpoint import load_folder

Copied = Callable[..., Path]


def test_given_parts_are_used_instead_of_reading(copied: Copied, folders: dict[str, Path]) -> None:
    folder, other = copied(), load_folder(folders["sd1"])
    for part in ("unet", "vae", "text_encoder", "scheduler", "tokenizer"):
        for file in (folder / part).iterdir():
            file.unlink()
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.001)
    parts = {
        "unet": other.unet,
        "vae": other.autoencoder,
        "text_encoder": other.text_encoder.model,  # type: ignore[union-attr]
        "tokenizer": other.text_encoder.tokenizer,  # type: ignore[union-attr]
    }
    model = load_folder(folder, components={**parts, "scheduler": scheduler, "safety_checker": None})
    assert model.unet is other.unet
    assert model.autoencoder is other.autoencoder
    assert model.text_encoder.model is other.text_encoder.model  # type: ignore[union-attr]
    assert model.text_encoder.tokenizer is other.text_encoder.tokenizer  # type: ignore[union-attr]
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["sd1"], scheduler=scheduler)
    settings = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    assert dict(model.scheduler_config) == settings | {"_class_name": "EulerDiscreteScheduler"}


@pytest.mark.parametrize("family", ["sdxl", "sdxl_refiner"])
def test_a_whole_text_encoder_stands_for_its_tokenizers_too(
    copied: Copied, folders: dict[str, Path], family: str
) -> None:
    folder, other = copied(family), load_folder(folders[family])
    for file in [*folder.glob("text_encoder*/*"), *folder.glob("tokenizer*/*")]:
        file.unlink()
    model = load_folder(folder, components={"text_encoder": other.text_encoder})
    assert model.text_encoder is other.text_encoder
    assert model.family == family


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("unet", torch.nn.Linear(1, 1), "unet is torch.*Linear, expected a unet.UNet"),
        ("unet", None, "unet is .*NoneType, expected a unet.UNet"),
        ("vae", "a/path", "vae is builtins.str, expected a vae.AutoencoderKL"),
        ("text_encoder", object(), "text_encoder is builtins.object, expected a text_encoder.CLIPTextModel or"),
        ("tokenizer", {}, "tokenizer is builtins.dict, expected a text_encoder.Tokenizer"),
        ("scheduler", "DDIM", "scheduler is builtins.str, expected a scheduler_config.json or"),
        ("scheduler", {"beta_start": 0.1}, "scheduler is builtins.dict, expected"),
        ("unett", None, "unknown component 'unett', did you mean 'unet'?"),
        ("safety_checker", object(), "safety_checker is not supported; pass safety_checker=None"),
    ],
)
def test_given_parts_of_the_wrong_kind_are_refused(
    folders: dict[str, Path], name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_folder(folders["sd1"], components={name: value})


def test_a_part_of_diffusers_itself_is_told_from_ours(folders: dict[str, Path]) -> None:
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folders["sd1"] / "unet")
    with pytest.raises(ValueError, match=r"unet is diffusers.*, expected a unet.UNet"):
        load_folder(folders["sd1"], components={"unet": theirs})


def test_a_given_unet_of_another_family_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="width 40, but the text encoders give 16"):
        load_folder(folders["sd1"], components={"unet": load_folder(folders["sdxl"]).unet})
