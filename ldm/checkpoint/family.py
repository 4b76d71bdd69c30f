"""Names the family of a model from the shapes of its parts."""

from collections.abc import Mapping, Sequence

from configs.architecture import UNetConfig

FAMILIES = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "SDXL",
    1280: "the SDXL refiner",
}  # by the width of the text that the U-Net attends to


BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}  # the same, as `family_of` calls them


def family_of(unet: UNetConfig, text_encoders: int) -> str:
    """ "sd1", "sd2", "sdxl" or "sdxl_refiner", for a U-Net and the number of its text encoders."""
    if unet.vector == "text_time":
        return "sdxl" if text_encoders == 2 else "sdxl_refiner"
    return "sd2" if unet.linear_projection else "sd1"


def described(width: int) -> str:
    """A width of text, and whose it is: "2048 (SDXL)"."""
    return f"{width} ({FAMILIES[width]})" if width in FAMILIES else str(width)


def context_width(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """The width of the text that U-Net weights attend to, from the first cross-attention key projection (d, width)."""
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and len(shape) == 2:
            return shape[1]
    return None
