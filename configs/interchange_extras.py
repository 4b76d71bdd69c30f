"""Networks beside a model (ControlNet, T2I-Adapter, tiny autoencoder) from and to the `config.json` of diffusers."""

from typing import Any

from configs.architecture import AdapterConfig, AutoencoderConfig, ControlNetConfig, TinyConfig
from configs.interchange import Json, autoencoder_to_json, refuse_unknown_values, unet_from_json, unet_to_json

ADAPTERS = {"full_adapter": "full", "full_adapter_xl": "full_xl", "light_adapter": "light"}
UNET_ONLY = (
    "up_block_types",
    "out_channels",
    "sample_size",
    "time_cond_proj_dim",
    "reverse_transformer_layers_per_block",
)


def controlnet_from_json(json: Json) -> ControlNetConfig:
    """Reads the `config.json` of a ControlNetModel. Raises ValueError naming an option that is not implemented."""
    types = json.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    depths = json.get("transformer_layers_per_block", 1)
    by_level = depths if isinstance(depths, (list, tuple)) else [depths] * len(types)
    order = json.get("controlnet_conditioning_channel_order", "rgb")
    if order not in ("rgb", "bgr"):
        raise ValueError(f"controlnet_conditioning_channel_order = {order!r} is not supported (only rgb and bgr are)")
    up_types = [name.replace("Down", "Up") for name in reversed(types)]
    return ControlNetConfig(
        unet=unet_from_json({**json, "up_block_types": up_types}),
        hollow=tuple(name.startswith("CrossAttn") and depth == 0 for name, depth in zip(types, by_level, strict=True)),
        hint_channels=tuple(json.get("conditioning_embedding_out_channels", (16, 32, 96, 256))),
        hint_in=json.get("conditioning_channels", 3),
        order=order,
        pooled=bool(json.get("global_pool_conditions", False)),
    )


def controlnet_to_json(config: ControlNetConfig) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the same ControlNet."""
    json = {name: value for name, value in unet_to_json(config.unet).items() if name not in UNET_ONLY}
    hollow = config.hollow or (False,) * len(config.unet.channels)
    layers = zip(hollow, json["transformer_layers_per_block"], strict=True)
    types = zip(hollow, json["down_block_types"], strict=True)
    return json | {
        "_class_name": "ControlNetModel",
        "down_block_types": ["CrossAttnDownBlock2D" if empty else name for empty, name in types],
        "transformer_layers_per_block": [0 if empty else depth for empty, depth in layers],
        "layers_per_block": len(config.unet.down_depths[0]),
        "conditioning_channels": config.hint_in,
        "conditioning_embedding_out_channels": list(config.hint_channels),
        "controlnet_conditioning_channel_order": config.order,
        "global_pool_conditions": config.pooled,
    }


def adapter_from_json(json: Json) -> AdapterConfig:
    """Reads the `config.json` of a T2IAdapter. Raises ValueError naming a kind that is not implemented."""
    kind = json.get("adapter_type", "full_adapter")
    if kind not in ADAPTERS:
        raise ValueError(f"adapter_type = {kind!r} is not supported (only {', '.join(ADAPTERS)} are)")
    return AdapterConfig(
        kind=ADAPTERS[kind],  # type: ignore[arg-type]
        in_channels=json.get("in_channels", 3),
        channels=tuple(json.get("channels", (320, 640, 1280, 1280))),
        layers=json.get("num_res_blocks", 2),
        factor=json.get("downscale_factor", 8),
    )


def adapter_to_json(config: AdapterConfig) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the same T2I-Adapter."""
    return {
        "_class_name": "T2IAdapter",
        "adapter_type": {ours: theirs for theirs, ours in ADAPTERS.items()}[config.kind],
        "in_channels": config.in_channels,
        "channels": list(config.channels),
        "num_res_blocks": config.layers,
        "downscale_factor": config.factor,
    }


def tiny_from_json(json: Json) -> TinyConfig:
    """Reads the `config.json` of an AutoencoderTiny. Raises ValueError naming an option that is not implemented."""
    fixed = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
    refuse_unknown_values(json, fixed, "tiny autoencoder")
    return TinyConfig(
        encoder_channels=tuple(json.get("encoder_block_out_channels", (64, 64, 64, 64))),
        encoder_layers=tuple(json.get("num_encoder_blocks", (1, 3, 3, 3))),
        decoder_channels=tuple(json.get("decoder_block_out_channels", (64, 64, 64, 64))),
        decoder_layers=tuple(json.get("num_decoder_blocks", (3, 3, 3, 1))),
        latent_channels=json.get("latent_channels", 4),
        in_channels=json.get("in_channels", 3),
        out_channels=json.get("out_channels", 3),
        scaling_factor=json.get("scaling_factor", 1.0),
        shift_factor=json.get("shift_factor", 0.0),
    )


def tiny_to_json(config: TinyConfig) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the same tiny autoencoder."""
    return {
        "_class_name": "AutoencoderTiny",
        "encoder_block_out_channels": list(config.encoder_channels),
        "num_encoder_blocks": list(config.encoder_layers),
        "decoder_block_out_channels": list(config.decoder_channels),
        "num_decoder_blocks": list(config.decoder_layers),
        "latent_channels": config.latent_channels,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "act_fn": "relu",
    }


def vae_to_json(config: AutoencoderConfig | TinyConfig) -> dict[str, Any]:
    """The `config.json` of either kind of autoencoder."""
    return tiny_to_json(config) if isinstance(config, TinyConfig) else autoencoder_to_json(config)
