"""Stable Diffusion 1.5 at full width, ours and diffusers side by side in one process, on the same random weights.

    python benchmarks/parity_sd15.py [--dtype bfloat16] [--steps 2] [--size 512] [--rounds 2] [--device cpu]

Prints, for each, the seconds per guided step, the memory that the run adds at its peak, and how far the final latents
and the picture are from diffusers in float32 on the same device. The weights are shared between the two, so that the
memory column is what running costs, not what loading costs.
"""

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
import transformers
from common import resident
from torch import Tensor, nn

from configs import presets
from configs.interchange import autoencoder_to_json, text_encoder_to_json, unet_to_json
from ldm.model import LatentDiffusion
from pipelines import TextToImagePipeline
from text_encoder import CLIPTextEncoder, CLIPTextModel, Tokenizer
from text_encoder.clip import canonical_keys
from unet import UNet
from vae import AutoencoderKL

PROMPT = "a cat holding a banana"
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def random_weights(network: nn.Module, seed: int) -> nn.Module:
    """Seeded weights of the scale of a trained network: norms near 1, biases 0, the rest 1 / sqrt(fan in)."""
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        else:
            parameter.data = torch.zeros_like(parameter) if name.endswith("bias") else torch.ones_like(parameter)
    return network.eval()


def clip_tokenizer() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        Tokenizer.clip().save(folder)
        return transformers.CLIPTokenizer.from_pretrained(folder)


def build_theirs() -> Any:
    """diffusers' pipeline at the real configuration, float32."""
    model = presets.SD15
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(unet_to_json(model.unet))
        vae = diffusers.AutoencoderKL.from_config(autoencoder_to_json(model.autoencoder))
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_encoder_to_json(model.text_encoders[0])))
    pipe = diffusers.StableDiffusionPipeline(
        unet=random_weights(unet, 1),
        vae=random_weights(vae, 2),
        text_encoder=text.eval(),
        tokenizer=clip_tokenizer(),
        scheduler=diffusers.PNDMScheduler.from_config(SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_ours(theirs: Any, device: str, dtype: torch.dtype) -> TextToImagePipeline:
    """Our pipeline on diffusers' tensors, shared where device and dtype agree."""
    model = presets.SD15
    with torch.device("meta"):
        unet, vae, text = UNet(model.unet), AutoencoderKL(model.autoencoder), CLIPTextModel(model.text_encoders[0])
    unet.load_state_dict(theirs.unet.state_dict(), assign=True)
    vae.load_state_dict(theirs.vae.state_dict(), assign=True)
    text.load_state_dict(canonical_keys(theirs.text_encoder.state_dict()), assign=True)
    encoder = CLIPTextEncoder(Tokenizer.clip(), text.eval())
    parts = LatentDiffusion(vae.eval(), encoder, unet.eval(), SCHEDULER)
    pipe = TextToImagePipeline(parts, device=device, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peak(device: str) -> Callable[[], float]:
    """Starts measuring memory; the returned function gives the peak since, above the start, in GB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - start) / 1e9
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier runs left free
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of this process
    before = resident("VmRSS")
    return lambda: (resident("VmHWM") - before) / 1e6


def run(pipe: Any, latents: Tensor, steps: int, device: str) -> tuple[Tensor, float, float]:
    """One call: final latents, seconds per step after the first, peak memory in GB."""
    stamps: list[float] = []

    def stamp(_: Any, __: int, ___: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if device == "cuda":
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return tensors

    size = latents.shape[-1] * 8
    used = peak(device)
    with torch.no_grad():
        answer = pipe(
            PROMPT,
            height=size,
            width=size,
            num_inference_steps=steps,
            latents=latents.to(device, pipe.dtype),
            output_type="latent",
            callback_on_step_end=stamp,
        )
    return answer.images.float().cpu(), (stamps[-1] - stamps[0]) / (len(stamps) - 1), used()


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Pixels (b, 3, H, W) in float32 by either pipeline's autoencoder."""
    with torch.no_grad():
        if isinstance(pipe, TextToImagePipeline):
            return pipe.model.autoencoder.decode(latents.to(pipe.device)).float().cpu()
        vae = pipe.vae
        pixels: Tensor = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
        return pixels.float().cpu()


def error(value: Tensor, reference: Tensor) -> float:
    """Relative L2."""
    return ((value - reference).norm() / reference.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)

    theirs = build_theirs().to(options.device)
    latents = torch.randn(1, 4, options.size // 8, options.size // 8, generator=torch.Generator().manual_seed(0))
    reference, _, _ = run(theirs, latents, options.steps, options.device)
    reference_pixels = decode(theirs, reference)

    theirs = theirs.to(dtype)
    pipes = {"diffusers": theirs, "ours": build_ours(theirs, options.device, dtype)}
    runs: dict[str, list[tuple[Tensor, float, float]]] = {name: [] for name in pipes}
    for _ in range(options.rounds):
        for name, pipe in pipes.items():
            runs[name].append(run(pipe, latents, options.steps, options.device))

    print(f"SD 1.5, {options.size} px, {options.steps} steps with guidance, {options.dtype}, {options.device},")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':12}{'s/step':>10}{'peak GB':>10}{'latent error':>15}{'pixel error':>14}")
    for name, pipe in pipes.items():
        latent = runs[name][-1][0]
        seconds, memory = median(r[1] for r in runs[name]), max(r[2] for r in runs[name])
        pixels = error(decode(pipe, latent), reference_pixels)
        print(f"{name:12}{seconds:10.3f}{memory:10.2f}{error(latent, reference):15.2e}{pixels:14.2e}")
    ratio = median(r[1] for r in runs["diffusers"]) / median(r[1] for r in runs["ours"])
    print(f"ours is {ratio:.2f} x as fast as diffusers; errors are relative L2 to diffusers in float32")


if __name__ == "__main__":
    main()
