"""What every pipeline shares: loading, device and precision, memory, and the run from a problem to pictures."""

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from ldm.diffusion.samplers import Step
from ldm.model import LatentDiffusion
from pipelines.problem import Problem
from pipelines.request import TextToImageRequest
from pipelines.result import Result, make_records
from pipelines.stream import Interrupted, Progress, Stream
from vae.pixels import to_numpy, to_pil, to_unit


class Pipeline:
    """A task on a model: owns device, precision and memory. Build one with `from_pretrained`."""

    def __init__(
        self, model: LatentDiffusion, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.model = model
        self.device = default_device(device)
        self.sampler: Any = None  # what calls use that name none; None is the checkpoint's own
        self.progress_bar_config: dict[str, Any] = {}
        self._offload = False
        self._stop = False
        self._interrupt = False  # diffusers' name: a callback sets it to skip the steps that are left
        self._guidance_scale = 1.0  # diffusers' name: a callback may change it
        self.to(self.device, dtype or default_dtype(self.device))

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: Any,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a folder in diffusers format, or a hub id, which is downloaded first.

        dtype: precision of the weights (`torch_dtype` is accepted too); by default bfloat16 or float16 on CUDA, float32
            on the CPU. device: CUDA where there is one, else the CPU. variant: such as "fp16".
        options: `revision`, `subfolder`, `local_files_only`, `cache_dir` and `token`, as for the hub, and parts to use
            instead of the folder's by diffusers' names: `vae`, `unet`, `text_encoder`, `tokenizer`, `scheduler`, ...
            (NEEDLESS_OPTIONS are accepted for the sake of code written for diffusers, and do nothing).

        Raises FileNotFoundError when nothing is there, ValueError when it cannot be used; both say what to do.
        """
        from ldm.checkpoint import load_folder, resolve

        device = default_device(device)
        dtype = as_dtype(dtype if dtype is not None else torch_dtype) or default_dtype(device)
        where = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        parts = {name: part for name, part in options.items() if name not in NEEDLESS_OPTIONS}
        folder = resolve(path_or_hub_id, variant=variant, **where)
        model = load_folder(folder, dtype=dtype, variant=variant, components=parts)
        model.source = str(path_or_hub_id)
        return cls(model, device=device, dtype=dtype)

    def save_pretrained(self, folder: Any, **options: Any) -> None:
        """Writes the model as a folder that diffusers loads; options are those of `ldm.checkpoint.save_folder`."""
        from ldm.checkpoint import save_folder

        save_folder(self.model, folder, **options)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def to(self, *targets: Any, device: Any = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model: `pipe.to("cuda")`, `pipe.to(torch.float16)`, `pipe.to("cuda", torch.float16)`."""
        for target in targets:
            if isinstance(target, torch.dtype):
                dtype = target
            else:
                device = target
        dtype = dtype or self.dtype
        self.device = self.device if device is None else default_device(device)
        vae_dtype = self.model.autoencoder.compute_dtype(dtype)
        for name, network in self.model.networks().items():
            network.to("cpu" if self._offload else self.device, vae_dtype if name == "autoencoder" else dtype)
        return self

    def enable_model_cpu_offload(self) -> None:
        """Keeps on the accelerator only the part that is at work: less memory, a little slower.

        Raises RuntimeError without an accelerator, where it could only cost time.
        """
        if self.device.type == "cpu":
            raise RuntimeError("enable_model_cpu_offload needs an accelerator, and this pipeline is on the CPU")
        self._offload = True
        self.to(self.device)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """While this part of the model is at work: under offload, on the accelerator only for so long."""
        network = self.model.networks()[name]
        if self._offload:
            network.to(self.device)
        try:
            yield
        finally:
            if self._offload:
                network.to("cpu")

    def enable_vae_tiling(self) -> None:
        """Decodes large pictures in overlapping tiles: less memory."""
        self.model.autoencoder.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.model.autoencoder.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decodes the pictures of a batch one by one: less memory."""
        self.model.autoencoder.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.model.autoencoder.disable_slicing()

    def set_progress_bar_config(self, **config: Any) -> None:
        """Options for the tqdm bar of a call; `disable=True` turns it off."""
        self.progress_bar_config = config

    def interrupt(self) -> None:
        """Stops the running call, from another thread or a callback: it raises `Interrupted` before its next pass."""
        self._stop = True

    # the run

    def start(self, request: TextToImageRequest, problem: Problem) -> Stream:
        """The steps of this problem, ready to be taken."""
        self._stop = self._interrupt = False
        self._guidance_scale = problem.scale
        return Stream(self._run(request, problem), problem.grid.steps)

    def finish(self, stream: Stream) -> Result:
        """Takes all steps under a progress bar."""
        from tqdm.auto import tqdm

        for _ in tqdm(stream, **self.progress_bar_config):
            pass
        return stream.result

    @torch.no_grad()
    def _run(self, request: TextToImageRequest, problem: Problem) -> Generator[Progress, None, Result]:
        def denoise(x: Tensor, sigma: float) -> Tensor:
            if self._stop:
                raise Interrupted("interrupted before the end, so there are no pictures")
            return problem.denoise(x, sigma)

        x, sigma = problem.x, problem.grid.sigmas[0]
        with self.using("unet"):
            for step in problem.sampling.run(denoise, problem.x, problem.grid, problem.noise):
                x, sigma = step.x, step.sigma
                if request.callback_on_step_end is not None:
                    self._call_back(request, problem, step)
                yield Progress(step.index, problem.grid.steps, sigma, x, step.denoised, self.model.family)
                if self._interrupt:
                    break
        if not x.isfinite().all():
            raise ArithmeticError(f"the U-Net gave NaN or infinity in {self.dtype}: load with dtype=torch.float32")
        images = self._output(problem.outside(x, sigma), request.output_type)
        return Result(images, make_records(self.model, request, problem, self.device))

    def _call_back(self, request: TextToImageRequest, problem: Problem, step: Step) -> None:
        """diffusers' protocol: the callback sees tensors by name and returns those to replace."""
        assert request.callback_on_step_end is not None
        tensors = {"latents": problem.outside(step.x, step.sigma), **problem.embeds()}
        wanted = request.callback_on_step_end_tensor_inputs
        if unknown := set(wanted) - set(tensors):
            known = ", ".join(sorted(tensors))
            raise ValueError(f"callback_on_step_end_tensor_inputs names {sorted(unknown)}; there are {known}")
        given = {name: tensors[name] for name in wanted}
        time = problem.grid.times[step.index]
        answer = request.callback_on_step_end(self, step.index, time, dict(given)) or {}
        if (latents := answer.get("latents")) is not None and latents is not given.get("latents"):
            step.x.copy_(problem.inside(latents, step.sigma))
        if (embeds := answer.get("prompt_embeds")) is not None and embeds is not given.get("prompt_embeds"):
            problem.exchange_embeds(embeds)
        problem.scale = self._guidance_scale

    def _output(self, latents: Tensor, kind: str) -> Any:
        """Latents (b, c, h, w) as the request wants them: "latent", "pil", "np" or "pt"."""
        if kind == "latent":
            return latents
        with self.using("autoencoder"):
            images = self._decode(latents)
        return {"pil": to_pil, "np": to_numpy, "pt": to_unit}[kind](images)

    def _decode(self, latents: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1]; once more in float32 where half precision overflowed."""
        vae = self.model.autoencoder
        dtype = next(vae.parameters()).dtype
        images = vae.decode(latents)
        if dtype == torch.float32 or images.isfinite().all():
            return images
        warnings.warn(f"the autoencoder overflowed in {dtype}; decoding again in float32", stacklevel=2)
        try:
            return vae.float().decode(latents)
        finally:
            vae.to(dtype)


NEEDLESS_OPTIONS = ("use_safetensors", "low_cpu_mem_usage", "requires_safety_checker")
HUB_OPTIONS = ("revision", "subfolder", "local_files_only", "cache_dir", "token")


def default_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or CUDA where there is one, else the CPU. Raises ValueError for one that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f'device is "cpu", "cuda" or "cuda:0", not {device!r}') from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"there is no CUDA device here for device={str(device)!r}: use the CPU, or see `ldm doctor`")
    return place


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 or float16 on CUDA, float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype from itself or its name, such as "float16" or "bf16"."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    short = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
    found = getattr(torch, short.get(dtype, dtype.removeprefix("torch.")), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f'dtype is "float32", "float16" or "bfloat16", not {dtype!r}')
    return found
