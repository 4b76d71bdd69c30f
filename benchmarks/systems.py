"""The systems under test: one model of seeded random weights, run by this project, by diffusers and by OpenVINO."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from configs import presets
from ldm.checkpoint.compose import composed
from ldm.checkpoint.meta import on_meta
from ldm.model import LatentDiffusion
from pipelines import TextToImagePipeline
from pipelines.interop import to_diffusers
from text_encoder import CLIPTextModel, Tokenizer
from unet import UNet
from vae import AutoencoderKL

PROMPT = "a cat holding a banana"
MODELS = {"sd15": presets.SD15, "sdxl": presets.SDXL}
GUIDANCE = {"sd15": 7.5, "sdxl": 5.0}
PROCESS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
SCHEDULERS = {
    "euler": {"_class_name": "EulerDiscreteScheduler", **PROCESS},
    "ddim": {"_class_name": "DDIMScheduler", **PROCESS, "clip_sample": False, "set_alpha_to_one": False},
}
MIDDLE = 500  # the training timestep of a single evaluation
WITHOUT = "ours-"  # before the name of a switch: ours with it off


@dataclass(frozen=True)
class Setting:
    """What all systems are given alike."""

    model: str  # of MODELS
    size: int  # pixels
    steps: int
    sampler: str  # of SCHEDULERS
    dtype: torch.dtype
    device: torch.device

    def noise(self, batch: int, seed: int) -> Tensor:
        """Initial latents (b, 4, h, w) of unit variance, already rounded to the precision of the comparison."""
        shape = (batch, 4, self.size // 8, self.size // 8)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device, self.dtype)


# weights


def seeded_model(setting: Setting, dtype: torch.dtype | None = None) -> LatentDiffusion:
    """The model at its real size with weights that depend on `setting` alone, rounded to its precision, in `dtype`."""
    config = MODELS[setting.model]
    unet = on_meta("the benchmark", UNet, config.unet)
    vae = on_meta("the benchmark", AutoencoderKL, config.autoencoder)
    pads = ("<|endoftext|>", "!")
    texts = [
        (Tokenizer.clip(pad), on_meta("the benchmark", CLIPTextModel, text))
        for pad, text in zip(pads, config.text_encoders, strict=False)
    ]
    for seed, network in enumerate((unet, vae, *(text for _, text in texts))):
        fill(network, seed, setting, dtype or setting.dtype)
    return LatentDiffusion(vae, composed(config.unet, texts), unet, SCHEDULERS[setting.sampler], config.family)


@torch.no_grad()
def fill(network: nn.Module, seed: int, setting: Setting, dtype: torch.dtype) -> None:
    """Weights of the scale of a trained network: norms near 1, biases 0, the rest of deviation 1 / sqrt(fan in)."""
    generator = torch.Generator(setting.device).manual_seed(seed)
    for name, old in list(network.named_parameters()):
        if old.ndim > 1:
            new = torch.randn(old.shape, generator=generator, device=setting.device).mul_(old[0].numel() ** -0.5)
        else:
            new = torch.full(old.shape, float(not name.endswith("bias")), device=setting.device)
        owner, _, leaf = name.rpartition(".")
        rounded = new.to(setting.dtype).to(dtype)
        network.get_submodule(owner).register_parameter(leaf, nn.Parameter(rounded, requires_grad=False))
    network.eval()


# systems


class System:
    """A pipeline under test. Arguments of calls have the same names and meaning on both sides."""

    def __init__(self, pipe: Any, setting: Setting, dtype: torch.dtype) -> None:
        self.pipe, self.setting, self.dtype = pipe, setting, dtype
        pipe.set_progress_bar_config(disable=True)

    def arguments(self, noise: Tensor, **more: Any) -> dict[str, Any]:
        size, steps = self.setting.size, self.setting.steps
        common = {"height": size, "width": size, "num_inference_steps": steps}
        return {**common, "guidance_scale": GUIDANCE[self.setting.model], "latents": noise.to(self.dtype), **more}

    def given(self, embeds: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        """The text as it goes into a call for a batch of pictures."""
        place = self.setting.device
        return {name: torch.cat([value.to(place, self.dtype)] * batch) for name, value in embeds.items()}

    def images(self, noise: Tensor) -> list[Any]:
        """From the prompt to PIL images, all of it."""
        return list(self.pipe(PROMPT, num_images_per_prompt=len(noise), **self.arguments(noise)).images)

    def denoise(self, noise: Tensor, embeds: dict[str, Tensor], stamp: Callable[[], None]) -> Tensor:
        """Final latents; calls `stamp` at the end of each step."""
        raise NotImplementedError

    def evaluate(self, noise: Tensor, embeds: dict[str, Tensor]) -> Tensor:
        """Latents after one guided evaluation, which is one step of Euler's from MIDDLE to the end."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (b, 3, H, W), near [-1, 1]."""
        raise NotImplementedError

    def text(self) -> Any:
        """The prompt and an empty one, through tokenizer and text encoders."""
        raise NotImplementedError


class Ours(System):
    def denoise(self, noise: Tensor, embeds: dict[str, Tensor], stamp: Callable[[], None]) -> Tensor:
        given = self.given(embeds, len(noise))
        stream = self.pipe.stream(**self.arguments(noise, **given, output_type="latent"))
        for _ in stream:
            stamp()
        latents: Tensor = stream.result.images
        return latents

    def evaluate(self, noise: Tensor, embeds: dict[str, Tensor]) -> Tensor:
        given = {**self.given(embeds, len(noise)), "timesteps": [MIDDLE], "sampler": SCHEDULERS["euler"]}
        latents: Tensor = self.pipe(**self.arguments(noise, **given, output_type="latent")).images
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.pipe.vae.decode(latents.to(self.setting.device))
        return pixels

    @torch.no_grad()
    def text(self) -> Any:
        return self.pipe.text_encoder([PROMPT, ""])


