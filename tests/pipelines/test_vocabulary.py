"""A model that knows its vocabulary: own defaults, warnings of unknown words, and its place as the default model."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.checkpoint import embedded, hub
from ldm.data.emoji_scenes.world import FULL
from ldm.vocabulary import of_world, read_vocabulary, write_vocabulary
from pipelines import TextToImagePipeline

DEFAULTS = {"num_inference_steps": 3, "guidance_scale": 4.0, "sampler": "dpmpp_2m"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that says what it knows, and how it likes to be called."""
    folder = tmp_path_factory.mktemp("own") / "model"
    shutil.copytree(tiny_sd_folder, folder)
    write_vocabulary(of_world(FULL, DEFAULTS), folder)
    return folder


def load(folder: Path) -> TextToImagePipeline:
    pipe = TextToImagePipeline.from_pretrained(folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(folder: Path) -> TextToImagePipeline:
    return load(folder)


@pytest.fixture(scope="module")
def plain(tiny_sd_folder: Path) -> TextToImagePipeline:
    return load(tiny_sd_folder)


def draw(pipe: TextToImagePipeline, **options: Any) -> Any:
    return pipe("a cat", seed=5, output_type="np", **options)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"guidance_scale": 7.5},
        {"gamma": 2.0},
        {"num_inference_steps": 2},
        {"sampler": "euler"},
        {"guidance_scale": 1.0, "sampler": "ddim", "num_inference_steps": 4},
    ],
)
def test_own_defaults_stand_in_for_what_is_not_given(
    pipe: TextToImagePipeline, plain: TextToImagePipeline, given: dict[str, Any]
) -> None:
    own = {name: value for name, value in DEFAULTS.items() if not (name == "guidance_scale" and "gamma" in given)}
    wanted = draw(plain, **{**own, **given})
    result = draw(pipe, **given)
    np.testing.assert_array_equal(result.images, wanted.images)
    for name in ("steps", "guidance_scale", "sampler"):
        assert result.records[0][name] == wanted.records[0][name]


def test_a_scheduler_that_was_set_is_kept(pipe: TextToImagePipeline, plain: TextToImagePipeline) -> None:
    import diffusers

    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    wanted = draw(plain, num_inference_steps=3, guidance_scale=4.0, sampler=pipe.scheduler)
    np.testing.assert_array_equal(draw(pipe).images, wanted.images)


def test_without_own_defaults_they_are_those_of_diffusers(plain: TextToImagePipeline) -> None:
    record = draw(plain).records[0]
    assert (record["steps"], record["guidance_scale"], record["sampler"]) == (50, 7.5, "ddim")


def test_unknown_words_are_named_where_the_pipeline_is_called(pipe: TextToImagePipeline) -> None:
    prompts = {"prompt": ["a bananna", 'a sign that says "QUARK"'], "negative_prompt": ["a cat", "blurry"]}
    with pytest.warns(UserWarning, match=r'"bananna" \(near: banana\), "blurry"') as caught:
        pipe(**prompts, num_inference_steps=1)
    assert [Path(warning.filename).name for warning in caught] == ["test_vocabulary.py"]
    with pytest.warns(UserWarning, match=r'"kat" .*vocabulary --model .*own.*/model`'):
        pipe.stream("a (kat:1.3) [cat]", prompt_syntax="a1111")


def test_known_words_and_other_models_do_not_warn(pipe: TextToImagePipeline, plain: TextToImagePipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("Two cats' bananas, at the beach", negative_prompt="", num_inference_steps=1)
        pipe("a (cat:1.3) [dog]", prompt_syntax="a1111", num_inference_steps=1)
        plain("zorp blarg", num_inference_steps=1)


def test_vocabulary_is_saved_with_the_model(
    pipe: TextToImagePipeline, plain: TextToImagePipeline, folder: Path, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "own")
    plain.save_pretrained(tmp_path / "plain")
    assert read_vocabulary(tmp_path / "own") == read_vocabulary(folder) == pipe.model.vocabulary
    assert not (tmp_path / "plain" / "vocabulary.json").exists()


def test_the_embedded_model_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_embedded_folder", lambda: folder)
    pipe = TextToImagePipeline.from_pretrained(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match=r"`ldm vocabulary` lists"):
        result = pipe("a bananna", seed=1)
    assert result.records[0]["model"] == "model"
    assert result.records[0]["steps"] == 3


def test_a_build_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_embedded_folder", lambda: tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no model is named.*nothing is not there.*--model"):
        TextToImagePipeline.from_pretrained()


def test_the_shipped_model_draws_with_its_own_defaults() -> None:
    try:
        folder = embedded()
    except FileNotFoundError:
        pytest.skip("this checkout has no embedded model")
    assert folder == ROOT / "ldm" / "weights" / "emoji-scenes"
    pipe = TextToImagePipeline.from_pretrained(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    vocabulary = pipe.model.vocabulary
    assert vocabulary is not None
    assert set(vocabulary.defaults) == set(DEFAULTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = pipe("a cat holding a banana", guidance_scale=7.5, seed=1).records[0]
    assert (record["guidance_scale"], record["steps"]) == (7.5, vocabulary.defaults["num_inference_steps"])
    assert all(not vocabulary.unknown(example) for example in vocabulary.examples)


def test_drawing_loads_no_compiler_and_no_other_library_of_the_field(folder: Path, tmp_path: Path) -> None:
    heavy = ("torch._dynamo", "sympy", "diffusers", "transformers", "accelerate", "huggingface_hub")
    code = (
        "import json, sys; from pipelines.cli import main;"
        f"status = main(['a', 'cat', '-m', {str(folder)!r}, '--steps', '1', '--device', 'cpu', '-q']);"
        f"print(json.dumps([status, [name for name in {heavy!r} if name in sys.modules]]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert json.loads(ran.stdout.splitlines()[-1]) == [0, []], ran.stderr
