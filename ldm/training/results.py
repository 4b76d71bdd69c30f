"""What a run of fine-tuning leaves: files and folders, each read again and compared before it counts as written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.finetuning import ResultConfig
from configs.interchange_extras import controlnet_to_json, vae_to_json
from ldm.checkpoint import export_parts
from ldm.checkpoint.embedding import read_embedding
from ldm.checkpoint.export import TASKS, modelspec, write_single_file
from ldm.checkpoint.extras import load_controlnet
from ldm.checkpoint.family import FAMILIES
from ldm.checkpoint.files import listed
from ldm.checkpoint.load import load_model
from ldm.checkpoint.published import task_of
from ldm.checkpoint.save import save_folder, save_network
from ldm.checkpoint.separate_vae import load_vae
from ldm.checkpoint.writing import converted, placed, write_tensors
from ldm.diffusion.schedulers import diffusion_from_scheduler_config
from ldm.lora.factors import Factors, weight_change
from ldm.lora.formats import Lora, read_lora
from ldm.lora.layers import LoraLayer, lora_of
from ldm.lora.names import Names
from ldm.lora.write import save_lora
from ldm.model import LatentDiffusion
from text_encoder.words import vectors_of
from unet.controlnet import ControlNet
from vae import AutoencoderKL

COARSE = 0.05  # of a change; with more lost to rounding, a file does not stand for what was learned
FP16_FIX = " (fp16-fix)"  # by which readers know a VAE of SDXL that does not overflow


class WrongResult(RuntimeError):
    """What was written does not say what was trained: the text names file and module."""


# LoRAs


def write_lora(
    model: LatentDiffusion,
    layers: Mapping[str, LoraLayer],
    folder: Path,
    name: str,
    *,
    dtype: torch.dtype,
    result: ResultConfig,
    trigger: str = "",
) -> list[Path]:
    """Writes what the layers have learned as two files, in place of older ones, and proves them; returns their paths.

    `NAME.safetensors`: kohya's keys with true alphas, which every program reads. `NAME-diffusers.safetensors`: peft's
    keys and adapter metadata, alphas folded into the weights, so that whoever overlooks them draws the same; it is the
    one for diffusers, which of kohya's keys leaves DoRA's magnitudes out without a word.

    dtype: of the factors. Magnitudes are float32, since each scales a whole row of the model's weights.

    Raises WrongResult, see `prove_lora`, and ValueError for values too large for the dtype.
    """
    names, factors = Names.of(model), lora_of(layers)
    told = _described(model, "/lora", name, result, trigger)
    trained = {"ss_v2": str(model.family == "sd2"), "ss_network_args": json.dumps(_network_args(factors))}
    folded = {own: _folded(each) for own, each in factors.items()}
    paths = [folder / f"{name}.safetensors", folder / f"{name}-diffusers.safetensors"]
    save_lora(_cast(factors, dtype, told | trained), paths[0], names, layout="kohya", overwrite=True)
    save_lora(_cast(folded, dtype, told), paths[1], names, layout="peft", overwrite=True)
    prove_lora(model, layers, paths)
    return paths


def prove_lora(model: LatentDiffusion, layers: Mapping[str, LoraLayer], paths: list[Path]) -> None:
    """Reads LoRA files again and compares the change of every weight with that of its layer.

    Raises WrongResult for modules that are not the layers', for a change that differs by more than rounding to the
    dtype of its file can explain, or of which rounding has left little.
    """
    names = Names.of(model)
    for path in paths:
        lora = read_lora(path, names)
        if strange := [*lora.foreign, *sorted(lora.modules.keys() ^ layers.keys())]:
            raise WrongResult(f"{path}: {listed(strange, 3)} is not what was trained")
        for own, layer in layers.items():
            if problem := _difference(layer, lora.modules[own]):
                raise WrongResult(f"{path}: {own} {problem}")


def _folded(factors: Factors) -> Factors:
    """The same change with alpha equal to the rank."""
    assert factors.rank is not None
    return Factors({**factors.tensors, "up": factors.scale * factors.tensors["up"]}, float(factors.rank))


def _cast(modules: Mapping[str, Factors], dtype: torch.dtype, notes: Mapping[str, str]) -> Lora:
    whole, cast = {"dora_scale": torch.float32}, {}
    for own, factors in modules.items():
        named = factors.tensors.items()
        tensors = {role: converted(f"{own} ({role})", t, whole.get(role, dtype)) for role, t in named}
        cast[own] = Factors(tensors, factors.alpha)
    return Lora(Path(), "", cast, (), notes)


def _network_args(factors: Mapping[str, Factors]) -> dict[str, str]:
    """What kohya's trainer would have been told beside rank and alpha: those of convolutions with a window."""
    wide = [each for each in factors.values() if each.tensors["down"].shape[2:].numel() > 1]
    return {"conv_dim": str(wide[0].rank), "conv_alpha": f"{wide[0].alpha:g}"} if wide else {}


