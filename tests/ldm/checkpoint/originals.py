"""Single files of every family, from our own networks: as names and shapes at real size, as tiny models to load."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs import presets
from configs.architecture import AutoencoderConfig, TextEncoderConfig, UNetConfig
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.names_compvis import Name, clip_names, openclip_names, to_original, unet_names, vae_names
from ldm.checkpoint.published import model_index, scheduler_config
from ldm.model import LatentDiffusion
from text_encoder import LAST, PENULTIMATE, CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer
from unet import UNet
from vae import AutoencoderKL

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_SD1, CLIP_SD2 = "cond_stage_model.transformer.", "cond_stage_model.model."
CLIP_XL, BIGG_XL, BIGG_REFINER = (
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "conditioner.embedders.0.model.",
)


@dataclass(frozen=True)
class Family:
    """The configurations of a file, its text encoders by prefix. `layers`: of the encoder in the file, dropped here."""

    family: str
    task: str
    unet: UNetConfig
    vae: AutoencoderConfig
    texts: Mapping[str, TextEncoderConfig]


def named(text: TextEncoderConfig, prefix: str) -> list[Name]:
    return (openclip_names if prefix.endswith("model.") else clip_names)(text)


def real_families() -> dict[str, Family]:
    """What was published, by a name of ours."""
    vae, xl = presets.VAE_KL_F8, presets.VAE_SDXL
    one, two = {CLIP_SD1: presets.CLIP_L}, {CLIP_SD2: presets.OPENCLIP_H}
    pair = {CLIP_XL: presets.CLIP_L, BIGG_XL: presets.OPENCLIP_BIGG}
    inpaint_xl = replace(presets.UNET_SDXL, in_channels=9)
    return {
        "sd1": Family("sd1", "", presets.UNET_SD15, vae, one),
        "sd1-inpaint": Family("sd1", "inpaint", presets.UNET_SD15_INPAINT, vae, one),
        "sd1-instruct": Family("sd1", "instruct", presets.UNET_SD15_INSTRUCT, vae, one),
        "sd2-base": Family("sd2", "", presets.UNET_SD21_BASE, vae, two),
        "sd2-v": Family("sd2", "", presets.UNET_SD21, vae, two),
        "sd2-inpaint": Family("sd2", "inpaint", presets.UNET_SD2_INPAINT, vae, two),
        "sd2-depth": Family("sd2", "depth", presets.UNET_SD2_DEPTH, vae, two),
        "sd2-unclip": Family("sd2", "unclip", presets.UNET_SD2_UNCLIP, vae, two),
        "x4-upscaler": Family("sd2", "upscale", presets.UNET_UPSCALE_X4, presets.VAE_UPSCALE, two),
        "sdxl": Family("sdxl", "", presets.UNET_SDXL, xl, pair),
        "sdxl-inpaint": Family("sdxl", "inpaint", inpaint_xl, xl, pair),
        "sdxl-instruct": Family("sdxl", "instruct", replace(inpaint_xl, in_channels=8), xl, pair),
        "refiner": Family("sdxl_refiner", "", presets.UNET_SDXL_REFINER, xl, {BIGG_REFINER: presets.OPENCLIP_BIGG}),
    }


def tiny_families() -> dict[str, Family]:
    """The same at widths of a toy, with the head counts that the families' rules give for them."""
    unet = UNetConfig(
        channels=(32, 64),
        down_depths=((1, 1), (0, 0)),
        up_depths=((0, 0, 0), (1, 1, 1)),
        heads=(8, 8),
        context_dim=64,
        only_cross_attention=(False, False),
    )
    unet_2 = replace(unet, channels=(64, 128), heads=(1, 2), linear_projection=True)
    unet_xl = replace(
        unet_2,
        down_depths=((0, 0), (2, 2)),
        up_depths=((2, 2, 2), (0, 0, 0)),
        mid_depth=2,
        context_dim=64 + 128,
        vector="text_time",
        vector_dim=48 + 6 * 8,
        size_dim=8,
        sample_size=128,
    )
    unet_x4 = replace(
        unet_2,
        down_depths=((0, 0), (1, 1)),
        up_depths=((1, 1, 1), (0, 0, 0)),
        heads=(8, 8),
        in_channels=7,
        vector="class_table",
        vector_dim=20,
        only_cross_attention=(True, True),
        sample_size=128,
    )
    refiner = replace(unet_xl, context_dim=128, vector_dim=48 + 5 * 8)
    vae = replace(presets.VAE_KL_F8, channels=(16, 16, 32, 32), norm_groups=16)
    vae_xl = replace(vae, scaling_factor=0.13025, sample_size=1024)
    vae_x4 = replace(vae, channels=(16, 16, 32), scaling_factor=0.08333, sample_size=256)
    text = TextEncoderConfig(width=64, layers=2, heads=1, mlp_width=96)
    text_2 = replace(text, activation="gelu")
    second = replace(text_2, width=128, heads=2, projection_dim=48)  # diffusers tells the two by their widths
    pair = {CLIP_XL: text, BIGG_XL: second}
    return {
        "sd1": Family("sd1", "", unet, vae, {CLIP_SD1: text}),
        "sd1-inpaint": Family("sd1", "inpaint", replace(unet, in_channels=9), vae, {CLIP_SD1: text}),
        "sd1-instruct": Family("sd1", "instruct", replace(unet, in_channels=8), vae, {CLIP_SD1: text}),
        "sd2": Family("sd2", "", unet_2, vae, {CLIP_SD2: text_2}),
        "sd2-depth": Family("sd2", "depth", replace(unet_2, in_channels=5), vae, {CLIP_SD2: text_2}),
        "x4-upscaler": Family("sd2", "upscale", unet_x4, vae_x4, {CLIP_SD2: text_2}),
        "sdxl": Family("sdxl", "", unet_xl, vae_xl, pair),
        "sdxl-inpaint": Family("sdxl", "inpaint", replace(unet_xl, in_channels=9), vae_xl, pair),
        "refiner": Family("sdxl_refiner", "", refiner, vae_xl, {BIGG_REFINER: second}),
    }


