"""What we write, diffusers and transformers read; what we read back is what we wrote, bit by bit."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ldm.checkpoint import load_folder, save_folder
from ldm.checkpoint.save import parse_size

FAMILIES = ["sd1", "sd2", "sdxl", "sdxl_refiner"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{key}": v for file in folder.glob("*/*.safetensors") for key, v in load_file(file).items()
    }


def generate(folder: Path, **options: Any) -> torch.Tensor:
    """A latent that depends on every network and setting of the folder, as diffusers computes it."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"generator": torch.Generator().manual_seed(7), "output_type": "np"}
    if isinstance(pipe, diffusers.StableDiffusionXLImg2ImgPipeline):
        call |= {"image": torch.linspace(-1, 1, 3 * 16 * 24).reshape(1, 3, 16, 24), "strength": 0.9}
    else:
        call |= {"height": 16, "width": 24}
    image = pipe("a cat, do!", negative_prompt="dog", num_inference_steps=3, **call).images
    return torch.from_numpy(image)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_computes_the_same_image_from_the_copy(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    folder = save_folder(load_folder(folders[family]), tmp_path / "copy")
    image = generate(folder)
    assert image.std() > 0.01
    torch.testing.assert_close(image, generate(folders[family]), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_changes_nothing(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    first = load_folder(folders[family])
    second = load_folder(save_folder(first, tmp_path / "one"))
    save_folder(second, tmp_path / "two")
    for one in (tmp_path / "one").rglob("*.*"):
        assert one.read_bytes() == (tmp_path / "two" / one.relative_to(tmp_path / "one")).read_bytes(), one
    assert first.unet.config == second.unet.config
    assert first.autoencoder.config == second.autoencoder.config
    assert first.scheduler_config == second.scheduler_config
    assert first.model_index == second.model_index
    assert first.family == second.family
    for part, module in first.networks().items():
        torch.testing.assert_close(second.networks()[part].state_dict(), module.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_encoders_are_written_with_the_prefix_that_transformers_4_needs(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    folder = save_folder(load_folder(folders[family]), tmp_path / "copy")
    names = [name.split("/")[1] for name in weights(folder) if name.startswith("text_encoder")]
    assert names
    assert all(name.startswith(("text_model.", "text_projection.")) for name in names)


def test_weights_are_marked_as_pytorch_and_readable_by_all(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save_folder(load_folder(folders["sd1"]), tmp_path / "copy")
    for file in folder.glob("*/*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        assert file.stat().st_mode == (file.parent / "config.json").stat().st_mode


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants_are_read_by_diffusers(
    folders: dict[str, Path], tmp_path: Path, variant: str | None
) -> None:
    model = load_folder(folders["sdxl"])
    folder = save_folder(model, tmp_path / "copy", variant=variant, max_shard_size="60KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 3
    assert all(file.stat().st_size < 90_000 for file in (folder / "unet").glob("*.safetensors"))
    torch.testing.assert_close(generate(folder, variant=variant), generate(folders["sdxl"]), rtol=0, atol=0)
    again = load_folder(folder, variant=variant)
    torch.testing.assert_close(again.unet.state_dict(), model.unet.state_dict(), rtol=0, atol=0)


def test_a_dtype_converts_every_network(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save_folder(load_folder(folders["sd1"]), tmp_path / "copy", dtype=torch.float16, variant="fp16")
    original = {
        name: value.half() for name, value in weights(save_folder(load_folder(folders["sd1"]), tmp_path / "f")).items()
    }
    torch.testing.assert_close(weights(folder), original, rtol=0, atol=0)


def test_the_pipeline_class_and_its_options_come_back(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied("sdxl")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLInpaintPipeline", "force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    written = json.loads((save_folder(load_folder(folder), tmp_path / "copy") / "model_index.json").read_text())
    assert {**index, **written} == written | {"_diffusers_version": written["_diffusers_version"]}
    assert written["_class_name"] == "StableDiffusionXLInpaintPipeline"
    assert written["force_zeros_for_empty_prompt"] is False


def test_a_controlnet_folder_is_written_as_the_plain_model_it_contains(
    copied: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copied()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    copy = save_folder(load_folder(folder), tmp_path / "copy")
    assert type(diffusers.DiffusionPipeline.from_pretrained(copy)) is diffusers.StableDiffusionPipeline


def test_nothing_is_overwritten_unasked(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_folder(folders["sd1"])
    (tmp_path / "empty").mkdir()
    save_folder(model, tmp_path / "empty")
    precious = tmp_path / "full" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_folder(model, tmp_path / "full")
    with pytest.raises(FileExistsError):
        save_folder(model, precious, overwrite=True)
    assert precious.read_text() == "mine"
    save_folder(model, tmp_path / "full", overwrite=True)
    assert not precious.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_a_model_can_be_saved_over_the_folder_it_is_mapped_from(copied: Callable[..., Path]) -> None:
    folder = copied()
    model = load_folder(folder)
    with torch.no_grad():
        model.unet.state_dict()["conv_in.weight"].add_(1)
    expected = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    save_folder(model, folder, overwrite=True)
    torch.testing.assert_close(load_folder(folder).unet.state_dict(), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.unet.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("moment", ["weights", "rename"])
def test_an_interrupted_save_leaves_no_trace(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = copied()
    model, before = load_folder(folder), {file: file.read_bytes() for file in folder.rglob("*.*")}
    replace, calls = os.replace, []

    def fail(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    def fail_at_second(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    if moment == "weights":
        monkeypatch.setattr("ldm.checkpoint.writing.save_file", fail)
    else:
        monkeypatch.setattr("ldm.checkpoint.writing.os.replace", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        save_folder(model, folder, overwrite=True)
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("text", "size"), [(5, 5), ("10GB", 10**10), ("512 MiB", 512 * 2**20), ("1.5kb", 1500), ("77", 77)]
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1GB", "0", "1TB", "GB"])
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="max_shard_size"):
        parse_size(text)


@pytest.mark.parametrize("variant", ["", "a/b", "..", "fp 16"])
def test_variants_that_would_break_file_names(folders: dict[str, Path], tmp_path: Path, variant: str) -> None:
    with pytest.raises(ValueError, match="variant"):
        save_folder(load_folder(folders["sd1"]), tmp_path / "copy", variant=variant)
    assert not (tmp_path / "copy").exists()


def test_a_scheduler_given_with_an_array_of_betas_can_be_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    betas = torch.linspace(0.001, 0.02, 1000).double().numpy()
    scheduler = diffusers.DDIMScheduler(trained_betas=betas)
    folder = save_folder(load_folder(folders["sd1"], components={"scheduler": scheduler}), tmp_path / "copy")
    assert diffusers.DDIMScheduler.from_pretrained(folder / "scheduler").config.trained_betas == betas.tolist()
