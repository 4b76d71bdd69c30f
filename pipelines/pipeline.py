"""What every pipeline shares: loading, device and precision, memory, and the run from a problem to pictures."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor

from ldm.model import LatentDiffusion
from ldm.plan import Speed
from ldm.quantize import require_possible, require_unquantized
from pipelines.callback import call_back, check_names
from pipelines.control import WithControlNets, read_controlnets
from pipelines.device import as_device, as_dtype, chosen_dtype
from pipelines.embeddings import WithEmbeddings
from pipelines.lora import WithLoras
from pipelines.memory import WithMemory
from pipelines.problem import Problem
from pipelines.request import TextToImageRequest
from pipelines.result import Result, make_records
from pipelines.saving import WithSaving
from pipelines.stream import Interrupted, Progress, Stream
from text_encoder import CLIPTextEncoder, PairedTextEncoder
from unet import UNet
from vae import Autoencoder
from vae.pixels import to_numpy, to_pil, to_unit

HUB_OPTIONS = ("revision", "subfolder", "local_files_only", "cache_dir", "token")
OF_THE_MODEL = ("revision", "subfolder")
NEEDLESS_OPTIONS: tuple[str, ...] = ("use_safetensors", "low_cpu_mem_usage", "requires_safety_checker")
NEEDLESS_OPTIONS += ("config", "original_config", "disable_mmap")  # of single files


class Pipeline(WithEmbeddings, WithLoras, WithControlNets, WithMemory, WithSaving, ABC):
    """A task on a model: owns device, precision and memory. Build one with `from_pretrained`.

    The model moves to the device with the first call, under offload part by part.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        controlnet: Any = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.controlnet = controlnet
        self.device = as_device(device)
        self.sampler: Any = None  # what calls use that name none; None is the checkpoint's own
        self.num_timesteps = 0  # of the last call
        self.speed = Speed()  # what is done to be fast; all of it exact
        self._guidance_scale = 1.0  # this and the next have diffusers' names: callbacks set them
        self._interrupt = False
        self._progress_bar: dict[str, Any] = {}
        self._interruptions = 0
        if dtype is not None:
            self._cast(dtype)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: Any = None,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: Any = None,
        variant: str | None = None,
        controlnet: Any = None,
        quantize: str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a folder in diffusers format, a single file (.safetensors, .ckpt, ...) or a hub id, downloaded first.

        Without any of them, the embedded model.

        dtype: precision of the weights (`torch_dtype` is accepted too); by default bfloat16 or float16 on CUDA, float32
            on the CPU; "auto": bfloat16 also on a CPU that has it natively, in half the time.
        device: CUDA where there is one, else the CPU. variant: such as "fp16".
        controlnet: for calls that name none: the path or hub id of a ControlNet, one that is loaded, or a list.
        quantize: "int8" or "fp8", as the method `quantize` takes it.
        options: `prediction_type`, "epsilon" or "v_prediction", where a file does not say which;
            `allow_unknown_globals` for a .ckpt that names code, which is not run either way; `revision`, `subfolder`,
            `local_files_only`, `cache_dir` and `token`, as for the hub; and parts to use instead of the model's own, or
            because a file lacks them, by diffusers' names: `unet`, `tokenizer`, `scheduler`, ... as objects, `vae` and
            `text_encoder` also as the path of a VAE, and of a model that lends its text encoder. A tiny VAE (TAESD)
            decodes in a fraction of the time, and details suffer.
            (NEEDLESS_OPTIONS are accepted for the sake of code written for diffusers, and do nothing.)

        Raises FileNotFoundError when nothing is there, ValueError when it cannot be used; both say what to do.
        """
        from ldm.checkpoint import embedded, load_model, resolve

        path_or_hub_id = embedded() if path_or_hub_id is None else path_or_hub_id
        device, dtype = as_device(device), dtype if dtype is not None else torch_dtype
        precision = chosen_dtype(dtype, device)
        if quantize is not None:
            require_possible(quantize, device, precision)  # a typing error should not cost the time of loading
        where = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        parts = {name: part for name, part in options.items() if name not in NEEDLESS_OPTIONS}
        reading = {name: parts.pop(name) for name in ("prediction_type", "allow_unknown_globals") if name in parts}
        path = resolve(path_or_hub_id, variant=variant, **where)
        model = load_model(path, dtype=precision, variant=variant, components=parts, **reading)
        model.source = str(path_or_hub_id)
        hub = {name: value for name, value in where.items() if name not in OF_THE_MODEL}
        pipe = cls(model, device=device, dtype=precision, controlnet=read_controlnets(controlnet, precision, **hub))
        if quantize is not None:
            pipe.quantize(quantize)
        return pipe

    from_single_file = from_pretrained  # diffusers' name, for files

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def unet(self) -> UNet:
        return self.model.unet

    @unet.setter
    def unet(self, unet: UNet) -> None:
        self.model.unet = unet

    @property
    def vae(self) -> Autoencoder:
        return self.model.autoencoder

    @vae.setter
    def vae(self, vae: Autoencoder) -> None:
        self.model.autoencoder = vae

    @property
    def text_encoder(self) -> CLIPTextEncoder | PairedTextEncoder:
        return self.model.text_encoder

    @property
    def scheduler(self) -> Any:
        """The checkpoint's scheduler as an object of diffusers, or what was set in its place.

        Made anew at each access, for `pipe.scheduler = X.from_config(pipe.scheduler.config)`.
        """
        if self.sampler is not None:
            return self.sampler
        import diffusers

        config = dict(self.model.scheduler_config)
        return getattr(diffusers, config["_class_name"]).from_config(config)

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.sampler = scheduler

    def to(self, *targets: Any, device: Any = None, dtype: Any = None) -> Self:
        """Moves and casts the model: `pipe.to("cuda")`, `pipe.to(torch.float16)`, `pipe.to("cuda", torch.float16)`."""
        for target in targets:
            if isinstance(target, torch.dtype):
                dtype = target
            else:
                device = target
        place = self.device if device is None else as_device(device)
        if dtype is not None:
            self._cast(as_dtype(dtype))
        for network in self.parts().values() if not self._offload else ():
            network.to(place)
        self.device = place
        return self

    def _cast(self, dtype: torch.dtype) -> None:
        if dtype != self.dtype:
            require_unquantized(self.unet, f"converted to {dtype}")
        self.model.text_encoder.to(dtype)
        self.model.unet.to(dtype)
        self.parts()["controlnet"].to(dtype)
        if next(self.vae.parameters()).dtype != dtype:  # it sees to a dtype that would overflow by itself
            self.vae.to(self.vae.compute_dtype(dtype))
        self.model.loras.remerge()

    def set_progress_bar_config(self, **config: Any) -> None:
        """Options for the tqdm bar of a call; `disable=True` turns it off."""
        self._progress_bar = config

    def interrupt(self) -> None:
        """Stops all running calls, from any thread: they raise `Interrupted` before they denoise their batch again."""
        self._interruptions += 1

    @property
    def guidance_scale(self) -> float:
        """Of the running call, for callbacks."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1 and self.model.unet.config.guidance_dim == 0

    # the run

    @abstractmethod
    def prepare(self, request: TextToImageRequest) -> Problem:
        """The task: what to denoise, and from where."""

    def start(self, request: TextToImageRequest) -> Stream:
        """The steps of a request, ready to be taken."""
        interruptions = self._interruptions
        request = self._settled(request)
        if not self._offload:
            self.to(self.device)
        problem = self.prepare(request)
        check_names(request, problem)
        self.num_timesteps = problem.steps
        return Stream(self._run(request, problem, interruptions), problem.steps)

    def _settled(self, request: TextToImageRequest) -> TextToImageRequest:
        """The request with the model's own defaults where it says nothing; warns of words the model does not know."""
        from ldm.checkpoint import is_embedded

        vocabulary, source, given = self.model.vocabulary, self.model.source, self.sampler is not None
        if vocabulary and (note := vocabulary.warning(request.texts, "" if is_embedded(source) else source)):
            warnings.warn(note, stacklevel=5)  # where the person calls the pipeline
        own = {**self.model.defaults, **(vocabulary.defaults if vocabulary else {})}
        return request.completed({name: value for name, value in own.items() if not (name == "sampler" and given)})

    def finish(self, stream: Stream) -> Result:
        """Takes all steps under a progress bar."""
        from tqdm.auto import tqdm

        for _ in tqdm(stream, **self._progress_bar):
            pass
        return stream.result

    @torch.no_grad()
    def _run(
        self, request: TextToImageRequest, problem: Problem, interruptions: int
    ) -> Generator[Progress, None, Result]:
        records = make_records(self.model, request, problem, self.device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            if self._interruptions != interruptions:
                raise Interrupted("interrupted before the end, so there are no pictures")
            return problem.denoise(x, sigma)

        x, sigma = problem.x, problem.grid.sigmas[0]
        with self.using("unet", "controlnet"):
            steps = problem.sampling.run(denoise, problem.x, problem.grid, problem.noise)
            for step in islice(steps, problem.steps):
                x, sigma = step.x, step.sigma
                enough = request.callback_on_step_end is not None and call_back(self, request, problem, step)
                yield Progress(step.index, problem.steps, sigma, x, step.denoised, self.model.family)
                if enough:
                    break
            problem.release()
        if not x.isfinite().all():
            advice = "" if self.dtype == torch.float32 else ": load the model with dtype=torch.float32"
            raise ArithmeticError(f"the U-Net gave NaN or infinity in {self.dtype}{advice}")
        return Result(self._output(problem.grid.outside(x, sigma), request.output_type), records)

    def _output(self, latents: Tensor, kind: str) -> Any:
        """Latents (b, c, h, w) as the request wants them: "latent", "pil", "np" or "pt"."""
        if kind == "latent":
            return latents
        with self.using("autoencoder"):
            images = self._decode(latents)
        return {"pil": to_pil, "np": to_numpy, "pt": to_unit}[kind](images)

    def _decode(self, latents: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1]; once more in float32 where half precision overflowed."""
        vae = self.vae
        dtype = next(vae.parameters()).dtype
        images = self._decoded(latents)
        if dtype.itemsize >= 4 or images.isfinite().all():
            return images
        warnings.warn(f"the autoencoder overflowed in {dtype}; decoding again in float32", stacklevel=2)
        try:
            vae.float()
            return self._decoded(latents)
        finally:
            vae.to(dtype)

    def _decoded(self, latents: Tensor) -> Tensor:
        vae = self.vae
        batching = self.batching(latents, "vae", vae.slicing, vae.tiling, vae.tile_size)
        return batching(lambda rows: vae.decode(latents[rows]), len(latents), latents.device)
