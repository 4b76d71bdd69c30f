"""Checkpoints of a run: whole or not there. The newest sound one is what a run goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after `step` steps: tensors by file, whatever else `torch.save` holds, by file, and the run's
    fingerprint, "" where it has none."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    objects: Mapping[str, Any]
    run: str = ""


def write(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `folder/step-NNNNNNNN` by way of a temporary name and removes all but the last `keep` up to it.

    Raises OSError with what to do when the disk is full; earlier checkpoints are then still there.
    """
    place = folder / f"step-{checkpoint.step:08d}"
    draft = folder / f".{place.name}.part"
    try:
        _discard(draft)
        draft.mkdir(parents=True)
        _write_files(draft, checkpoint)
        _discard(place)
        draft.rename(place)
    except (OSError, SafetensorError, RuntimeError) as error:  # three libraries, three ways to say "disk full"
        _discard(draft)
        raise OSError(
            f"the checkpoint of step {checkpoint.step} could not be written to {folder} ({error}); earlier ones are "
            "kept: make room and start the same command again to go on"
        ) from error
    steps = sorted(folder.glob("step-*"))
    later = steps.index(place) + 1  # of a run that went back to an earlier step: damaged, or not its own
    for other in steps[later:] + steps[: max(later - keep, 0)]:
        _discard(other)
    return place


def newest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, read whole into memory; a warning for each damaged one that is passed over."""
    for place in sorted(folder.glob("step-*"), reverse=True):
        problem = damage(place)
        if problem is None:
            return _read(place)
        warnings.warn(f"the checkpoint {place} is damaged ({problem}): going back to the one before it", stacklevel=2)
    return None


def damage(place: Path) -> str | None:
    """What is wrong with a checkpoint on disk, None if every file is as it was written."""
    try:
        manifest = json.loads((place / _MANIFEST).read_text())
        for name, digest in manifest["files"].items():
            if not (place / name).is_file():
                return f"{name} is missing"
            if _digest(place / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error}"
    return None


def _write_files(draft: Path, checkpoint: Checkpoint) -> None:
    for name, tensors in checkpoint.tensors.items():
        whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(whole, draft / f"{name}.safetensors")
    for name, value in checkpoint.objects.items():
        torch.save(value, draft / f"{name}.pt")
    files = {path.name: _digest(path) for path in sorted(draft.iterdir())}
    manifest = {"step": checkpoint.step, "run": checkpoint.run, "files": files}
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _read(place: Path) -> Checkpoint:
    manifest = json.loads((place / _MANIFEST).read_text())
    tensors, objects = {}, {}
    for name in manifest["files"]:
        stem, kind = name.rsplit(".", 1)
        if kind == "safetensors":
            tensors[stem] = load_file(place / name)
        else:
            objects[stem] = torch.load(place / name, map_location="cpu", weights_only=True)
    return Checkpoint(manifest["step"], tensors, objects, manifest.get("run", ""))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _discard(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
