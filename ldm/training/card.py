"""The model card of a fine-tuned model: Markdown with the front matter of the Hugging Face hub.

https://huggingface.co/docs/hub/model-cards. It says what was trained on what, and nothing that is private: pictures are
told by the hashes of their contents, places on a disk and captions are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from configs.files import to_dict
from configs.finetuning import FineTuneConfig, Mode
from ldm.training.card_usage import usage

LOCAL, CAPTION = "(a local path)", "(a caption)"  # what stands for them
MOST = 500  # pictures whose hashes are listed one by one
LICENCES = re.compile(  # as the hub spells them
    r"apache-2\.0|mit|bsd-3-clause|openrail(\+\+)?|(creativeml|bigscience)-openrail-m|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-4\.0|"
    r"(a|l)?gpl-3\.0|ofl-1\.1|unlicense|wtfpl|other"
)
TRAINED: Mapping[Mode, tuple[str, str, str]] = {  # what it is, its tag, and how the hub relates it to the base model
    "full": ("A fine-tuned model", "text-to-image", "finetune"),
    "lora": ("A LoRA", "lora", "adapter"),
    "inversion": ("A textual inversion", "textual_inversion", "adapter"),
    "controlnet": ("A ControlNet", "controlnet", "adapter"),
    "autoencoder": ("A fine-tuned autoencoder", "vae", "finetune"),
}


@dataclass(frozen=True)
class Pictures:
    """Those of one source. digests: of each picture's content, 32 hex digits of BLAKE2b; licence: as it was given."""

    digests: tuple[str, ...]
    licence: str = ""


@dataclass(frozen=True)
class Facts:
    """What a card says beside the run file.

    base: the model that was trained, a hub id, a path or a name. base_hash: SHA-256 of its U-Net's weights.
    family: as of `LatentDiffusion`. published: whether other programs know models of its shape.
    steps: that were trained. parameters: how many numbers learned.
    pictures: by source. opted_out, left_out: how many were not used as their owner asked for, or for other reasons.
    before, after: losses by what they were measured on, such as "trained" and "held out".
    grid: file name of the last validation pictures, beside the card. files: names of the results.
    tags: how often each stands in the captions; told only where the run file asks for it.
    """

    base: str
    base_hash: str
    family: str
    published: bool
    steps: int
    parameters: int
    pictures: tuple[Pictures, ...] = ()
    opted_out: int = 0
    left_out: int = 0
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    grid: str = ""
    files: tuple[str, ...] = ()
    tags: Mapping[str, int] = field(default_factory=dict)


def card(config: FineTuneConfig, facts: Facts) -> str:
    """The text of `README.md` for the results of a run."""
    sections = (_front, _what, _usage, _data, _losses, _run)
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section(config, facts)))) + "\n"


def _front(config: FineTuneConfig, facts: Facts) -> Iterator[str]:
    """YAML"""
    _, tag, relation = TRAINED[config.mode]
    licence, xl = config.result.licence, facts.family.startswith("sdxl")
    yield "---"
    if licence:
        known = LICENCES.fullmatch(licence.lower())
        yield f"license: {licence.lower() if known else 'other'}"
        yield from () if known else (f"license_name: {_slug(licence)}",)
    yield "library_name: diffusers"
    if config.mode != "autoencoder":
        yield "pipeline_tag: text-to-image"
    if _is_hub_id(facts.base):
        yield f"base_model: {facts.base}"
        yield f"base_model_relation: {relation}"
    if trigger := trigger_of(config):
        yield f"instance_prompt: {_value(trigger)}"
    yield "tags:"
    family = "stable-diffusion-xl" if xl else "stable-diffusion"
    dora = ("dora",) if config.mode == "lora" and config.lora.dora else ()
    yield from (f"- {each}" for each in dict.fromkeys((tag, *dora, family, "diffusers", "ldm-pipelines")))
    yield "---"


def _what(config: FineTuneConfig, facts: Facts) -> Iterator[str]:
    kind, _, _ = TRAINED[config.mode]
    yield f"# {config.result.title or config.name}"
    yield ""
    by = f" by {config.result.author}" if config.result.author else ""
    base = facts.base if _is_hub_id(facts.base) else _name(facts.base)
    yield f"{kind}{by} for {base}, trained for {facts.steps:,} steps with `ldm train`."
    if trigger := trigger_of(config):
        yield f"Write `{trigger}` into prompts."
    if facts.grid:
        yield f"\n![validation prompts, before training and after]({facts.grid})"
    yield "\n| | |"
    yield "|---|---|"
    yield f"| base model | {base}, weights' SHA-256 `{facts.base_hash}` |"
    yield f"| trained numbers | {facts.parameters:,} |"
    yield f"| licence | {config.result.licence or 'none was given'} |"
    if facts.files:
        yield f"| files | {', '.join(f'`{name}`' for name in facts.files)} |"


