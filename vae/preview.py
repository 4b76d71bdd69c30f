"""A first look at latents without a decoder: one linear map from latent channels to colours."""

import torch
from PIL import Image
from torch import Tensor

from vae.pixels import to_pil

# Colour in [-1, 1] per unit of each scaled latent channel, one row for red, green and blue each, and an offset.
# SD 1 and 2: least-squares fit posted in https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204
# SDXL: https://huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space, from levels 0..255 to [-1, 1]
Map = tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]
SD1: Map = (
    ((0.298, 0.187, -0.158, -0.184), (0.207, 0.286, 0.189, -0.271), (0.208, 0.173, 0.264, -0.473)),
    (0.0, 0.0, 0.0),
)
SDXL: Map = (
    ((0.471, -0.471, 0.196, -0.549), (0.471, -0.039, 0.118, -0.392), (0.471, 0.078, -0.039, -0.275)),
    (0.176, 0.098, 0.020),
)
MAPS = {"sd1": SD1, "sd2": SD1, "sdxl": SDXL, "sdxl_refiner": SDXL}


def preview(latents: Tensor, family: str, *, scale: int = 1) -> list[Image.Image]:
    """Scaled latents (b, c, h, w) -> b rough RGB images of h x w pixels, enlarged `scale` times without smoothing.

    family: "sd1", "sd2", "sdxl" or "sdxl_refiner". The latents of any other model have no known colours: their first
    three channels are shown as red, green and blue, brought to the same contrast. NaN shows as mid grey.
    """
    z = latents.detach().float().nan_to_num()
    known = family in MAPS and z.shape[1] == 4
    rgb = _linear(z, MAPS[family]) if known else _first_three(z)
    return to_pil(rgb.repeat_interleave(scale, 2).repeat_interleave(scale, 3))


def _linear(z: Tensor, colours: Map) -> Tensor:
    weight, bias = (torch.tensor(values, device=z.device) for values in colours)
    return torch.einsum("rc,bchw->brhw", weight, z) + bias.view(1, 3, 1, 1)


def _first_three(z: Tensor) -> Tensor:
    last = z.shape[1] - 1
    z = z[:, [0, min(1, last), min(2, last)]]
    std, mean = torch.std_mean(z, (2, 3), correction=0, keepdim=True)
    return (z - mean) / (2 * std).clamp_min(1e-6)
