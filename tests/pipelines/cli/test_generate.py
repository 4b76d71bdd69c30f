"""`ldm "PROMPT"` on a real folder: pictures, names, messages and exit statuses."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.checkpoint import hub
from ldm.vocabulary import Vocabulary, write_vocabulary
from pipelines import TextToImagePipeline
from pipelines.result import read_record

Command = Callable[..., Any]
SHORT = ("--steps", "2", "--device", "cpu")


@pytest.fixture
def draw(ldm: Command, tiny_sd_folder: Path) -> Command:
    return lambda *arguments: ldm("-m", str(tiny_sd_folder), *SHORT, *arguments)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_draws_what_the_pipeline_draws(draw: Command, tmp_path: Path, tiny_sd_folder: Path) -> None:
    ran = draw(
        *("a", "cat", "--seed", "7", "--size", "64x72", "--negative", "blurry", "--guidance-scale", "3"),
        *("--sampler", "dpmpp_2m", "--karras", "--clip-skip", "1", "--prompt-syntax", "a1111"),
        *("--deep-cache", "2", "--merge-tokens", "0.5", "--guidance-interval", "0.3,20"),
    )
    assert (ran.status, ran.out, ran.err) == (0, "a-cat-7.png\n", "")
    pipe = TextToImagePipeline.from_pretrained(tiny_sd_folder, device="cpu")
    expected = pipe(
        "a cat",
        negative_prompt="blurry",
        width=64,
        height=72,
        num_inference_steps=2,
        guidance_scale=3.0,
        seed=7,
        sampler="dpmpp_2m",
        grid="karras",
        clip_skip=1,
        prompt_syntax="a1111",
        deep_cache=2,
        merge_tokens=0.5,
        guidance_interval=(0.3, 20.0),
    )
    with Image.open(tmp_path / "a-cat-7.png") as image:
        assert image.size == (64, 72)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.images[0]))
    assert read_record(tmp_path / "a-cat-7.png") == expected.records[0]


def test_random_seed_is_told_and_stored(draw: Command, tmp_path: Path) -> None:
    ran = draw("a cat")
    seed = int(ran.err.removeprefix("seed "))
    assert ran.out == f"a-cat-{seed}.png\n"
    assert read_record(tmp_path / ran.out.strip())["seed"] == seed
    again = draw("a cat")
    assert again.out != ran.out


def test_several_pictures_have_their_own_seeds(draw: Command, tmp_path: Path) -> None:
    ran = draw("a cat", "-n", "3", "--seed", str(2**32 - 2))
    assert ran.out.split() == ["a-cat-4294967294.png", "a-cat-4294967295.png", "a-cat-0.png"]
    single = draw("a cat", "--seed", "0", "-o", "alone.png")
    assert single.out == "alone.png\n"
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "a-cat-0.png").read_bytes()


def test_json_is_one_document(draw: Command, tmp_path: Path) -> None:
    ran = draw("a cat", "-n", "2", "--seed", "4", "--json", "-o", "猫 {index}.png")
    images = json.loads(ran.out)["images"]
    assert [(image["path"], image["seed"]) for image in images] == [("猫 0.png", 4), ("猫 1.png", 5)]
    assert [image["record"] for image in images] == [read_record(tmp_path / image["path"]) for image in images]


def test_nothing_is_overwritten(draw: Command, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_text("precious")
    (tmp_path / "out-0001.png").write_text("too")
    ran = draw("a cat", "-o", "out.png", "-n", "2", "--seed", "1")
    assert ran.out.split() == ["out-0002.png", "out-0003.png"]
    assert (tmp_path / "out.png").read_text() == "precious"
    assert (tmp_path / "out-0001.png").read_text() == "too"
    assert files(tmp_path) == ["out-0001.png", "out-0002.png", "out-0003.png", "out.png"]


def test_output_may_be_new_folders_a_folder_or_a_pattern(draw: Command, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    pattern = "new one/🍌 é/{seed}-{index}-{other}.png"
    assert draw("a cat", "-o", pattern, "--seed", "3", "-n", "2").out.splitlines() == [
        "new one/🍌 é/3-0-{other}.png",
        "new one/🍌 é/4-1-{other}.png",
    ]
    assert draw("a cat", "-o", "there", "--seed", "3").out == "there/a-cat-3.png\n"
    assert draw("a cat", "-o", "plain", "--seed", "3").out == "plain.png\n"
    assert draw("a cat", "-o", "fresh/", "--seed", "3").out == "fresh/a-cat-3.png\n"
    assert not [name for name in files(tmp_path) if ".ldm-" in name]


def test_prompt_from_standard_input(draw: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("ein Schnee-Bär\n".encode())))
    assert draw("-", "--seed", "1").out == "ein-schnee-bär-1.png\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff\xfe")))
    ran = draw("-", "--seed", "1")
    assert ran.status == 2
    assert "not UTF-8" in ran.err


def test_quiet_says_nothing(draw: Command) -> None:
    long = "a very long prompt " * 30
    loud, quiet = draw(long, "-o", "a.png"), draw(long, "-o", "b.png", "-q")
    assert loud.err.startswith("seed ")
    assert (quiet.status, quiet.out, quiet.err) == (0, "b.png\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "the prompt is empty"),
        (["  "], "the prompt is empty"),
        (["a", "--sampler", "dpmpp_2n"], "dpmpp_2m"),
        (["a", "--device", "toaster"], "toaster"),
        (["a", "--dtype", "float7"], "float7"),
        (["a", "-o", "a/" + "n" * 300 + ".png"], "choose another place with -o"),
        (["a", "-o", "/dev/null"], "no picture file"),
        (["a", "-o", "n" * 252 + ".png"], "choose another place with -o"),
        (["a", "-o", "taken/out.png"], "choose another place with -o"),
        (["a \udcff cat"], "UTF-8"),
    ],
)
def test_bad_input_is_told_in_one_line(draw: Command, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    ran = draw(*arguments, "--seed", "1")
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.err
    assert ran.err.startswith("ldm: ")
    assert ran.err.count("\n") == 1
    assert files(tmp_path) == ["taken"]


def test_unwritable_folder_is_found_before_drawing(draw: Command, tmp_path: Path) -> None:
    places = ["/proc/out.png"] if Path("/proc/self").exists() else []
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(mode=0o500)
        places.append("shut/out.png")
    for path in places:
        ran = draw("a cat", "-o", path)
        assert ran.status == 2
        assert f"cannot write to {path}" in ran.err
        assert "seed" not in ran.err


@pytest.mark.parametrize(
    ("model", "words"), [("missing", "there is no folder missing"), (".", "model_index.json"), (None, "--model")]
)
def test_missing_model(
    ldm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str | None, words: str
) -> None:
    monkeypatch.setattr(hub, "_embedded_folder", lambda: tmp_path / "left out")
    ran = ldm("a cat", *(["-m", model] if model else []), "--json", "-o", "new/out.png")
    assert (ran.status, json.loads(ran.out)) == (2, {"images": []})
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_the_embedded_one_draws(
    ldm: Command, tiny_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "embedded"
    shutil.copytree(tiny_sd_folder, folder)
    write_vocabulary(Vocabulary(words=("a", "cat", "and", "dog"), defaults={"num_inference_steps": 2}), folder)
    monkeypatch.setattr(hub, "_embedded_folder", lambda: folder)
    line = ("a catt and a dog", "-n", "2", "--seed", "1", "--device", "cpu")
    ran = ldm(*line, "--json")
    images = json.loads(ran.out)["images"]
    assert [(image["record"]["model"], image["record"]["steps"]) for image in images] == [("embedded", 2)] * 2
    note = 'ldm: note: the model has never seen "catt" (near: cat); `ldm vocabulary` lists what it can draw\n'
    assert ran.err == note  # once for both pictures
    assert ldm(*line, "-q").err == ""


def test_debug_shows_the_traceback(ldm: Command) -> None:
    assert "Traceback" in ldm("a cat", "-m", "missing", "--debug").err


class Broken:
    """A pipeline that draws one picture and then fails."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def set_progress_bar_config(self, **_: Any) -> None: ...

    def __call__(self, prompt: str, *, seed: int, **_: Any) -> Any:
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))], records=[{"prompt": prompt, "seed": seed}])


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ArithmeticError("the U-Net gave NaN"), 1, "the U-Net gave NaN"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "a smaller --size"),
        (RuntimeError("odd"), 1, "RuntimeError: odd (--debug shows where)"),
        (ImportError("no torch"), 1, "ldm doctor"),
        (ValueError("clip_skip is too large"), 2, "clip_skip is too large"),
    ],
)
def test_failure_keeps_what_is_drawn(
    ldm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, words: str
) -> None:
    monkeypatch.setattr(TextToImagePipeline, "from_pretrained", lambda *_, **__: Broken(error))
    ran = ldm("a cat", "-m", "model", "-n", "3", "--seed", "1", "--json")
    assert ran.status == status
    assert words in ran.err
    assert [image["path"] for image in json.loads(ran.out)["images"]] == ["a-cat-1.png"]
    assert files(tmp_path) == ["a-cat-1.png"]


def test_picture_is_rescued_when_its_folder_is_gone(
    draw: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    (tmp_path / "spare").mkdir()
    call = TextToImagePipeline.__call__

    def vandal(self: Any, *args: Any, **kwargs: Any) -> Any:
        (tmp_path / "out").write_text("suddenly a file")
        return call(self, *args, **kwargs)

    monkeypatch.setattr(TextToImagePipeline, "__call__", vandal)
    ran = draw("a cat", "-o", "out/a.png", "--seed", "5")
    assert ran.status == 1
    assert "the picture is safe in" in ran.err
    assert read_record(tmp_path / "spare" / "ldm-5.png")["prompt"] == "a cat"