def meta_state(family: Family) -> dict[str, Tensor]:
    """Every tensor of the file on `meta`, at the shapes that its makers gave it."""
    networks: list[tuple[nn.Module, list[Name], str]] = [
        (on_meta("", UNet, family.unet), unet_names(family.unet), UNET),
        (on_meta("", AutoencoderKL, family.vae), vae_names(family.vae), VAE),
    ]
    for prefix, text in family.texts.items():
        whole = with_last_layer(text) if prefix == CLIP_SD2 else text
        networks.append((on_meta("", CLIPTextModel, whole), named(whole, prefix), prefix))
    return merged(networks)


def with_last_layer(text: TextEncoderConfig) -> TextEncoderConfig:
    """Stable Diffusion 2's files hold the layer and the projection that nothing reads."""
    return replace(text, layers=text.layers + 1, projection_dim=text.width)


def merged(networks: list[tuple[nn.Module, list[Name], str]]) -> dict[str, Tensor]:
    return {
        prefix + original: tensor
        for network, names, prefix in networks
        for original, tensor in to_original(names, network.state_dict())
    }


@cache
def real_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in meta_state(real_families()[name]).items()}


# tiny models with weights


def randomised(module: nn.Module, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = noise * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module.eval()


def model(family: Family, prediction: str = "epsilon") -> LatentDiffusion:
    """A tiny model with seeded weights."""
    texts = [randomised(CLIPTextModel(text), 3 + i) for i, text in enumerate(family.texts.values())]
    xl = family.unet.vector == "text_time"
    pads = ["<|endoftext|>" if prefix in (CLIP_SD1, CLIP_XL) else "!" for prefix in family.texts]
    policy = PENULTIMATE if xl else LAST
    encoders = [CLIPTextEncoder(Tokenizer.clip(pad), text, policy) for pad, text in zip(pads, texts, strict=True)]
    return LatentDiffusion(
        autoencoder=randomised(AutoencoderKL(family.vae), 2),
        text_encoder=PairedTextEncoder(*encoders) if len(encoders) == 2 else encoders[0],
        unet=randomised(UNet(family.unet), 1),
        scheduler_config=scheduler_config(family.family, family.task, prediction, zero_snr=False),
        family=family.family,
        model_index=model_index(family.family, family.task),
    )


def original_state(made: LatentDiffusion, family: Family) -> dict[str, Tensor]:
    """The same weights as its makers would have published them."""
    encoder = made.text_encoder
    encoders = [encoder.first, encoder.second] if isinstance(encoder, PairedTextEncoder) else [encoder]
    networks: list[tuple[nn.Module, list[Name], str]] = [
        (made.unet, unet_names(family.unet), UNET),
        (made.autoencoder, vae_names(family.vae), VAE),
    ]
    for (prefix, text), each in zip(family.texts.items(), encoders, strict=True):
        networks.append((each.model, named(text, prefix), prefix))
    state = {key: tensor.detach().contiguous() for key, tensor in merged(networks).items()}
    return state | (_last_layer(state, family) if CLIP_SD2 in family.texts else {})


def _last_layer(state: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    layers = family.texts[CLIP_SD2].layers
    first, last = (f"{CLIP_SD2}transformer.resblocks.{i}." for i in (0, layers))
    extra = {key.replace(first, last): torch.zeros_like(tensor) for key, tensor in state.items() if first in key}
    return extra | {f"{CLIP_SD2}text_projection": torch.eye(family.texts[CLIP_SD2].width)}


def write(state: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    from safetensors.torch import save_file

    save_file(dict(state), path, metadata=metadata)
    return path


Tiny = tuple[LatentDiffusion, dict[str, Tensor]]


@cache
def tiny(name: str) -> Tiny:
    """A tiny model of a family, and its weights under original names; not to be changed."""
    family = tiny_families()[name]
    made = model(family, "v_prediction" if name == "x4-upscaler" else "epsilon")
    return made, original_state(made, family)


def sd2_file(path: Path, offset: float, **extra: Tensor) -> Path:
    """A Stable Diffusion 2 file whose U-Net answers the probe with about `offset`."""
    state = tiny("sd2")[1]
    bias = {
        f"{UNET}out.2.bias": torch.full((4,), 0.5 + offset),
        f"{UNET}out.2.weight": 0 * state[f"{UNET}out.2.weight"],
    }
    return write(state | bias | extra, path)


def models(encoder: CLIPTextEncoder | PairedTextEncoder) -> list[CLIPTextEncoder]:
    return [encoder.first, encoder.second] if isinstance(encoder, PairedTextEncoder) else [encoder]


def assert_same(loaded: LatentDiffusion, expected: LatentDiffusion) -> None:
    """Weights bit by bit, configurations, tokenizers, scheduler, family."""
    for name, network in expected.networks().items():
        torch.testing.assert_close(loaded.networks()[name].state_dict(), network.state_dict(), rtol=0, atol=0)
    assert loaded.unet.config == expected.unet.config
    assert loaded.autoencoder.config == expected.autoencoder.config
    for one, other in zip(models(loaded.text_encoder), models(expected.text_encoder), strict=True):
        assert one.model.config == other.model.config
        assert one.policy == other.policy
        assert one.tokenizer.frame(one.tokenizer.encode("a cat"), 9) == other.tokenizer.frame(
            other.tokenizer.encode("a cat"), 9
        )
    assert loaded.scheduler_config == expected.scheduler_config
    assert loaded.family == expected.family


BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}


def hollow(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", metadata: Mapping[str, str] | None = None
) -> Path:
    """A safetensors file of these tensors, whose data is a hole: of any size, and no block of it on the disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return path
