"""The module that fine-tuning trains: the networks of a model and the denoiser's loss over them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ldm.conditioning import Conditioning, text_time_vector
from ldm.model import LatentDiffusion
from ldm.training.denoiser import attention_for
from ldm.training.objective import Objective
from ldm.training.reading import embed, encoders_of, own_mask
from ldm.training.stage import Batch
from text_encoder import CLIPTextEncoder, PairedTextEncoder
from text_encoder.clip import Layer
from unet.attention import Transformer
from unet.controlnet import ControlNet
from unet.resnet import ResNet
from vae import Autoencoder

LEVELS = {"low": 0.0, "middle": 0.5, "high": 2.0}  # the least sigma of each range that losses are told by


class Tuned(nn.Module):
    """What a batch holds, of b examples:

    mean, std (b, c, h, w) of the latents' distribution, or `pixels` (b, 3, H, W) to encode; `posterior` (b, c, h, w),
    the draw from it; `noise`, `sigma` (b,), perhaps `seen`, of the objective; `tokens`, `pooled`, or token ids to
    read; `empty` (b,), where there is no caption; `sizes` (b, 6) of SDXL; `hint` (b, 3, H, W) of a ControlNet; `weight`
    (b,) of the loss.
    """

    def __init__(self, model: LatentDiffusion, objective: Objective, control: ControlNet | None = None) -> None:
        super().__init__()
        self.unet = model.unet
        self.text_encoder: CLIPTextEncoder | PairedTextEncoder = model.text_encoder
        self.autoencoder: Autoencoder = model.autoencoder
        self.control = control
        self.objective = objective
        # SDXL draws without a text from zeros, so dropped captions are that too
        self.zero_empty = bool(model.model_index.get("force_zeros_for_empty_prompt", True))

    @property
    def _no_split_modules(self) -> list[str]:
        """What FSDP puts together at once when it is to wrap transformer layers, by accelerate's name for that."""
        return sorted(
            {type(part).__name__ for part in self.modules() if isinstance(part, ResNet | Transformer | Layer)}
        )

    @property
    def reads(self) -> bool:
        """Whether texts have to be read anew, because what reads them is trained."""
        return any(parameter.requires_grad for parameter in self.text_encoder.parameters())

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.losses(batch)
        return (losses * batch["weight"]).mean(), {}

    def losses(self, batch: Batch) -> Tensor:
        """By example, (b,), before they are weighted among each other."""
        latents = self._latents(batch)
        with attention_for(latents):
            return self.objective.losses(self._network, latents, batch, (self._conditioning(batch), batch))

    def _latents(self, batch: Batch) -> Tensor:
        if "mean" in batch:
            return batch["mean"].float() + batch["std"].float() * batch["posterior"]
        with torch.no_grad(), torch.autocast(batch["pixels"].device.type, enabled=False):
            return self.autoencoder.encode(batch["pixels"]).sample(batch["posterior"])

    def _conditioning(self, batch: Batch) -> Conditioning:
        if "tokens" in batch:
            tokens, pooled = batch["tokens"], batch.get("pooled")
            chunks = int(batch["tokens"].shape[1] // self._length)
            mask = own_mask(batch["own_chunks"], chunks, self._length)
        else:
            with nullcontext() if self.reads else torch.no_grad():
                text = embed(self.text_encoder, batch)
            tokens, mask, pooled = text.tokens, text.mask, text.pooled
        if self.unet.config.vector != "text_time":
            return Conditioning(tokens, mask)
        assert pooled is not None
        if self.zero_empty:
            said = ~batch["empty"]
            tokens, pooled = tokens * said[:, None, None], pooled * said[:, None]
        return Conditioning(tokens, mask, pooled, batch["sizes"])

    @property
    def _length(self) -> int:
        """Tokens of a chunk."""
        return encoders_of(self.text_encoder)[0].length

    def _network(self, x: Tensor, t: Tensor, given: tuple[Conditioning, Batch]) -> Tensor:
        cond, batch = given
        vector = cond.vector
        if vector is not None and cond.sizes is not None:
            vector = text_time_vector(vector, cond.sizes, self.unet.config.size_dim)
        residuals = None
        if self.control is not None:
            hint = self.control.embed(batch["hint"])
            residuals = self.control(x, t, cond.context, hint, mask=cond.mask, vector=vector)
        out: Tensor = self.unet(x, t, cond.context, mask=cond.mask, vector=vector, residuals=residuals)
        return out


def recompute(module: nn.Module) -> None:
    """Has the parts of networks keep no activations, but compute them again for gradients (Chen et al. 2016,
    1604.06174)."""
    for part in module.modules():
        if isinstance(part, ResNet | Transformer | Layer):
            again = partial(checkpoint, part.forward, use_reentrant=False, context_fn=_same_attention)
            part.forward = again  # type: ignore[method-assign]


def _same_attention() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a part's first pass and of its second one, which comes when `attention_for` has been left."""
    plain = not torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]  # CPUs have the same switch
    return nullcontext(), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()
