"""The wheel holds the six packages, their data, and nothing else."""

import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("configs", "vae", "text_encoder", "unet", "ldm", "pipelines")
DATA = {
    *(f"{package}/py.typed" for package in PACKAGES),
    "configs/runs/emoji-base.toml",
    "configs/runs/emoji-small.toml",
    "configs/templates/autoencoder.toml",
    "configs/templates/controlnet.toml",
    "configs/templates/dreambooth.toml",
    "configs/templates/full.toml",
    "configs/templates/inversion.toml",
    "configs/templates/lora.toml",
    "unet/native_attention.c",
    "text_encoder/clip_vocabulary/LICENSE",
    "text_encoder/clip_vocabulary/merges.txt.gz",
    "ldm/data/emoji_scenes/atlas/LICENSE",
    "ldm/data/emoji_scenes/atlas/atlas.json",
    "ldm/data/emoji_scenes/atlas/atlas.webp",
    *(
        f"ldm/weights/emoji-scenes/{name}"
        for name in (
            "README.md",
            "model_index.json",
            "samples.png",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "vocabulary.json",
        )
    ),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from this checkout as pip builds it, without a network."""
    from hatchling.builders.wheel import WheelBuilder

    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return zipfile.ZipFile(path)


def names(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_top_level_names(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in names(wheel)} == set(PACKAGES)


def test_every_module_and_only_the_listed_data(wheel: zipfile.ZipFile) -> None:
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert names(wheel) == modules | DATA


def test_data_is_whole(wheel: zipfile.ZipFile) -> None:
    for name in DATA:
        assert wheel.read(name) == (ROOT / name).read_bytes()


def test_metadata(wheel: zipfile.ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = f"ldm_pipelines-{project['version']}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "Name: ldm-pipelines\n" in metadata
    assert "License-Expression: Apache-2.0 AND MIT AND OFL-1.1\n" in metadata
    assert wheel.read(f"{info}/entry_points.txt").decode().split() == [
        "[console_scripts]",
        "ldm",
        "=",
        "pipelines.cli:main",
    ]
    for licence in project["license-files"]:
        assert wheel.read(f"{info}/licenses/{licence}") == (ROOT / licence).read_bytes()
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
