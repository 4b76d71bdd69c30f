"""ControlNet files: what the original layout calls each tensor, and the configuration from the shapes of either layout.

Original: `cldm.cldm.ControlNet` of lllyasviel/ControlNet, prefix `control_model.` or none.
"""

import logging
import re
from collections import Counter
from dataclasses import replace
from math import gcd
from pathlib import Path

from configs.architecture import ControlNetConfig, UNetConfig
from ldm.checkpoint import infer
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import MAX_LEVELS
from ldm.checkpoint.infer import Shapes, shape_of
from ldm.checkpoint.names_compvis import BOTH, RESNET, Name, pairs, transformer, trunk

logger = logging.getLogger(__name__)

CONTROL = "control_model."  # before the names in most original files
XL_CONTEXT = 2048  # of small SDXL ControlNets, which look at no text but are given it
OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_mid_block": "middle_block_out.0",
}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}


def controlnet_names(config: ControlNetConfig) -> list[Name]:
    """Every tensor of a ControlNet; the original's prefix is `control_model.`."""
    unet = config.unet
    names, i = trunk(unet), 0
    for level, depths in enumerate(unet.down_depths):
        hollow = bool(config.hollow) and config.hollow[level]
        for j in range(len(depths) if hollow else 0):
            names += transformer(f"down_blocks.{level}.attentions.{j}", f"input_blocks.{i + j + 1}.1", 0)
        i += len(depths) + (level + 1 < len(unet.channels))
    for zero in range(i + 1):
        names += pairs(f"controlnet_down_blocks.{zero}", f"zero_convs.{zero}.0")
    hint, blocks = "controlnet_cond_embedding", 2 * (len(config.hint_channels) - 1)
    names += pairs(f"{hint}.conv_in", "input_hint_block.0")
    for k in range(blocks):
        names += pairs(f"{hint}.blocks.{k}", f"input_hint_block.{2 * k + 2}")
    names += pairs(f"{hint}.conv_out", f"input_hint_block.{2 * blocks + 2}")
    return names + pairs("controlnet_mid_block", "middle_block_out.0")


def controlnet_config(shapes: Shapes) -> ControlNetConfig:
    """The ControlNet with these tensors, by original names without prefix; what shapes do not tell as in `infer`.

    Raises CheckpointError naming the first tensor without which nothing can be said.
    """
    levels = infer.levels_of(shapes, "input_blocks")
    channels = tuple(infer.width_of(level[0], "input_blocks") for level in levels)
    depths = tuple(tuple(map(infer.depth_of, level)) for level in levels)
    vector, vector_dim = infer.vector_of(shapes, any(depths[0]))
    linear = any(len(shape) == 2 for name, shape in shapes.items() if name.endswith(".1.proj_in.weight"))
    middle = infer.blocks_of(shapes, "middle_block")
    sees_text = any(name.endswith("attn2.to_k.weight") for name in shapes)
    unet = UNetConfig(
        channels=channels,
        down_depths=depths,
        up_depths=tuple((*row, row[-1]) for row in reversed(depths)),
        mid="transformer" if len(middle) > 1 else "resnet",
        mid_depth=infer.depth_of({f"1.{name}": shape for name, shape in middle.get(1, {}).items()}),
        heads=tuple(infer.divisor(c, c // infer.HEAD_WIDTH if linear else infer.HEADS) for c in channels),
        context_dim=infer.context_of(shapes) if sees_text else XL_CONTEXT,
        in_channels=shape_of(shapes, "input_blocks.0.0.weight", 4)[1],
        linear_projection=linear,
        only_cross_attention=(False,) * len(channels),
        vector=vector,
        vector_dim=vector_dim,
        norm_groups=gcd(infer.GROUPS, *channels),
    )
    hints = infer.numbers_in(shapes, r"input_hint_block\.(\d{1,3})\.weight", 2 * MAX_LEVELS)
    if not hints:
        raise CheckpointError("input_hint_block.0.weight is missing")
    return ControlNetConfig(
        unet=unet,
        hollow=tuple("1.norm.weight" in level[0] and not any(row) for level, row in zip(levels, depths, strict=True)),
        hint_channels=tuple(shape_of(shapes, f"input_hint_block.{i}.weight", 4)[0] for i in range(0, hints[-1], 4)),
        hint_in=shape_of(shapes, "input_hint_block.0.weight", 4)[1],
    )


def pooled_by_name(config: ControlNetConfig, path: Path) -> ControlNetConfig:
    """A configuration read from shapes, with what only the file's name tells, as everybody reads it.

    ControlNet Shuffle averages its residuals over the picture.
    """
    if "shuffle" not in path.name.lower():
        return config
    logger.warning("%s is taken for ControlNet Shuffle, by its name: it acts on the picture as a whole", path)
    return replace(config, pooled=True)


def original_spelling(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of a ControlNet under diffusers' names, under the original ones."""
    rows = Counter(
        match[1]
        for name in shapes
        if (match := re.fullmatch(r"down_blocks\.(\d{1,3})\.resnets\.\d{1,3}\.conv1\.weight", name))
    )
    starts, i = {}, 1
    for level in sorted(rows, key=int):
        starts[level] = i
        i += rows[level] + 1
    hints = sum(name.startswith("controlnet_cond_embedding.blocks.") for name in shapes) // len(BOTH)
    outer = {**OUTER, "controlnet_cond_embedding.conv_out": f"input_hint_block.{2 * hints + 2}"}
    return {_original(name, starts, rows, outer): shape for name, shape in shapes.items()}


def _original(name: str, starts: dict[str, int], rows: Counter[str], outer: dict[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    if module in outer:
        return f"{outer[module]}.{leaf}"
    match name.split("."):
        case ["down_blocks", level, "downsamplers", "0", "conv", leaf] if level in starts:
            return f"input_blocks.{starts[level] + rows[level]}.0.op.{leaf}"
        case ["down_blocks", level, ("resnets" | "attentions") as kind, j, *rest] if level in starts and _counts(j):
            return f"input_blocks.{starts[level] + int(j)}.{int(kind == 'attentions')}.{_inner(rest)}"
        case ["mid_block", kind, j, *rest] if f"{kind}.{j}" in MIDDLE:
            return f"middle_block.{MIDDLE[f'{kind}.{j}']}.{_inner(rest)}"
        case ["controlnet_down_blocks", i, leaf]:
            return f"zero_convs.{i}.0.{leaf}"
        case ["controlnet_cond_embedding", "blocks", k, leaf] if _counts(k):
            return f"input_hint_block.{2 * int(k) + 2}.{leaf}"
    return name


def _counts(text: str) -> bool:
    return re.fullmatch(r"\d{1,3}", text) is not None


def _inner(parts: list[str]) -> str:
    return (
        ".".join([{**RESNET, "conv_shortcut": "skip_connection"}.get(parts[0], parts[0]), *parts[1:]]) if parts else ""
    )
