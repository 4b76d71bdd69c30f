"""What CompVis and Stability AI call each tensor in their single files, as one table for each network.

The tables are made from configurations alone and are read in both directions, so that whatever is loaded can be written
back under the same names. Prefixes (`model.diffusion_model.` and so on) are no part of them. U-Net and ControlNet:
`ldm.modules.diffusionmodules.openaimodel` of CompVis/stable-diffusion; text: mlfoundations/open_clip.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from configs.architecture import AutoencoderConfig, TextEncoderConfig, UNetConfig

if TYPE_CHECKING:
    from torch import Tensor

BOTH = ("weight", "bias")
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@dataclass(frozen=True)
class Name:
    """One tensor: its name here, its name there, and how the two differ.

    same: not at all. conv: a 1x1 convolution there, a matrix here. third: rows there that hold three tensors, of which
    this is number `part`. transposed: a matrix there with rows and columns exchanged.
    """

    own: str
    original: str
    kind: Literal["same", "conv", "third", "transposed"] = "same"
    part: int = 0


def to_own(names: Iterable[Name], tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[str, "Tensor"]]:
    """(own name, tensor) for each name of a table that `tensors`, under original names, has: views, one by one."""
    for name in names:
        if name.original in tensors:
            yield name.own, own_view(name, tensors[name.original])


def renaming(names: Iterable[Name], prefix: str = "") -> Callable[[dict[str, "Tensor"]], dict[str, "Tensor"]]:
    """Tensors by original names, with this prefix, to views by our own; others stay, to be complained of."""
    table: dict[str, list[Name]] = defaultdict(list)
    for name in names:
        table[prefix + name.original].append(name)

    def renamed(tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        own: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            own |= {name.own: own_view(name, tensor) for name in table[key]} if key in table else {key: tensor}
        return own

    return renamed


def own_view(name: Name, tensor: "Tensor") -> "Tensor":
    """The part of an original tensor that is ours, as a view, except that a transposed one (the only one) is copied."""
    match name.kind:
        case "conv":
            return tensor.flatten(1)
        case "third":
            rows = len(tensor) // 3
            return tensor[name.part * rows : (name.part + 1) * rows]
        case "transposed":
            return tensor.t().contiguous()
        case _:
            return tensor


def fits(name: Name, own: Sequence[int], original: Sequence[int]) -> bool:
    """Whether an original tensor of one shape holds a tensor of ours of the other."""
    match name.kind:
        case "conv":
            return tuple(original[:2]) == tuple(own) and all(side == 1 for side in original[2:])
        case "third":
            return tuple(original) == (3 * own[0], *own[1:])
        case "transposed":
            return tuple(original) == tuple(own[::-1])
        case _:
            return tuple(original) == tuple(own)


def to_original(names: Iterable[Name], tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[str, "Tensor"]]:
    """(original name, tensor) for `tensors` under own names: views, but thirds are joined. KeyError if one is missing.

    1x1 convolutions become such again.
    """
    rows: dict[str, list[Name]] = defaultdict(list)
    for name in names:
        rows[name.original].append(name)
    for original, parts in rows.items():
        yield original, _original_view(parts, tensors)


def _original_view(parts: list[Name], tensors: Mapping[str, "Tensor"]) -> "Tensor":
    tensor = tensors[parts[0].own]
    match parts[0].kind:
        case "conv":
            return tensor[:, :, None, None]
        case "third":
            import torch

            return torch.cat([tensors[part.own] for part in parts])
        case "transposed":
            return tensor.t()
        case _:
            return tensor


def pairs(own: str, original: str, kind: Literal["same", "conv"] = "same") -> list[Name]:
    weight = Name(f"{own}.weight", f"{original}.weight", kind)
    return [weight, Name(f"{own}.bias", f"{original}.bias")]


# U-Net


def unet_names(config: UNetConfig) -> list[Name]:
    """Every tensor of a U-Net; the original's prefix is `model.diffusion_model.`."""
    return trunk(config) + _up(config) + pairs("conv_norm_out", "out.0") + pairs("conv_out", "out.2")


def trunk(config: UNetConfig) -> list[Name]:
    """What a U-Net and its ControlNet have in common: all up to and with the middle."""
    return [*_time(config), *pairs("conv_in", "input_blocks.0.0"), *_down(config), *_middle(config)]


def _time(config: UNetConfig) -> list[Name]:
    names = pairs("time_embedding.linear_1", "time_embed.0") + pairs("time_embedding.linear_2", "time_embed.2")
    if config.guidance_dim:  # of distilled models, which nobody publishes as single files: the name is ours
        names.append(Name("time_embedding.cond_proj.weight", "time_embed.cond_proj.weight"))
    if config.vector == "class_table":
        return [*names, Name("class_embedding.weight", "label_emb.weight")]
    if config.vector == "none":
        return names
    own = "add_embedding" if config.vector == "text_time" else "class_embedding"
    return names + pairs(f"{own}.linear_1", "label_emb.0.0") + pairs(f"{own}.linear_2", "label_emb.0.2")


