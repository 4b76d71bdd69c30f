"""Model folders made by diffusers and transformers themselves, with random weights at tiny widths."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter non-trivial, activations of order one: norms near 1, matrices scaled by their fan-in."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.data = noise * parameter[0].numel() ** -0.5
    return module.eval()


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in CLIP's vocabulary, in its order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]


def write_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    folder.mkdir(parents=True)
    letters = byte_letters()
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("a", "n</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def clip(tokenizer: Any, width: int, seed: int, projection: int | None = None, act: str = "quick_gelu") -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=act,
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return randomise(kind(config), seed)


def autoencoder(seed: int = 1, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 32,
    }
    return randomise(diffusers.AutoencoderKL(**{**settings, **options}), seed)


def unet(seed: int = 2, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
    }
    return randomise(diffusers.UNet2DConditionModel(**{**settings, **options}), seed)


def sd1(folder: Path, **options: Any) -> Any:
    tokenizer = write_tokenizer(folder)
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip(tokenizer, 16, 3),
        tokenizer=tokenizer,
        unet=unet(**options),
        scheduler=diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2(folder: Path) -> Any:
    pipe = sd1(folder, use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True)
    pipe.text_encoder = clip(pipe.tokenizer, 16, 4, act="gelu")
    pipe.tokenizer.pad_token = "!"
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    return pipe


def sdxl_unet(context: int, ids: int) -> Any:
    return unet(
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=context,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 8 * ids,
    )


def sdxl(folder: Path) -> Any:
    tokenizer, tokenizer_2 = write_tokenizer(folder / "1"), write_tokenizer(folder / "2")
    tokenizer_2.pad_token = "!"
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip(tokenizer, 16, 3),
        text_encoder_2=clip(tokenizer_2, 24, 5, projection=12, act="gelu"),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=sdxl_unet(40, ids=6),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sdxl_refiner(folder: Path) -> Any:
    tokenizer_2 = write_tokenizer(folder)
    tokenizer_2.pad_token = "!"
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=None,
        text_encoder_2=clip(tokenizer_2, 24, 5, projection=12, act="gelu"),
        tokenizer=None,
        tokenizer_2=tokenizer_2,
        unet=sdxl_unet(24, ids=5),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


PIPELINES = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sdxl_refiner": sdxl_refiner}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One float32 folder by family, as diffusers writes it."""
    made = {}
    for family, make in PIPELINES.items():
        root = tmp_path_factory.mktemp(family)
        make(root / "vocabulary").save_pretrained(root / "model")
        made[family] = root / "model"
    return made


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A family's folder as a copy that a test may damage."""

    def copy(family: str = "sd1") -> Path:
        return Path(shutil.copytree(folders[family], tmp_path / family))

    return copy


@pytest.fixture
def resaved(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A family's folder written again by diffusers, with options of its `save_pretrained`."""

    def resave(family: str, dtype: torch.dtype | None = None, **options: Any) -> Path:
        pipe = diffusers.DiffusionPipeline.from_pretrained(folders[family], dtype=dtype or torch.float32)
        pipe.save_pretrained(tmp_path / "resaved", **options)
        return tmp_path / "resaved"

    return resave