def _difference(layer: LoraLayer, found: Factors) -> str:
    """How what a file says about a layer differs from what the layer does, "" if it does not."""
    wanted, weight = layer.weight_change(), layer.weight.detach().cpu()
    error = float((weight_change(found, weight) - wanted).norm())
    dtype, size = found.tensors["down"].dtype, float(wanted.norm())
    if not error <= _rounding(layer, dtype):
        return f"changes weights otherwise than what was trained: by {error:.3g} of {size:.3g}"
    if error > COARSE * size:
        return (
            f'changes weights by so little ({size:.3g} in all) that {dtype} loses it: set result.precision = "fp32", '
            "or train longer"
        )
    return ""


def _rounding(layer: LoraLayer, dtype: torch.dtype) -> float:
    """How far rounding the factors to a dtype can move the change, at most."""
    info = torch.finfo(dtype)
    relative, absolute = max(info.eps, 1e-6), info.smallest_normal * info.eps
    up, down = (tensor.detach().cpu().float().flatten(1).abs() for tensor in (layer.up, layer.down))
    up_error, down_error = (relative * tensor + absolute for tensor in (up, down))
    moved = up_error @ down + up @ down_error + up_error @ down_error  # of the product, before its scale
    bound = float(moved.norm()) * max(layer.scale, 1.0)
    if layer.magnitude is not None:  # the rows' norms move as well, and rows become as long as their magnitudes
        plain = Factors({"up": layer.up.detach(), "down": layer.down.detach()}, layer.alpha)
        v = (layer.weight.detach().float() + weight_change(plain, layer.weight)).flatten(1)
        ratio = layer.magnitude.detach() / v.norm(dim=1)
        bound = 2 * bound * float(ratio.abs().max()) + 1e-6 * float(layer.magnitude.detach().norm())
    return bound


# words


def write_words(
    model: LatentDiffusion, word: str, folder: Path, name: str, *, dtype: torch.dtype, result: ResultConfig
) -> list[Path]:
    """Writes the vectors of a word that is being learned as `NAME.safetensors`, reads them again; returns the path.

    {word: (n, d)}, as everybody reads it; for SDXL {clip_l, clip_g}, where the word stands in the metadata and programs
    take the file's name for it. Raises WrongResult, KeyError for a word that is not being learned.
    """
    path, rows = folder / f"{name}.safetensors", vectors_of(model.text_encoder)[word]
    keys = ("clip_l", "clip_g") if len(rows) == 2 else (word,)
    tensors = {key: converted(key, vectors, dtype) for key, vectors in zip(keys, rows, strict=True)}
    notes = {**_described(model, "/textual-inversion", name, result, word), "name": word}
    with placed(path, overwrite=True) as new:
        write_tensors(tensors, new, metadata=notes)
    (read,) = read_embedding(path)[0].items()
    found = {key or read[0]: vectors for key, vectors in read[1].items()}
    _require_equal(path, found, tensors)
    return [path]


# whole networks


def write_model(
    model: LatentDiffusion, folder: Path, name: str, *, dtype: torch.dtype, result: ResultConfig
) -> list[Path]:
    """Writes a model as the folder NAME and, where that is asked for, as `NAME.safetensors`; returns the paths.

    A single file that others could not read is left out, with a warning. Raises WrongResult when a tensor read again is
    not the one that was trained, ValueError for weights too large for the dtype.
    """
    place, file = folder / name, folder / f"{name}.safetensors"
    save_folder(model, place, dtype=dtype, overwrite=True)
    paths, notes = [place], _given(name, result)
    if result.single_file and _alone(lambda: write_single_file(model, file, dtype=dtype, overwrite=True, notes=notes)):
        paths.append(file)
    for path in paths:
        read = load_model(path, as_stored=True).networks()
        for part, network in model.networks().items():
            _prove(path, read[part], network, dtype)
    return paths


