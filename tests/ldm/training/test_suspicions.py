"""Each suspicion is raised by a run made for it, alone, and none by the run files that are shipped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from configs.files import from_dict, read, template, templates
from configs.finetuning import ControlConfig, DataConfig, FineTuneConfig, InversionConfig, PriorConfig, SourceConfig
from ldm.data.pictures.scan import scan
from ldm.data.pictures.set import Pictures
from ldm.training.ready import Ready, ready
from ldm.training.suspicions import RATES, suspicions
from ldm.training.suspicions import rate as suspicious_rate
from ldm.vocabulary import Vocabulary
from tests.ldm.training.tuning import no_draw

GPU = torch.device("cuda")  # of a run that is looked at elsewhere
CAPTIONS = [f"a sks square, number {number}" for number in range(24)]


def drawn(folder: Path, captions: list[str], size: tuple[int, int] = (64, 64), hints: Path | None = None) -> Path:
    """Different pictures with these captions; none beside a picture whose caption is ""."""
    for number, caption in enumerate(captions):
        for place in filter(None, (folder, hints)):
            place.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", size, (number % 256, 90, number // 256))
            image.putpixel((3, 3), (255, 0, 0))
            image.save(place / f"{number:03}.png")
        if caption:
            (folder / f"{number:03}.txt").write_text(caption)
    return folder


def config_of(model: Path, folder: Path, **tables: Any) -> FineTuneConfig:
    """A run that nothing is wrong with, but for what the tables change."""
    data = {"path": str(folder), "bucket_step": 8, "smallest": 16} | tables.pop("data", {})
    loop = {"steps": 100, "batch": 4, "optimizer": {"rate": 1e-4, "warmup": 5}} | tables.pop("loop", {})
    given = {"mode": "lora", "name": "tiny", "model": str(model), "data": data, "loop": loop}
    return from_dict(given | tables, FineTuneConfig)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_sd_folder) -> Ready:
    folder = drawn(tmp_path_factory.mktemp("pictures"), CAPTIONS)
    return opened(config_of(tiny_sd_folder, folder))


def opened(config: FineTuneConfig) -> Ready:
    return ready(config, Path("nowhere"), no_draw, progress=False, cpu=True, dry=True)


@pytest.fixture
def with_tables(run, tiny_sd_folder) -> Callable[..., list[str]]:
    """The suspicions of the same pictures under other settings."""

    def look(device: torch.device = GPU, **tables: Any) -> list[str]:
        return suspicions(config_of(tiny_sd_folder, Path(run.config.data.path), **tables), run, device)

    return look


@pytest.fixture
def with_pictures(run, tmp_path, tiny_sd_folder) -> Callable[..., list[str]]:
    """The suspicions of a run on other pictures."""

    def look(captions: list[str], size: tuple[int, int] = (64, 64), model=None, **tables: Any) -> list[str]:
        config = config_of(tiny_sd_folder, drawn(tmp_path / "pictures", captions, size), **tables)
        items, report = scan(config.data)
        pictures = Pictures(items, config.data, size=64, seed=0, batch=config.loop.batch)
        other = replace(run, pictures=pictures, report=report, model=model or run.model)
        return suspicions(config, other, GPU)

    return look


def rate(value: float) -> dict[str, Any]:
    return {"optimizer": {"rate": value, "warmup": 5}}


SETTINGS = {
    "a high rate": ({"loop": rate(1e-2)}, "0.01 is 100 times what is usual here: try 0.001"),
    "a low rate": ({"loop": rate(1e-6)}, "1e-06 is a 100th of what is usual here: try 0.0001"),
    "the rate of another mode": ({"mode": "full", "loop": rate(1e-3)}, "is 100 times what is usual here"),
    "a fast text encoder": ({"trains": {"text": True, "text_rate": 3.0}}, "trains.text_rate = 3"),
    "a small alpha": ({"lora": {"rank": 64, "alpha": 1.0}}, "64 times weaker"),
    "a large alpha": ({"lora": {"rank": 4, "alpha": 32.0}}, "8 times stronger"),
    "no caption dropped": ({"data": {"caption_dropout": 0.0}}, "guidance"),
    "most captions dropped": ({"data": {"caption_dropout": 0.9}}, "hides most captions"),
    "less than an epoch": ({"loop": {"steps": 3} | rate(1e-4) | {"optimizer": {"warmup": 0}}}, "only 50% of the"),
    "too many epochs": ({"loop": {"steps": 6000}}, "meet each picture 1000 times"),
    "a warm-up without end": ({"loop": {"optimizer": {"rate": 1e-4, "warmup": 100}}}, "lasts for the whole run"),
    "too long an average": ({"loop": {"ema": 0.9999}}, "averages over 10000 steps"),
    "a size far away": ({"data": {"size": 160}}, "data.size = 160 is far from the 64 pixels"),
    "much offset noise": ({"objective": {"offset_noise": 0.5}}, "objective.offset_noise = 0.5 is much"),
    "stopping without measures": (
        {"validation": {"stop_on_overfit": True, "measure_every": 0}},
        "validation.measure_every is 0",
    ),
    "a trigger and no prompts": ({"data": {"trigger": "sks"}}, "validation.prompts is empty"),
    "a trigger not in the prompts": (
        {"data": {"trigger": "sks"}, "validation": {"prompts": ["a dog"]}},
        'none of validation.prompts says "sks"',
    ),
    "a trigger with a meaning": (
        {"data": {"trigger": "dog"}, "validation": {"prompts": ["a dog"]}},
        "dog means something to the model already",
    ),
    "a prior without weight": ({"prior": {"prompts": ["a square"], "weight": 0.0}}, "prior.weight = 0"),
    "a text encoder that is not trained": (
        {"mode": "controlnet", "control": {"hint": "edges"}, "trains": {"text": True}, "loop": rate(1e-5)},
        'trains.text has no effect in mode = "controlnet"',
    ),
    "tables of another mode": ({"inversion": {"word": "<it>"}}, 'settings of mode = "inversion"'),
    "random crops with a cache": ({"data": {"crop": "random"}}, "encoded anew each time"),
    "tags without commas": ({"data": {"shuffle_tags": True, "tag_separator": ";"}}, "nothing to shuffle"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_that_looks_like_a_mistake_is_told(with_tables, case):
    tables, told = SETTINGS[case]
    (found,) = with_tables(**tables)
    assert told in found


@pytest.mark.parametrize("kind", RATES)
def test_rates_are_told_from_ten_times_off_the_mode_s_usual_one(run, monkeypatch, kind):
    def told(factor: float) -> list[str]:
        loop = replace(run.config.loop, optimizer=replace(run.config.loop.optimizer, rate=factor * RATES[kind]))
        prior = PriorConfig(("a dog",)) if kind == "dreambooth" else PriorConfig()
        inversion = InversionConfig("<it>")
        mode = "full" if kind == "dreambooth" else kind
        control = ControlConfig("edges")
        return list(
            suspicious_rate(
                replace(run.config, mode=mode, loop=loop, prior=prior, inversion=inversion, control=control), run
            )
        )

    assert told(1) == told(9) == told(1 / 9) == told(90) == []  # the model is small
    assert len(told(100)) == len(told(0.1)) == 1
    monkeypatch.setattr("ldm.training.suspicions.SMALL", 0)
    assert told(1) == told(9) == []
    assert len(told(10)) == len(told(90)) == 1


def test_nothing_is_told_of_a_run_without_mistakes(with_tables):
    assert with_tables() == []
    assert with_tables(data={"trigger": "sks"}, validation={"prompts": ["a sks square", "a dog"]}) == []
    assert with_tables(loop=rate(2e-3)) == [], "so small a model takes more"
    assert with_tables(lora={"rank": 16, "alpha": 8.0}) == []


def test_precisions_that_are_not_for_a_cpu_are_told(with_tables, monkeypatch):
    cpu = torch.device("cpu")
    assert with_tables(cpu, loop={"precision": "no"}) == []
    (half,) = with_tables(cpu, loop={"precision": "fp16"})
    assert 'loop.precision = "fp16" is for GPUs' in half
    monkeypatch.setattr("ldm.training.suspicions.has_bfloat16", lambda: True)
    assert with_tables(cpu, loop={"precision": "bf16"}) == []
    monkeypatch.setattr("ldm.training.suspicions.has_bfloat16", lambda: False)
    (slow,) = with_tables(cpu, loop={"precision": "bf16"})
    assert 'several times as long as "no"' in slow


PICTURES = {
    "captions missing": ([*CAPTIONS[:20], "", ""], {}, "2 of 22 pictures have no caption ("),
    "only some have more than the trigger": (
        [*CAPTIONS[:20], ""],
        {"data": {"trigger": "sks"}, "validation": {"prompts": ["a sks"]}},
        "no caption but the trigger",
    ),
    "all the same": (["a sks"] * 20, {}, "all pictures have the caption 'a sks'"),
    "nothing in common": (
        [f"a {word}" for word in ("cat", "dog", "sun", "moon", "tree", "car", "boat", "hat", "fish", "bird", "cup")],
        {},
        "no word in common",
    ),
    "captions that are cut": ([*CAPTIONS, "a sks square " + "and a word " * 90], {}, "1 captions have over 225 tokens"),
    "captions of two chunks": ([*CAPTIONS, "a sks square " + "and a word " * 30], {}, "1 captions have over 75 tokens"),
    "mirrored sides": ([*CAPTIONS, "a sks square to the left"], {"data": {"flip": True}}, "1 captions tell left"),
    "a large batch": (CAPTIONS[:6], {"loop": {"batch": 8}}, "takes 8 pictures and there are 6"),
    "as good as the prior": (
        ["a square", *CAPTIONS],
        {"prior": {"prompts": ["a square"]}},
        "captions say no more than prior.prompts do",
    ),
    "no word to learn": (
        [*CAPTIONS, "a <it> square"],
        {"mode": "inversion", "inversion": {"word": "<it>"}, "validation": {"prompts": ["<it>"]}, "loop": rate(5e-3)},
        "24 of 25 captions lack the new word",
    ),
    "none held out of a style": (CAPTIONS[:12], {"mode": "full", "loop": rate(1e-5)}, "none of 12 pictures is held"),
    "none held out to stop by": (CAPTIONS[:12], {"validation": {"stop_on_overfit": True}}, "no picture is held out"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_that_look_like_a_mistake_are_told(with_pictures, case):
    captions, tables, told = PICTURES[case]
    (found,) = with_pictures(captions, **tables)
    assert told in found


def test_small_pictures_are_told(with_pictures):
    (found,) = with_pictures(CAPTIONS, (24, 24))
    assert "enlarged more than 2 times (" in found


def test_duplicates_are_told(with_pictures, tmp_path):
    drawn(tmp_path / "pictures", CAPTIONS)
    (tmp_path / "pictures" / "again.png").write_bytes((tmp_path / "pictures" / "003.png").read_bytes())
    (tmp_path / "pictures" / "again.txt").write_text("a sks square again")
    (found,) = with_pictures(CAPTIONS)
    assert "1 pictures are there twice" in found
    assert "again.png is" in found


def test_shapes_of_few_pictures_are_told(with_pictures, tmp_path):
    for number, size in enumerate([(96, 40), (40, 96), (80, 48), (48, 80), (112, 32), (32, 112)]):
        drawn(tmp_path / "pictures" / str(number), ["a sks thing"], size)
    (found,) = with_pictures(CAPTIONS[:8])
    assert "6 shapes have fewer pictures than a batch" in found


def test_words_the_model_has_never_seen_are_told_but_for_those_it_is_to_learn(run, with_pictures):
    knowing = replace(
        run.model, vocabulary=Vocabulary(words=("a", "and", "cat", "square", "number", *map(str, range(24))))
    )
    captions = [*CAPTIONS, "a sks square and a walrus"]
    found = [text for text in with_pictures(captions, model=knowing) if "never seen" in text]
    assert len(found) == 1
    assert "walrus" in found[0]
    assert "sks" not in found[0]
    known = with_pictures(captions, model=knowing, data={"trigger": "cat"}, validation={"prompts": ["a cat"]})
    assert any("cat means something to the model already" in text for text in known)


def test_weightings_that_silence_zero_terminal_snr_are_told(run, tiny_sd_folder):
    tables = {"mode": "full", "loop": rate(1e-5)}
    told = {}
    for weighting in ("none", "edm", "min_snr"):
        asked = {"prediction": "v_prediction", "zero_terminal_snr": True, "weighting": weighting}
        config = config_of(tiny_sd_folder, Path(run.config.data.path), objective=asked, **tables)
        told[weighting] = suspicions(config, opened(config), GPU)
    assert told["none"] == told["edm"] == []
    assert 'objective.weighting = "min_snr" gives pure noise no weight' in told["min_snr"][0]


def test_a_lora_of_another_prediction_is_told(run, tiny_sd_folder):
    config = config_of(tiny_sd_folder, Path(run.config.data.path), objective={"prediction": "v_prediction"})
    (found,) = suspicions(config, opened(config), GPU)
    assert "cannot tell other programs" in found


def test_a_trained_encoder_is_told(run, with_tables):
    found = with_tables(mode="autoencoder", trains={"decoder_only": False}, loop=rate(1e-5))
    assert any("changes the latents" in text for text in found)


PROPER = {"lora": 12, "dreambooth": 6, "inversion": 5, "full": 200, "controlnet": 400, "autoencoder": 100}


@pytest.mark.parametrize("kind", templates())
def test_none_is_raised_by_a_shipped_run_file_on_proper_pictures(tmp_path, tiny_sd_folder, kind):
    (tmp_path / "run.toml").write_text(template(kind))
    config = read(tmp_path / "run.toml", FineTuneConfig)
    captions = [f"a sks dog in place {number}" for number in range(PROPER[kind])]
    given = [source.caption for source in config.data.all_sources]
    captions = [""] * PROPER[kind] if any(given) else captions
    size = (config.data.size or 64,) * 2
    hints = tmp_path / "hints" if kind == "controlnet" else None
    folder = drawn(tmp_path / "pictures", captions, size, hints)
    config = replace(config, model=str(tiny_sd_folder), data=at(config.data, folder, hints))
    assert suspicions(config, opened(config), GPU) == []


def at(data: DataConfig, folder: Path, hints: Path | None) -> DataConfig:
    """The same with its pictures in a folder, and small shapes for a small model."""
    found = SourceConfig(str(folder), caption=data.all_sources[0].caption, hints=str(hints or ""))
    return replace(data, path="", hints="", sources=(found,), bucket_step=8)
