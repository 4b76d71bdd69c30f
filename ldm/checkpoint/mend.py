"""Repairs to the first configurations ever published, which diffusers makes whenever it builds these pipelines.

Without them the same folder would give other images here than there.
"""

from collections.abc import Mapping
from typing import Any

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
DEFAULTED = {"DDIMScheduler": "clip_sample", "DDPMScheduler": "clip_sample", "PNDMScheduler": "skip_prk_steps"}


def mended_scheduler(json: Mapping[str, Any], pipeline: str) -> dict[str, Any]:
    """`steps_offset` is 1 and samples are not clipped (inpainting: PNDM skips its Runge-Kutta steps).

    Whatever the file says, or leaves to the default of its class.
    """
    if pipeline not in PIPELINES:
        return dict(json)
    repairs = {"skip_prk_steps": True} if "Inpaint" in pipeline else {"clip_sample": False}
    known = {*json, DEFAULTED.get(str(json.get("_class_name")))}
    return {**json, "steps_offset": 1, **{name: value for name, value in repairs.items() if name in known}}


def mended_unet(json: Mapping[str, Any], pipeline: str) -> dict[str, Any]:
    """A U-Net written before diffusers 0.9 was trained on latents of 64 at least, whatever size the file says."""
    version, size = str(json.get("_diffusers_version", "1")).split("."), json.get("sample_size")
    old = version[0] == "0" and len(version) > 1 and version[1].isdigit() and int(version[1]) < 9
    if pipeline in PIPELINES and old and isinstance(size, int) and size < 64:
        return {**json, "sample_size": 64}
    return dict(json)