def write_controlnet(
    controlnet: ControlNet, folder: Path, name: str, *, dtype: torch.dtype, result: ResultConfig
) -> list[Path]:
    """Writes a ControlNet as the folder NAME and as `NAME.safetensors`; see `write_model`."""
    place, file, notes = folder / name, folder / f"{name}.safetensors", _given(name, result)
    save_network(controlnet, controlnet_to_json(controlnet.config), place, dtype=dtype, overwrite=True)
    paths = [place]
    if _alone(lambda: export_parts.write_controlnet(controlnet, file, notes, dtype=dtype, overwrite=True)):
        paths.append(file)
    for path in paths:
        _prove(path, load_controlnet(path, as_stored=True), controlnet, dtype)
    return paths


def write_vae(vae: AutoencoderKL, folder: Path, name: str, *, dtype: torch.dtype, result: ResultConfig) -> list[Path]:
    """Writes an autoencoder as the folder NAME and as `NAME.safetensors`; see `write_model`."""
    place, file, notes = folder / name, folder / f"{name}.safetensors", _given(name, result)
    if not vae.config.force_upcast:
        notes["modelspec.title"] += FP16_FIX
    save_network(vae, vae_to_json(vae.config), place, dtype=dtype, overwrite=True)
    paths = [place]
    if _alone(lambda: export_parts.write_vae(vae, file, notes, dtype=dtype, overwrite=True)):
        paths.append(file)
    for path in paths:
        read = load_vae(path, as_stored=True)
        _prove(path, read, vae, dtype)
        if read.config.scaling_factor != vae.config.scaling_factor:
            raise WrongResult(f"{path}: its latents are read as scaled by {read.config.scaling_factor}")
    return paths


def _alone(write: Callable[[], Any]) -> bool:
    """Writes a single file, or warns why there can be none: by then a folder holds the same."""
    try:
        write()
    except ValueError as error:
        warnings.warn(f"{error} (that has been done)", stacklevel=3)
        return False
    return True


def _prove(path: Path, read: nn.Module, written: nn.Module, dtype: torch.dtype) -> None:
    """Raises WrongResult unless a network read again is the one that was written, tensor by tensor."""
    found, own = read.state_dict(), written.state_dict()
    unread = own.keys() - found.keys()
    if strange := sorted({name for name in unread if "text_projection" not in name} | (found.keys() - own.keys())):
        raise WrongResult(f"{path}: {listed(strange, 3)} is not what was trained")
    for name, tensor in found.items():
        _require_equal(path, {name: tensor}, {name: converted(name, own[name], dtype)})


def _require_equal(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        if name not in found or found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor):
            raise WrongResult(f"{path}: {name} is not what was trained")


# what files say of themselves


def _given(name: str, result: ResultConfig) -> dict[str, str]:
    """Title, author and licence. Nothing of paths, captions or pictures."""
    told = {"author": result.author, "license": result.licence}
    return {"modelspec.title": result.title or name, **{f"modelspec.{key}": text for key, text in told.items() if text}}


def _described(model: LatentDiffusion, kind: str, name: str, result: ResultConfig, trigger: str) -> dict[str, str]:
    """https://github.com/Stability-AI/ModelSpec, for what belongs beside a model."""
    unet = model.unet.config
    velocity = diffusion_from_scheduler_config(model.scheduler_config).prediction == "v_prediction"
    own = {"sd2": "-768-v" if velocity else "-512", "sdxl": "-base"}
    base = TASKS.get(task_of(unet)) or own.get(model.family, "")
    notes = modelspec(model.family, base + kind, name, _given(name, result))
    if unet.context_dim not in FAMILIES:  # a model of its own, and no program should take it for a published one
        notes |= {"modelspec.architecture": f"latent-diffusion-{unet.context_dim}{kind}"}
    return {**notes, **({"modelspec.trigger_phrase": trigger} if trigger else {})}
