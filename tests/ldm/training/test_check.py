"""`ldm train RUN --check`: a page that says what a run would do, and a contact sheet; nothing else is left."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm import batching
from ldm.batching import Memory
from ldm.training import trial
from ldm.training.check import SHEET, _disk, check
from ldm.training.checkpoint import newest
from ldm.training.forecast import Forecast, Timing
from ldm.training.prior import prior_place
from ldm.training.ready import Ready, ready
from ldm.training.trial import durations, largest, rehearsed
from ldm.training.verify import tensors_of
from pipelines.cli import main
from tests.ldm.training.tuning import config_of, no_draw, pictures, plain, train

CPU = torch.device("cpu")


def dry(config, folder: Path) -> Ready:
    return ready(config, folder, no_draw, progress=False, cpu=True, dry=True)


def block(page: str, name: str) -> str:
    """The lines of a name as one."""
    found = re.search(rf"^{name} +(.*(?:\n +.*)*)", page, re.MULTILINE)
    assert found, page
    return " ".join(found[1].split())


@pytest.mark.parametrize("mode", ["lora", "autoencoder"])
def test_the_page_says_what_is_trained_on_what_and_how(tmp_path, tiny_sd_folder, mode):
    folder = pictures(tmp_path / "pictures", 24)
    tables = {"validation": {"prompts": ["a square"], "measure_every": 3}, "loop": {"steps": 40, "batch": 4}}
    config = config_of(tiny_sd_folder, folder, mode, **tables)
    page = check(config, tmp_path / "out", plain, progress=False)
    run = dry(config, tmp_path / "out")
    count = sum(parameter.numel() for parameter in run.prepared.trained.values())
    part = "unet" if mode == "lora" else "autoencoder"
    assert block(page, "trained") == f"{part} {count:,} in {len(run.prepared.trained)} tensors, float32"
    still = sum(p.numel() for p in run.model.autoencoder.parameters() if not p.requires_grad)
    assert f"autoencoder {still:,} in" in block(page, "frozen")
    told = block(page, "pictures")
    assert "24 of 24 pictures are trained on, 24 in an epoch 2 of these are held out" in told
    for (w, h), number in run.pictures.shapes().items():
        assert re.search(rf"{w} x {h} #+ {number}\b", told)
    assert f"40 of 4 pictures: {160 / len(run.pictures):.3g} epochs" in block(page, "steps")
    assert re.match(r"[\d.]+ MiB at most: parameters [\d.]+ MiB, .*activations", block(page, "memory"))
    assert re.fullmatch(r"[\d.]+ [MG]iB a checkpoint, of which 2 are kept", block(page, "disk"))
    waiting = r"waiting for pictures(?:: raise loop.workers)?"
    assert re.match(rf"[\d.e-]+ s a step, \d+% of it {waiting} about \d+ (?:s|min) in all", block(page, "time"))
    assert len(page.splitlines()) < 40
    assert max(map(len, page.splitlines())) < 120
    assert [path.name for path in (tmp_path / "out").rglob("*")] == [SHEET]
    with Image.open(tmp_path / "out" / SHEET) as sheet:
        assert sheet.size[0] > 6 * 128, "six columns"
    assert str(tmp_path / "out" / SHEET) in block(page, "sheet")


@pytest.fixture
def untraced(monkeypatch):
    """The forecast is 30 MiB, most of it activations."""
    monkeypatch.setattr("ldm.training.check.memory", lambda *given: Forecast(2**20, 2**20, 2**20, 27 * 2**20, 0))


@pytest.mark.usefixtures("untraced")
def test_every_problem_is_told_with_ten_names_and_a_count(tmp_path, tiny_sd_folder):
    folder = pictures(tmp_path / "pictures", 8)
    for number in range(13):
        (folder / f"broken-{number:02}.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(folder / "tiny.png")
    config = config_of(tiny_sd_folder, folder, loop={"steps": 50, "optimizer": {"rate": 1.0}})
    page = check(config, tmp_path / "out", plain, progress=False)
    told = block(page, "pictures")
    assert "8 of 22 pictures are trained on" in told
    assert "13 unreadable, left out: " in told
    assert told.count("is not a picture") == 10
    assert "and 3 more" in told
    assert "1 too small, left out:" in told
    assert "1. optimizer.rate = 1 is 10000 times" in block(page, "suspicious")


def test_the_command_prints_it(tmp_path, tiny_sd_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pictures")
    (tmp_path / "run.toml").write_text(
        f'mode = "lora"\nname = "tiny"\nmodel = "{tiny_sd_folder}"\n'
        '[data]\npath = "pictures"\nsize = 32\nbucket_step = 8\nsmallest = 16\n'
        '[loop]\nsteps = 20\nbatch = 2\nprecision = "no"\n[prior]\nprompts = ["a square"]\ncount = 3\n'
        '[validation]\nprompts = ["a square"]\nsteps = 5\n'
    )
    before = set(tmp_path.rglob("*"))
    assert main(["train", "run.toml", "--check", "--no-progress"]) == 0
    page = capsys.readouterr().out
    assert "drawing samples" in block(page, "time")
    assert "drawing the prior's" in block(page, "time")
    assert set(tmp_path.rglob("*")) - before == {
        tmp_path / "runs",
        tmp_path / "runs/tiny",
        tmp_path / "runs/tiny" / SHEET,
    }


@pytest.mark.parametrize("kind", ["empty", "missing", "broken"])
def test_pictures_that_cannot_be_used_are_an_error(tmp_path, tiny_sd_folder, kind):
    folder = tmp_path / "pictures"
    if kind != "missing":
        folder.mkdir()
    if kind == "broken":
        (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises((ValueError, OSError), match="pictures"):
        check(config_of(tiny_sd_folder, folder), tmp_path / "out", no_draw, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("untraced")
def test_a_run_that_does_not_fit_is_not_tried(tmp_path, tiny_sd_folder, monkeypatch):
    config = config_of(tiny_sd_folder, pictures(tmp_path / "pictures"))
    monkeypatch.setattr(batching, "memory", lambda device: Memory(0, 0, 1))
    monkeypatch.setattr(trial, "seconds", None)
    page = check(config, tmp_path, no_draw, progress=False)
    assert re.search(r"MORE THAN IS FREE, [\d.]+ MiB: set loop.checkpointing = true", block(page, "memory"))
    assert "not measured" in block(page, "time")


@pytest.mark.usefixtures("untraced")
def test_running_out_of_memory_on_trial_is_told(tmp_path, tiny_sd_folder, monkeypatch):
    config = config_of(tiny_sd_folder, pictures(tmp_path / "pictures"))

    def full(stage, *, cpu):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(trial, "seconds", full)
    page = check(config, tmp_path, no_draw, progress=False)
    assert "did not fit into memory: set loop.checkpointing" in block(page, "time")


def test_durations_add_up(tmp_path, tiny_sd_folder, monkeypatch):
    """Of 10 steps: 4 sets of 2 prompts in 25 steps each, 5 measures, 3 of 5 prior's pictures, 6 own in 2 shapes."""
    folder = pictures(tmp_path / "pictures", 6)
    tables = {
        "prior": {"prompts": ["a square"], "count": 5},
        "validation": {"prompts": ["a", "b"], "measure_every": 3, "steps": 25},
        "loop": {"steps": 10, "sample_every": 4},
    }
    run = dry(config_of(tiny_sd_folder, folder, **tables), tmp_path)
    pictures(prior_place(run.config, run.model_hash, tmp_path), 2)
    monkeypatch.setattr(trial, "seconds", lambda stage, *, cpu: Timing(2.0, 0.25))
    monkeypatch.setattr(trial, "_drawn", lambda run, draw, steps, device: 1.0 + 0.5 * steps)
    monkeypatch.setattr(trial, "_encoding", lambda stage, device: 0.1)
    monkeypatch.setattr(trial, "_measure", lambda run, stage, device: 0.01)
    found = durations(run, rehearsed(run, tmp_path / "cache", CPU), plain, tmp_path, CPU)
    assert found.steps == 20.0
    assert found.drawing == pytest.approx(4 * 2 * 13.5)
    assert found.prior == pytest.approx(3 * 13.5)
    assert found.encoding == pytest.approx(0.1 * (2 * 6 + 2 * 5)), "own ones mirrored too, the prior's in both shapes"
    assert found.measuring == pytest.approx(0.05)
    assert found.whole == pytest.approx(20 + 108 + 40.5 + 2.2 + 0.05)


