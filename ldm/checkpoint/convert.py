"""Any file or folder of weights -> a folder in diffusers format, or a safetensors file in the original layout."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from configs import presets
from configs.architecture import ModelConfig
from configs.interchange import autoencoder_to_json
from configs.interchange_extras import adapter_to_json, controlnet_to_json
from ldm.checkpoint.embedding import PAIR, read_embedding
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.export import MARKS, write_single_file
from ldm.checkpoint.export_parts import write_controlnet, write_vae
from ldm.checkpoint.extras import load_adapter, load_controlnet
from ldm.checkpoint.files import find_weights
from ldm.checkpoint.hub import FILES, resolve
from ldm.checkpoint.inspection import inspected
from ldm.checkpoint.kinds import EMBEDDING_FILES, TINY, kind_of
from ldm.checkpoint.load import load_model
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.opened import opened
from ldm.checkpoint.recognise import ENCODERS, recognise
from ldm.checkpoint.save import save_folder, save_network
from ldm.checkpoint.separate_vae import load_vae
from ldm.checkpoint.source import open_source
from ldm.checkpoint.writing import converted, placed, require_safetensors, write_tensors
from ldm.lora.factors import Factors
from ldm.lora.formats import Lora, read_lora
from ldm.lora.guess import text_width
from ldm.lora.layout import IN_FOLDERS, find_lora
from ldm.lora.names import Names
from ldm.lora.write import Layout, save_lora
from text_encoder import CLIPTextModel
from unet import UNet

MODEL, LORA, CONTROLNET = "a model", "a LoRA", "a ControlNet"
VAE, EMBEDDING = "an autoencoder (VAE) alone", "a textual inversion (an embedding)"
ADAPTER, IMAGE_PROMPT = "a T2I-Adapter", "an IP-Adapter"


@dataclass(frozen=True)
class Options:
    """How to convert. dtype, overwrite: of everything, see `ldm.checkpoint.writing`. The rest by kind.

    variant: of the weights to read from a model's folder. prediction_type, allow_unknown_globals: as for `load_model`.
    vae, text_encoder: paths, as for `load_model`, of what to put in the place of a model's own, or where it has none.
    extract_ema: take a file's averaged weights. prune: from file to file, keep only what a model needs; otherwise
        tensors and notes beside it go along as they are, except for the dtype. A folder holds a model and nothing else.
    layout: of a LoRA, "peft" (None means that) or "kohya".
    """

    dtype: torch.dtype | None = None
    overwrite: bool = False
    variant: str | None = None
    vae: str | Path | None = None
    text_encoder: str | Path | None = None
    prediction_type: str | None = None
    extract_ema: bool = False
    prune: bool = False
    allow_unknown_globals: bool = False
    layout: Layout | None = None


PARTS = ("vae", "text_encoder")
OWN_OPTIONS = {
    MODEL: ("variant", *PARTS, "prediction_type", "extract_ema", "prune", "allow_unknown_globals"),
    LORA: ("layout",),
}


def convert(source: str | Path, target: str | Path, options: Options | None = None) -> Path:
    """Writes a model or what is used beside one (see CONVERTERS) in another format; returns the path written.

    source: whatever `load_model`, `read_lora`, `load_vae`, `load_controlnet`, ... read.
    target: a name ending in `.safetensors` for a file in the original layout, one without an ending for a folder of
        diffusers (of a LoRA or embedding: a folder with its file). T2I-Adapters, tiny autoencoders and IP-Adapters keep
        their names in a file, and of these only T2I-Adapters become a folder.

    Tensors keep their dtype unless another is asked for, and from one format to the other and back their bits. Raises
    FileNotFoundError, FileExistsError, and ValueError for what cannot be converted, saying what can; then nothing has
    been written.
    """
    options, path, place = options or Options(), _source(source), _target(target)
    kind = _kind(path)
    if kind not in CONVERTERS:
        raise ValueError(f"{path} is {kind or 'of no kind that is known'}: converted are {', '.join(CONVERTERS)}")
    for owner, names in OWN_OPTIONS.items():
        for name in names:
            if getattr(options, name) and owner != kind:
                raise ValueError(f"--{name.replace('_', '-')} is for {owner}, and {path} is {kind}; leave it out")
    return CONVERTERS[kind](path, place, options)


def _source(source: str | Path) -> Path:
    path = Path(source).expanduser()
    return path if path.exists() else resolve(source)


def _target(target: str | Path) -> Path:
    """Raises ValueError for a name that tells neither a folder nor a safetensors file; "v1.5" is a folder."""
    path = Path(target).expanduser()
    if path.suffix in FILES or not (path.is_dir() or re.fullmatch(r"(\.\d.*)?", path.suffix)):
        return require_safetensors(path)
    return path


def _is_folder(target: Path) -> bool:
    return target.suffix != ".safetensors"


def _kind(path: Path) -> str:
    found = inspected(path, hashed=False)
    return LORA if kind_of(found.tensors)[0] == LORA else found.kind  # some are named as the model they change


# models


def _model(path: Path, target: Path, options: Options) -> Path:
    """A model's file becomes all of what a folder holds, and the other way round; see `save_single_file`."""
    model = load_model(
        path,
        variant=options.variant,
        components={part: place for part in PARTS if (place := getattr(options, part)) is not None},
        prediction_type=options.prediction_type,
        ema=options.extract_ema or None,
        as_stored=True,
        allow_unknown_globals=options.allow_unknown_globals,
    )
    if _is_folder(target):
        return save_folder(model, target, dtype=options.dtype, overwrite=options.overwrite)
    beside, notes = ({}, {}) if path.is_dir() else _beside(path, options)
    return write_single_file(
        model, target, dtype=options.dtype, overwrite=options.overwrite, beside=beside, notes=notes
    )