class Theirs(System):
    """diffusers; `start` is what the last `evaluate` began from."""

    start: Tensor

    def __init__(self, pipe: Any, setting: Setting, dtype: torch.dtype) -> None:
        super().__init__(pipe.to(setting.device), setting, dtype)

    def denoise(self, noise: Tensor, embeds: dict[str, Tensor], stamp: Callable[[], None]) -> Tensor:
        def end(_: Any, __: int, ___: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            stamp()
            return tensors

        given = self.given(embeds, len(noise))
        arguments = self.arguments(noise, **given, output_type="latent", callback_on_step_end=end)
        latents: Tensor = self.pipe(**arguments).images
        return latents

    def evaluate(self, noise: Tensor, embeds: dict[str, Tensor]) -> Tensor:
        from diffusers import EulerDiscreteScheduler

        own, self.pipe.scheduler = self.pipe.scheduler, EulerDiscreteScheduler.from_config(SCHEDULERS["euler"])
        try:
            given = {**self.given(embeds, len(noise)), "timesteps": [MIDDLE]}
            latents: Tensor = self.pipe(**self.arguments(noise, **given, output_type="latent")).images
            self.start = noise.float() * float(self.pipe.scheduler.init_noise_sigma)
        finally:
            self.pipe.scheduler = own
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        overflows = self.setting.model == "sdxl" and vae.dtype == torch.float16  # its pipeline sees to that as well
        if overflows:
            vae.to(torch.float32)
        pixels: Tensor = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
        if overflows:
            vae.to(torch.float16)
        return pixels.clone()  # of a compiled decoder the next call would write over it

    @torch.no_grad()
    def text(self) -> Any:
        counts = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        return self.pipe.encode_prompt(PROMPT, device=self.setting.device, **counts)

    def embeds(self) -> dict[str, Tensor]:
        """The prompt's embeddings, under the names that calls of either side know them by."""
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return {name: value.cpu() for name, value in zip(names, self.text(), strict=False)}


# building them


def build(name: str, setting: Setting) -> System:
    """A system by its name; see `inference.py` for the names. ValueError for any other."""
    if name == "ours" or name.startswith(WITHOUT):
        return build_ours(name.removeprefix("ours").removeprefix("-"), setting)
    if name in ("reference", "B0-fp32"):
        return Theirs(to_diffusers(seeded_model(setting, torch.float32)), setting, torch.float32)
    if name == "openvino":
        return build_openvino(setting)
    if name not in ("B0", "B1"):
        raise ValueError(f"there is no system {name!r}: choose from ours, B0, B0-fp32, B1 and openvino")
    theirs = Theirs(to_diffusers(seeded_model(setting)), setting, setting.dtype)
    return at_its_best(theirs) if name == "B1" else theirs


def build_ours(without: str, setting: Setting) -> Ours:
    """Our pipeline, perhaps with one of its optimisations switched off."""
    pipe: Any = TextToImagePipeline(seeded_model(setting), device=setting.device, dtype=setting.dtype)
    if without:
        pipe.speed = replace(pipe.speed, **{without: False})
    return Ours(pipe, setting, setting.dtype)


def switches(ours: Ours) -> list[str]:
    """The optimisations that are on and can be switched off; none in a version that has no switches."""
    speed = getattr(ours.pipe, "speed", None)
    return [] if speed is None else [field.name for field in fields(speed) if getattr(speed, field.name)]


def at_its_best(theirs: Theirs) -> Theirs:
    """As diffusers' guide to fast inference has it: channels last, fused projections, all compiled."""
    pipe = theirs.pipe
    for network in (pipe.unet, pipe.vae):
        network.to(memory_format=torch.channels_last)
    pipe.fuse_qkv_projections()
    how: Any = {"mode": "max-autotune", "fullgraph": True, "dynamic": False}  # each batch size by itself
    pipe.unet = torch.compile(pipe.unet, **how)
    pipe.vae.decode = torch.compile(pipe.vae.decode, **how)
    return theirs


def build_openvino(setting: Setting) -> Theirs:
    """diffusers' pipeline with its U-Net run by OpenVINO."""
    from openvino_unet import OpenVINOUNet

    pipe = to_diffusers(seeded_model(setting, torch.float32))
    pipe.unet = OpenVINOUNet(pipe.unet, setting.dtype)
    for network in (pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if network is not None:
            network.to(setting.dtype)
    return Theirs(pipe, setting, setting.dtype)


def missing(name: str, device: torch.device) -> str:
    """Why a system cannot run here, "" if it can."""
    if name != "openvino":
        return ""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed"
    return "" if device.type == "cpu" else "openvino is for the CPU"


class Shelf:
    """Systems, built when first asked for; without room only one at a time is kept."""

    def __init__(self, setting: Setting, room: bool) -> None:
        self.setting, self.room = setting, room
        self._systems: dict[str, System] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._systems:
            if not self.room:
                self.clear()
            self._systems[name] = build(name, self.setting)
        return self._systems[name]

    def clear(self) -> None:
        for name in list(self._systems):
            self.drop(name)

    def drop(self, name: str) -> None:
        self._systems.pop(name, None)
        gc.collect()
        if self.setting.device.type == "cuda":
            torch.cuda.empty_cache()
