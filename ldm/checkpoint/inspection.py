"""What a file or folder of weights is, told from names, shapes and notes.

Of safetensors no tensor is read, and torch is not needed. Nothing is downloaded, run or changed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm.checkpoint.errors import CheckpointError, NoModel
from ldm.checkpoint.files import listed, sha256_of
from ldm.checkpoint.hub import FILES, is_embedded, require_folder
from ldm.checkpoint.inspection_folder import Part, complaints, model_folder, part_folder
from ldm.checkpoint.kinds import kind_of
from ldm.checkpoint.names_controlnet import CONTROL
from ldm.checkpoint.published import TITLES, title, titled
from ldm.checkpoint.recognise import EMA_PREFIX, Recognised, recognise
from ldm.checkpoint.source import FLOATS, Entry, Source, open_source
from ldm.checkpoint.traits import EMBEDDING, is_embedding, traits_of
from ldm.lora.layout import IN_FOLDERS

EXAMPLES = 20
KOHYA_HASH = "sshs_model_hash"  # of the tensors alone, as its trainer notes it
LENT = "a model that lends its own with --text-encoder (text_encoder=...)"
REMEDIES = {"vae": "one with --vae (vae=...)", "text_encoder": LENT, "text_encoder_2": LENT}
DAMAGED = "a model of Stable Diffusion's layout"


@dataclass(frozen=True)
class Component:
    """One network. dtypes: elements by the dtype they are stored in, as safetensors spells it, the most first.

    class_name, files, variants: of a part in a folder.
    """

    name: str
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    class_name: str = ""
    files: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Names:
    """How many there are and the first of them."""

    count: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What a path holds. All fields are plain JSON.

    format: "safetensors", "torch" or "folder". kind: "a model", or as in `ldm.checkpoint.kinds`, "" for nothing known.
    title: kind and family in words. family, task: as in LatentDiffusion, "" where unknown.
    prediction: kind, zero_snr and reason, of a model. ema: "" or which averaged weights there are.
    missing: parts that a model lacks. absent: tensors that should be there. unknown: tensors that a network does not
        have. foreign: tensors outside of what is known.
    details: what there is to say of this kind. globals: names in a pickle that stand for code; none of it was run.
    hashes: "sha256" (of a folder: of its U-Net's files), its short form "AutoV2", and the "AutoV3" that kohya noted.
    damage: why it cannot be used as what it is. notes: what a person should know. tensors: dtype and shape by name.
    """

    path: str
    format: str
    kind: str = ""
    title: str = ""
    family: str = ""
    task: str = ""
    components: tuple[Component, ...] = ()
    prediction: Mapping[str, Any] | None = None
    ema: str = ""
    distilled: str = ""
    missing: tuple[str, ...] = ()
    absent: Names = Names()
    unknown: Names = Names()
    foreign: Names = Names()
    details: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    globals: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    damage: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


def inspected(path: str | Path, *, hashed: bool = True) -> Inspection:
    """What a file, a folder of diffusers or one part of such a folder holds.

    hashed: whether to compute the hash, for which all of a file is read.

    Raises FileNotFoundError, and ValueError for what holds no weights that can be read, saying what it is instead.
    """
    path = Path(path).expanduser()
    if not path.exists():
        require_folder(path)
    found, files = _folder(path) if path.is_dir() else (_file(path), [path])
    return replace(found, hashes=_hashes(files, found.metadata)) if hashed and files else found


def _hashes(files: list[Path], metadata: Mapping[str, str]) -> dict[str, str]:
    sha256 = sha256_of(files)
    noted = metadata.get(KOHYA_HASH, "")[:12]
    return {"sha256": sha256, "AutoV2": sha256[:10]} | ({"AutoV3": noted} if noted else {})


# files


def _file(path: Path) -> Inspection:
    source, damage = _opened(path)
    found = Inspection(
        str(path),
        source.format,
        metadata=dict(sorted(source.metadata.items())),
        globals=source.globals,
        damage=damage,
        tensors=_tensors(source.entries),
    )
    try:
        return _model(found, source, recognise(_shapes(source.entries), titled(source.metadata, path)))
    except NoModel:
        return _beside(found, source)
    except CheckpointError as error:  # a model with a hole in it
        whole = (_component("all", source.entries.values()),)
        damage = (*damage, f"{path}: {error}")
        return replace(found, kind="a model", title=DAMAGED, components=whole, damage=damage)


def _opened(path: Path) -> tuple[Source, tuple[str, ...]]:
    """A file, and why it would be refused although it can be read: it names code that weights do not need."""
    try:
        return open_source(path), ()
    except CheckpointError as error:
        try:
            return open_source(path, allow_unknown_globals=True), (str(error),)
        except CheckpointError:
            raise error from None


def _model(base: Inspection, source: Source, found: Recognised) -> Inspection:
    notes = [f"it holds no {part}: pass {REMEDIES[part]}, of its family" for part in found.missing]
    if any(name.startswith(CONTROL) for name in source.entries):
        notes.append(f"it holds a ControlNet ({CONTROL}*) beside the model it steers: load_controlnet reads that alone")
    prediction = asdict(found.prediction)
    if found.prediction.kind is None:
        prediction["reason"] += "; loading asks the U-Net"
    averaged = any(name.startswith(EMA_PREFIX) for name in source.entries)
    return replace(
        base,
        kind="a model",
        title=found.title,
        family=found.family,
        task=found.task,
        components=_components(source, found),
        prediction=prediction,
        ema=("instead of the others" if found.ema else "beside the others") if averaged else "",
        distilled=found.distilled,
        missing=found.missing,
        absent=_names(found.absent),
        unknown=_names(found.unknown),
        foreign=_names(found.foreign),
        damage=(*base.damage, *complaints(source.path, found.absent, found.unknown)),
        notes=(*notes, *_unread(source.entries)),
    )