def _beside(path: Path, options: Options) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What of a file is no part of its model, as far as it is wanted: tensors, and notes."""
    source = open_source(path, allow_unknown_globals=options.allow_unknown_globals)
    if options.prune:
        return {}, {key: text for key, text in source.metadata.items() if key.startswith("modelspec.")}
    shapes = {name: entry.shape for name, entry in source.entries.items()}
    found = recognise(shapes, source.metadata, ema=options.extract_ema or None)
    read = {name.original for part in found.parts.values() for name in part.names}
    others = {name: source.tensor(name) for name in source.entries if name not in read and name not in MARKS}
    return others, dict(source.metadata)


# networks beside a model


def _vae(path: Path, target: Path, options: Options) -> Path:
    vae, found = load_vae(path, as_stored=True), opened(path, "vae", "AutoencoderKL")
    scaled = found.json is not None or "modelspec.architecture" in found.metadata
    if not _is_folder(target):
        return write_vae(vae, target, found.metadata, dtype=options.dtype, overwrite=options.overwrite, scaled=scaled)
    if not scaled:
        warnings.warn(
            f"{path} does not say how its latents are scaled: {target / 'config.json'} has the scaling_factor of "
            f"Stable Diffusion 1 and 2, {vae.config.scaling_factor}; for SDXL make it "
            f"{presets.VAE_SDXL.scaling_factor}",
            stacklevel=2,
        )
    return save_network(vae, autoencoder_to_json(vae.config), target, dtype=options.dtype, overwrite=options.overwrite)


def _controlnet(path: Path, target: Path, options: Options) -> Path:
    net, found = load_controlnet(path, as_stored=True), opened(path, "controlnet", "ControlNetModel")
    if _is_folder(target):
        json = controlnet_to_json(net.config)
        return save_network(net, json, target, dtype=options.dtype, overwrite=options.overwrite)
    return write_controlnet(net, target, found.metadata, dtype=options.dtype, overwrite=options.overwrite)


def _adapter(path: Path, target: Path, options: Options) -> Path:
    if not _is_folder(target):
        return _renamed_nothing(path, target, options)
    adapter = load_adapter(path, as_stored=True)
    json = adapter_to_json(adapter.config)
    return save_network(adapter, json, target, dtype=options.dtype, overwrite=options.overwrite)


def _renamed_nothing(path: Path, target: Path, options: Options) -> Path:
    """All tensors of a file or folder under the names that they have."""
    if _is_folder(target):
        raise ValueError(f"of {path} only a file is written: name it {target.name}.safetensors")
    sources = [open_source(file) for file in (find_weights(path, "vae") if path.is_dir() else [path])]
    tensors = {name: source.tensor(name) for source in sources for name in source.entries}
    with placed(target, overwrite=options.overwrite) as new:
        write_tensors(tensors, new, options.dtype, sources[0].metadata)
    return target


# LoRAs


def _lora(path: Path, target: Path, options: Options) -> Path:
    lora, names = _read_lora(path)
    if lora.note:
        warnings.warn(lora.note, stacklevel=2)
    if options.dtype is not None:
        lora = replace(lora, modules={own: _cast(own, each, options.dtype) for own, each in lora.modules.items()})
    file = target / IN_FOLDERS[0] if _is_folder(target) else target
    return save_lora(lora, file, names, layout=options.layout or "peft", overwrite=options.overwrite)


def _cast(own: str, factors: Factors, dtype: torch.dtype) -> Factors:
    """A LoRA's alphas are no weights: they stay exact."""
    tensors = {role: converted(f"{own} ({role})", tensor, dtype) for role, tensor in factors.tensors.items()}
    return replace(factors, tensors=tensors)


