"""What a mode makes of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.finetuning import FineTuneConfig
from ldm.diffusion.schedulers import diffusion_from_scheduler_config
from ldm.model import LatentDiffusion
from ldm.training.objective import Objective
from ldm.training.tuned import Tuned, recompute
from unet.controlnet import ControlNet

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RESCALING = {  # schedulers of diffusers that know of zero terminal SNR
    f"{name}Scheduler"
    for name in (
        "DDIM",
        "DDPM",
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "DPMSolverMultistep",
        "UniPCMultistep",
        "LCM",
        "TCD",
    )
}
RESULTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Prepared:
    """A model ready to be trained.

    module: gives the loss; only what is trained requires gradients, and is float32.
    write: writes the results for a module with the final weights into a folder, reads them again, and returns their
        paths. rates: prefixes of parameter names with a factor of their own. decays: whether weight decay acts.
    """

    module: nn.Module
    write: Callable[[nn.Module, Path], list[Path]]
    rates: Mapping[str, float] = field(default_factory=dict)
    decays: bool = True

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}


def frozen(model: LatentDiffusion) -> LatentDiffusion:
    """The model with nothing to train yet, as it was loaded."""
    for network in model.networks().values():
        network.requires_grad_(False)
    return model


def in_precision(model: LatentDiffusion, config: FineTuneConfig) -> LatentDiffusion:
    """What stays as it is runs in the precision of the run; the autoencoder, which is used once, in its own."""
    for name, network in model.networks().items():
        if name != "autoencoder":
            network.to(DTYPES[config.loop.precision])
    return model


def tuned(model: LatentDiffusion, config: FineTuneConfig, control: ControlNet | None = None) -> Tuned:
    """The module of all modes that train with the denoiser's loss. What is trained becomes float32, from the weights as
    they were loaded; all else takes the precision of the run, but for the autoencoder."""
    objective = Objective(config.objective, diffusion_from_scheduler_config(model.scheduler_config))
    module = Tuned(model, objective, control)
    for name, parameter in module.named_parameters():
        if not name.startswith("autoencoder."):
            precision = torch.float32 if parameter.requires_grad else DTYPES[config.loop.precision]
            parameter.data = parameter.data.to(precision)
    if config.loop.checkpointing:
        recompute(module)
    return module


def assembled(model: LatentDiffusion, module: Tuned) -> LatentDiffusion:
    """The model with the networks of a module, and the noise process they were trained for."""
    return replace(
        model,
        unet=module.unet,
        text_encoder=module.text_encoder,
        autoencoder=module.autoencoder,
        scheduler_config=scheduler_config(model.scheduler_config, module.objective),
    )


def scheduler_config(config: Mapping[str, Any], objective: Objective) -> dict[str, Any]:
    """A `scheduler_config.json` changed where training has changed the process."""
    changed = dict(config)
    before = diffusion_from_scheduler_config(config)
    if objective.diffusion.prediction != before.prediction:
        changed["prediction_type"] = objective.diffusion.prediction
    if objective.diffusion.zero_terminal_snr and not before.zero_terminal_snr:
        changed |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if changed.get("_class_name") not in RESCALING:
            changed["_class_name"] = "DDIMScheduler"
    return changed
