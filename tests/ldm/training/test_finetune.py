"""Runs of fine-tuning: what they begin with, what they refuse, keep and leave."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from configs.finetuning import TrainsConfig
from ldm.checkpoint import load_model
from ldm.training import checkpoint as checkpoints
from ldm.training.finetune import finetune
from tests.ldm.training.test_finetuning import run_of
from tests.ldm.training.tuning import begun, plain, with_loop


@pytest.mark.parametrize("mode", ["full", "controlnet"])
def test_in_bfloat16_what_is_trained_begins_with_the_weights_as_they_are(tmp_path, tiny_sd_folder, mode):
    stored = load_model(tiny_sd_folder).unet.state_dict()
    config = with_loop(run_of(mode, tiny_sd_folder, tmp_path), precision="bf16")
    module = begun(replace(config, trains=TrainsConfig()), tmp_path / "run").stage.module
    trained = module.unet if mode == "full" else module.control
    for name, value in trained.state_dict().items():
        assert value.dtype == torch.float32, name
        assert name not in stored or torch.equal(value, stored[name]), name
    assert next(module.text_encoder.parameters()).dtype == torch.bfloat16
    assert next(module.autoencoder.parameters()).dtype == torch.float32


def test_what_was_not_trained_is_written_as_it_was(tmp_path, tiny_sd_folder):
    config = with_loop(run_of("full", tiny_sd_folder, tmp_path), precision="bf16", steps=1)
    config = replace(config, trains=TrainsConfig(), result=replace(config.result, precision="fp32"))
    finetune(config, tmp_path / "run", plain, progress=False)
    before, after = load_model(tiny_sd_folder), load_model(tmp_path / "run" / "result" / "tiny")
    for part in ("text_encoder", "autoencoder"):
        theirs = before.networks()[part].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in after.networks()[part].state_dict().items())
    assert not torch.equal(after.unet.conv_in.weight, before.unet.conv_in.weight)


def test_an_entry_lost_from_the_cache_is_named(tmp_path, tiny_sd_folder):
    config = run_of("lora", tiny_sd_folder, tmp_path)
    run = begun(replace(config, trains=TrainsConfig()), tmp_path / "run")
    for entry in (tmp_path / "run" / "cache" / "latents").rglob("*.safetensors"):
        entry.unlink()
    with pytest.raises(ValueError, match=r"the cache has lost .*\.png: start the same command again"):
        run.stage.example(0)


def test_a_changed_autoencoder_or_text_encoder_is_another_run_with_another_cache(tmp_path, tiny_sd_folder):
    config = run_of("lora", tiny_sd_folder, tmp_path)
    first = begun(config, tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(tiny_sd_folder, other)
    settings = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps({**settings, "scaling_factor": 1.0}))
    second = begun(replace(config, model=str(other)), tmp_path / "run")
    assert first.digest != second.digest
    one, two = (run.stage.example(0)["mean"] for run in (first, second))
    torch.testing.assert_close(two * 0.18215, one, rtol=1e-4, atol=1e-5)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_sd_folder, moved)
    assert (
        begun(replace(config, model=str(moved)), tmp_path / "run").digest == first.digest
    )  # only its place is another


def test_fresh_throws_nothing_away_before_the_run_can_begin(tmp_path, tiny_sd_folder):
    config = run_of("lora", tiny_sd_folder, tmp_path)
    finetune(config, tmp_path / "run", plain, progress=False)
    wrong = replace(config, data=replace(config.data, path=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="nowhere"):
        finetune(wrong, tmp_path / "run", plain, progress=False, fresh=True)
    assert (tmp_path / "run" / "result" / "tiny.safetensors").exists()


def test_missing_pictures_of_the_class_are_drawn_and_none_over_another(tmp_path, tiny_sd_folder):
    config = run_of("dreambooth", tiny_sd_folder, tmp_path)
    begun(config, tmp_path / "run")
    (folder,) = (tmp_path / "run").glob("prior-*")
    kept = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert len(kept) == 3
    (folder / "class-00001.png").unlink()
    begun(config, tmp_path / "run")
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(kept)
    assert all((folder / name).read_bytes() == kept[name] for name in kept if name != "class-00001.png")
    assert (folder / "class-00001.txt").read_text() == "a circle"


def test_pictures_before_training_are_of_the_untrained_model_whenever_they_are_asked_for(tmp_path, tiny_sd_folder):
    drawn = []

    def draw(model, wanted):
        drawn.append((list(wanted.prompts), float(model.unet.conv_in.weight.detach().double().sum())))
        return plain(model, wanted)

    config = run_of("full", tiny_sd_folder, tmp_path)
    config = replace(config, validation=replace(config.validation, prompts=("a",)))
    finetune(with_loop(config, steps=3), tmp_path / "run", draw, progress=False)
    more = replace(config, validation=replace(config.validation, prompts=("a", "b")))
    finetune(with_loop(more, steps=6), tmp_path / "run", draw, progress=False)
    begins = [weight for prompts, weight in (drawn[0], next(one for one in drawn if one[0] == ["a", "b"]))]
    assert begins[0] == begins[1]
    assert drawn[-1][1] != begins[0]


def test_a_run_that_has_had_enough_is_finished(tmp_path, tiny_sd_folder, monkeypatch):
    monkeypatch.setattr("ldm.training.finetune.Judge", lambda *_, **__: lambda numbers: True)
    config = run_of("lora", tiny_sd_folder, tmp_path)
    config = replace(config, validation=replace(config.validation, measure_every=2, stop_on_overfit=True))
    paths = finetune(config, tmp_path / "run", plain, progress=False)
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").step == 2
    before = {path.name: path.stat().st_mtime_ns for path in paths}
    again = finetune(config, tmp_path / "run", plain, progress=False)
    assert {path.name: path.stat().st_mtime_ns for path in again} == before
