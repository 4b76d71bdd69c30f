"""Small models with the real topologies and module names, made in memory, and LoRA files for them."""

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from configs import presets
from configs.architecture import TextEncoderConfig, UNetConfig
from ldm.lora.names import Names
from ldm.model import LatentDiffusion
from text_encoder import LAST, PENULTIMATE, CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer
from unet import UNet
from vae import AutoencoderKL

TEXT = TextEncoderConfig(width=8, layers=2, heads=2, mlp_width=16)
TEXT_2 = replace(TEXT, width=12, mlp_width=20, activation="gelu", projection_dim=8)
VAE = replace(presets.VAE_KL_F8, channels=(4, 4), layers=1, norm_groups=2)


def narrow(config: UNetConfig, context_dim: int) -> UNetConfig:
    """The topology at widths of a few channels."""
    widths = tuple(8 if c == config.channels[0] else 12 for c in config.channels)
    vector = 16 if config.vector_dim else 0
    heads = (2,) * len(widths)
    return replace(
        config, channels=widths, heads=heads, norm_groups=4, context_dim=context_dim, vector_dim=vector, size_dim=2
    )


UNETS = {
    "sd1": narrow(presets.UNET_SD15, 8),
    "sd2": narrow(presets.UNET_SD21, 8),
    "sdxl": replace(
        narrow(presets.UNET_SDXL, 20), down_depths=((0, 0), (1, 1), (2, 2)), up_depths=((2, 2, 2), (1, 1, 1), (0, 0, 0))
    ),
    "sdxl_refiner": narrow(presets.UNET_SDXL_REFINER, 12),
}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.clip()


def randomise(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 1) ** 0.5


@pytest.fixture(scope="session")
def make(tokenizer: Tokenizer) -> Callable[..., LatentDiffusion]:
    """A fresh model of a family with seeded weights; LoRAs do not touch its autoencoder."""
    autoencoder = AutoencoderKL(VAE)

    @functools.cache
    def networks(family: str, dtype: torch.dtype) -> list[nn.Module]:
        configs = {"sdxl": (TEXT, TEXT_2), "sdxl_refiner": (TEXT_2,)}.get(family, (TEXT,))
        made = [UNet(UNETS[family]), *map(CLIPTextModel, configs)]
        for seed, module in enumerate(made):
            randomise(module, seed)
        return [module.to(dtype) for module in made]

    def make_model(family: str = "sd1", dtype: torch.dtype = torch.float32) -> LatentDiffusion:
        policy = PENULTIMATE if family.startswith("sdxl") else LAST
        unet, *models = copy.deepcopy(networks(family, dtype))
        encoders = [CLIPTextEncoder(tokenizer, model, policy) for model in models]
        encoder = PairedTextEncoder(*encoders) if len(encoders) == 2 else encoders[0]
        return LatentDiffusion(autoencoder, encoder, unet, {"_class_name": "DDIMScheduler"}, family)

    return make_model


@dataclass
class Made:
    """A LoRA as it should be: own module name -> (down, up, alpha)."""

    changes: dict[str, tuple[Tensor, Tensor, float]]

    def delta(self, own: str) -> Tensor:
        """alpha / rank * up @ down in float64, of the flattened weight's shape."""
        down, up, alpha = self.changes[own]
        return alpha / len(down) * (up.double().flatten(1) @ down.double().flatten(1))


def low_rank(names: Names, chosen: Iterable[str], seed: int = 0, dtype: torch.dtype = torch.float32) -> Made:
    """Random factors; ranks and alphas differ from module to module."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for i, own in enumerate(chosen):
        weight = names.modules[own].weight
        assert isinstance(weight, Tensor)
        rank, alpha = 1 + i % 3, (0.5, 1.0, 4.0, 3.0)[i % 4]
        ones = [1] * (weight.ndim - 2)
        down = torch.randn(rank, *weight.shape[1:], generator=generator).to(dtype)
        up = 0.1 * torch.randn(len(weight), rank, *ones, generator=generator)
        changes[own] = (down, up.to(dtype), alpha)
    return Made(changes)


def kohya(made: Made, spell: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors of a kohya file, its modules named by `spell`."""
    tensors = {}
    for own, (down, up, alpha) in made.changes.items():
        name = spell(own)
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=up.dtype)
    return tensors


def spelled(own: str) -> str:
    """As kohya's trainer names modules of SD 1 and 2."""
    part, _, path = own.partition(".")
    return f"lora_{'unet' if part == 'unet' else 'te'}_{path.replace('.', '_')}"


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def state(model: LatentDiffusion) -> dict[str, Tensor]:
    """A copy of all weights that a LoRA may change."""
    parts = (("unet", model.unet), ("text_encoder", model.text_encoder))
    return {f"{part}.{k}": tensor.clone() for part, module in parts for k, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Bit for bit, signs of zeros included."""
    return one.keys() == two.keys() and all(
        a.dtype == two[k].dtype and torch.equal(octets(a), octets(two[k])) for k, a in one.items()
    )


def octets(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


MODULES = [
    "unet.conv_in",
    "unet.down_blocks.0.attentions.0.proj_in",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",
    "unet.down_blocks.1.resnets.0.conv1",
    "unet.down_blocks.1.downsamplers.0.conv",
    "unet.mid_block.resnets.1.time_emb_proj",
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "unet.up_blocks.1.upsamplers.0.conv",
    "unet.up_blocks.2.resnets.2.conv_shortcut",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.1.mlp.fc1",
]
