"""What a folder of diffusers holds: its parts, their configurations, the headers of their weights. Needs no torch."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.architecture import UNetConfig
from configs.interchange import autoencoder_from_json, text_encoder_from_json, unet_from_json
from configs.interchange_extras import controlnet_from_json
from ldm.checkpoint.errors import CheckpointError, explained
from ldm.checkpoint.family import family_of
from ldm.checkpoint.files import find_weights, has_weights, listed, read_config, read_json, variants
from ldm.checkpoint.hub import NETWORKS, OTHERS, is_embedded
from ldm.checkpoint.kinds import SUPPORTED
from ldm.checkpoint.names_compvis import clip_names, unet_names, vae_names
from ldm.checkpoint.names_controlnet import controlnet_names
from ldm.checkpoint.published import task_of
from ldm.checkpoint.source import Entry, read_headers
from ldm.vocabulary import FILE as VOCABULARY
from text_encoder.names import canonical_name as canonical_text_name
from vae.names import canonical_name as canonical_vae_name

TEXT: tuple[Callable[..., Any], ...] = (text_encoder_from_json, clip_names, canonical_text_name)
# of each class: its configuration, the names of its tensors, and today's name for an older one
CLASSES: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "UNet2DConditionModel": (unet_from_json, unet_names, str),
    "ControlNetModel": (controlnet_from_json, controlnet_names, str),
    "AutoencoderKL": (autoencoder_from_json, vae_names, canonical_vae_name),
    "CLIPTextModel": TEXT,
    "CLIPTextModelWithProjection": TEXT,
}
MOST = 50  # parts


@dataclass(frozen=True)
class Part:
    """One network of a folder. config: None for classes that are not known here. task: of a U-Net.

    absent, unknown: tensors that its configuration asks for and its files lack, and the other way round.
    """

    name: str
    class_name: str
    config: Any = None
    task: str = ""
    files: tuple[Path, ...] = ()
    variants: tuple[str, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    """A model's folder. family is "" for those of other families; the rest as in `Inspection`."""

    family: str
    task: str
    parts: tuple[Part, ...]
    prediction: Mapping[str, Any] | None
    missing: tuple[str, ...]
    details: Mapping[str, Any]
    damage: tuple[str, ...]
    notes: tuple[str, ...]


def model_folder(path: Path) -> Whole:
    """The folder around a `model_index.json`. Raises CheckpointError when that cannot be read."""
    index = read_json(path / "model_index.json")
    classes = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    there = {name: str(kind) for name, kind in classes.items() if kind and re.fullmatch(r"\w{1,60}", name)}
    if len(there) > MOST:
        raise CheckpointError(f"{path / 'model_index.json'} lists {len(there):,} parts; not a known model")
    parts = tuple(part for name, kind in there.items() if (part := _part(path / name, name, kind)))
    lost = [name for name in OTHERS if name in there and not (path / name).is_dir()]
    damage = [f"{path / name} is missing, though model_index.json lists it; fetch it again" for name in lost]
    unet = next((part for part in parts if isinstance(part.config, UNetConfig)), None)
    details = {
        "pipeline": str(index.get("_class_name")),
        "scheduler": there.get("scheduler", ""),
        "parts without weights": [name for name in there if name not in {*lost, *(part.name for part in parts)}],
        "left out": [name for name, kind in classes.items() if not kind],
    }
    return Whole(
        family=family_of(unet.config, len({"text_encoder", "text_encoder_2"} & there.keys())) if unet else "",
        task=unet.task if unet else "",
        parts=parts,
        prediction=_prediction(path / "scheduler" / "scheduler_config.json"),
        missing=_missing(there),
        details={name: value for name, value in details.items() if value},
        damage=(*damage, *(each for part in parts for each in part.damage)),
        notes=_notes(path, known=bool(unet or damage or any(part.damage for part in parts))),
    )


def part_folder(path: Path) -> Part:
    """The folder of one network. Raises FileNotFoundError or CheckpointError when it has no weights to read."""
    json = read_json(path / "config.json")
    named = json.get("_class_name") or json.get("architectures")
    part = _part(path, path.name, str(named[0] if isinstance(named, list) and named else named))
    if part is None or not part.files:
        raise CheckpointError(part.damage[0] if part else f"{path} has a config.json, but no weights beside it")
    return part


def _missing(there: Mapping[str, str]) -> tuple[str, ...]:
    """The parts that a model cannot do without, for models with a U-Net."""
    if "transformer" in there:
        return ()
    text = () if {"text_encoder", "text_encoder_2"} & there.keys() else ("text_encoder",)
    return (*(part for part in ("unet", "vae") if part not in there), *text)


def _notes(path: Path, known: bool) -> tuple[str, ...]:
    notes = () if known else (SUPPORTED,)
    if not (path / VOCABULARY).exists():
        return notes
    return (*notes, "it says what it can draw: ldm vocabulary" + ("" if is_embedded(path) else " --model PATH"))


def _prediction(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    json = read_json(path)
    kind, reason = json.get("prediction_type"), "as its scheduler's configuration says"
    if kind is None:
        kind, reason = "epsilon", "its scheduler's configuration says nothing else"
    return {"kind": str(kind), "zero_snr": bool(json.get("rescale_betas_zero_snr")), "reason": reason}


def _part(folder: Path, name: str, class_name: str) -> Part | None:
    """A part with weights; None for what has none and needs none, such as tokenizers."""
    part = Part(name, class_name)
    try:
        files, found = _files(folder, name)
        part = replace(part, files=tuple(files), variants=tuple(found), entries=read_headers(files))
        return _compared(part, folder) if class_name in CLASSES else part
    except FileNotFoundError as error:
        return replace(part, damage=(str(error),)) if name in NETWORKS else None
    except (OSError, CheckpointError) as error:
        return replace(part, damage=(str(error),))


def _files(folder: Path, name: str) -> tuple[list[Path], list[str]]:
    """Files of weights, plain ones before those of a variant, and which variants there are."""
    for stem in (name, "text_encoder"):  # of diffusers, of transformers
        found = variants(folder, stem)
        for variant in (None, *found):
            if has_weights(folder, stem, variant):
                return find_weights(folder, stem, variant), found
    return find_weights(folder, name), []


def _compared(part: Part, folder: Path) -> Part:
    """With its configuration, and the names in its files held against those that this asks for."""
    from_json, names, canonical = CLASSES[part.class_name]
    json = {**read_config(folder / "config.json"), "architectures": [part.class_name]}
    try:
        config = from_json(json)
        task = task_of(config) if isinstance(config, UNetConfig) else ""
        expected = dict.fromkeys(name.own for name in names(config))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        return replace(part, damage=(f"{folder / 'config.json'}: {explained(error)}",))
    found = {new: name for name in part.entries if (new := canonical(name)) is not None}
    absent = tuple(name for name in expected if name not in found)
    unknown = tuple(name for new, name in found.items() if new not in expected)
    part = replace(part, config=config, task=task, absent=absent, unknown=unknown)
    return replace(part, damage=complaints(folder, absent, unknown))


def complaints(where: Path, absent: tuple[str, ...], unknown: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What to say of tensors that should be there, and of those that should not."""
    lacks = [f"{where} lacks {len(absent)} of its tensors: {listed(list(absent))}"] if absent else []
    return (*lacks, *([f"{where} has {len(unknown)} unknown tensors: {listed(list(unknown))}"] if unknown else []))
