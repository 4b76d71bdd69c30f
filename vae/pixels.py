"""PIL images and tensors: (b, 3, H, W) in [-1, 1] is what the autoencoder reads and writes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def from_pil(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size, in any mode -> (b, 3, H, W) float32 in [-1, 1].

    Transparency is dropped, 16-bit greys keep their precision, other modes are converted as Pillow does. An EXIF
    orientation is not applied: call `PIL.ImageOps.exif_transpose` first where it should be.

    Raises ValueError when there is no image or the sizes differ.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(
            f"images must be one or more of the same size, got {sorted(sizes) or 'none'}: resize or crop them"
        )
    return 2 * torch.stack([_unit(image) for image in images]) - 1


def _unit(image: Image.Image) -> Tensor:
    """(3, H, W) in [0, 1]."""
    w, h = image.size
    if image.mode.startswith("I"):  # 16-bit, which Pillow would clip at 255
        grey = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32).view(1, h, w)
        return (grey / 65535).clamp(0, 1).expand(3, h, w)
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(h, w, 3)
    return pixels.permute(2, 0, 1) / 255


def to_unit(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> the same shape in [0, 1], float32, clamped; stays on its device.

    Raises ValueError when an image holds NaN.
    """
    if images.isnan().any():
        raise ValueError(
            "the decoded image holds NaN: most likely the VAE overflowed in float16 (run it in float32 or bfloat16, "
            "or use one made for float16), or the latents held NaN already"
        )
    return (images * 0.5 + 0.5).clamp(0, 1).float()


def to_numpy(images: Tensor) -> "NDArray[np.float32]":
    """Images (b, 3, H, W) in [-1, 1] -> array (b, H, W, 3), float32 in [0, 1]. Raises ValueError on NaN."""
    array: NDArray[np.float32] = to_unit(images).permute(0, 2, 3, 1).cpu().numpy()
    return array


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images (b, 3, H, W) in [-1, 1] -> b RGB images of 8 bits (grey ones for a single channel). ValueError on NaN."""
    levels = (to_unit(images) * 255).round().to(torch.uint8)  # on the device: a quarter of the bytes to copy
    pixels = levels.permute(0, 2, 3, 1).cpu()  # (b, H, W, 3)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return [Image.fromarray(one.contiguous().numpy()) for one in pixels]