def _down(config: UNetConfig) -> list[Name]:
    names: list[Name] = []
    i, widths = 0, (config.channels[0], *config.channels)
    for level, depths in enumerate(config.down_depths):
        for j, depth in enumerate(depths):
            i += 1
            widens = j == 0 and widths[level] != widths[level + 1]
            names += _resnet(f"down_blocks.{level}.resnets.{j}", f"input_blocks.{i}.0", widens)
            if any(depths):
                names += transformer(f"down_blocks.{level}.attentions.{j}", f"input_blocks.{i}.1", depth)
        if level + 1 < len(config.channels):
            i += 1
            names += pairs(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{i}.0.op")
    return names


def _middle(config: UNetConfig) -> list[Name]:
    if config.mid == "none":
        return []
    names = _resnet("mid_block.resnets.0", "middle_block.0", False)
    if config.mid == "resnet":
        return names
    names += transformer("mid_block.attentions.0", "middle_block.1", config.mid_depth)
    return names + _resnet("mid_block.resnets.1", "middle_block.2", False)


def _up(config: UNetConfig) -> list[Name]:
    """Both sides count from the coarsest level; the way to the next one is the last entry of a level's last block."""
    names: list[Name] = []
    i = -1
    for b, depths in enumerate(config.up_depths):
        for j, depth in enumerate(depths):
            i += 1
            names += _resnet(f"up_blocks.{b}.resnets.{j}", f"output_blocks.{i}.0", True)
            if any(depths):
                names += transformer(f"up_blocks.{b}.attentions.{j}", f"output_blocks.{i}.1", depth)
        if b + 1 < len(config.channels):
            place = 2 if any(depths) else 1
            names += pairs(f"up_blocks.{b}.upsamplers.0.conv", f"output_blocks.{i}.{place}.conv")
    return names


def _resnet(own: str, original: str, shortcut: bool) -> list[Name]:
    parts = {**RESNET, "conv_shortcut": "skip_connection"} if shortcut else RESNET
    return [name for ours, theirs in parts.items() for name in pairs(f"{own}.{ours}", f"{original}.{theirs}")]


def transformer(own: str, original: str, depth: int) -> list[Name]:
    """Inside, both sides use the same names."""
    blocks = [f"transformer_blocks.{k}.{inner}" for k in range(depth) for inner in _block()]
    outer = [f"{part}.{leaf}" for part in ("norm", "proj_in", "proj_out") for leaf in BOTH]
    return [Name(f"{own}.{inner}", f"{original}.{inner}") for inner in outer + blocks]


def _block() -> Iterator[str]:
    for attention in ("attn1", "attn2"):
        yield from (f"{attention}.{part}.weight" for part in ("to_q", "to_k", "to_v"))
    for part in ("norm1", "attn1.to_out.0", "norm2", "attn2.to_out.0", "norm3", "ff.net.0.proj", "ff.net.2"):
        yield from (f"{part}.{leaf}" for leaf in BOTH)


# VAE


def vae_names(config: AutoencoderConfig) -> list[Name]:
    """Every tensor of an autoencoder; the original's prefix is `first_stage_model.`."""
    names = [name for side in ("encoder", "decoder") for name in _vae_ends(side, config)]
    widths, last = (config.channels[0], *config.channels), len(config.channels) - 1
    for i, (c, d) in enumerate(pairwise(widths)):
        names += _vae_level(f"encoder.down_blocks.{i}", f"encoder.down.{i}", config.layers, c != d)
        if i < last:
            names += pairs(f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv")
    widths = (config.channels[-1], *reversed(config.channels))
    for i, (c, d) in enumerate(pairwise(widths)):  # the original counts levels from the finest
        names += _vae_level(f"decoder.up_blocks.{i}", f"decoder.up.{last - i}", config.layers + 1, c != d)
        if i < last:
            names += pairs(f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{last - i}.upsample.conv")
    names += pairs("quant_conv", "quant_conv") if config.quant_conv else []
    return names + (pairs("post_quant_conv", "post_quant_conv") if config.post_quant_conv else [])


def _vae_ends(side: str, config: AutoencoderConfig) -> list[Name]:
    names = pairs(f"{side}.conv_in", f"{side}.conv_in") + pairs(f"{side}.conv_norm_out", f"{side}.norm_out")
    names += pairs(f"{side}.conv_out", f"{side}.conv_out")
    for i in range(2):
        names += _vae_resnet(f"{side}.mid_block.resnets.{i}", f"{side}.mid.block_{i + 1}", False)
    if not config.mid_attention:
        return names
    own, original = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
    names += pairs(f"{own}.group_norm", f"{original}.norm")
    for ours, theirs in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        names += pairs(f"{own}.{ours}", f"{original}.{theirs}", "conv")
    return names


def _vae_level(own: str, original: str, layers: int, widens: bool) -> list[Name]:
    levels = [_vae_resnet(f"{own}.resnets.{j}", f"{original}.block.{j}", widens and j == 0) for j in range(layers)]
    return [name for names in levels for name in names]


def _vae_resnet(own: str, original: str, shortcut: bool) -> list[Name]:
    parts = {part: part for part in ("norm1", "conv1", "norm2", "conv2")}
    parts |= {"conv_shortcut": "nin_shortcut"} if shortcut else {}
    return [name for ours, theirs in parts.items() for name in pairs(f"{own}.{ours}", f"{original}.{theirs}")]


# text encoders


def clip_names(config: TextEncoderConfig) -> list[Name]:
    """Every tensor of a CLIP text model where the original is transformers' too, as in SD 1 and SDXL's first."""
    return [Name(name.own, name.own) for name in openclip_names(config)]


def openclip_names(config: TextEncoderConfig) -> list[Name]:
    """Every tensor of a CLIP text model where the original is OpenCLIP's, as in SD 2, SDXL's second and the refiner."""
    names = [
        Name("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        Name("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ]
    for i in range(config.layers):
        own, original = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for part, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            for leaf in BOTH:
                rows = f"{original}.attn.in_proj_{leaf}"
                names.append(Name(f"{own}.self_attn.{projection}.{leaf}", rows, "third", part))
        for ours, theirs in CLIP_LAYER.items():
            names += pairs(f"{own}.{ours}", f"{original}.{theirs}")
    names += pairs("text_model.final_layer_norm", "ln_final")
    if config.projection_dim is not None:
        names.append(Name("text_projection.weight", "text_projection", "transposed"))
    return names
