"""Configurations of adapters and tiny autoencoders from the shapes of their weights. Reads no tensor."""

import re

from configs.architecture import AdapterConfig, ImagePromptConfig, TinyConfig
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import MAX_BLOCKS, MAX_LEVELS
from ldm.checkpoint.infer import HEAD_WIDTH, Shapes, numbers_in, shape_of

FOLDED = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}  # first channels: of the control image, folding factor
FACTOR_XL = 16
PATCHES = 0  # a token for each of the patches


def adapter_config(shapes: Shapes) -> AdapterConfig:
    """The T2I-Adapter with these tensors, by our names. Raises CheckpointError for other shapes."""
    levels = numbers_in(shapes, r"adapter\.body\.(\d{1,3})\.", MAX_LEVELS)
    light = "adapter.body.0.out_conv.weight" in shapes
    first = "adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"
    width = "out_conv" if light else "resnets.0.block1"
    folded = shape_of(shapes, first, 4)[1]
    if folded not in FOLDED or not levels:
        raise CheckpointError(f"{first} takes {folded} channels, which no T2I-Adapter does ({sorted(FOLDED)})")
    in_channels, factor = FOLDED[folded]
    channels = tuple(shape_of(shapes, f"adapter.body.{i}.{width}.weight", 4)[0] for i in levels)
    return AdapterConfig(
        kind="light" if light else "full_xl" if factor == FACTOR_XL else "full",
        in_channels=in_channels,
        channels=channels[:-1] if light else channels,
        layers=len(numbers_in(shapes, r"adapter\.body\.0\.resnets\.(\d{1,3})\.", MAX_BLOCKS // MAX_LEVELS)),
        factor=factor,
    )


def tiny_config(shapes: Shapes) -> TinyConfig:
    """The tiny autoencoder with these tensors, by our names; a half that is missing has no levels."""
    encoder, decoder = _half(shapes, "encoder"), _half(shapes, "decoder")
    return TinyConfig(
        encoder_channels=tuple(width for width, _ in encoder[:-1]),
        encoder_layers=tuple(blocks for _, blocks in encoder[:-1]),
        decoder_channels=tuple(width for width, _ in decoder[:-1]),
        decoder_layers=tuple(blocks for _, blocks in decoder[:-1]),
        latent_channels=encoder[-1][0] if encoder else shape_of(shapes, "decoder.layers.0.weight", 4)[1],
        in_channels=shape_of(shapes, "encoder.layers.0.weight", 4)[1] if encoder else 3,
        out_channels=decoder[-1][0] if decoder else 3,
    )


def _half(shapes: Shapes, half: str) -> list[tuple[int, int]]:
    """Width of each convolution by itself and how many blocks follow it; the last is the way out."""
    found: list[tuple[int, int]] = []
    for i in numbers_in(shapes, rf"{half}\.layers\.(\d{{1,3}})\.", MAX_BLOCKS):
        if f"{half}.layers.{i}.conv.0.weight" not in shapes:
            found.append((shape_of(shapes, f"{half}.layers.{i}.weight", 4)[0], 0))
        elif found:
            found[-1] = found[-1][0], found[-1][1] + 1
    if len(found) > MAX_LEVELS + 1:
        raise CheckpointError(f"its {half} claims {len(found) - 1} levels, more than {MAX_LEVELS}; no known one does")
    return found


def image_prompt_config(shapes: Shapes) -> ImagePromptConfig:
    """The IP-Adapter with these tensors. Raises CheckpointError naming the first that is missing."""
    numbers = numbers_in(shapes, r"ip_adapter\.(\d{1,3})\.to_k_ip\.weight$", MAX_BLOCKS)
    if not numbers or numbers != list(range(1, 2 * len(numbers), 2)):
        raise CheckpointError("its keys (ip_adapter.N.to_k_ip) are not numbered 1, 3, 5, ...; the file is incomplete")
    pairs = [shape_of(shapes, f"ip_adapter.{n}.to_k_ip.weight", 2) for n in numbers]
    inner = {
        name.removeprefix("image_proj."): shape for name, shape in shapes.items() if name.startswith("image_proj.")
    }
    return _projection(inner, pairs[0][1], tuple(d for d, _ in pairs))


def _projection(shapes: Shapes, d: int, attentions: tuple[int, ...]) -> ImagePromptConfig:
    """The order of the questions is that of diffusers: FaceID plus has the names of FaceID too."""
    if "proj.weight" in shapes:
        rows, e = shape_of(shapes, "proj.weight", 2)
        return ImagePromptConfig("plain", e, d, tokens=rows // d, attentions=attentions)
    if "proj.3.weight" in shapes:
        return ImagePromptConfig("full", shape_of(shapes, "proj.0.weight", 2)[1], d, PATCHES, attentions=attentions)
    if "perceiver_resampler.proj_in.weight" in shapes:
        resampler = _resampler(shapes, "perceiver_resampler.", d, attentions)
        hidden, e = shape_of(shapes, "proj.0.weight", 2)
        tokens = shape_of(shapes, "proj.2.weight", 2)[0] // resampler.width
        return ImagePromptConfig(
            "face_plus",
            resampler.image_dim,
            d,
            tokens,
            resampler.width,
            resampler.depth,
            resampler.heads,
            resampler.mlp_width,
            id_dim=e,
            id_width=hidden,
            attentions=attentions,
        )
    if "norm.weight" in shapes:
        hidden, e = shape_of(shapes, "proj.0.weight", 2)
        tokens = shape_of(shapes, "proj.2.weight", 2)[0] // d
        return ImagePromptConfig("face", 0, d, tokens, id_dim=e, id_width=hidden, attentions=attentions)
    return _resampler(shapes, "", d, attentions)


def _resampler(shapes: Shapes, prefix: str, d: int, attentions: tuple[int, ...]) -> ImagePromptConfig:
    width, e = shape_of(shapes, f"{prefix}proj_in.weight", 2)
    depth = len(numbers_in(shapes, rf"{re.escape(prefix)}layers\.(\d{{1,3}})\."))
    return ImagePromptConfig(
        "plus",
        image_dim=e,
        context_dim=d,
        tokens=0 if prefix else shape_of(shapes, "latents", 3)[1],
        width=width,
        depth=depth,
        heads=shape_of(shapes, f"{prefix}layers.0.0.to_q.weight", 2)[0] // HEAD_WIDTH,
        mlp_width=shape_of(shapes, f"{prefix}layers.0.1.1.weight", 2)[0],
        attentions=attentions,
    )
