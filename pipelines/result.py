"""What a call gives back: pictures, and with each the record of how it was made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    import torch

    from ldm.model import LatentDiffusion
    from pipelines.problem import Problem
    from pipelines.request import TextToImageRequest

Record = dict[str, Any]

MAX_BYTES, MAX_PIXELS = 2**29, 2**26  # of a PNG file whose record is read; PIL itself bounds its texts


@dataclass(frozen=True, eq=False)
class Result:
    """The pictures of a call, as PIL images, an array or a tensor (`output_type`), and one record for each.

    A record is plain JSON: prompt, seed, sampler, steps, guidance, size, model, its hash, LoRAs, ControlNets, versions.
    """

    images: Any
    records: list[Record]
    nsfw_content_detected: None = None  # diffusers' field; this project ships no checker

    def save(self, pattern: str | Path) -> list[Path]:
        """Writes PIL images as PNG files with their records, to a path that may hold {seed} and {index}.

        Folders are made, existing files are never overwritten (the name gets a number). Returns the paths.
        """
        from pipelines.files import filled, write_png

        if not isinstance(self.images, list):
            raise ValueError('only PIL images can be saved: draw with output_type="pil"')
        named = [(filled(pattern, seed=record["seed"], index=i), record) for i, record in enumerate(self.records)]
        return [write_png(image, record, path) for image, (path, record) in zip(self.images, named, strict=True)]


def png_info(record: Record) -> PngInfo:
    """The record as the PNG text chunk `ldm`, in JSON."""
    info = PngInfo()
    info.add_itxt("ldm", json.dumps(record, ensure_ascii=False))
    return info


def read_record(path: str | Path) -> Record:
    """The record that `png_info` put into a PNG file. Raises ValueError when it has none, or is beyond all measure."""
    from PIL import Image

    if (size := Path(path).stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and pictures of up to {MAX_BYTES:,} are read")
    try:
        with Image.open(path, formats=("PNG",)) as image:
            _require_bounded(image.size)
            image.load()  # text chunks may follow the pixels
            text = image.info.get("ldm")
        record = None if text is None else json.loads(text)
    except (OSError, SyntaxError, RecursionError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no PNG file that can be read ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} carries no record of this program")
    return record


def _require_bounded(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"it has {size[0]} x {size[1]} pixels, and at most {MAX_PIXELS:,} are read")


@cache
def versions() -> dict[str, str]:
    """Versions of what a picture's bits depend on."""
    import torch

    try:
        own = metadata.version("ldm-pipelines")
    except metadata.PackageNotFoundError:  # a bare checkout
        own = "unknown"
    return {"ldm-pipelines": own, "torch": torch.__version__}


def make_records(
    model: "LatentDiffusion", request: "TextToImageRequest", problem: "Problem", device: "torch.device"
) -> list[Record]:
    """How each picture of a request will be made, in the order of the pictures.

    With the arguments that differ from their defaults it is enough to draw a picture again, unless tensors (latents,
    embeddings), control images, a generator or a callback were given.
    """
    from ldm.checkpoint import weights_hash
    from ldm.checkpoint.embedding import embedding_record
    from ldm.quantize import quantized

    common: Record = {
        "sampler": _sampler(request.sampler, str(problem.sampling)),
        "steps": problem.grid.steps,
        "guidance_scale": problem.scale,
        "width": problem.x.shape[3] * model.autoencoder.factor,
        "height": problem.x.shape[2] * model.autoencoder.factor,
        **_further(request),
        "model": Path(model.source).resolve().name if Path(model.source).exists() else model.source,
        "model_hash": weights_hash(model)[:10],
        **({"quantize": kind} if (kind := quantized(model.unet)) else {}),
        **({"loras": model.loras.record()} if len(model.loras) else {}),
        **({"controlnets": nets} if (nets := problem.steering.record()) else {}),
        **({"embeddings": words} if (words := embedding_record(model.text_encoder)) else {}),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device.type,
        "versions": versions(),
    }
    n = request.num_images_per_prompt
    texts = {name: getattr(request, name) for name in TEXTS}
    return [
        {name: text[i // n] if isinstance(text, list) else text for name, text in texts.items()}
        | {"seed": None if request.seeds is None else request.seeds[i]}
        | common
        for i in range(request.batch)
    ]


def _sampler(given: Any, name: str) -> Any:
    """What `sampler=` takes: the name that was given, the file, of a scheduler object its configuration, or `name`."""
    config = getattr(given, "config", given)
    if isinstance(config, Mapping):
        return _plain({"_class_name": type(given).__name__, **config})
    return given if isinstance(given, str) else name


TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
NOT_IN_RECORDS = {  # recorded under another name, or no property of the picture
    *(*TEXTS, "seed", "height", "width", "num_inference_steps", "guidance_scale", "gamma", "num_images_per_prompt"),
    *("sampler", "output_type", "return_dict", "callback_on_step_end_tensor_inputs"),
    *("controlnet", "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"),
}


def _further(request: "TextToImageRequest") -> Record:
    """Arguments that differ from their defaults, as far as JSON can hold them; of others, that they were given."""
    values = {f.name: (getattr(request, f.name), f.default) for f in fields(request) if f.name not in NOT_IN_RECORDS}
    further = {name: _plain(value) for name, (value, default) in values.items() if value is not default}
    return {name: value for name, value in further.items() if value != _plain(values[name][1])}


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return f"({type(value).__name__})"