def _read_lora(path: Path) -> tuple[Lora, Names]:
    """A LoRA and the names of the published family it is for: that of its text's width, or the one it fits best."""
    width = text_width(open_source(find_lora(path)))
    fitting: list[tuple[Lora, Names]] = []
    problems: list[CheckpointError] = []
    for config in sorted(MODELS, key=lambda config: config.unet.context_dim != width):
        names = _names(config)
        try:
            lora = read_lora(path, names)
        except CheckpointError as problem:
            problems.append(problem)
            continue
        fitting.append((lora, names))
        if not lora.foreign or config.unet.context_dim == width:
            break
    if not fitting:
        raise problems[0]
    return min(fitting, key=lambda found: len(found[0].foreign))


def _names(config: ModelConfig) -> Names:
    texts = zip(ENCODERS[config.family], config.text_encoders, strict=True)
    networks: dict[str, nn.Module] = {part: on_meta("", CLIPTextModel, text) for part, text in texts}
    return Names({"unet": on_meta("", UNet, config.unet), **networks})


# embeddings


def _embedding(path: Path, target: Path, options: Options) -> Path:
    """diffusers' layout: each word with its vectors; the two encoders' of SDXL as clip_l and clip_g, for one word.

    Those have no place for the word, which is then the name of the file, or stands in its metadata for a folder.
    """
    words, _ = read_embedding(path)
    tensors = {part or word: rows for word, vectors in words.items() for part, rows in vectors.items()}
    file = target / EMBEDDING_FILES[0] if _is_folder(target) else target
    with placed(file, overwrite=options.overwrite) as new:
        write_tensors(tensors, new, options.dtype, {"name": next(iter(words))} if set(tensors) <= set(PAIR) else None)
    return file


MODELS = (presets.SD15, presets.SD21_V, presets.SDXL, presets.SDXL_REFINER)
CONVERTERS: Mapping[str, Callable[[Path, Path, Options], Path]] = {
    MODEL: _model,
    LORA: _lora,
    VAE: _vae,
    CONTROLNET: _controlnet,
    EMBEDDING: _embedding,
    ADAPTER: _adapter,
    IMAGE_PROMPT: _renamed_nothing,
    TINY: _renamed_nothing,
}
