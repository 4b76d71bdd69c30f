"""What a call gives back: pictures, and with each the record of how it was made."""

import json
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


@dataclass(frozen=True, eq=False)
class Result:
    """The pictures of a call, as PIL images, an array or a tensor (`output_type`), and one record for each.

    A record is plain JSON: prompt, seed, sampler, steps, guidance, size, model, its hash, and versions.
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
    """The record that `png_info` put into a PNG file. Raises ValueError when it has none."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()  # text chunks may follow the pixels
        text = image.info.get("ldm")
    if text is None:
        raise ValueError(f"{path} carries no record of this program")
    record: Record = json.loads(text)
    return record


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
    """How each picture of a request will be made, in the order of the pictures: enough to make it again."""
    from ldm.checkpoint import weights_hash

    common: Record = {
        "sampler": request.sampler if isinstance(request.sampler, str) else str(problem.sampling),
        "steps": problem.grid.steps,
        "guidance_scale": problem.scale,
        "width": problem.x.shape[3] * model.autoencoder.factor,
        "height": problem.x.shape[2] * model.autoencoder.factor,
        **_further(request),
        "model": Path(model.source).name if Path(model.source).exists() else model.source,
        "model_hash": weights_hash(model)[:10],
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


TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
NOT_IN_RECORDS = {  # recorded under another name, or no property of the picture
    *(*TEXTS, "seed", "height", "width", "num_inference_steps", "guidance_scale", "gamma", "num_images_per_prompt"),
    *("output_type", "return_dict", "callback_on_step_end_tensor_inputs"),
}


def _further(request: "TextToImageRequest") -> Record:
    """Arguments that differ from their defaults, as far as JSON can hold them; of others, that they were given."""
    changed = {f.name: getattr(request, f.name) for f in fields(request) if f.name not in NOT_IN_RECORDS}
    defaults = {f.name: f.default for f in fields(request)}
    changed = {k: v for k, v in changed.items() if v is not None and not _same(v, defaults[k])}
    if not isinstance(changed.get("sampler"), dict):
        changed.pop("sampler", None)
    return {name: _plain(value) for name, value in changed.items()}


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return f"({type(value).__name__})"