def _usage(config: FineTuneConfig, facts: Facts) -> Iterator[str]:
    yield "## How to use it"
    base = facts.base if _is_hub_id(facts.base) else "" if facts.base == "the embedded model" else _name(facts.base)
    yield from usage(config, base, xl=facts.family == "sdxl", published=facts.published, files=facts.files)


def _data(config: FineTuneConfig, facts: Facts) -> Iterator[str]:
    digests = sorted(digest for source in facts.pictures for digest in source.digests)
    whole = blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()
    yield "## What it was trained on"
    yield ""
    yield f"{len(digests):,} pictures; names and places are not told. {facts.opted_out:,} were left out because their"
    yield f"owners asked for it, {facts.left_out:,} for other reasons (unreadable, too small and the like)."
    if config.prior.prompts:
        prompts = ", ".join(map(_value, config.prior.prompts))
        yield f"Beside them, {config.prior.count:,} pictures by the base model itself: {prompts}."
    yield "\n| source | pictures | licence |"
    yield "|---|---|---|"
    for number, source in enumerate(facts.pictures, start=1):
        yield f"| {number} | {len(source.digests):,} | {source.licence or 'none was given'} |"
    yield f"\nContents: `{whole}` is the BLAKE2b (128 bits) of the sorted list of the pictures' own, one a line."
    if digests and len(digests) <= MOST:
        yield f"\n<details><summary>Each picture's</summary>\n\n```\n{chr(10).join(digests)}\n```\n\n</details>"
    if config.result.tags and facts.tags:
        most = sorted(facts.tags.items(), key=lambda tag: (-tag[1], tag[0]))
        yield f"\nTags: {', '.join(f'{tag} ({count:,})' for tag, count in most)}."


def _losses(config: FineTuneConfig, facts: Facts) -> Iterator[str]:
    if not facts.after:
        return
    yield "## Losses"
    yield ""
    yield "On the same examples, noise and noise levels each time, with the weights that were written."
    yield "\n| on | before | after |"
    yield "|---|---|---|"
    for name, after in facts.after.items():
        before = f"{facts.before[name]:.4g}" if name in facts.before else "-"
        yield f"| {name} | {before} | {after:.4g} |"


def _run(config: FineTuneConfig, facts: Facts) -> Iterator[str]:
    yield "## The run file"
    yield ""
    yield "Every setting; places on a disk and captions are left out."
    yield "\n```toml"
    yield "\n".join(_toml(_public(to_dict(config)))).strip("\n")
    yield "```"


def trigger_of(config: FineTuneConfig) -> str:
    """The word that calls up what was learned, "" where there is none."""
    return config.inversion.word if config.mode == "inversion" else config.data.trigger


# what is private


def _is_hub_id(text: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None and not Path(text).exists()


def _name(base: str) -> str:
    """A model's name, of a path only its last part."""
    return re.split(r"[\\/]", base.rstrip("\\/"))[-1]


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run file without places on a disk, of which a hub id is none, and without captions."""
    places = {"path", "hints", "start", "model"}
    public: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            public[key] = value if key == "inversion" else _public(value)  # its `start` is a word
        elif isinstance(value, list):
            public[key] = [_public(one) if isinstance(one, Mapping) else one for one in value]
        elif key in places and value and not _is_hub_id(value):
            public[key] = LOCAL
        else:
            public[key] = CAPTION if key == "caption" and value else value
    return public


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


# TOML and YAML, whose texts may be written as JSON's but for one character


def _toml(values: Mapping[str, Any], table: str = "") -> Iterator[str]:
    """Lines of a table: its values, then the tables in it."""
    tables = {key: value for key, value in values.items() if _has_tables(value)}
    yield from (f"{key} = {_value(value)}" for key, value in values.items() if key not in tables)
    for key, value in tables.items():
        name = f"{table}.{key}" if table else key
        for one in value if isinstance(value, list) else [value]:
            yield f"\n[[{name}]]" if isinstance(value, list) else f"\n[{name}]"
            yield from _toml(one, name)


def _has_tables(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
