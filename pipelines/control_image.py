"""Control images, as people give them, to what ControlNets take."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.request import Size
from vae.pixels import from_pil

Picture = Image.Image | Tensor  # a tensor is (c, h, w) float32 in [0, 1]
SLACK = 0.01  # what resizing may overshoot by
KINDS = "a PIL image, a tensor (c, h, w), an array (h, w, c), a batch of these, or a list of them"


def pictures(given: Any, nets: int, prompts: int) -> list[list[Picture]]:
    """The control images of each ControlNet: one for all prompts, or one for each.

    given: of one ControlNet a picture, a batch or a list; of several a list with that for each of them, or, as in
        diffusers, a list for each prompt with a picture for each of them.

    Raises TypeError and ValueError saying what is given and what would be right.
    """
    groups = [[image for one in _as_list(group) for image in _singles(one)] for group in _groups(given, nets)]
    for group in groups:
        if len(group) not in (1, prompts):
            wanted = "one, or one for each prompt" if prompts > 1 else "one"
            raise ValueError(f"a ControlNet has {len(group)} control images for {prompts} prompts: give it {wanted}")
    return groups


def _groups(given: Any, nets: int) -> list[Any]:
    if isinstance(given, (list, tuple)) and any(isinstance(entry, (list, tuple)) for entry in given):
        if not all(isinstance(entry, (list, tuple)) and len(entry) == nets for entry in given):
            raise ValueError(f"control_image as a list of lists has one for each prompt, each with {nets} images")
        return [list(group) for group in zip(*given, strict=True)]
    if nets == 1:
        return [given]
    if not isinstance(given, (list, tuple)) or len(given) != nets:
        count = f"{len(given)} control images" if isinstance(given, (list, tuple)) else "one control image"
        raise ValueError(f"there are {nets} ControlNets and {count}: give a list with one for each")
    return list(given)


def _as_list(group: Any) -> list[Any]:
    images = list(group) if isinstance(group, (list, tuple)) else [group]
    if not images:
        raise ValueError("the list of control images is empty: give at least one")
    return images


def _singles(image: Any) -> list[Picture]:
    """The pictures of a batch, or the one that it is."""
    if isinstance(image, Image.Image):
        return [image]
    if isinstance(image, Tensor):
        return [_unit(one) for one in (image if image.ndim == 4 else [image])]
    if not hasattr(image, "__array_interface__"):
        raise TypeError(f"control_image is {KINDS}, not {type(image).__name__}")
    pixels = torch.tensor(image)  # a copy: those of PIL may not be written to
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return [_unit(one.movedim(-1, 0)) for one in (pixels if pixels.ndim == 4 else [pixels])]


def _unit(image: Tensor) -> Tensor:
    """(c, h, w) float32 in [0, 1], which 8 and 16 bits are brought to."""
    if image.ndim != 3 or image.dtype.is_complex:
        raise ValueError(f"control_image is {KINDS}, not {tuple(image.shape)} of {image.dtype}")
    unit = image.float() / {torch.uint8: 255, torch.uint16: 65535}.get(image.dtype, 1)
    low, high = (float(unit.min()), float(unit.max())) if unit.numel() else (0.0, 0.0)
    if not (-SLACK <= low <= high <= 1 + SLACK):
        raise ValueError(f"the values of control_image run from {low:g} to {high:g}: bring them to 0 to 1")
    return unit


def size_of(image: Picture, factor: int) -> Size:
    """(height, width) of the picture that an image controls by default: its own, cut to a multiple of `factor`.

    Raises ValueError where nothing is left.
    """
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[-2:]
    if min(height, width) < factor:
        raise ValueError(f"the control image of {width} x {height} pixels is too small: give height and width")
    return height - height % factor, width - width % factor


def as_hint(images: Sequence[Picture], size: Size, channels: int) -> Tensor:
    """m images -> (m, channels, *size) float32 in [0, 1]: PIL images are resized by Lanczos, tensors by the nearest
    pixel, as in diffusers. An EXIF orientation is not applied.

    Raises ValueError where they have other channels.
    """
    return torch.stack([_of(image, size, channels) for image in images])


def _of(image: Picture, size: Size, channels: int) -> Tensor:
    if isinstance(image, Image.Image) and channels in (1, 3):
        # of 16 bits converting to 8 would leave white
        image = image.convert("I" if image.mode.startswith("I") else "L" if channels == 1 else "RGB")
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
        return (from_pil([image])[0] / 2 + 0.5)[:channels]
    given = image if isinstance(image, Tensor) else torch.empty(len(image.getbands()), 0, 0)
    if len(given) not in (1, channels):
        raise ValueError(f"this ControlNet takes control images of {channels} channels, not {len(given)}")
    if not isinstance(image, Tensor):
        raise ValueError(f"this ControlNet takes control images of {channels} channels: give a tensor")
    return F.interpolate(image[None], size)[0].expand(channels, -1, -1)
