"""`ldm inspect`: what a file or folder of weights is."""

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.generate import embedded_model

if TYPE_CHECKING:
    from ldm.checkpoint.inspection import Component, Inspection, Names

HELP = (
    "Says what weights are without loading them: family, parts, parameters, dtypes, what the model predicts, metadata, "
    "hash, missing and foreign tensors. Exit status 2 for what is damaged or holds no weights."
)
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
COLUMN, WIDEST, MOST = 15, 100, 100  # of a table: its first column, the letters of a value, rows of metadata
TAGS = "ss_tag_frequency"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a folder in diffusers format or a part of one, a file of any kind (model, LoRA, embedding, ControlNet, "
        "...), or a hub id whose files are here already (default: the embedded model)",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON, with whole metadata")
    parser.add_argument(
        "--keys",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="list dtype, shape and name of the tensors whose name matches, such as '*attn2*' (default: all)",
    )
    parser.add_argument("--no-hash", action="store_true", help="leave out the hash, for which all of a file is read")


def inspect(args: argparse.Namespace) -> None:
    """Prints what a path holds. ValueError for what is no weights, and, once that is printed, for what is damaged."""
    from ldm.checkpoint.inspection import inspected

    try:
        found = inspected(_here(args.path), hashed=not args.no_hash and (args.json or not args.keys))
    except OSError as error:
        raise ValueError(str(error)) from error
    tensors = {name: found.tensors[name] for name in fnmatch.filter(found.tensors, args.keys)} if args.keys else {}
    if args.json:
        values = asdict(found)
        del values["tensors"]
        print(json.dumps(values | ({"tensors": tensors} if args.keys else {}), indent=2))
    else:
        rows = _keys(tensors) if args.keys else lines(found)
        encoding = sys.stdout.encoding or "utf-8"
        for row in rows:
            print(row.encode(encoding, "backslashreplace").decode(encoding))
    if found.damage:
        raise ValueError("; ".join(found.damage))


def _here(path: str | None) -> Path:
    """A path, or the place of a hub id in the cache: nothing is downloaded."""
    from ldm.checkpoint.hub import resolve_part

    return embedded_model() if path is None else resolve_part(path, ("*",), local_files_only=True)


def _keys(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[str]:
    for name, (dtype, shape) in tensors.items():
        yield f"{DTYPES.get(dtype, dtype):10}{'x'.join(map(str, shape)) or 'scalar':20} {printable(name, 500)}"


# the table


def lines(found: "Inspection") -> Iterator[str]:
    """What was found, for people."""
    yield printable(found.path, 500)
    yield from _rows(_summary(found))
    yield ""
    yield from _components(found.components)
    keys = {"absent": found.absent, "unknown": found.unknown, "foreign": found.foreign}
    yield from _table("tensors", {what: _named(names) for what, names in keys.items() if names.count})
    yield from _table("metadata", {key: _brief(key, value) for key, value in list(found.metadata.items())[:MOST]})
    if len(found.metadata) > MOST:
        yield f"  ... and {len(found.metadata) - MOST} more, see --json"
    yield from (f"note: {printable(note, 500)}" for note in found.notes)


def _summary(found: "Inspection") -> dict[str, str]:
    rows = {"what": found.title, "format": found.format}
    rows |= {name: _value(value) for name, value in found.details.items()}
    if found.prediction:
        told = found.prediction
        snr = ", zero terminal SNR" if told["zero_snr"] else ""
        rows["predicts"] = f"{told['kind'] or 'not known'}{snr} ({told['reason']})"
    rows["distilled"] = found.distilled
    rows["EMA weights"] = found.ema
    rows["missing"] = ", ".join(found.missing)
    rows["code"] = f"names {_value(list(found.globals))}; none of it was run" if found.globals else ""
    return {name: value for name, value in (rows | dict(found.hashes)).items() if value}


def _components(components: "tuple[Component, ...]") -> Iterator[str]:
    yield f"{'part':17}{'parameters':>15}{'bytes':>12}  stored as"
    for part in components:
        kinds = ", ".join(DTYPES.get(dtype, dtype) for dtype in part.dtypes) or "nothing"
        more = [printable(part.class_name, 60)] if part.class_name else []
        more += [f"{len(part.files)} files"] * (len(part.files) > 1)
        more += [f"variants: {', '.join(part.variants)}"] * bool(part.variants)
        yield f"{printable(part.name, 60):17}{part.parameters:15,}{_size(part.bytes):>12}  {'; '.join([kinds, *more])}"
    if len(components) > 1:
        total, size = sum(part.parameters for part in components), sum(part.bytes for part in components)
        yield f"{'total':17}{total:15,}{_size(size):>12}"


def _size(number: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number} B"


def _table(title: str, rows: Mapping[str, str]) -> Iterator[str]:
    if rows:
        yield from ("", title, *_rows(rows))


def _rows(rows: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        yield f"  {printable(name, 60):{min(max(width, COLUMN), 40)}}  {printable(value, 500)}"


def _named(names: "Names") -> str:
    some = ", ".join(printable(name, WIDEST) for name in names.examples[:4])
    return f"{names.count:,}: {some}" + (", ..." if names.count > 4 else "")


def _value(value: Any) -> str:
    """A detail: counts as "16 (192), 8 (10)", lists with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} ({number})" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _brief(key: str, value: str) -> str:
    """A value of the metadata; of the tags that a LoRA was trained with, the most frequent."""
    if key == TAGS and (tags := _tags(value)):
        first = sorted(tags, key=lambda tag: -tags[tag])[:8]
        return f"{len(tags):,} tags: " + ", ".join(f"{printable(tag, 40)} ({tags[tag]})" for tag in first)
    return value if len(value) <= WIDEST else f"{value[:WIDEST]}... ({len(value):,} letters, see --json)"


def _tags(text: str) -> dict[str, int]:
    """Tag -> how often, from the JSON {folder: {tag: how often}} of kohya's trainer; {} for anything else."""
    try:
        counts = [pair for folder in json.loads(text).values() for pair in folder.items()]
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {tag: number for tag, number in counts if isinstance(number, int)}


def printable(text: str, most: int) -> str:
    """Text from a file made harmless for a terminal: control characters and their like escaped, long text cut."""
    cut = text if len(text) <= most else f"{text[:most]}..."
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut)
