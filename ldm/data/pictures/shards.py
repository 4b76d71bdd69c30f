"""WebDataset shards: tar archives in which the members of an example share their name up to its first dot."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from configs.finetuning import SourceConfig
from ldm.data.pictures.files import is_picture
from ldm.data.pictures.item import Item
from ldm.data.pictures.readers import PartBytes, remote
from ldm.data.pictures.report import BAD_CAPTION, DAMAGED, NO_HINT, Findings
from ldm.data.pictures.rows import CAPTION, HINT, OPTOUT, texts, truth
from ldm.data.pictures.shard_index import Index, braces, index_of

Part = tuple[str, int, int]  # name, first byte, length


@dataclass(frozen=True)
class _Example:
    key: str
    picture: Part
    hint: Part | None
    captions: tuple[str, ...]
    refused: bool


def shard_items(source: SourceConfig, findings: Findings) -> Iterator[Item]:
    """The pictures of archives `a.tar`, `a{000..099}.tar` or `a*.tar`, on disk or at an address.

    `key.jpg` has its caption in `key.txt`, `key.caption` or a field of `key.json`, its control image in `key.hint.png`
    (or what `hint_column` says instead of hint). A field `optout` that is true leaves it out.
    """
    if source.hints:
        raise ValueError(f"hints = {source.hints!r}: control images of {source.path} lie in it, as KEY.hint.png")
    for shard in expanded(source.path):
        index = index_of(shard)
        if index.damage:
            findings.problem(DAMAGED, f"{shard}; what follows is lost: {index.damage}")
        examples = [_example(*one, index, source, findings) for one in _grouped(index)]
        hinted = bool(source.hint_column) or any(one and one.hint for one in examples)
        for one in examples:
            if one is not None:
                yield from _item(shard, one, hinted, findings)


def expanded(pattern: str) -> list[str]:
    """The files that a path with braces or wildcards means. ValueError for one that is not there."""
    found: list[str] = []
    for name in braces(pattern):
        name = name if "://" in name else str(Path(name).expanduser())
        if any(letter in name for letter in "*?["):
            matches = _matches(name)
        else:
            matches = [name] if "://" in name or Path(name).is_file() else []
        if not matches:
            raise ValueError(f"path = {pattern!r} means {name}, and there is no such file")
        found += matches
    return found


def _matches(name: str) -> list[str]:
    if "://" not in name:
        return sorted(glob(name, recursive=True))
    system, inner = remote(name)
    return sorted(system.unstrip_protocol(path) for path in system.glob(inner))


def _item(shard: str, one: _Example, hinted: bool, findings: Findings) -> Iterator[Item]:
    name = f"{shard}/{one.picture[0]}"
    if one.refused:
        findings.opted_out.append(name)
    elif hinted and one.hint is None:
        findings.problem(NO_HINT, f"{name}: no {one.key}.hint.png in the archive")
    else:
        hint = PartBytes(shard, *one.hint[1:]) if one.hint else None
        yield Item(name, one.captions, PartBytes(shard, *one.picture[1:]), hint=hint)


def _grouped(index: Index) -> Iterator[tuple[str, dict[str, Part]]]:
    """(key, its members by their endings)."""
    groups: dict[str, dict[str, Part]] = {}
    for part in index.members:
        folder, slash, name = part[0].rpartition("/")
        stem, _, ending = name.partition(".")
        groups.setdefault(folder + slash + stem, {})[ending.lower()] = part
    yield from groups.items()


def _example(
    key: str, parts: Mapping[str, Part], index: Index, source: SourceConfig, findings: Findings
) -> _Example | None:
    """None for a key without a picture."""
    hints = (source.hint_column,) if source.hint_column else HINT
    pictures = {ending: part for ending, part in parts.items() if is_picture(part[0])}
    hint = next((ending for ending in pictures if ending.rpartition(".")[0] in hints), None)
    if source.image_column:
        choices = [e for e in pictures if source.image_column in (e, e.rpartition(".")[0])]
    else:
        choices = sorted((e for e in pictures if e != hint), key=lambda ending: ending.count("."))
    if not choices:
        return None
    fields = _fields(key, parts, index, findings)
    captions = _captions(parts, index, fields, source)
    refused = any(truth(fields.get(name)) for name in OPTOUT)
    return _Example(key, pictures[choices[0]], pictures[hint] if hint else None, captions, refused)


def _fields(key: str, parts: Mapping[str, Part], index: Index, findings: Findings) -> Mapping[str, Any]:
    if "json" not in parts:
        return {}
    try:
        told = json.loads(index.texts.get(parts["json"][0], "{}"))
        if not isinstance(told, dict):
            raise ValueError("not an object")
    except ValueError as error:
        findings.problem(BAD_CAPTION, f"{key}.json: {error}")
        return {}
    return told


def _captions(
    parts: Mapping[str, Part], index: Index, fields: Mapping[str, Any], source: SourceConfig
) -> tuple[str, ...]:
    """Of the first place that has one."""
    names = (source.caption_column,) if source.caption_column else ("txt", *CAPTION)
    for name in names:
        told = texts(index.texts.get(parts[name][0])) if name in parts else texts(fields.get(name))
        if told:
            return told
    return ()
