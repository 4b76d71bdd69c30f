"""Run files against what `tomllib` and `json` themselves read, and every way to get one wrong."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from configs import files
from configs.architecture import ModelConfig, TextEncoderConfig
from configs.presets import SD15, SDXL
from configs.training import AutoencoderStage, DenoiserStage, LoopConfig, OptimizerConfig, RunConfig, TextStage

RUN = """
name = "tiny"
size = 64
[world]
nouns = ["cat", "dog"]
[autoencoder]
kl = 1
crop = 32
[autoencoder.model]
channels = [8, 16]
norm_groups = 8
scaling_factor = 1
latents_mean = [0, 0.5, 1.0, 2]
[autoencoder.loop]
steps = 20
[autoencoder.loop.optimizer]
betas = [0.5, 0.9]
schedule = "constant"
[denoiser.model]
channels = [32, 64]
down_depths = [[1, 1], [0, 0]]
up_depths = [[0, 0, 0], [1, 1, 1]]
heads = [2, 2]
only_cross_attention = [false, false]
sample_size = [16, 8]
"""


def write(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_become_nested_dataclasses(tmp_path: Path) -> None:
    run = files.read(write(tmp_path, RUN), RunConfig)
    assert (run.name, run.size, run.seed, run.world.nouns) == ("tiny", 64, 0, ("cat", "dog"))
    model = run.autoencoder.model
    assert (model.channels, model.latents_mean) == ((8, 16), (0.0, 0.5, 1.0, 2.0))
    assert isinstance(run.autoencoder.kl, float)
    assert isinstance(model.scaling_factor, float)
    assert all(isinstance(value, float) for value in model.latents_mean or ())
    optimizer = replace(OptimizerConfig(), betas=(0.5, 0.9), schedule="constant")
    assert run.autoencoder.loop == replace(LoopConfig(), steps=20, optimizer=optimizer)
    assert run.denoiser.model.down_depths == ((1, 1), (0, 0))
    assert run.denoiser.model.sample_size == (16, 8)
    assert (run.text, run.classifier) == (RunConfig("x").text, RunConfig("x").classifier)


@pytest.mark.parametrize(
    ("config", "kind"), [(RunConfig("x", seed=5), RunConfig), (SD15, ModelConfig), (SDXL, ModelConfig)]
)
def test_json_gives_back_what_was_written(tmp_path: Path, config: Any, kind: Any) -> None:
    text = json.dumps(files.to_dict(config))
    assert files.read(write(tmp_path, text, "run.json"), kind) == config
    assert files.from_dict(files.to_dict(config), kind) == config


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + RUN.encode())
    assert files.read(path, RunConfig).name == "tiny"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[autoencoder.loop]\nstepz = 3", "unknown key autoencoder.loop.stepz; did you mean autoencoder.loop.steps?"),
        ("[autoencoder]\nsteps = 3", "unknown key autoencoder.steps; did you mean autoencoder.loop.steps?"),
        ("[autoencodr]", "unknown key autoencodr; did you mean autoencoder?"),
        ('preset = "SD15"', "unknown key preset"),
        ("qqqq = 1", "unknown key qqqq; there are name, size, seed, world"),
        ('size = "big"', "size = 'big' does not fit, expected a whole number"),
        ("size = 64.0", "size = 64.0 does not fit, expected a whole number"),
        ("size = true", "size = True does not fit, expected a whole number"),
        ("denoiser.empty = true", "denoiser.empty = True does not fit, expected a number"),
        ("denoiser.empty = nan", "denoiser.empty = nan does not fit, expected a number"),
        ("denoiser.empty = 1" + "0" * 400, "does not fit, expected a number"),
        ('world.nouns = "cat"', "world.nouns = 'cat' does not fit, expected a list, each a text"),
        ('world.nouns = ["cat", 3]', "world.nouns = ['cat', 3] does not fit"),
        ("world = 3", "world is 3, expected a table of nouns, colours"),
        ('text.loop.precision = "fp8"', 'text.loop.precision = \'fp8\' does not fit, expected "no" or "bf16"'),
        ("text.loop.optimizer.betas = [0.9]", "betas = [0.9] does not fit, expected a list of a number, a number"),
        ("denoiser.model.sample_size = [1, 2, 3]", "a whole number or a list of a whole number, a whole number"),
        ("denoiser.model.down_depths = [[1], 2]", "expected a list, each a list, each a whole number"),
        ("size = 64\nsize = 65", "is not valid TOML"),
        ("size = = 3", "(at line 2, column 8)"),
        ("text.loop.steps = 0", "text.loop.steps = 0 is out of range, expected at least 1"),
        ("text.loop.batch = 64\ntext.loop.accumulation = 5", "accumulation = 5 is out of range, expected a divisor of"),
        ("classifier.channels = [8, 12]", "classifier.channels = (8, 12) is out of range, expected one multiple of 8,"),
        ("autoencoder.discriminator_channels = 6", "discriminator_channels = 6 is out of range, expected a"),
        ("autoencoder.model.channels = [32, 48]", "autoencoder.model.channels = (32, 48) is out of range"),
        ("autoencoder.model.quant_conv = false", "autoencoder.model.quant_conv = False is out of range, expected true"),
        ("text.loop.checkpointing = true", "text.loop.checkpointing = True is out of range, expected false: it is for"),
        ("text.model.heads = 7", "text.model.width = 768 is out of range, expected a multiple of model.heads = 7"),
        ("denoiser.model.norm_groups = 48", "expected one multiple of model.norm_groups = 48 for each level"),
        ("denoiser.model.heads = [8, 8, 8, 7]", "denoiser.model.heads = (8, 8, 8, 7) is out of range, expected"),
        ("denoiser.model.heads = [8, 8, 8]", "denoiser.model.heads = (8, 8, 8) is out of range, expected 4 of them"),
        ("denoiser.model.down_depths = [[1], [1], [1], [0]]", "denoiser.model.up_depths = ((0, 0, 0), (1, 1, 1)"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, f'name = "x"\n{text}')
    with pytest.raises(ValueError, match=r"run\.toml") as caught:
        files.read(path, RunConfig)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_missing_and_unsafe_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the key name is missing"):
        files.read(write(tmp_path, "size = 64"), RunConfig)
    with pytest.raises(ValueError, match=r"name = '\.\./x' is out of range"):
        files.read(write(tmp_path, 'name = "../x"'), RunConfig)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": "x", "name": "y"}', "the key 'name' is there twice"),
        ('{"name": "x",\n"size": }', "line 2 column 9"),
        ("[1]", "it is [1], expected a table"),
        ('{"name": null}', "name = None does not fit, expected a text"),
        ('{"name": "x", "seed": NaN}', "seed = nan does not fit"),
        ('{"x":' * 100_000, "nested too deeply"),
    ],
)
def test_mistakes_in_json_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text, "run.json")
    with pytest.raises(ValueError, match=r"run\.json") as caught:
        files.read(path, RunConfig)
    assert words in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no run file .*absent\.toml"):
        files.read(tmp_path / "absent.toml", RunConfig)
    with pytest.raises(ValueError, match="is a folder"):
        files.read(tmp_path, RunConfig)
    with pytest.raises(ValueError, match=r"its name ends in \.toml or \.json"):
        files.read(write(tmp_path, RUN, "run.yaml"), RunConfig)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ValueError, match=r"latin\.toml is not UTF-8 \(byte 8\)"):
        files.read(tmp_path / "latin.toml", RunConfig)


@dataclass(frozen=True)
class Inner:
    steps: int


@dataclass(frozen=True)
class Outer:
    inner: Inner
    kind: Literal["a", 2]
    several: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    flag: bool = False


def test_tables_in_lists_and_in_options() -> None:
    values = {"inner": {"steps": 1}, "kind": 2, "several": [{"steps": 2}, {"steps": 3}], "maybe": None, "flag": True}
    assert files.from_dict(values, Outer) == Outer(Inner(1), 2, (Inner(2), Inner(3)), None, True)
    assert files.from_dict(values | {"maybe": {"steps": 4}}, Outer).maybe == Inner(4)
    for change, words in (
        ({"several": [{"steps": 2}, {"step": 3}]}, r"unknown key several\[1\]\.step; did you mean several\[1\]\.steps"),
        ({"inner": {}}, "inner.steps is missing"),
        ({"kind": 2.0}, 'kind = 2.0 does not fit, expected "a" or 2'),
        ({"flag": 1}, "flag = 1 does not fit, expected true or false"),
    ):
        with pytest.raises(ValueError, match=words):
            files.from_dict(values | change, Outer, source="it")


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (OptimizerConfig, {"rate": 0.0}, "rate"),
        (OptimizerConfig, {"clip": -1.0}, "clip"),
        (OptimizerConfig, {"floor": 2.0}, "floor"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, "betas"),
        (LoopConfig, {"batch": 0}, "batch"),
        (LoopConfig, {"ema": 1.0}, "ema"),
        (LoopConfig, {"keep": 0}, "keep"),
        (LoopConfig, {"workers": -1}, "workers"),
        (AutoencoderStage, {"crop": 36}, "crop"),
        (AutoencoderStage, {"adversarial_from": 1.5}, "adversarial_from"),
        (TextStage, {"image_channels": ()}, "image_channels"),
        (DenoiserStage, {"empty": -0.1}, "empty"),
        (DenoiserStage, {"sigma_std": 0.0}, "sigma_std"),
        (RunConfig, {"name": ""}, "name"),
        (RunConfig, {"name": "x", "size": 100}, "size"),
        (RunConfig, {"name": "x", "size": 32}, "autoencoder.crop"),
        (RunConfig, {"name": "x", "text": TextStage(TextEncoderConfig(width=384))}, "denoiser.model.context_dim"),
    ],
)
def test_values_out_of_range_name_the_field(kind: Any, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} = .* is out of range, expected "):
        kind(**values)


def test_shipped_run_files_are_found_and_valid() -> None:
    for name in files.run_names():
        path = files.run_file(name)
        assert path == files.run_file(path)
        assert files.read(path, RunConfig).name == name


def test_unknown_run_files_list_the_shipped_ones(tmp_path: Path) -> None:
    assert files.run_file(tmp_path / "own.toml") == tmp_path / "own.toml"
    with pytest.raises(ValueError, match=r"there is no run file emoji-smol: .*Shipped are .*; or give a path"):
        files.run_file("emoji-smol")
