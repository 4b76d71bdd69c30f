"""What a wrong input is told."""

from collections.abc import Sequence

import torch
from torch import Tensor

from configs.architecture import ControlNetConfig, UNetConfig

FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "the SDXL refiner", 2048: "SDXL"}
INPUTS = {
    4: "latents alone",
    5: "latents and a depth map (1)",
    7: "latents and a small image (3)",
    8: "latents and the latents of an image to edit (4)",
    9: "latents, a mask (1) and the latents of the masked image (4)",
}
VECTORS = {
    "text_time": "the pooled text embedding and the sinusoids of the size ids, concatenated",
    "class_table": "class numbers",
    "class_timestep": "noise levels",
    "class_projection": "an image embedding",
}

Shape = tuple[int | str, ...]  # a letter stands for any size


def check_inputs(config: UNetConfig, x: Tensor, t: Tensor | float, context: Tensor, mask: Tensor | None) -> None:
    """Raises ValueError if the latents, times, text or mask do not fit each other or the network."""
    b = len(context) if len(x) and len(context) % len(x) == 0 else len(x)  # guidance has two texts for one latent
    _expect("x", x, (len(x), config.in_channels, "h", "w"), INPUTS.get(config.in_channels, "latents"))
    if isinstance(t, Tensor):
        _expect("t", t, (1,) if t.shape == (1,) else (b,), "one time for each latent, or one for all")
    _expect("context", context, (b, "n", config.context_dim), _families(config.context_dim, context.shape[-1]))
    if mask is not None:
        _expect("mask", mask, tuple(context.shape[:2]), "True where the text may be seen")
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, True where the text may be seen, not {mask.dtype}; use mask.bool()")


def _families(wanted: int, given: int) -> str:
    model, text = FAMILIES.get(wanted), FAMILIES.get(given)
    meaning = f"this U-Net is made for {model}" if model else "the width is its text encoder's"
    return meaning if text in (None, model) else f"{meaning}, this looks like the text of {text}"


def check_conditions(config: UNetConfig, b: int, vector: Tensor | None, guidance: Tensor | None) -> None:
    """Raises ValueError if a condition beside the text is missing, superfluous or of the wrong shape."""
    shape: Shape = (b,) if config.vector in ("class_table", "class_timestep") else (b, config.vector_dim)
    _expect_if(config.vector != "none", "vector", vector, shape, VECTORS.get(config.vector, ""))
    _expect_if(config.guidance_dim > 0, "guidance", guidance, (b,), "the guidance weight minus one, for each image")


def check_additions(config: UNetConfig, residuals: Sequence[Tensor] | None, features: Sequence[Tensor]) -> None:
    """Raises ValueError if there are too few or too many residuals of a ControlNet or features of an adapter."""
    levels = len(config.channels)
    if features and len(features) not in (levels, levels + 1):
        raise ValueError(
            f"this U-Net takes {levels} features (for each level) or {levels + 1} (and the middle), not "
            f"{len(features)}; use a T2I-Adapter of the same family"
        )
    count = levels + sum(map(len, config.down_depths)) + 1
    if residuals is not None and len(residuals) != count:
        raise ValueError(
            f"this U-Net takes {count} residuals (for each skip connection, then the middle), not {len(residuals)}; "
            "use a ControlNet of the same family"
        )


def check_hint(config: ControlNetConfig, hint: Tensor) -> None:
    """Raises ValueError if control images have the wrong channels, or a size that no latent has."""
    _expect("hint", hint, ("b", config.hint_in, "h", "w"), "control images in the size of the pictures")
    factor = 2 ** (len(config.hint_channels) - 1)
    h, w = hint.shape[2:]
    if h % factor or w % factor:
        raise ValueError(f"the control image is {w} x {h} pixels, but must be multiples of {factor}: resize it")


def check_controlnet(config: ControlNetConfig, unet: UNetConfig) -> None:
    """Raises ValueError if a ControlNet was not made for such a U-Net, saying for what it was."""
    own, advice = config.unet, "take a ControlNet of the model's family"
    if own.context_dim != unet.context_dim:
        made, given = (_made_for(each.context_dim) for each in (own, unet))
        raise ValueError(f"this ControlNet is made for {made}, and the model is {given}: {advice}")
    if own.vector != "none" and (own.vector, own.vector_dim) != (unet.vector, unet.vector_dim):
        needs = f"{own.vector_dim} numbers ({VECTORS[own.vector]})"
        raise ValueError(f"this ControlNet needs {needs}, which the model's U-Net does not take: {advice}")
    for what, value, wanted in (
        ("channels of the latents", (own.in_channels,), (unet.in_channels,)),
        ("channels by level", own.channels, unet.channels),
        ("layers by level", tuple(map(len, own.down_depths)), tuple(map(len, unet.down_depths))),
    ):
        if value != wanted:
            raise ValueError(
                f"this ControlNet has {what} {_written(value)}, and the model {_written(wanted)}: {advice}"
            )


def _made_for(width: int) -> str:
    return FAMILIES.get(width, f"one whose text is {width} wide")


def _expect_if(wanted: bool, name: str, value: Tensor | None, shape: Shape, meaning: str) -> None:
    if wanted and value is None:
        raise ValueError(f"this U-Net needs {name}=: {meaning}, of shape {_written(shape)}")
    if value is not None and not wanted:
        raise ValueError(f"this U-Net takes no {name}; leave it out")
    if value is not None:
        _expect(name, value, shape, meaning)


def _expect(name: str, value: Tensor, shape: Shape, meaning: str) -> None:
    sizes = zip(value.shape, shape, strict=False)
    if value.ndim != len(shape) or any(want != have for have, want in sizes if isinstance(want, int)):
        raise ValueError(f"{name} must have shape {_written(shape)}, not {_written(value.shape)}: {meaning}")


def _written(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
