"""The families people have, as values. What only renames or widens another is derived from it."""

from dataclasses import replace

from configs.architecture import AutoencoderConfig, DiffusionConfig, ModelConfig, TextEncoderConfig, UNetConfig

CLIP_L = TextEncoderConfig()
# Stable Diffusion 2 keeps 23 of OpenCLIP-H's 24 layers: the last one it runs is the penultimate one.
OPENCLIP_H = TextEncoderConfig(width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu")
OPENCLIP_BIGG = TextEncoderConfig(
    width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", projection_dim=1280
)

VAE_KL_F8 = AutoencoderConfig()
VAE_SDXL = replace(VAE_KL_F8, scaling_factor=0.13025, sample_size=1024)
VAE_UPSCALE = replace(VAE_KL_F8, channels=(128, 256, 512), scaling_factor=0.08333, sample_size=256)

UNET_SD15 = UNetConfig()
UNET_SD15_INPAINT = replace(UNET_SD15, in_channels=9)
UNET_SD15_INSTRUCT = replace(UNET_SD15, in_channels=8)
UNET_SD21_BASE = replace(UNET_SD15, heads=(5, 10, 20, 20), context_dim=1024, linear_projection=True)
UNET_SD21 = replace(UNET_SD21_BASE, sample_size=96, upcast_attention=True)
UNET_SD2_INPAINT = replace(UNET_SD21_BASE, in_channels=9)
UNET_SD2_DEPTH = replace(UNET_SD21_BASE, in_channels=5)
UNET_SD2_UNCLIP = replace(UNET_SD21, vector="class_projection", vector_dim=2048)
UNET_SDXL = UNetConfig(
    channels=(320, 640, 1280),
    down_depths=((0, 0), (2, 2), (10, 10)),
    up_depths=((10, 10, 10), (2, 2, 2), (0, 0, 0)),
    mid_depth=10,
    heads=(5, 10, 20),
    context_dim=2048,
    linear_projection=True,
    only_cross_attention=(False, False, False),
    vector="text_time",
    vector_dim=2816,  # pooled text 1280 + 6 size ids x 256
    sample_size=128,
)
UNET_SDXL_REFINER = UNetConfig(
    channels=(384, 768, 1536, 1536),
    down_depths=((0, 0), (4, 4), (4, 4), (0, 0)),
    up_depths=((0, 0, 0), (4, 4, 4), (4, 4, 4), (0, 0, 0)),
    mid_depth=4,
    heads=(6, 12, 24, 24),
    context_dim=1280,
    linear_projection=True,
    vector="text_time",
    vector_dim=2560,  # pooled text 1280 + 5 size and aesthetics ids x 256
    sample_size=128,
)
UNET_UPSCALE_X4 = UNetConfig(
    channels=(256, 512, 512, 1024),
    down_depths=((0, 0), (1, 1), (1, 1), (1, 1)),
    up_depths=((1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0)),
    heads=(8, 8, 8, 8),
    context_dim=1024,
    in_channels=7,
    linear_projection=True,
    only_cross_attention=(True, True, True, False),
    vector="class_table",
    vector_dim=1000,
    sample_size=128,
)

SD15 = ModelConfig(UNET_SD15, VAE_KL_F8, (CLIP_L,), family="sd1")
SD21_BASE = ModelConfig(UNET_SD21_BASE, VAE_KL_F8, (OPENCLIP_H,), family="sd2")
SD21_V = ModelConfig(
    UNET_SD21,
    replace(VAE_KL_F8, sample_size=768),
    (OPENCLIP_H,),
    DiffusionConfig(prediction="v_prediction"),
    family="sd2",
)
SDXL = ModelConfig(UNET_SDXL, VAE_SDXL, (CLIP_L, OPENCLIP_BIGG), family="sdxl")
SDXL_REFINER = ModelConfig(UNET_SDXL_REFINER, VAE_SDXL, (OPENCLIP_BIGG,), family="sdxl_refiner")
