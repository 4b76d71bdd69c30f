"""Control images, and calls that are compared: small pictures, few steps, the same generator each time."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PROMPT = "a cat holding a banana"
SIZE = {"height": 72, "width": 104}
FAMILIES = ["sd1", "sdxl"]


def picture(seed: int, height: int = 72, width: int = 104) -> Image.Image:
    """Rectangles of colour: sharp edges, so that another hint, or one resized otherwise, makes a difference."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.NEAREST)


HINT = picture(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(pipe: Any, prompt: Any = PROMPT, **options: Any) -> Tensor:
    settings = {"num_inference_steps": 3, "output_type": "latent", "generator": generator(), **SIZE, **options}
    found: Tensor = pipe(prompt, **settings).images
    return found


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def differs(found: Tensor, other: Tensor) -> bool:
    return bool((found - other).abs().max() > 1e-3 * other.abs().max())
