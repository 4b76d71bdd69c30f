"""Distilled models are told by words of their title or file name, and drawn in few steps without guidance."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ldm.checkpoint import load_folder, load_single_file, save_folder, save_single_file
from ldm.checkpoint.inspection import inspected
from ldm.checkpoint.published import distilled_defaults, distilled_of, scheduler_config
from pipelines import TextToImagePipeline
from tests.ldm.checkpoint.originals import tiny, write

TRAILING = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("sdxl", "sd_xl_turbo_1.0_fp16", "turbo"),
        ("sd2", "sd_turbo", "turbo"),
        ("sdxl", "sdxl_lightning_4step", "lightning"),
        ("sdxl", "SDXL-Lightning", "lightning"),
        ("sdxl", "DreamShaperXL_v21TurboDPMSDE", "turbo"),
        ("sdxl", "realvisxlV40_v40LightningBakedvae", "lightning"),
        ("sdxl", "Lightning Bolt Studio XL", ""),
        ("sdxl", "Drawings of turbofan engines", ""),
        ("sdxl", "enlightning", ""),
        ("sd1", "sd_turbo", ""),
        ("sd2", "sd2_lightning", ""),
        ("sdxl_refiner", "xl_refiner_turbo", ""),
        ("sdxl", "", ""),
    ],
)
def test_words(family: str, name: str, kind: str) -> None:
    assert distilled_of(family, name) == kind


@pytest.mark.parametrize(
    ("kind", "name", "steps"),
    [
        ("turbo", "sd_xl_turbo_1.0_fp16", 4),
        ("lightning", "sdxl_lightning_4step", 4),
        ("lightning", "SDXL Lightning (2 Steps)", 2),
        ("lightning", "SDXL-Lightning", 8),
        ("lightning", "lightning_120000_steps", 8),
        ("lightning", "lightning_99step", 8),
    ],
)
def test_steps(kind: str, name: str, steps: int) -> None:
    assert distilled_defaults(kind, name) == {"num_inference_steps": steps, "guidance_scale": 1.0}
    assert distilled_defaults("", name) == {}


def test_the_name_counts_where_there_is_no_title(tmp_path: Path) -> None:
    state = tiny("sdxl")[1]
    file = write(state, tmp_path / "sdxl_lightning_4step.safetensors")
    loaded = load_single_file(file)
    assert loaded.scheduler_config == scheduler_config("sdxl", "", "epsilon", zero_snr=False, distilled="lightning")
    (note,) = loaded.notes
    assert "says lightning, so without other arguments it takes 4 steps and no guidance (num_inference_steps=" in note
    assert inspected(file, hashed=False).distilled == "lightning"
    again = load_single_file(save_single_file(loaded, tmp_path / "m.safetensors"))
    assert (again.defaults, again.scheduler_config) == (loaded.defaults, loaded.scheduler_config)
    titled = write(state, tmp_path / "x_turbo.safetensors", {"modelspec.title": "Turbofans"})
    assert (load_single_file(titled).defaults, load_single_file(titled).notes) == ({}, ())


def test_a_schedule_alone_makes_no_lightning(tmp_path: Path) -> None:
    """Many models have it."""
    config = scheduler_config("sdxl", "", "epsilon", zero_snr=False, distilled="lightning")
    source = replace(tiny("sdxl")[0], scheduler_config=config)
    assert load_single_file(save_single_file(source, tmp_path / "m.safetensors")).defaults == {}


def test_calls_take_its_defaults(tmp_path: Path) -> None:
    file = write(tiny("sdxl")[1], tmp_path / "sdxl_lightning_2step.safetensors")
    pipe = TextToImagePipeline.from_pretrained(file, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    record = pipe("a cat", height=64, width=64, seed=1).records[0]
    assert (record["steps"], record["guidance_scale"]) == (2, 1.0)
    record = pipe("a cat", height=64, width=64, seed=1, num_inference_steps=3, guidance_scale=2.0).records[0]
    assert (record["steps"], record["guidance_scale"]) == (3, 2.0)


def test_a_folder_keeps_them(tmp_path: Path) -> None:
    loaded = load_single_file(write(tiny("sdxl")[1], tmp_path / "sdxl_lightning_2step.safetensors"))
    again = load_folder(save_folder(loaded, tmp_path / "model"))
    assert again.defaults == loaded.defaults == {"num_inference_steps": 2, "guidance_scale": 1.0}
    assert again.model_index == loaded.model_index
    assert load_folder(save_folder(again, tmp_path / "copy")).defaults == loaded.defaults


@pytest.mark.parametrize(
    "place", ["sdxl-turbo", "models--stabilityai--sdxl-turbo/snapshots/71153311d3dbb46851df1931d3ca"]
)
def test_a_folder_is_known_by_its_name(place: str, tmp_path: Path) -> None:
    """Its own or, in the hub's cache, its repository's: the published ones say it nowhere else."""
    model = replace(tiny("sdxl")[0], scheduler_config={**tiny("sdxl")[0].scheduler_config, **TRAILING})
    loaded = load_folder(save_folder(model, tmp_path / place))
    assert loaded.defaults == {"num_inference_steps": 4, "guidance_scale": 1.0}
    assert "its name says turbo, so without other arguments it takes 4 steps" in loaded.notes[0]


def test_neither_a_schedule_nor_a_name_alone_makes_a_folder_distilled(tmp_path: Path) -> None:
    model = tiny("sdxl")[0]
    trailing = replace(model, scheduler_config={**model.scheduler_config, **TRAILING})
    assert load_folder(save_folder(trailing, tmp_path / "model")).defaults == {}
    assert load_folder(save_folder(model, tmp_path / "sdxl-turbo")).defaults == {}
    known = replace(trailing, defaults={"num_inference_steps": 3})
    index = json.loads((save_folder(known, tmp_path / "xl-turbo") / "model_index.json").read_text())
    index["_defaults"]["of_a_later_version"] = 1
    (tmp_path / "xl-turbo" / "model_index.json").write_text(json.dumps(index))
    assert load_folder(tmp_path / "xl-turbo").defaults == {"num_inference_steps": 3}


@pytest.mark.parametrize("defaults", [{"num_inference_steps": 0}, {"guidance_scale": "much"}, [4]])
def test_defaults_that_are_none_are_refused(defaults: object, tmp_path: Path) -> None:
    folder = save_folder(tiny("sdxl")[0], tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_defaults": defaults}))
    with pytest.raises(ValueError, match=r"model_index\.json: _defaults are no defaults of calls"):
        load_folder(folder)
