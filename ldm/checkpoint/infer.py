"""Configurations of networks from the shapes of their weights. Needs no torch and reads no tensor.

Widths, depths and channels are in the shapes. Three things are not, and follow a rule that gives the published values:

heads        8 at each level where transformers are wrapped in convolutions (SD 1) and in the x4 upscaler, else one for
             each 64 channels; in text encoders one for each 64
norm groups  32
eps, and the activation of a text encoder: its family's

Where a (tiny) network is too narrow for that, or does not divide by it: the largest smaller number that divides it.
"""

import re
from collections.abc import Mapping
from math import gcd
from typing import Any, Literal

from configs.architecture import AutoencoderConfig, Depths, TextEncoderConfig, UNetConfig
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import MAX_BLOCKS, MAX_LAYERS, MAX_LEVELS

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Block = dict[str, Shape]
Vector = Literal["none", "text_time", "class_table", "class_projection"]

HEADS, HEAD_WIDTH, GROUPS, SIZE_DIM = 8, 64, 32, 256
CLIP_TOKENS = 49408
VIT_H = (24, 1024)  # layers and width of OpenCLIP's, of which Stable Diffusion 2 uses all layers but the last


def shape_of(shapes: Shapes, name: str, ndim: int) -> Shape:
    """The shape of a tensor that must be there. Raises CheckpointError naming it."""
    if name not in shapes:
        raise CheckpointError(f"{name} is missing")
    if len(shapes[name]) != ndim or 0 in shapes[name]:
        raise CheckpointError(f"{name} has the shape {shapes[name]}, expected {ndim} dimensions")
    return shapes[name]


def numbers_in(shapes: Shapes, pattern: str, most: int = MAX_LAYERS) -> list[int]:
    """The different numbers, of up to three digits, that a pattern finds at the beginning of names, in order.

    Raises CheckpointError for more than `most`, since a short file can claim networks that take minutes to build.
    """
    found = sorted({int(match[1]) for name in shapes if (match := re.match(pattern, name))})
    if len(found) > most:
        first = next(name for name in shapes if re.match(pattern, name))[:200]
        raise CheckpointError(f"it claims {len(found)} blocks like {first!r}, more than {most}; no known network does")
    return found


def require_few(blocks: int) -> None:
    """Raises CheckpointError for more blocks than any known network has."""
    if blocks > MAX_BLOCKS:
        raise CheckpointError(f"it claims {blocks} blocks, more than {MAX_BLOCKS}; no known network has so many")


# U-Net


