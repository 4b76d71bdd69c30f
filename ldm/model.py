"""The composed model: the networks of one checkpoint and the process they were trained for. It knows no task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning import Conditioning, text_time_vector
from ldm.lora.state import Loras
from ldm.vocabulary import Vocabulary
from text_encoder import CLIPTextEncoder, PairedTextEncoder
from unet import UNet
from vae import Autoencoder


@dataclass(eq=False)
class LatentDiffusion:
    """A latent diffusion model.

    scheduler_config: the checkpoint's `scheduler_config.json`, kept as it came; noise schedule, prediction type and
        default sampler are read from it (`ldm.diffusion.registry`).
    family: "sd1", "sd2", "sdxl" or "sdxl_refiner"; it chooses defaults, preview colours and the
        names of what is saved, and no network asks for it.
    model_index: other entries of the checkpoint's `model_index.json`, such as `force_zeros_for_empty_prompt`.
    source: the folder, file or hub id it came from, "" for a model made in memory.
    vocabulary: the words it knows, None where nobody has counted them.
    defaults: what a call takes where it names none, of a distilled model: see `ldm.vocabulary.DEFAULTS`.
    notes: what loading it had to guess or leave out, for a person to read.
    loras: what is merged into the weights of its U-Net and text encoders.
    """

    autoencoder: Autoencoder
    text_encoder: CLIPTextEncoder | PairedTextEncoder
    unet: UNet
    scheduler_config: Mapping[str, Any]
    family: str = "sd1"
    model_index: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    vocabulary: Vocabulary | None = None
    notes: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    loras: Loras = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.loras = Loras(self)

    def network(
        self, x: Tensor, t: Tensor | float, cond: Conditioning, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The U-Net as the denoiser calls it: x (b, c, h, w), t (b,) or one for all -> (b, c, h, w).

        residuals: of ControlNets, as the U-Net takes them.
        """
        told = {"mask": cond.mask, "vector": self.vector(cond), "guidance": cond.guidance}
        out: Tensor = self.unet(x, t, cond.context, residuals=residuals, **told)
        return out

    def vector(self, cond: Conditioning) -> Tensor | None:
        """The U-Net's second condition (b, v), if it has one."""
        if cond.vector is None or cond.sizes is None:
            return cond.vector
        return text_time_vector(cond.vector, cond.sizes, self.unet.config.size_dim)

    def networks(self) -> dict[str, nn.Module]:
        """Every part with weights, in the order a prompt meets them."""
        return {"text_encoder": self.text_encoder, "unet": self.unet, "autoencoder": self.autoencoder}

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.config.latent_channels

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype
