"""The card of a run: the hub reads its front matter, its run file and examples work, and nothing private is told."""

import ast
import re
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.files import from_dict
from configs.finetuning import (
    MODES,
    ControlConfig,
    DataConfig,
    FineTuneConfig,
    InversionConfig,
    LoraConfig,
    PriorConfig,
    ResultConfig,
    SourceConfig,
    ValidationConfig,
)
from ldm.training.card import Facts, Pictures, card
from pipelines.cli.parser import parse

SOURCES = (SourceConfig("some-org/cats", licence="cc0-1.0"), SourceConfig("some-org/dogs", repeats=2))
CONFIG = FineTuneConfig(
    mode="lora",
    name="my-style",
    data=DataConfig(sources=SOURCES, trigger='"sks" \\ ü\n\x7f'),
    model="some-org/sd15",
    lora=LoraConfig(alpha=0.5, targets=("attention", "convolutions"), dora=True),
    inversion=InversionConfig(word="<my-cat>", start="cat"),
    control=ControlConfig(hint="edges"),
    prior=PriorConfig(prompts=("a dog", "a cat")),
    validation=ValidationConfig(prompts=('a sks "dog"', "it's")),
    result=ResultConfig(title="My style", author="A. Person", licence="cc-by-4.0"),
)
FACTS = Facts(
    base="some-org/sd15",
    base_hash="ab" * 32,
    family="sd1",
    published=True,
    steps=1500,
    parameters=797184,
    pictures=(Pictures(("00" * 16, "22" * 16), "cc0-1.0"), Pictures(("11" * 16,))),
    opted_out=2,
    left_out=3,
    before={"trained": 0.25, "held out": 0.26},
    after={"trained": 0.125, "held out": 0.2},
    grid="samples.png",
    files=("my-style.safetensors", "my-style-diffusers.safetensors"),
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def front(text: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    told: dict[str, Any] = ModelCard(text).data.to_dict()
    return told


def test_the_hub_reads_it() -> None:
    assert front(card(CONFIG, FACTS)) == {
        "license": "cc-by-4.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": "some-org/sd15",
        "base_model_relation": "adapter",
        "instance_prompt": CONFIG.data.trigger,
        "tags": ["lora", "dora", "stable-diffusion", "diffusers", "ldm-pipelines"],
    }
    bare = replace(
        CONFIG,
        mode="autoencoder",
        prior=PriorConfig(),
        result=ResultConfig(licence="Ask me, please"),
        data=DataConfig("x/y"),
    )
    told = front(card(bare, replace(FACTS, base="the embedded model", family="sdxl")))
    assert (told["license"], told["license_name"]) == ("other", "ask-me-please")
    assert told["tags"] == ["vae", "stable-diffusion-xl", "diffusers", "ldm-pipelines"]
    assert told.keys() == {"license", "license_name", "library_name", "tags"}
    assert "license" not in front(card(replace(CONFIG, result=ResultConfig()), FACTS))


def test_its_run_file_is_the_run_file() -> None:
    (toml,) = blocks(card(CONFIG, FACTS), "toml")
    assert from_dict(tomllib.loads(toml), FineTuneConfig) == CONFIG


def test_what_it_tells() -> None:
    text = card(CONFIG, FACTS)
    for line in (
        "# My style",
        "A LoRA by A. Person for some-org/sd15, trained for 1,500 steps with `ldm train`.",
        "![validation prompts, before training and after](samples.png)",
        f"| base model | some-org/sd15, weights' SHA-256 `{'ab' * 32}` |",
        "| trained numbers | 797,184 |",
        "| files | `my-style.safetensors`, `my-style-diffusers.safetensors` |",
        "3 pictures; names and places are not told. 2 were left out because their",
        'Beside them, 100 pictures by the base model itself: "a dog", "a cat".',
        "| 1 | 2 | cc0-1.0 |",
        "| 2 | 1 | none was given |",
        f"{'00' * 16}\n{'11' * 16}\n{'22' * 16}",
        "| held out | 0.26 | 0.2 |",
    ):
        assert line in text, line
    many = Pictures(tuple(f"{i:032x}" for i in range(501)))
    assert f"{7:032x}" not in card(CONFIG, replace(FACTS, pictures=(many,)))  # one hash tells them all
    tagged = replace(FACTS, tags={"dog": 2, "cat": 3})
    assert "cat (3)" not in card(CONFIG, tagged)
    assert "Tags: cat (3), dog (2)." in card(replace(CONFIG, result=ResultConfig(tags=True)), tagged)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_private_is_told(mode: Any, tmp_path: Path) -> None:
    secret = tmp_path / "a secret"
    (secret / "model").mkdir(parents=True)
    data = DataConfig(
        sources=(
            SourceConfig(str(secret / "me"), hints="~/secret/hints"),
            SourceConfig("a secret\\win", caption="secret"),
        )
    )
    config = replace(
        CONFIG,
        mode=mode,
        data=data,
        model=str(secret / "model"),
        prior=PriorConfig(path="./secret/class"),
        control=ControlConfig(hint="edges", start=str(secret / "start")),
    )
    assert "secret" not in card(config, replace(FACTS, base="C:\\a secret\\model"))
    text = card(config, replace(FACTS, base=config.model))
    assert "secret" not in text
    assert "base_model:" not in text
    assert "| base model | model," in text
    (toml,) = blocks(text, "toml")
    public = from_dict(tomllib.loads(toml), FineTuneConfig)
    assert public.model == public.data.sources[0].path == public.control.start == "(a local path)"
    assert public.inversion == config.inversion  # a word is no place


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("base", ["some-org/sd15", "the embedded model"])
def test_examples_can_be_run(mode: Any, family: str, base: str) -> None:
    published = base == "some-org/sd15"
    facts = replace(FACTS, family=family, base=base, published=published)
    text = card(replace(CONFIG, mode=mode, prior=PriorConfig()), facts)
    assert len(blocks(text, "sh")) == 1
    for command in blocks(text, "sh"):
        program, *words = shlex.split(command)
        assert program == "ldm"
        args = parse(words)
        assert args.words == ['a sks "dog"']
        assert args.model == ("my-style" if mode == "full" else "some-org/sd15" if published else None)
    for code in blocks(text, "python"):
        ast.parse(code)
    assert ("A1111" in text) == published


def test_dora_comes_with_a_warning() -> None:
    assert "This one is a DoRA" in card(CONFIG, FACTS)
    assert "DoRA" not in card(replace(CONFIG, lora=LoraConfig()), FACTS).partition("## The run file")[0]
