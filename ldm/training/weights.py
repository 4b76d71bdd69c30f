"""What a stage leaves for the next one: a module's weights in a file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


def save_weights(module: nn.Module, path: Path) -> None:
    """The module's state dict as safetensors, by way of a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    save_file({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, draft)
    draft.replace(path)


def load_weights(module: nn.Module, path: Path, stage: str) -> None:
    """Raises ValueError where the stage before has not left its weights, or those of another run."""
    if not path.exists():
        raise ValueError(f"there is no {path}: train the stage {stage!r} first")
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged or belongs to another run file: train the stage {stage!r} again ({error})"
        ) from error
