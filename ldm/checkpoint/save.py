"""LatentDiffusion -> a folder in diffusers format that diffusers, transformers 4 and 5, ComfyUI and A1111 read."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs import interchange
from configs.interchange_extras import vae_to_json
from ldm.checkpoint.files import weight_stem
from ldm.checkpoint.published import CALL_DEFAULTS, LOW_RES_SCHEDULER, MAX_LOW_RES_NOISE, model_index, task_of
from ldm.checkpoint.writing import placed, write_tensors
from ldm.model import LatentDiffusion
from ldm.quantize import require_unquantized
from ldm.vocabulary import write_vocabulary
from text_encoder import CLIPTextEncoder, PairedTextEncoder

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# Pipelines that need no more parts than a LatentDiffusion has.
COMPLETE = {f"StableDiffusion{xl}{task}Pipeline" for xl in ("", "XL") for task in ("", "Img2Img", "Inpaint")} | {
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
}
OWN_PIPELINES = ("depth", "upscale")  # tasks that no pipeline of COMPLETE does
# By task: parts of its pipeline that no LatentDiffusion has. Whoever loads "depth" is asked for a depth estimator.
ABSENT = {
    "": ("feature_extractor", "image_encoder", "safety_checker"),
    "depth": ("feature_extractor", "depth_estimator"),
    "upscale": ("feature_extractor", "safety_checker", "watermarker"),
}
WRITTEN_FOR = "0.42.1"  # the version of diffusers whose format this is


def save_folder(
    model: LatentDiffusion,
    path: str | Path,
    *,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model so that diffusers 0.42 and transformers 4 and 5 load it; returns the folder.

    variant: names the weights `model.fp16.safetensors` and so on.
    dtype: converts the weights; None keeps every network's own.
    max_shard_size: bytes, or a text such as "5GB"; larger weights are split into files with an index.
    overwrite: replaces a folder that already has contents, as a whole.

    An x4 upscaler gets the published schedule for its small pictures, which no LatentDiffusion holds.

    The folder appears complete or not at all: it is written beside its place and then renamed. Raises FileExistsError
    for a folder with contents unless `overwrite`, ValueError for a size or variant that cannot be read, or while LoRAs
    are loaded.
    """
    model.loras.require_settled()
    require_unquantized(model.unet, "saved")
    target, limit = Path(path).expanduser(), parse_size(max_shard_size)
    if variant is not None and not re.fullmatch(r"[\w-]+", variant):
        raise ValueError(
            f"variant {variant!r} is no word; it becomes part of file names, such as model.fp16.safetensors"
        )
    with placed(target, overwrite=overwrite, folder=True) as new:
        _write(model, new, _Writer(variant, limit, dtype))
    return target


def save_network(
    network: nn.Module, config: Mapping[str, Any], target: Path, *, dtype: torch.dtype | None, overwrite: bool
) -> Path:
    """Writes one network as a folder in diffusers format, as `save_folder` does; config: its `config.json`."""
    with placed(target, overwrite=overwrite, folder=True) as new:
        _Writer(None, parse_size("10GB"), dtype).write(new, network, config)
    return target


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 5_000_000, "10GB" or "512 MiB". Raises ValueError for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B|)", str(size).strip().upper())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"max_shard_size {size!r} is no size; use bytes, or a text such as '5GB' or '512MB'")
    return int(float(match[1]) * UNITS[match[2]])


def _write(model: LatentDiffusion, folder: Path, writer: "_Writer") -> None:
    encoders = text_encoders(model)
    writer.write(folder / "unet", model.unet, interchange.unet_to_json(model.unet.config))
    writer.write(folder / "vae", model.autoencoder, vae_to_json(model.autoencoder.config))
    for part, encoder in encoders.items():
        writer.write(folder / part, encoder.model, interchange.text_encoder_to_json(encoder.model.config))
        encoder.tokenizer.save(folder / part.replace("text_encoder", "tokenizer"))
    schedulers = {"scheduler": model.scheduler_config}
    if task_of(model.unet.config) == "upscale":
        schedulers["low_res_scheduler"] = LOW_RES_SCHEDULER
    for part, config in schedulers.items():
        (folder / part).mkdir()
        _write_json(folder / part / "scheduler_config.json", config)
    _write_json(folder / "model_index.json", pipeline_index(model, encoders))
    if model.vocabulary is not None:
        write_vocabulary(model.vocabulary, folder)


