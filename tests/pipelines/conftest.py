"""Tiny models of every family, made and saved by diffusers, with no weight left at an initial 0 or 1."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import nn

from configs import presets
from configs.architecture import AutoencoderConfig, ControlNetConfig, TextEncoderConfig, UNetConfig
from configs.interchange import autoencoder_to_json, text_encoder_to_json, unet_to_json
from configs.interchange_extras import controlnet_to_json
from pipelines import TextToImagePipeline
from text_encoder import Tokenizer

VAE = replace(presets.VAE_KL_F8, channels=(16, 16, 16, 16), norm_groups=8, sample_size=64)
TEXT = TextEncoderConfig(width=32, layers=3, heads=4, mlp_width=64)
TEXT_2 = replace(TEXT, width=64, activation="gelu", projection_dim=48)
UNET = UNetConfig(
    channels=(16, 32),
    down_depths=((1, 1), (0, 0)),
    up_depths=((0, 0, 0), (1, 1, 1)),
    heads=(2, 4),
    context_dim=32,
    only_cross_attention=(False, False),
    norm_groups=8,
    sample_size=8,
)
UNET_XL = replace(
    UNET,
    down_depths=((0, 0), (2, 2)),
    up_depths=((2, 2, 2), (0, 0, 0)),
    mid_depth=2,
    context_dim=96,
    linear_projection=True,
    vector="text_time",
    size_dim=8,
    vector_dim=48 + 6 * 8,
)
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass
class Pair:
    """The same model twice: a diffusers pipeline in memory and the folder it was saved to."""

    theirs: Any
    folder: Path


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Seeded weights with a spread that keeps activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        parameter.data = 0.7 * noise / fan_in**0.5 if fan_in else parameter.data + 0.1 * noise
    return module.eval()


def clip(config: TextEncoderConfig, seed: int) -> nn.Module:
    json = transformers.CLIPTextConfig(**text_encoder_to_json(config))
    made = transformers.CLIPTextModelWithProjection if config.projection_dim else transformers.CLIPTextModel
    return randomise(made(json), seed)


def tokenizer(folder: Path, pad: str) -> Any:
    Tokenizer.clip(pad=pad).save(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def networks(unet: UNetConfig, vae: AutoencoderConfig = VAE) -> dict[str, Any]:
    return {
        "unet": randomise(diffusers.UNet2DConditionModel.from_config(unet_to_json(unet)), 1),
        "vae": randomise(diffusers.AutoencoderKL.from_config(autoencoder_to_json(vae)), 2),
    }


def stable_diffusion(tmp: Path, unet: UNetConfig, text: TextEncoderConfig, pad: str, **scheduler: Any) -> Pair:
    theirs = diffusers.StableDiffusionPipeline(
        **networks(unet),
        text_encoder=clip(text, 3),
        tokenizer=tokenizer(tmp / "vocabulary", pad),
        scheduler=diffusers.DDIMScheduler(
            **{**SCHEDULER, "set_alpha_to_one": False, "clip_sample": False, "steps_offset": 1, **scheduler}
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(theirs, tmp / "model")


def saved(theirs: Any, folder: Path) -> Pair:
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder)
    # in the file every default has become a given value; take diffusers' reading of it, as a person would
    theirs.scheduler = type(theirs.scheduler).from_pretrained(folder, subfolder="scheduler")
    return Pair(theirs, folder)


def make_sd1(tmp: Path) -> Pair:
    return stable_diffusion(tmp, UNET, TEXT, "<|endoftext|>")


def make_sd2(tmp: Path) -> Pair:
    unet = replace(UNET, linear_projection=True)
    return stable_diffusion(tmp, unet, replace(TEXT, activation="gelu"), "!", prediction_type="v_prediction")


def make_sdxl(tmp: Path) -> Pair:
    theirs = diffusers.StableDiffusionXLPipeline(
        **networks(UNET_XL, replace(VAE, scaling_factor=0.13025)),
        text_encoder=clip(TEXT, 3),
        text_encoder_2=clip(TEXT_2, 4),
        tokenizer=tokenizer(tmp / "vocabulary", "<|endoftext|>"),
        tokenizer_2=tokenizer(tmp / "vocabulary_2", "!"),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )
    return saved(theirs, tmp / "model")


def make_refiner(tmp: Path) -> Pair:
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline(
        **networks(replace(UNET_XL, context_dim=64, vector_dim=48 + 5 * 8), replace(VAE, scaling_factor=0.13025)),
        text_encoder=None,
        text_encoder_2=clip(TEXT_2, 4),
        tokenizer=None,
        tokenizer_2=tokenizer(tmp / "vocabulary_2", "!"),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER, steps_offset=1, timestep_spacing="leading"),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    return saved(theirs, tmp / "model")


MAKERS: dict[str, Callable[[Path], Pair]] = {
    "sd1": make_sd1,
    "sd2": make_sd2,
    "sdxl": make_sdxl,
    "sdxl_refiner": make_refiner,
}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A family's pair by name, made once."""
    made: dict[str, Pair] = {}

    def get(family: str) -> Pair:
        if family not in made:
            made[family] = MAKERS[family](tmp_path_factory.mktemp(family))
        return made[family]

    return get


UNETS = {"sd1": UNET, "sd2": replace(UNET, linear_projection=True), "sdxl": UNET_XL}


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """A ControlNet of diffusers for a family, by number, and the folder it was saved to; no weight is 0."""
    made: dict[Any, tuple[Any, Path]] = {}

    def get(family: str, number: int = 0, **options: Any) -> tuple[Any, Path]:
        key = (family, number, *options.items())
        if key not in made:
            config = ControlNetConfig(UNETS[family], hint_channels=(4, 6, 8, 10), **options)
            theirs: Any = randomise(diffusers.ControlNetModel.from_config(controlnet_to_json(config)), 10 + number)
            folder = tmp_path_factory.mktemp("controlnet") / f"net{number}"
            theirs.save_pretrained(folder)
            made[key] = theirs, folder
        return made[key]

    return get


@pytest.fixture(scope="session")
def ours(pairs: Callable[[str], Any]) -> Callable[[str], TextToImagePipeline]:
    """Our pipeline of a family, loaded once from the folder that diffusers wrote."""
    loaded: dict[str, TextToImagePipeline] = {}

    def get(family: str) -> TextToImagePipeline:
        if family not in loaded:
            loaded[family] = TextToImagePipeline.from_pretrained(pairs(family).folder, device="cpu")
            loaded[family].set_progress_bar_config(disable=True)
        return loaded[family]

    return get


@pytest.fixture(scope="module")
def pipe(pairs: Callable[[str], Any]) -> TextToImagePipeline:
    """Our Stable Diffusion 1, one for each test file, since tests patch it."""
    pipe = TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe
