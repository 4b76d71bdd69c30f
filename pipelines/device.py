"""Devices and precisions by name, and their defaults."""

from typing import Any

import torch

from pipelines.processor import native_bf16

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
}


def as_device(device: Any) -> torch.device:
    """The device asked for, or CUDA where there is one, else the CPU. Raises ValueError for one that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.empty(0, device=device).device
    except (AssertionError, NotImplementedError, RuntimeError, TypeError):
        place = torch.device("meta")
    if place.type == "meta":
        raise ValueError(f'there is no device {str(device)!r} to draw on here: use "cpu", or see `ldm doctor`')
    return place


def as_dtype(dtype: Any) -> torch.dtype:
    """A precision from itself or its name, such as "float16" or "bf16". Raises ValueError for any other."""
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f'dtype is "float32", "float16", "bfloat16", or for loading "auto", not {dtype!r}')
    assert isinstance(found, torch.dtype)
    return found


def chosen_dtype(dtype: Any, device: torch.device) -> torch.dtype:
    """The precision asked for: by default bfloat16 or float16 on CUDA and float32 elsewhere; with "auto" the fastest
    that the device has itself, which on many processors is bfloat16. Raises ValueError for any other."""
    if dtype is not None and dtype != "auto":
        return as_dtype(dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if dtype == "auto" and device.type == "cpu" and native_bf16() else torch.float32