def unet_config(shapes: Shapes) -> UNetConfig:
    """The U-Net with these tensors, by original names without prefix.

    `sample_size` and, for SDXL's size ids, `size_dim` are not in the shapes and keep their defaults. Raises
    CheckpointError naming the first tensor without which nothing can be said.
    """
    down, up = levels_of(shapes, "input_blocks"), levels_of(shapes, "output_blocks")
    channels = tuple(width_of(level[0], "input_blocks") for level in down)
    down_depths = tuple(tuple(map(depth_of, level)) for level in down)
    vector, vector_dim = vector_of(shapes, any(down_depths[0]))
    linear = any(len(shape) == 2 for name, shape in shapes.items() if name.endswith(".1.proj_in.weight"))
    middle = blocks_of(shapes, "middle_block")
    by_eight = not linear or vector == "class_table"
    first = shape_of(shapes, "input_blocks.0.0.weight", 4)
    return UNetConfig(
        channels=channels,
        down_depths=down_depths,
        up_depths=_up_depths(up),
        mid="transformer" if len(middle) > 1 else "resnet" if middle else "none",
        mid_depth=depth_of({f"1.{name}": shape for name, shape in middle.get(1, {}).items()}),
        heads=tuple(divisor(c, HEADS if by_eight else c // HEAD_WIDTH) for c in channels),
        context_dim=context_of(shapes),
        in_channels=first[1],
        out_channels=shape_of(shapes, "out.2.weight", 4)[0],
        linear_projection=linear,
        only_cross_attention=_only_cross(down),
        vector=vector,
        vector_dim=vector_dim,
        size_dim=SIZE_DIM,
        guidance_dim=shapes.get("time_embed.cond_proj.weight", (0, 0))[1],
        norm_groups=gcd(GROUPS, *channels),
    )


def blocks_of(shapes: Shapes, side: str) -> dict[int, Block]:
    """The tensors of each numbered block, by what follows the number."""
    blocks: dict[int, Block] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(rf"{side}\.(\d{{1,3}})\.(.+)", name):
            blocks.setdefault(int(match[1]), {})[match[2]] = shape
    return dict(sorted(blocks.items()))


def levels_of(shapes: Shapes, side: str) -> list[list[Block]]:
    """The blocks with ResNets, by level; a level ends with a step to the next resolution."""
    levels: list[list[Block]] = [[]]
    for i, block in blocks_of(shapes, side).items():
        if side == "input_blocks" and i == 0:  # the convolution before the first level
            continue
        if not any(name.startswith("0.op.") for name in block):
            levels[-1].append(block)
        if any(re.match(r"0\.op\.|[12]\.conv\.", name) for name in block):
            levels.append([])
    if not all(levels):
        raise CheckpointError(f"its U-Net has a level without {side}")
    if len(levels) > MAX_LEVELS:
        raise CheckpointError(f"its U-Net claims {len(levels)} levels, more than {MAX_LEVELS}; no known network does")
    require_few(sum(max(1, depth_of(block)) for level in levels for block in level))
    return levels


def width_of(block: Block, side: str) -> int:
    for name in ("0.in_layers.2.weight", "0.out_layers.3.weight", "0.emb_layers.1.weight"):
        if shape := block.get(name):
            return shape[0]
    raise CheckpointError(f"its U-Net has a block in {side} without convolutions")


def depth_of(block: Block) -> int:
    return len(numbers_in(block, r"1\.transformer_blocks\.(\d{1,3})\."))


def _up_depths(levels: list[list[Block]]) -> Depths:
    return tuple(tuple(map(depth_of, level)) for level in levels)


def vector_of(shapes: Shapes, attentive_finest: bool) -> tuple[Vector, int]:
    """What the U-Net is told beside the text. Of those with a projection, SDXL has no attention on the finest level."""
    if "label_emb.weight" in shapes:
        return "class_table", shape_of(shapes, "label_emb.weight", 2)[0]
    if not any(name.startswith("label_emb.0.") for name in shapes):
        return "none", 0
    return "class_projection" if attentive_finest else "text_time", shape_of(shapes, "label_emb.0.0.weight", 2)[1]


def context_of(shapes: Shapes) -> int:
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and len(shape) == 2:
            return shape[1]
    raise CheckpointError("its U-Net attends to no text")


def _only_cross(levels: list[list[Block]]) -> tuple[bool, ...]:
    """By level, whether the first attention looks at the text too; a level without attention is as the next one."""
    flags: list[bool] = []
    for level in reversed(levels):
        attention = level[0].get("1.transformer_blocks.0.attn1.to_k.weight")
        unlike = attention is not None and attention != attention[::-1]
        flags.append(unlike if attention is not None else bool(flags) and flags[-1])
    return tuple(reversed(flags))


def divisor(width: int, wanted: int) -> int:
    """The largest number up to `wanted` that divides `width`, at least 1."""
    return next(heads for heads in range(max(1, min(wanted, width)), 0, -1) if width % heads == 0)


# EMA weights

_WORDS = re.compile(
    r"input_blocks|output_blocks|middle_block|transformer_blocks|in_layers|out_layers|emb_layers|skip_connection|"
    r"time_embed|label_emb|cond_proj|proj_in|proj_out|attn[12]|to_out|to_[qkv]|norm[123]?|ff|net|proj|conv|out|op|"
    r"weight|bias|\d+"
)


def dotted(flat: str) -> str:
    """The original name behind that of an EMA copy, which has lost its dots: `input_blocks10in_layers2weight`."""
    words = _WORDS.findall(flat)
    if "".join(words) != flat:
        return flat
    for i, word in enumerate(words[:-1]):
        if word in ("input_blocks", "output_blocks", "label_emb") and len(words[i + 1]) > 1 and words[i + 1].isdigit():
            words[i + 1] = f"{words[i + 1][:-1]}.{words[i + 1][-1]}"  # the second number has one digit
    return ".".join(words)


# VAE


def autoencoder_config(shapes: Shapes) -> AutoencoderConfig:
    """The autoencoder with these tensors, by original names without prefix; the scale of its latents is not in them."""
    last = shape_of(shapes, "decoder.conv_in.weight", 4)
    levels = numbers_in(shapes, r"encoder\.down\.(\d{1,3})\.", MAX_LEVELS)
    channels = tuple(shape_of(shapes, f"encoder.down.{i}.block.0.conv2.weight", 4)[0] for i in levels)
    if not channels:
        raise CheckpointError("its autoencoder has no encoder")
    layers = len(numbers_in(shapes, r"encoder\.down\.0\.block\.(\d{1,3})\."))
    require_few(len(levels) * layers)
    return AutoencoderConfig(
        channels=channels,
        layers=layers,
        latent_channels=last[1],
        in_channels=shape_of(shapes, "encoder.conv_in.weight", 4)[1],
        out_channels=shape_of(shapes, "decoder.conv_out.weight", 4)[0],
        norm_groups=gcd(GROUPS, *channels),
        mid_attention=any(name.startswith("encoder.mid.attn_1.") for name in shapes),
        quant_conv=any(name.startswith("quant_conv.") for name in shapes),
        post_quant_conv=any(name.startswith("post_quant_conv.") for name in shapes),
    )


# text encoders


def clip_config(shapes: Shapes, *, gelu: bool, projected: bool = False) -> TextEncoderConfig:
    """The text encoder with these tensors under transformers' names, `text_model.` included.

    projected: it keeps its projection, if it has one.
    """
    embeddings = "text_model.embeddings"
    layers = len(numbers_in(shapes, r"text_model\.encoder\.layers\.(\d{1,3})\."))
    return _text_config(
        shape_of(shapes, f"{embeddings}.token_embedding.weight", 2),
        shape_of(shapes, f"{embeddings}.position_embedding.weight", 2)[0],
        shape_of(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        layers=layers,
        activation="gelu" if gelu else "quick_gelu",
        projection_dim=shapes["text_projection.weight"][0]
        if projected and "text_projection.weight" in shapes
        else None,
    )


def openclip_config(shapes: Shapes, *, projected: bool) -> TextEncoderConfig:
    """The text encoder with these tensors under OpenCLIP's names.

    projected: it keeps all its layers and its projection (SDXL). Otherwise (SD 2) its last layer is left out. Files
    that hold no projection have left it out themselves, unless they have as many layers as OpenCLIP's ViT-H.
    """
    layers = len(numbers_in(shapes, r"transformer\.resblocks\.(\d{1,3})\."))
    width = shape_of(shapes, "token_embedding.weight", 2)[1]
    whole = "text_projection" in shapes or (layers, width) == VIT_H
    return _text_config(
        shape_of(shapes, "token_embedding.weight", 2),
        shape_of(shapes, "positional_embedding", 2)[0],
        shape_of(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        layers=layers - 1 if whole and not projected else layers,
        activation="gelu",
        projection_dim=shape_of(shapes, "text_projection", 2)[1] if projected else None,
    )


def _text_config(tokens: Shape, length: int, mlp_width: int, **others: Any) -> TextEncoderConfig:
    vocabulary, width = tokens
    return TextEncoderConfig(
        width=width,
        heads=divisor(width, width // HEAD_WIDTH),
        mlp_width=mlp_width,
        vocabulary=vocabulary,
        max_length=length,
        eos_token_id=CLIP_TOKENS - 1 if vocabulary >= CLIP_TOKENS else 2,  # 2: the highest id, as of old
        **others,
    )
