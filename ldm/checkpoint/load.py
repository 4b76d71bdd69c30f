"""One door in: whatever path a person has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.folder import load_folder
from ldm.checkpoint.prediction import checked
from ldm.checkpoint.single_file import load_single_file
from ldm.model import LatentDiffusion


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    components: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
) -> LatentDiffusion:
    """Loads a folder in diffusers format (`load_folder`) or a single file (`load_single_file`), on the CPU.

    prediction_type: "epsilon" or "v_prediction", whatever the model itself says. Raises as these two do.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        if variant is not None:
            raise ValueError(f"{path} is a single file and has no variants; leave variant out")
        return load_single_file(path, dtype=dtype, components=components, prediction_type=prediction_type)
    kind = None if prediction_type is None else checked(prediction_type)
    model = load_folder(path, dtype=dtype, variant=variant, components=components)
    if kind is not None:
        model.scheduler_config = {**model.scheduler_config, "prediction_type": kind}
    return model
