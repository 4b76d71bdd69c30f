"""Training steps put together from the public parts of diffusers and peft, mode by mode as its example scripts do it.

Weights that are not trained are in the precision of the arithmetic, those that are in float32, and autocast is for the
network alone that a script hands to accelerate. The scripts' text encoders and autoencoders are there too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from systems import PROCESS
from torch import Tensor, nn
from training_sides import RATE, WORD, Ours, Side, Task, model_of, renew

from configs.finetuning import LoraConfig as OurLoraConfig
from configs.finetuning import Mode
from ldm.training.stage import Batch
from pipelines.interop import to_diffusers


class Theirs:
    """train_text_to_image.py"""

    clips = True

    def __init__(self, task: Task) -> None:
        self.task, self.scheduler = task, DDPMScheduler.from_config(PROCESS)
        self.pipe: Any = to_diffusers(model_of(task))
        for part in (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder):
            part.requires_grad_(False)
        self.trained = self.begin()
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=RATE)

    def begin(self) -> dict[str, nn.Parameter]:
        """Makes the networks ready, and returns what is trained by the names that our side has for it."""
        self.halve(self.pipe.vae, self.pipe.text_encoder)
        return dict(self.pipe.unet.requires_grad_(True).train().named_parameters())

    def halve(self, *parts: nn.Module) -> None:
        for part in parts:
            nn.Module.to(part, self.task.frozen)  # their own warns of what does not concern these

    def loss(self, batch: Batch) -> Tensor:
        dtype = self.task.dtype
        with self.arithmetic():
            output = self.pipe.unet(self.noisy(batch).to(dtype), batch["t"], batch["tokens"].to(dtype)).sample
        return F.mse_loss(output.float(), batch["noise"])

    def gradients(self) -> dict[str, Tensor]:
        return {name: value.grad for name, value in self.trained.items() if value.grad is not None}

    def step(self, batch: Batch) -> None:
        self.loss(batch).backward()
        if self.clips:
            nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def noisy(self, batch: Batch) -> Tensor:
        latents = batch["mean"] + batch["std"] * batch["posterior"]
        noisy: Tensor = self.scheduler.add_noise(latents, batch["noise"], batch["t"])
        return noisy

    def arithmetic(self) -> AbstractContextManager[Any]:
        mixed = self.task.precision == "autocast" and not self.task.reference
        return torch.autocast(self.task.device.type, torch.bfloat16) if mixed else nullcontext()


class Lora(Theirs):
    """train_text_to_image_lora.py"""

    def begin(self) -> dict[str, nn.Parameter]:
        unet, rank = self.pipe.unet, OurLoraConfig().rank
        self.halve(unet, self.pipe.vae, self.pipe.text_encoder)
        layers = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers))
        cast_training_params(unet, dtype=torch.float32)
        unet.train()
        ours = {".lora_A.default.weight": ".down", ".lora_B.default.weight": ".up"}
        found = {}
        for name, value in unet.named_parameters():
            for end, own in ours.items():
                if name.endswith(end):
                    found[name.removesuffix(end) + own] = value
        renew("lora", found)
        return found

    def loss(self, batch: Batch) -> Tensor:
        dtype = self.task.frozen
        with self.arithmetic():
            output = self.pipe.unet(self.noisy(batch).to(dtype), batch["t"], batch["tokens"].to(dtype)).sample
        return F.mse_loss(output.float(), batch["noise"])


class Inversion(Theirs):
    """textual_inversion.py: the whole table is trained, and all but the new row put back after each step."""

    clips = False

    def begin(self) -> dict[str, nn.Parameter]:
        text = self.pipe.text_encoder
        self.halve(self.pipe.unet, self.pipe.vae)
        self.pipe.tokenizer.add_tokens([WORD])
        text.resize_token_embeddings(len(self.pipe.tokenizer), mean_resizing=False)
        self.table = text.get_input_embeddings().requires_grad_(True).weight
        renew("inversion", {"rows": self.table[-1:]})
        self.original = self.table.detach().clone()
        self.others = torch.ones(len(self.table), dtype=torch.bool)
        self.others[-1] = False
        text.train()
        return {"table": self.table}

    def loss(self, batch: Batch) -> Tensor:
        dtype = self.task.frozen
        with self.arithmetic():
            tokens = self.pipe.text_encoder(batch["ids"][:, 0])[0]
        output = self.pipe.unet(self.noisy(batch).to(dtype), batch["t"], tokens.to(dtype)).sample
        return F.mse_loss(output.float(), batch["noise"])

    def gradients(self) -> dict[str, Tensor]:
        """That of the new row."""
        return {"rows": self.table.grad[-1:]} if self.table.grad is not None else {}

    def step(self, batch: Batch) -> None:
        super().step(batch)
        with torch.no_grad():
            self.table[self.others] = self.original[self.others]


class Control(Theirs):
    """train_controlnet.py"""

    def begin(self) -> dict[str, nn.Parameter]:
        self.control: Any = ControlNetModel.from_unet(self.pipe.unet).to(self.task.device).requires_grad_(True).train()
        self.halve(self.pipe.unet, self.pipe.vae, self.pipe.text_encoder)
        trained = dict(self.control.named_parameters())
        renew("controlnet", trained)
        return trained

    def loss(self, batch: Batch) -> Tensor:
        dtype, t = self.task.frozen, batch["t"]
        x, tokens, hint = (value.to(dtype) for value in (self.noisy(batch), batch["tokens"], batch["hint"]))
        with self.arithmetic():
            down, mid = self.control(x, t, encoder_hidden_states=tokens, controlnet_cond=hint, return_dict=False)
        residuals = {
            "down_block_additional_residuals": [each.to(dtype) for each in down],
            "mid_block_additional_residual": mid.to(dtype),
        }
        output = self.pipe.unet(x, t, encoder_hidden_states=tokens, **residuals).sample
        return F.mse_loss(output.float(), batch["noise"])


class Autoencoder(Theirs):
    """train_autoencoderkl.py --decoder_only --rec_loss l2, without its perceptual and adversarial losses."""

    def begin(self) -> dict[str, nn.Parameter]:
        vae = self.pipe.vae.train()
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
        del self.pipe.unet, self.pipe.text_encoder  # which the script does not load
        return {name: value for name, value in vae.named_parameters() if value.requires_grad}

    def loss(self, batch: Batch) -> Tensor:
        with self.arithmetic():
            found = self.pipe.vae.encode(batch["pixels"]).latent_dist
            output = self.pipe.vae.decode(found.mean + found.std * batch["posterior"]).sample
        return F.mse_loss(output.float(), batch["pixels"])


MODES: dict[Mode, type[Theirs]] = {
    "full": Theirs,
    "lora": Lora,
    "inversion": Inversion,
    "controlnet": Control,
    "autoencoder": Autoencoder,
}


def side(name: str, task: Task) -> Side:
    """One of SIDES, with its optimizer."""
    return Ours(task) if name == "ours" else MODES[task.mode](task)
