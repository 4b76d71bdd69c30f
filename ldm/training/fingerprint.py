"""Which run file made a stage: its result and its checkpoints carry a digest of what it depends on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from configs.training import RunConfig

USES: dict[str, tuple[str, ...]] = {
    "classifier": (),
    "autoencoder": ("classifier",),
    "text": (),
    "denoiser": ("autoencoder", "text"),
}
_LENGTHS = {"steps", "accumulation", "precision", "checkpoint_every", "keep", "sample_every", "log_every", "workers"}
_RATES = {
    "rate",
    "betas",
    "weight_decay",
    "clip",
    "warmup",
    "schedule",
    "power",
    "floor",
    "text_rate",
    "discriminator_rate",
}
FREE = _LENGTHS | _RATES | {"compile", "checkpointing", "trackers"}  # what a stage that has begun may go on with


def fingerprint(run: RunConfig, stage: str) -> str:
    """16 hex digits that change with whatever the stage cannot change on its way, in its own table or before it.

    A value equal to its default counts for nothing, so that a new key with a harmless default changes no digest.
    """
    parts = [stage, run.size, run.seed, told(run.world), told(getattr(run, stage))]
    parts += [fingerprint(run, name) for name in USES[stage]]
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def require(found: str, wanted: str, folder: Path) -> None:
    """Raises ValueError if a stage's folder was made by another run file; warns where it does not say by which."""
    if found == wanted:
        return
    if found:
        raise ValueError(
            f"{folder} was made by another run file: take that one, choose another --output, or begin anew with --fresh"
        )
    warnings.warn(
        f"{folder.parent} was begun before stages noted their run file: make sure that it was this one", stacklevel=3
    )


def mark(folder: Path, steps: int, digest: str) -> None:
    """Notes that the stage in a folder is finished."""
    draft = folder / "finished.part"
    draft.write_text(f"{steps}\n{digest}\n")
    draft.replace(folder / "finished")


def finished(folder: Path, digest: str) -> int:
    """After how many steps the stage in a folder was finished, 0 if it was not. Raises and warns as `require`."""
    steps, found = noted(folder)
    if steps:
        require(found, digest, folder)
    return steps


def noted(folder: Path) -> tuple[int, str]:
    """After how many steps the stage in a folder was finished, and of which digest: 0 and "" if it was not."""
    note = folder / "finished"
    steps, found = (*(note.read_text().split() if note.exists() else ()), "", "")[:2]
    return (int(steps), found) if steps.isdecimal() else (0, "")


def told(value: Any, free: Collection[str] = FREE) -> Any:
    """What a table says beyond its defaults, as values of JSON, without what may change on the way."""
    if isinstance(value, tuple):
        return [told(one, free) for one in value]
    if not is_dataclass(value):
        return value
    said = {}
    for field in fields(value):
        given = getattr(value, field.name)
        if field.name not in free and (is_dataclass(given) or given != field.default):
            said[field.name] = told(given, free)
    return {name: one for name, one in said.items() if one != {}}
