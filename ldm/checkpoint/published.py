"""What is in no tensor: how each family samples and is scaled, as in the folders its makers published."""

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
EULER_XL: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
# Distilled models have the names and shapes of what they were distilled from; their titles tell them apart.
DISTILLED = {"turbo": "EulerAncestralDiscreteScheduler", "lightning": "EulerDiscreteScheduler"}
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
