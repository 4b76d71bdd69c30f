"""Pictures for floors below, which know no task: what a training run wants to see of its model."""

import warnings
from typing import Any

from PIL import Image

from ldm.model import LatentDiffusion
from ldm.training.drawing import Wanted
from pipelines.text_to_image import TextToImagePipeline


def draw(model: LatentDiffusion, wanted: Wanted) -> list[Image.Image]:
    """The pictures, drawn where the model is. Words that nobody has counted are no reason for a warning here."""
    pipe = TextToImagePipeline(model, device=next(model.unet.parameters()).device)
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {}
    options |= {"negative_prompt": [wanted.negative_prompt] * len(wanted.prompts)} if wanted.negative_prompt else {}
    options |= {"num_inference_steps": wanted.steps} if wanted.steps else {}
    options |= {"guidance_scale": wanted.guidance_scale} if wanted.guidance_scale else {}
    seeds = [wanted.seed + i for i in range(len(wanted.prompts))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if wanted.control is None:
            images: list[Image.Image] = pipe(list(wanted.prompts), seed=seeds, **options).images
            return images
        options |= {"controlnet": wanted.control, "negative_prompt": wanted.negative_prompt or None}
        each = zip(wanted.prompts, seeds, wanted.hints, strict=True)  # hints may be of different shapes
        return [pipe(prompt, seed=seed, control_image=hint, **options).images[0] for prompt, seed, hint in each]