def text_encoders(model: LatentDiffusion) -> dict[str, CLIPTextEncoder]:
    """The text encoders by the folder they go to: that of the refiner is SDXL's second."""
    if isinstance(model.text_encoder, PairedTextEncoder):
        return {"text_encoder": model.text_encoder.first, "text_encoder_2": model.text_encoder.second}
    return {"text_encoder_2" if model.family == "sdxl_refiner" else "text_encoder": model.text_encoder}


def pipeline_index(model: LatentDiffusion, encoders: Mapping[str, CLIPTextEncoder]) -> dict[str, Any]:
    """Which class of which library reads each part; [null, null] for what this model does not have."""
    parts: dict[str, list[str | None]] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(model.autoencoder).__name__],
        "scheduler": ["diffusers", model.scheduler_config["_class_name"]],
    }
    xl, absent, task = model.family.startswith("sdxl"), [None, None], task_of(model.unet.config)
    told = {name: value for name, value in model.model_index.items() if name != "requires_safety_checker"}
    if task == "upscale":
        parts["low_res_scheduler"] = ["diffusers", LOW_RES_SCHEDULER["_class_name"]]
        told = {"max_noise_level": MAX_LOW_RES_NOISE, **told}
    if task not in OWN_PIPELINES and not xl:
        told["requires_safety_checker"] = False
    if model.defaults:
        told[CALL_DEFAULTS] = dict(model.defaults)
    for suffix in ("", "_2") if xl else ("",):
        encoder = encoders.get(f"text_encoder{suffix}")
        projected = encoder is not None and encoder.model.config.projection_dim is not None
        name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        parts[f"text_encoder{suffix}"] = ["transformers", name] if encoder else [*absent]
        parts[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"] if encoder else [*absent]
    lacking = [name for name in ABSENT.get(task, ABSENT[""]) if not (xl and name == "safety_checker")]
    named = {"_class_name": _pipeline_class(model), "_diffusers_version": WRITTEN_FOR}
    return {**told, **named, **parts, **{name: [*absent] for name in lacking}}


def _pipeline_class(model: LatentDiffusion) -> str:
    """The pipeline the model came from, where its parts suffice for it, or that of its family and task."""
    name, task = model.model_index.get("_class_name"), task_of(model.unet.config)
    fits = name in COMPLETE and task not in OWN_PIPELINES
    return str(name if fits else model_index(model.family, task)["_class_name"])


@dataclass(frozen=True)
class _Writer:
    variant: str | None
    limit: int
    dtype: torch.dtype | None

    def write(self, folder: Path, module: nn.Module, config: Mapping[str, Any]) -> None:
        """One network: its configuration, and its weights in as many files as the limit asks for."""
        folder.mkdir(parents=True)
        _write_json(folder / "config.json", {**config, "_diffusers_version": WRITTEN_FOR})
        stem, dotted = weight_stem(folder.name), f".{self.variant}" if self.variant else ""
        state = module.state_dict()
        shards = list(self._shards(state))
        if len(shards) == 1:
            self._save(state, shards[0], folder / f"{stem}{dotted}.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, start=1):
            file = f"{stem}{dotted}-{number:05d}-of-{len(shards):05d}.safetensors"
            self._save(state, names, folder / file)
            weight_map |= dict.fromkeys(names, file)
        total = sum(map(self._bytes, state.values()))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / f"{stem}.safetensors.index{dotted}.json", index)

    def _shards(self, state: Mapping[str, Tensor]) -> Iterator[list[str]]:
        """Names in order, cut before each tensor that would exceed the limit."""
        names: list[str] = []
        size = 0
        for name, tensor in state.items():
            if names and size + self._bytes(tensor) > self.limit:
                yield names
                names, size = [], 0
            names.append(name)
            size += self._bytes(tensor)
        yield names

    def _bytes(self, tensor: Tensor) -> int:
        return tensor.numel() * (self.dtype or tensor.dtype).itemsize

    def _save(self, state: Mapping[str, Tensor], names: list[str], file: Path) -> None:
        write_tensors({name: state[name] for name in names}, file, self.dtype)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(
        json.dumps(dict(value), indent=2, sort_keys=True, default=lambda array: array.tolist()) + "\n", encoding="utf-8"
    )
