"""What a model is made of: one frozen dataclass per network, standard library only.

The field names are ours; `configs.interchange` translates them from and to the `config.json` files of diffusers and
transformers. Every network is built from exactly one of these values.
"""

from dataclasses import dataclass
from typing import Literal

Depths = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class UNetConfig:
    """A conditional U-Net, by level from the finest to the coarsest.

    `down_depths[level][i]` is the number of transformer blocks behind the i-th ResNet of that level, 0 for none, so the
    number of ResNets is the length of the row. `up_depths` lists the levels in the order they run, coarsest first, with
    one ResNet more each. `heads` counts attention heads by level, finest first.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_depths: Depths = ((1, 1), (1, 1), (1, 1), (0, 0))
    up_depths: Depths = ((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    mid: Literal["transformer", "resnet", "none"] = "transformer"  # "resnet" is one ResNet alone
    mid_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context_dim: int = 768
    in_channels: int = 4
    out_channels: int = 4
    linear_projection: bool = False  # transformer proj_in/proj_out: linear (SD 2, SDXL) or 1x1 convolution (SD 1)
    only_cross_attention: tuple[bool, ...] = (False, False, False, False)  # by level: attn1 attends to the text too
    vector: Literal["none", "text_time", "class_table", "class_timestep", "class_projection"] = "none"
    vector_dim: int = 0  # width of `vector`; for a class table, the number of classes
    size_dim: int = 256  # text_time: sinusoid width of each size id
    guidance_dim: int = 0  # distilled models: width of the embedded guidance weight, 0 for none
    norm_groups: int = 32
    norm_eps: float = 1e-5
    sample_size: int | tuple[int, int] = 64  # default latent height and width
    upcast_attention: bool = False  # written back for other readers; our fused attention accumulates in float32


@dataclass(frozen=True)
class AutoencoderConfig:
    """A KL autoencoder: images in [-1, 1] to latents of roughly unit variance, `2 ** (len(channels) - 1)` smaller."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2  # ResNets by level; the decoder has one more
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    norm_groups: int = 32
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True  # overflows in float16: the pipeline keeps such a VAE in float32
    sample_size: int = 512  # pixels; also the tile size of tiled encoding and decoding


@dataclass(frozen=True)
class TextEncoderConfig:
    """A CLIP text transformer."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection_dim: int | None = None  # None: the file has no text_projection
    vocabulary: int = 49408
    max_length: int = 77
    norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407  # 2 is the legacy value: pool at the highest id (transformers' rule)
    pad_token_id: int = 1


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise process a model was trained with. How to sample it is `ldm.diffusion.registry.Sampling`."""

    train_steps: int = 1000
    beta_schedule: str = "scaled_linear"  # "linear", "scaled_linear", "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    trained_betas: tuple[float, ...] | None = None
    zero_terminal_snr: bool = False
    prediction: str = "epsilon"  # a row of ldm.diffusion.prediction
    sigma_data: float = 0.5  # standard deviation of the data, used by the "edm" row alone


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: the networks it composes and its noise process."""

    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text_encoders: tuple[TextEncoderConfig, ...]
    diffusion: DiffusionConfig = DiffusionConfig()
    family: str = "sd1"


@dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet: the way down and the middle of a U-Net, and a small network for the control image.

    unet: the U-Net it is a copy of; `up_depths` plays no part. hollow: by level, whether its transformers have
    projections but no blocks, as in the small SDXL ones (their `down_depths` are 0).
    """

    unet: UNetConfig = UNetConfig()
    hollow: tuple[bool, ...] = ()
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)  # of the control image's network, from full size down
    hint_in: int = 3  # channels of the control image
    order: Literal["rgb", "bgr"] = "rgb"
    pooled: bool = False  # residuals are averaged over the picture


@dataclass(frozen=True)
class AdapterConfig:
    """A T2I-Adapter: a control image to one feature map for each level of the U-Net."""

    kind: Literal["full", "full_xl", "light"] = "full"
    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # light: one less, the last level repeats it
    layers: int = 2  # ResNets by level
    factor: int = 8  # pixels of a side folded into channels at once


@dataclass(frozen=True)
class TinyConfig:
    """A tiny autoencoder (TAESD), by level: the encoder's from the finest, the decoder's from the coarsest.

    A half without levels is not there: preview files hold the decoder alone.
    """

    encoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    encoder_layers: tuple[int, ...] = (1, 3, 3, 3)
    decoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_layers: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    sample_size: int = 512  # tile size in pixels


@dataclass(frozen=True)
class ImagePromptConfig:
    """An IP-Adapter: image embeddings to tokens, and keys and values of these in every cross-attention.

    kind: "plain" one CLIP image embedding to `tokens`; "full" each of CLIP's patches to a token; "plus" a resampler of
    patches; "face" an identity embedding to tokens; "face_plus" those and a resampler.
    """

    kind: Literal["plain", "full", "plus", "face", "face_plus"] = "plain"
    image_dim: int = 1024  # of the image embedding, or of each patch
    context_dim: int = 768
    tokens: int = 4  # 0 for as many as patches
    width: int = 0  # inside the resampler
    depth: int = 0  # layers of the resampler
    heads: int = 0  # of 64 each
    mlp_width: int = 0
    id_dim: int = 0  # of the identity embedding
    id_width: int = 0  # of the layer behind it
    attentions: tuple[int, ...] = ()  # width of each cross-attention: down, up, middle