def test_a_trial_takes_latents_and_texts_from_a_cache_where_the_run_does(tmp_path, tiny_sd_folder):
    config = config_of(tiny_sd_folder, pictures(tmp_path / "pictures"))

    def example(**data):
        run = dry(replace(config, data=replace(config.data, **data)), tmp_path)
        stage = rehearsed(run, tmp_path / "cache", CPU)
        assert run.stage.latents is None, "the run itself is as it was"
        return stage.example(0)

    assert {"mean", "std", "tokens"} <= example().keys()
    assert {"pixels", "tokens"} <= example(crop="random").keys()
    assert {"mean", "ids"} <= example(shuffle_tags=True).keys()
    assert {"pixels", "ids"} <= example(cache=False).keys()


def test_memory_is_foreseen_for_the_largest_shape(tmp_path, tiny_sd_folder):
    run = dry(config_of(tiny_sd_folder, pictures(tmp_path / "pictures", 12), loop={"batch": 4}), tmp_path)
    areas = {w * h for w, h in run.pictures.shapes()}
    assert len(areas) == 2
    for position in largest(run):
        w, h = run.pictures.outline(position).placed.bucket
        assert w * h == max(areas)


def test_the_disk_is_foreseen(tmp_path, tiny_sd_folder):
    """A checkpoint's size as written, the snapshots of averages, and that there is too little room."""
    loop = {"steps": 6, "checkpoint_every": 2, "keep": 1, "ema_lengths": [0.05, 0.1]}
    config = config_of(tiny_sd_folder, pictures(tmp_path / "pictures"), loop=loop)
    run = dry(config, tmp_path / "out")
    moments = 2 * sum(parameter.nbytes for parameter in run.prepared.trained.values())
    forecast = Forecast(0, 0, moments, 0, 0)
    train(config, tmp_path / "run")
    found = newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    written = sum(value.nbytes for name, value in tensors_of(found).items() if name != "random")
    files = (tmp_path / "run" / "averages").rglob("*.safetensors")
    snapshots = sum(value.nbytes for path in files for value in load_file(path).values())
    (line,) = _disk(run, forecast, 2**40)
    checkpoint, averages = map(float, re.findall(r"([\d.]+) MiB", line))
    assert checkpoint == pytest.approx(written / 2**20, abs=0.05)
    assert averages == pytest.approx(snapshots / 2**20, abs=0.05)
    _, warning = _disk(run, forecast, 1000)
    assert warning.startswith("MORE THAN IS FREE, 0.0 MiB")
