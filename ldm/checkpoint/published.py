"""What is in no tensor: how each family samples and is scaled, as in the folders its makers published."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.architecture import UNetConfig

TITLES = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sdxl_refiner": "Stable Diffusion XL refiner",
}
TASKS = {"": "", "inpaint": "inpainting", "instruct": "InstructPix2Pix", "depth": "depth", "unclip": "unCLIP"} | {
    "upscale": "x4 upscaler"
}
PIPELINES = {
    "": "StableDiffusion{}Pipeline",
    "inpaint": "StableDiffusion{}InpaintPipeline",
    "instruct": "StableDiffusion{}InstructPix2PixPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
    "upscale": "StableDiffusionUpscalePipeline",
    "unclip": "StableUnCLIPImg2ImgPipeline",
}

NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
UPSCALE_NOISE: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02}
# Of the small picture that the upscaler takes, whose noise its text-to-image cousins do not have.
LOW_RES_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    **UPSCALE_NOISE,
    "clip_sample": True,
}
MAX_LOW_RES_NOISE = 350
EULER_XL: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
# Distilled models have the names and shapes of what they were distilled from; their titles tell them apart.
DISTILLED = {"turbo": "EulerAncestralDiscreteScheduler", "lightning": "EulerDiscreteScheduler"}
DISTILLED_FROM = {"turbo": ("sdxl", "sd2"), "lightning": ("sdxl",)}
DISTILLED_STEPS = {"turbo": 4, "lightning": 8}
CALL_DEFAULTS = "_defaults"  # in `model_index.json`; diffusers passes over names that begin like this
MOST_STEPS = 16  # that a title can mean
TITLE = "modelspec.title"
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
SCALES = {"sdxl": 0.13025, "sdxl_refiner": 0.13025}
UPSCALE_SCALE = 0.08333
SIZES = {"sd1": 64, "sd2": 64, "sdxl": 128, "sdxl_refiner": 128}  # latent cells
UPSCALE_SIZE, V_SIZE = 128, 96
UPSCALE_PIXELS = 256  # of its autoencoder's tiles


def title(family: str, task: str) -> str:
    """ "Stable Diffusion 1", "Stable Diffusion 2 (inpainting)" """
    return f"{TITLES[family]} ({TASKS[task]})" if task else TITLES[family]


def task_of(config: UNetConfig) -> str:
    """What a U-Net is for beside drawing from text, by the channels or the vector that it takes beside latents."""
    if config.vector in ("class_table", "class_projection"):
        return "upscale" if config.vector == "class_table" else "unclip"
    return {1: "depth", 4: "instruct", 5: "inpaint"}.get(config.in_channels - config.out_channels, "")


def titled(metadata: Mapping[str, str], path: Path) -> dict[str, str]:
    """A file's metadata with a title, which without one is its name: most distilled models have no other."""
    return {TITLE: path.stem, **metadata}


def distilled_of(family: str, title: str) -> str:
    """The key of DISTILLED that a title or a file's name says a model to be, or "".

    It is a word of its own, behind what the model is called: "SDXL-Lightning", not "Lightning Bolt" or "turbofans".
    """
    words = [word.lower() for word in WORD.findall(title)][1:]
    return next((word for word, families in DISTILLED_FROM.items() if family in families and word in words), "")


def distilled_defaults(distilled: str, title: str) -> dict[str, Any]:
    """Steps and guidance of a distilled model where a call gives none; {} for others. Lightning's title has the steps.

    A guidance of 1 is none: such models have it in their weights.
    """
    if not distilled:
        return {}
    match = re.search(r"(?<![\d.])(\d{1,2})[ _-]?steps?(?![a-z])", title.lower())
    said = int(match[1]) if match and distilled == "lightning" else 0
    steps = said if 1 <= said <= MOST_STEPS else DISTILLED_STEPS[distilled]
    return {"num_inference_steps": steps, "guidance_scale": 1.0}


def distilled_folder(family: str, path: Path, scheduler: Mapping[str, Any]) -> tuple[str, str]:
    """The key of DISTILLED that a folder's name says its model to be, or "", and that name.

    In the hub's cache it is the repository's. The schedule must allow it: few steps are spaced from the end.
    """
    name = path.parent.parent.name if path.parent.name == "snapshots" else path.name
    return distilled_of(family, name) if scheduler.get("timestep_spacing") == "trailing" else "", name


def distilled_note(because: str, defaults: Mapping[str, Any]) -> str:
    """What a user is told of a distilled model, and why it is taken for one."""
    return (
        f"{because}, so without other arguments it takes {defaults['num_inference_steps']} steps and no guidance "
        "(num_inference_steps= and guidance_scale=, or --steps and --guidance-scale, decide otherwise)"
    )


def scheduler_config(family: str, task: str, prediction: str, *, zero_snr: bool, distilled: str = "") -> dict[str, Any]:
    """The `scheduler_config.json` of a family's published folder, for this prediction and terminal SNR.

    distilled: a key of DISTILLED, or "".
    """
    config = {**NOISE, "prediction_type": prediction, "_class_name": "PNDMScheduler"}
    if task == "upscale":
        config |= UPSCALE_NOISE
    if family.startswith("sdxl"):
        config |= EULER_XL
    elif task == "instruct":
        config["_class_name"] = "EulerAncestralDiscreteScheduler"
    elif prediction == "v_prediction":
        config["_class_name"] = "DDIMScheduler"
    if distilled:
        config |= {"_class_name": DISTILLED[distilled], "timestep_spacing": "trailing"}
    if zero_snr:  # PNDM cannot start where there is no signal
        name = "DDIMScheduler" if config["_class_name"] == "PNDMScheduler" else config["_class_name"]
        config |= {"_class_name": name, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def model_index(family: str, task: str) -> dict[str, Any]:
    """The entries of `model_index.json` beside the parts."""
    name = PIPELINES[task].format("XL" if family.startswith("sdxl") else "")
    if family == "sdxl_refiner":
        return {
            "_class_name": "StableDiffusionXLImg2ImgPipeline",
            "requires_aesthetics_score": True,
            "force_zeros_for_empty_prompt": False,
        }
    return {"_class_name": name} | ({"force_zeros_for_empty_prompt": True} if family == "sdxl" else {})
