"""Our configurations from and to the `config.json` of diffusers and transformers.

Reading refuses by name what the networks cannot compute. Writing gives the keys from which diffusers rebuilds the same.
"""

from collections.abc import Mapping
from typing import Any, Literal

from configs.architecture import AutoencoderConfig, Depths, TextEncoderConfig, UNetConfig

Json = Mapping[str, Any]

# Options of UNet2DConditionModel with the only value that the U-Nets of the Stable Diffusion families use.
UNET_FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
MID_BLOCKS: dict[str | None, Literal["transformer", "resnet", "none"]] = {
    "UNetMidBlock2DCrossAttn": "transformer",
    "UNetMidBlock2D": "resnet",
    None: "none",
}
ACTIVATIONS: dict[str, Literal["quick_gelu", "gelu"]] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def refuse_unknown_values(json: Json, fixed: dict[str, Any], what: str) -> None:
    for name, value in fixed.items():
        if json.get(name, value) != value:
            raise ValueError(f"this {what} has {name} = {json[name]!r}, which is not supported (only {value!r} is)")


def _by_level(value: Any, levels: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels


def _row(block_type: str, depth: Any, length: int) -> tuple[int, ...]:
    """Transformer depths of one level: `depth` is a number for all its ResNets, or one number each."""
    if block_type in ("DownBlock2D", "UpBlock2D"):
        return (0,) * length
    if block_type in ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"):
        return _by_level(depth, length)
    raise ValueError(
        f"U-Net block type {block_type!r} is not supported (only [CrossAttn]DownBlock2D and UpBlock2D are)"
    )


def _depths(json: Json, levels: int) -> tuple[Depths, Depths, int]:
    """(down, up, mid) transformer depths."""
    down_types = json.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    up_types = json.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    lengths = _by_level(json.get("layers_per_block", 2), levels)
    depths = _by_level(json.get("transformer_layers_per_block", 1), levels)
    up_depths = json.get("reverse_transformer_layers_per_block")
    if up_depths is None:
        up_depths = tuple(d if isinstance(d, int) else (*d, d[-1]) for d in reversed(depths))
    down = tuple(map(_row, down_types, depths, lengths))
    up = tuple(map(_row, up_types, up_depths, (n + 1 for n in reversed(lengths))))
    mid = depths[-1] if isinstance(depths[-1], int) else depths[-1][-1]
    return down, up, mid


def _vector(json: Json) -> dict[str, Any]:
    """The second condition of the U-Net, beside the text."""
    added, classes = json.get("addition_embed_type"), json.get("class_embed_type")
    width = json.get("projection_class_embeddings_input_dim") or 0
    if added == "text_time" and classes is None:
        return {"vector": "text_time", "vector_dim": width, "size_dim": json["addition_time_embed_dim"]}
    if added is None and classes is None:
        table = json.get("num_class_embeds")
        return {"vector": "class_table", "vector_dim": table} if table else {}
    if added is None and classes == "timestep":
        return {"vector": "class_timestep"}
    if added is None and classes == "projection":
        return {"vector": "class_projection", "vector_dim": width}
    raise ValueError(f"addition_embed_type = {added!r} with class_embed_type = {classes!r} is not supported")


def unet_from_json(json: Json) -> UNetConfig:
    """Reads the `config.json` of a UNet2DConditionModel.

    Raises ValueError naming the first option that the U-Net does not implement.
    """
    refuse_unknown_values(json, UNET_FIXED, "U-Net")
    channels = tuple(json.get("block_out_channels", (320, 640, 1280, 1280)))
    down, up, mid_depth = _depths(json, len(channels))
    context = set(_by_level(json.get("cross_attention_dim", 1280), len(channels)))
    mid = json.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    only_cross = json.get("only_cross_attention", False)
    if mid not in MID_BLOCKS:
        raise ValueError(f"mid_block_type = {mid!r} is not supported (only {', '.join(map(repr, MID_BLOCKS))} are)")
    if len(context) != 1:
        raise ValueError(f"cross_attention_dim = {sorted(context)} differs by level, which is not supported")
    if json.get("norm_num_groups", 32) is None:
        raise ValueError("norm_num_groups = None (no normalisation) is not supported")
    return UNetConfig(
        channels=channels,
        down_depths=down,
        up_depths=up,
        mid=MID_BLOCKS[mid],
        mid_depth=mid_depth,
        heads=_by_level(json.get("attention_head_dim", 8), len(channels)),  # the key really holds head counts
        context_dim=context.pop(),
        in_channels=json.get("in_channels", 4),
        out_channels=json.get("out_channels", 4),
        linear_projection=json.get("use_linear_projection", False),
        only_cross_attention=_by_level(only_cross, len(channels)),
        guidance_dim=json.get("time_cond_proj_dim") or 0,
        norm_groups=json.get("norm_num_groups", 32),
        norm_eps=json.get("norm_eps", 1e-5),
        sample_size=_size(json.get("sample_size") or 64),
        upcast_attention=json.get("upcast_attention") or False,
        **_vector(json),
    )


def _size(value: Any) -> int | tuple[int, int]:
    return value if isinstance(value, int) else (value[0], value[1])


def _block_types(depths: Depths, direction: str) -> list[str]:
    return [f"CrossAttn{direction}Block2D" if any(row) else f"{direction}Block2D" for row in depths]


def _written_depths(config: UNetConfig) -> dict[str, Any]:
    """Depths as diffusers spells them: a level without attention carries the middle's depth, which it reads there."""
    down = [list(row) if any(row) else config.mid_depth for row in config.down_depths]
    up = [list(row) if any(row) else config.mid_depth for row in config.up_depths]
    rows: dict[str, Any] = {
        "transformer_layers_per_block": [_short(row) for row in down],
        "reverse_transformer_layers_per_block": [_short(row) for row in up],
    }
    if rows["reverse_transformer_layers_per_block"] == rows["transformer_layers_per_block"][::-1]:
        del rows["reverse_transformer_layers_per_block"]
    return rows


def _short(row: Any) -> Any:
    return row[0] if isinstance(row, list) and len(set(row)) == 1 else row


def _written_vector(config: UNetConfig) -> dict[str, Any]:
    match config.vector:
        case "text_time":
            return {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": config.size_dim,
                "projection_class_embeddings_input_dim": config.vector_dim,
            }
        case "class_table":
            return {"num_class_embeds": config.vector_dim}
        case "class_timestep":
            return {"class_embed_type": "timestep"}
        case "class_projection":
            return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": config.vector_dim}
        case "none":
            return {}


def unet_to_json(config: UNetConfig) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the same U-Net."""
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "down_block_types": _block_types(config.down_depths, "Down"),
        "up_block_types": _block_types(config.up_depths, "Up"),
        "mid_block_type": {name: block for block, name in MID_BLOCKS.items()}[config.mid],
        "layers_per_block": _short([len(row) for row in config.down_depths]),
        **_written_depths(config),
        "attention_head_dim": list(config.heads),
        "cross_attention_dim": config.context_dim,
        "only_cross_attention": list(config.only_cross_attention),
        "use_linear_projection": config.linear_projection,
        **_written_vector(config),
        "time_cond_proj_dim": config.guidance_dim or None,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "upcast_attention": config.upcast_attention,
        **{name: UNET_FIXED[name] for name in ("flip_sin_to_cos", "freq_shift", "act_fn", "downsample_padding")},
    }


def autoencoder_from_json(json: Json) -> AutoencoderConfig:
    """Reads the `config.json` of an AutoencoderKL. Raises ValueError naming an option that is not implemented."""
    refuse_unknown_values(json, {"act_fn": "silu"}, "autoencoder")
    blocks = {*json.get("down_block_types", ()), *json.get("up_block_types", ())}
    if unknown := blocks - {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
        raise ValueError(f"autoencoder block types {sorted(unknown)} are not supported")
    mean, std = json.get("latents_mean"), json.get("latents_std")
    return AutoencoderConfig(
        channels=tuple(json.get("block_out_channels", (64,))),
        layers=json.get("layers_per_block", 1),
        latent_channels=json.get("latent_channels", 4),
        in_channels=json.get("in_channels", 3),
        out_channels=json.get("out_channels", 3),
        norm_groups=json.get("norm_num_groups", 32),
        mid_attention=json.get("mid_block_add_attention", True),
        quant_conv=json.get("use_quant_conv", True),
        post_quant_conv=json.get("use_post_quant_conv", True),
        scaling_factor=json.get("scaling_factor", 0.18215),
        shift_factor=json.get("shift_factor"),
        latents_mean=None if mean is None else tuple(mean),
        latents_std=None if std is None else tuple(std),
        force_upcast=bool(json.get("force_upcast", True)),
        sample_size=json.get("sample_size", 32),
    )


def autoencoder_to_json(config: AutoencoderConfig) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the same autoencoder."""
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.mid_attention,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.post_quant_conv,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "latents_mean": None if config.latents_mean is None else list(config.latents_mean),
        "latents_std": None if config.latents_std is None else list(config.latents_std),
        "force_upcast": config.force_upcast,
        "sample_size": config.sample_size,
        "act_fn": "silu",
    }


