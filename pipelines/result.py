"""What a call gives back: pictures, and with each the record of how it was made."""

import json
from dataclasses import dataclass
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
    """How each picture of a request was made, in the order of the pictures."""
    from ldm.checkpoint import weights_hash

    common: Record = {
        "sampler": str(problem.sampling),
        "steps": problem.grid.steps,
        "guidance_scale": problem.scale,
        "guidance_rescale": request.guidance_rescale,
        "width": problem.x.shape[3] * model.autoencoder.factor,
        "height": problem.x.shape[2] * model.autoencoder.factor,
        "clip_skip": request.clip_skip,
        "prompt_syntax": request.prompt_syntax,
        "model": Path(model.source).name if Path(model.source).exists() else model.source,
        "model_hash": weights_hash(model)[:10],
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device.type,
        "versions": versions(),
    }
    n = request.num_images_per_prompt
    texts = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "prompt_2": request.prompt_2,
        "negative_prompt_2": request.negative_prompt_2,
    }
    return [
        {name: text[i // n] if isinstance(text, list) else text for name, text in texts.items()}
        | {"seed": None if request.seeds is None else request.seeds[i]}
        | common
        for i in range(request.batch)
    ]
