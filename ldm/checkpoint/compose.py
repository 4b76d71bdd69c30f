"""Text models put together as the U-Net of their family reads them."""

from collections.abc import Iterable

from configs.architecture import UNetConfig
from text_encoder import LAST, PENULTIMATE, CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer


def composed(
    unet: UNetConfig, encoders: Iterable[tuple[Tokenizer, CLIPTextModel]]
) -> CLIPTextEncoder | PairedTextEncoder:
    """One text model or two, each with its tokenizer, as the text encoder that goes with this U-Net."""
    policy = PENULTIMATE if unet.vector == "text_time" else LAST
    made = [CLIPTextEncoder(tokenizer, model, policy) for tokenizer, model in encoders]
    return PairedTextEncoder(*made) if len(made) == 2 else made[0]