def text_encoder_from_json(json: Json) -> TextEncoderConfig:
    """Reads the `config.json` of a CLIPTextModel or, with a projection, a CLIPTextModelWithProjection."""
    activation = json.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"text encoder with hidden_act = {activation!r} is not supported (only quick_gelu and gelu are)"
        )
    projected = "CLIPTextModelWithProjection" in (json.get("architectures") or ())
    return TextEncoderConfig(
        width=json.get("hidden_size", 512),
        layers=json.get("num_hidden_layers", 12),
        heads=json.get("num_attention_heads", 8),
        mlp_width=json.get("intermediate_size", 2048),
        activation=ACTIVATIONS[activation],
        projection_dim=json.get("projection_dim", 512) if projected else None,
        vocabulary=json.get("vocab_size", 49408),
        max_length=json.get("max_position_embeddings", 77),
        norm_eps=json.get("layer_norm_eps", 1e-5),
        bos_token_id=json.get("bos_token_id", 49406),
        eos_token_id=json.get("eos_token_id", 49407),
        pad_token_id=json.get("pad_token_id", 1),
    )


def text_encoder_to_json(config: TextEncoderConfig) -> dict[str, Any]:
    """The `config.json` from which transformers builds the same text encoder."""
    name = "CLIPTextModel" if config.projection_dim is None else "CLIPTextModelWithProjection"
    return {
        "architectures": [name],
        "model_type": "clip_text_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": config.activation,
        "projection_dim": config.projection_dim or config.width,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.max_length,
        "layer_norm_eps": config.norm_eps,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
