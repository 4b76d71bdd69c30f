"""A whole run, tiny but real: four stages on disk, and in the end a model that two programs draw with."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.training import STAGES, RunConfig
from ldm.checkpoint import load_folder
from ldm.data.emoji_scenes import EmojiScenes, World
from ldm.diffusion.schedule import NoiseSchedule
from ldm.training.adopt import adopt
from ldm.training.bpe import build_tokenizer
from ldm.training.captions import token_ids
from ldm.training.denoiser import DenoiserTraining
from ldm.training.fingerprint import fingerprint, finished
from ldm.training.pool import latents_of
from ldm.training.run import train
from ldm.training.text import text_config
from pipelines import TextToImagePipeline
from tests.ldm.training.conftest import RUN, with_loop, with_steps
from text_encoder.clip import CLIPTextModel
from vae import AutoencoderKL


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(RUN, folder, progress=False)
    return folder


def test_every_stage_leaves_its_log_and_result(output):
    for stage in ("classifier", "autoencoder", "text", "denoiser"):
        lines = [json.loads(line) for line in (output / stage / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        assert (output / stage / "finished").exists()
    assert (output / "denoiser" / "samples" / "step-00000004.png").stat().st_size > 1000
    assert set(json.loads((output / "text" / "measured.json").read_text())) >= {"to_text", "nouns"}


def test_the_model_draws_in_ours_and_in_diffusers_alike(output):
    from diffusers import StableDiffusionPipeline

    ours = TextToImagePipeline.from_pretrained(output / "model", dtype=torch.float32)
    theirs = StableDiffusionPipeline.from_pretrained(output / "model", safety_checker=None, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)

    def drawn(either):
        request = {"num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "pt"}
        return either("a cat left of a banana", generator=torch.Generator().manual_seed(0), **request).images

    torch.testing.assert_close(drawn(ours), drawn(theirs), rtol=0, atol=1e-3)


def test_the_model_knows_its_world(output):
    model = load_folder(output / "model")
    assert model.vocabulary is not None
    assert set(model.vocabulary.unknown("a cat wearing a helicopter")) == {"helicopter"}
    assert model.dtype == torch.float16


def test_finished_stages_are_not_done_again(output):
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    train(RUN, output, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def test_a_finished_stage_goes_on_where_the_run_got_longer(tmp_path):
    train(RUN, tmp_path, ("classifier",), progress=False)
    longer = replace(RUN, classifier=replace(RUN.classifier, loop=replace(RUN.classifier.loop, steps=6)))
    train(longer, tmp_path, ("classifier",), progress=False)
    lines = [json.loads(line) for line in (tmp_path / "classifier" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_fresh_begins_a_stage_anew(output, tmp_path):
    train(RUN, tmp_path, ("classifier",), progress=False)
    first = (tmp_path / "classifier" / "log.jsonl").stat().st_mtime_ns
    train(RUN, tmp_path, ("classifier",), fresh=True, progress=False)
    assert (tmp_path / "classifier" / "log.jsonl").stat().st_mtime_ns > first


def test_a_run_goes_on_from_a_finished_model(output, tmp_path):
    """After no more than one step at a tiny rate the denoiser is still that of the model; the rest is taken over."""
    loop = replace(RUN.denoiser.loop, steps=1, optimizer=replace(RUN.denoiser.loop.optimizer, rate=1e-9))
    run = replace(RUN, denoiser=replace(RUN.denoiser, loop=loop))
    train(run, tmp_path, start=output / "model", progress=False)
    old, new = load_folder(output / "model"), load_folder(tmp_path / "model")
    for part, module in old.networks().items():
        found = new.networks()[part].state_dict()
        for name, value in module.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)
    for name in ("autoencoder", "text"):
        assert finished(tmp_path / name, fingerprint(run, name)) > 4


def test_a_run_from_a_model_goes_on_from_the_same_model_alone(output, tmp_path):
    run = with_loop(RUN, steps=1)
    train(run, tmp_path, start=output / "model", progress=False)
    train(RUN, tmp_path, start=output / "model", progress=False)
    lines = (tmp_path / "denoiser" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="holds a run already"):  # it is another one by now
        train(RUN, tmp_path, start=tmp_path / "model", progress=False)


def test_half_a_beginning_is_begun_again(output, tmp_path):
    scenes, start = EmojiScenes("train", 0, world=World(RUN.world)), tmp_path / "denoiser" / "start.safetensors"
    adopt(output / "model", RUN, scenes, tmp_path)
    start.unlink()  # the last file that is written
    adopt(output / "model", RUN, scenes, tmp_path)
    assert start.exists()


def test_a_model_of_other_words_is_refused(output, tmp_path):
    run = replace(RUN, world=replace(RUN.world, nouns=(*RUN.world.nouns, "fox")))
    with pytest.raises(ValueError, match="was made for other words"):
        train(run, tmp_path, start=output / "model", progress=False)


def test_two_exchanged_words_are_other_words(output, tmp_path):
    """A caption without them is read the same."""
    shutil.copytree(output / "model", tmp_path / "model")
    file = tmp_path / "model" / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["crown</w>"], ids["rock</w>"] = ids["rock</w>"], ids["crown</w>"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="was made for other words"):
        train(RUN, tmp_path / "run", start=tmp_path / "model", progress=False)


def test_what_another_run_file_made_is_refused(output, tmp_path):
    wider = replace(RUN, classifier=replace(RUN.classifier, channels=(8, 24)))
    with pytest.raises(ValueError, match="classifier was made by another run file"):
        train(wider, output, progress=False)
    with pytest.raises(ValueError, match="autoencoder was made by another run file"):  # used, though not named
        train(wider, output, ("denoiser",), progress=False)
    shutil.copytree(output / "text", tmp_path / "text")
    (tmp_path / "text" / "finished").unlink()
    other = replace(RUN, text=replace(RUN.text, negatives=2))  # its weights would fit
    with pytest.raises(ValueError, match="text was made by another run file"):
        train(other, tmp_path, ("text",), progress=False)


def test_folders_from_before_are_taken_with_a_warning(output, tmp_path):
    shutil.copytree(output / "classifier", tmp_path / "classifier")
    (tmp_path / "classifier" / "finished").write_text("4\n")
    with pytest.warns(UserWarning, match="was begun before stages noted their run file"):
        assert train(RUN, tmp_path, ("classifier",), progress=False)


@pytest.mark.parametrize(("stage", "later"), [("classifier", "autoencoder"), ("text", "denoiser")])
@pytest.mark.parametrize("fresh", [False, True])
def test_what_a_kept_stage_was_trained_on_stays(output, tmp_path, stage, later, fresh):
    shutil.copytree(output, tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    longer = replace(RUN, **{stage: with_steps(getattr(RUN, stage), 6)})
    with pytest.raises(ValueError, match=f"{later} was made with the {stage} that .* --stage ([a-z,]+), or") as refused:
        train(longer, tmp_path / "run", (stage,), fresh=fresh, progress=False)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    advised = re.findall("--stage ([a-z,]+), or", str(refused.value))[0].split(",")
    assert {stage, later, "denoiser"} == {*advised}
    assert train(longer, tmp_path / "run", advised, fresh=True, progress=False)


def test_a_trial_of_a_few_steps_goes_on_as_the_whole_run(output, tmp_path):
    trial = replace(RUN, **{name: with_steps(getattr(RUN, name), 1) for name in STAGES})
    assert train(trial, tmp_path / "new", progress=False)
    assert train(RUN, tmp_path / "new", progress=False)
    assert train(trial, tmp_path / "further", start=output / "model", progress=False)
    assert train(RUN, tmp_path / "further", start=output / "model", progress=False)
    for run in ("new", "further"):
        lines = (tmp_path / run / "denoiser" / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_stage_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="'denoise' is no stage: there are classifier, autoencoder, text, denoiser"):
        train(RUN, tmp_path, ("denoise",), progress=False)


def test_a_stage_names_the_one_it_needs(tmp_path):
    with pytest.raises(ValueError, match="train the stage 'classifier' first"):
        train(RUN, tmp_path, ("autoencoder",), progress=False)


@pytest.fixture
def stage(run: RunConfig) -> DenoiserTraining:
    scenes = EmojiScenes("train", 0, world=World(run.world))
    tokenizer = build_tokenizer(["cat"], 32)
    pool = torch.arange(8.0)[:, None, None, None].expand(8, 4, 4, 4)
    run = replace(run, denoiser=replace(run.denoiser, empty=0.25))
    text = CLIPTextModel(text_config(run, tokenizer))
    return DenoiserTraining(run, scenes, AutoencoderKL(run.autoencoder.model), tokenizer, text, pool)


def test_examples_pair_latents_with_captions_of_their_scene(stage):
    """Number 13 is scene 5 of the pool, told a second time."""
    assert stage.example(13)["latents"].unique().item() == 5
    told = stage.scenes.caption(5, 1)
    assert stage.example(13)["ids"].tolist() in (token_ids(stage.tokenizer, told), token_ids(stage.tokenizer, ""))
    assert stage.scenes.caption(5) == stage.scenes[5].caption != told
    assert not torch.equal(stage.example(5)["noise"], stage.example(13)["noise"])


def test_shares_of_examples_are_as_configured(stage):
    examples = [stage.example(i) for i in range(2000)]
    empty = sum(one["ids"].tolist() == token_ids(stage.tokenizer, "") for one in examples) / 2000
    logs = torch.stack([one["sigma"] for one in examples]).log()
    assert abs(empty - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    assert abs(logs.median() - stage.config.sigma_mean) < 0.15
    levels = NoiseSchedule(stage.config.diffusion).training_sigmas
    assert levels[0] * 0.999 <= logs.exp().min()
    assert logs.exp().max() <= levels[-1] * 1.001


def test_without_a_pool_every_scene_is_encoded(run, tmp_path):
    scenes = EmojiScenes("train", 0, world=World(run.world))
    tokenizer = build_tokenizer(["cat"], 32)
    autoencoder = AutoencoderKL(run.autoencoder.model)
    text = CLIPTextModel(text_config(run, tokenizer))
    stage = DenoiserTraining(run, scenes, autoencoder, tokenizer, text, None)
    pool = latents_of(autoencoder, scenes, run.size, 3, tmp_path / "pool.safetensors")
    torch.testing.assert_close(stage.example(2)["latents"], pool[2].float(), rtol=2e-2, atol=2e-2)


def test_pool_is_kept_until_the_autoencoder_changes(run, tmp_path):
    scenes, path = EmojiScenes("train", 0, world=World(run.world)), tmp_path / "pool.safetensors"
    autoencoder = AutoencoderKL(run.autoencoder.model)
    first = latents_of(autoencoder, scenes, run.size, 4, path)
    written = path.stat().st_mtime_ns
    assert torch.equal(latents_of(autoencoder, scenes, run.size, 4, path), first)
    assert path.stat().st_mtime_ns == written
    with torch.no_grad():
        autoencoder.encoder.conv_in.weight.mul_(2)
    assert not torch.equal(latents_of(autoencoder, scenes, run.size, 4, path), first)