def _components(source: Source, found: Recognised) -> tuple[Component, ...]:
    """The networks, then averaged weights that stand beside others, then what nothing reads."""
    rest = dict(source.entries)
    components = []
    for part, network in found.parts.items():
        own = {name.original for name in network.names} & rest.keys()
        components.append(_component(part, [rest.pop(name) for name in own]))
    averaged = [rest.pop(name) for name in list(rest) if name.startswith(EMA_PREFIX)]
    others = {"averaged weights": averaged, "other": list(rest.values())}
    return (*components, *(_component(name, entries) for name, entries in others.items() if entries))


def _beside(base: Inspection, source: Source) -> Inspection:
    """What is no whole model."""
    kind, remedy = kind_of(source.entries, source.metadata)
    if not kind and is_embedding(_shapes(source.entries)):
        kind, remedy = EMBEDDING, "load a model first and then this"
    traits = traits_of(kind, source)
    what = kind or "weights of no kind that is known here"
    return replace(
        base,
        kind=kind,
        title=f"{what}, for {TITLES[traits.family]}" if traits.family else what,
        family=traits.family,
        components=base.components or (_component("all", source.entries.values()),),
        absent=_names(traits.absent),
        foreign=_names(traits.foreign),
        details=traits.details,
        damage=(*base.damage, *filter(None, [traits.damage]), *complaints(source.path, traits.absent)),
        notes=(remedy, *_unread(source.entries)),
    )


def _unread(entries: Mapping[str, Entry]) -> list[str]:
    """A note on floating-point numbers in formats that are not read."""
    strange = sorted({entry.dtype for entry in entries.values() if entry.dtype.startswith("F")} - {*FLOATS})
    return [f"weights stored as {listed(strange)} are not read; read are {listed(list(FLOATS))}"] if strange else []


# folders


def _folder(path: Path) -> tuple[Inspection, list[Path]]:
    """What a folder holds, and the files by which it is identified."""
    if (path / "model_index.json").exists():
        return _whole_folder(path)
    if (path / "config.json").exists():
        return _part(path)
    files = [path / name for name in IN_FOLDERS if (path / name).is_file()]
    files = files or [file for file in sorted(path.iterdir()) if file.suffix in FILES and file.is_file()]
    if not files or (len(files) > 1 and files[0].name not in IN_FOLDERS):
        require_folder(path)
    return _file(files[0]), files[:1]


def _whole_folder(path: Path) -> tuple[Inspection, list[Path]]:
    found = model_folder(path)
    entries = {f"{part.name}.{name}": entry for part in found.parts for name, entry in part.entries.items()}
    unet = next((part for part in found.parts if part.name == "unet"), None)
    name = title(found.family, found.task) if found.family else f"a model for {found.details['pipeline']}"
    inspection = Inspection(
        str(path),
        "folder",
        kind="a model",
        title=f"the embedded model of emoji scenes, built as {name}" if is_embedded(path) else name,
        family=found.family,
        task=found.task,
        components=tuple(map(_of_part, found.parts)),
        prediction=found.prediction,
        missing=found.missing,
        absent=_names(f"{part.name}.{name}" for part in found.parts for name in part.absent),
        unknown=_names(f"{part.name}.{name}" for part in found.parts for name in part.unknown),
        details=found.details,
        damage=found.damage,
        notes=(*found.notes, *_unread(entries)),
        tensors=_tensors(entries),
    )
    return inspection, list(unet.files) if unet else []


def _part(path: Path) -> tuple[Inspection, list[Path]]:
    part = part_folder(path)
    base = Inspection(str(path), "folder", components=(_of_part(part),), tensors=_tensors(part.entries))
    found = _beside(base, replace(open_source(part.files[0]), entries=part.entries))
    absent, unknown = _names(part.absent), _names(part.unknown)
    return replace(found, absent=absent, unknown=unknown, damage=part.damage), list(part.files)


def _of_part(part: Part) -> Component:
    component = _component(part.name, part.entries.values())
    files = tuple(file.name for file in part.files)
    return replace(component, class_name=part.class_name, files=files, variants=part.variants)


# counting


def _component(name: str, entries: Iterable[Entry]) -> Component:
    counts = Counter[str]()
    for entry in entries:
        counts[entry.dtype] += entry.numel
    size = sum(number * _bits(dtype) for dtype, number in counts.items()) // 8
    return Component(name, counts.total(), size, dict(counts.most_common()))


def _bits(dtype: str) -> int:
    match = re.search(r"\d+", dtype)
    return int(match[0]) if match else 8


def _names(names: Iterable[str]) -> Names:
    names = tuple(names)
    return Names(len(names), names[:EXAMPLES])


def _shapes(entries: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in entries.items()}


def _tensors(entries: Mapping[str, Entry]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
