"""The diffusion process, on torch alone: noise schedules, predictions, the denoiser, guidance, grids and samplers."""

from importlib import import_module
from typing import Any

_HOMES = {
    "NoiseSchedule": "schedule",
    "PREDICTIONS": "prediction",
    "prediction_of": "prediction",
    "Denoiser": "denoiser",
    "cfg": "guidance",
    "weight": "guidance",
    "SeededNoise": "noise",
    "Grid": "grid",
    "Layout": "grid",
    "SAMPLERS": "samplers",
    "Step": "samplers",
    "Sampling": "registry",
    "ForeignSampling": "foreign",
    "is_scheduler": "foreign",
    "diffusion_from_scheduler_config": "schedulers",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
