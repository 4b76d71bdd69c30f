"""A single file as model sites have them (.safetensors, .ckpt, ...) -> LatentDiffusion, with nothing but the file."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.architecture import AutoencoderConfig, TextEncoderConfig
from ldm.checkpoint.compose import composed
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.family import described, family_of
from ldm.checkpoint.files import listed
from ldm.checkpoint.hash import remember_files
from ldm.checkpoint.inspection import REMEDIES
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.names_compvis import fits, renaming
from ldm.checkpoint.overrides import checked
from ldm.checkpoint.probe import predicts_velocity
from ldm.checkpoint.published import TITLE, distilled_defaults, distilled_note, model_index, scheduler_config, titled
from ldm.checkpoint.recognise import ENCODERS, Part, Recognised, completed, recognise, with_pooled
from ldm.checkpoint.source import Entry, Source, open_source
from ldm.checkpoint.weights import DTYPES, load_weights, main_dtype, vae_dtype
from ldm.model import LatentDiffusion
from text_encoder import CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer
from unet import UNet
from vae import Autoencoder, AutoencoderKL

logger = logging.getLogger(__name__)

Whole = (CLIPTextEncoder, PairedTextEncoder)
CALLED = {"vae": "autoencoder", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}


def load_single_file(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    components: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    ema: bool | None = None,
    as_stored: bool = False,
    allow_unknown_globals: bool = False,
) -> LatentDiffusion:
    """Loads a Stable Diffusion 1, 2 or XL model from one file, on the CPU: what it is, its names and shapes tell.

    dtype, components: as in `load_folder`; parts that the file lacks must be given.
    prediction_type: "epsilon" or "v_prediction", where the file leaves it open. Without it the markers and notes of the
        file decide, and for Stable Diffusion 2, where even these may be silent, the U-Net is asked; the model's `notes`
        say so.
    ema: whether to take the averaged weights; None takes them only where there are no others.
    as_stored: leaves every tensor in the dtype it has in the file, to be written elsewhere rather than run.
    allow_unknown_globals: as for `open_source`.

    Tensors that have the dtype already stay mapped to the file, as in `load_folder`. Raises FileNotFoundError, and
    CheckpointError for files of other kinds (a LoRA, an embedding, ...), with missing parts or missing tensors.
    """
    path, given = Path(path).expanduser(), checked(components or {})
    source = open_source(path, allow_unknown_globals=allow_unknown_globals)
    loader = _Loader(source, recognised(source, prediction_type, ema), given)
    loader.check()
    loader.dtype = None if as_stored else dtype or loader.stored_dtype()
    unet = loader.unet()
    kind, notes = loader.prediction(unet)
    found, encoder = loader.found, loader.text_encoder(unet)
    scheduler = given.get("scheduler") or _scheduler(found, kind)
    if prediction_type is not None:
        scheduler = {**scheduler, "prediction_type": kind}
    defaults = distilled_defaults(found.distilled, titled(source.metadata, path)[TITLE])
    for note in (notes := [*notes, *loader.notes(), *_distilled_notes(found.distilled, defaults)]):
        logger.warning("%s: %s", path, note)
    return LatentDiffusion(
        autoencoder=loader.autoencoder(),
        text_encoder=encoder,
        unet=unet,
        scheduler_config=scheduler,
        family=family_of(unet.config, 2 if isinstance(encoder, PairedTextEncoder) else 1),
        model_index=model_index(found.family, found.task),
        source=str(path),
        notes=tuple(notes),
        defaults=defaults,
    )


def recognised(source: Source, prediction_type: str | None = None, ema: bool | None = None) -> Recognised:
    """What an opened file holds, as `recognise` says. Raises CheckpointError that names the file."""
    shapes, metadata = {name: entry.shape for name, entry in source.entries.items()}, source.metadata
    try:
        found = recognise(shapes, titled(metadata, source.path), prediction_type=prediction_type, ema=ema)
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from None
    if found.task == "unclip":
        raise CheckpointError(
            f"{source.path}: {found.title} draws from the embedding of a picture, which is not supported; "
            "take a Stable Diffusion 2 model that draws from text"
        )
    return found


def _distilled_notes(distilled: str, defaults: Mapping[str, Any]) -> list[str]:
    return [distilled_note(f"its title or name says {distilled}", defaults)] if distilled else []


def _scheduler(found: Recognised, kind: str) -> dict[str, Any]:
    zero_snr = found.prediction.zero_snr
    return scheduler_config(found.family, found.task, kind, zero_snr=zero_snr, distilled=found.distilled)


class _Loader:
    """The parts of one file, each read or given."""

    def __init__(self, source: Source, found: Recognised, given: Mapping[str, Any]) -> None:
        self.source, self.found, self.given = source, found, given
        self.replaced = {*given}
        if isinstance(given.get("text_encoder"), Whole):
            self.replaced |= {"text_encoder", "text_encoder_2"}
        pooled = _pooled_width(given)
        self.unet_config = with_pooled(found.unet, found.family, pooled) if pooled else found.unet
        self.where = f"{source.path} ({found.title})"
        self.read = {name: part for name, part in found.parts.items() if name not in self.replaced}
        self.dtype: torch.dtype | None = None  # of tensors as stored

    def check(self) -> None:
        """Raises CheckpointError naming the parts or tensors that are missing, before anything is read."""
        if missing := [part for part in self.found.missing if part not in self.replaced]:
            parts = " and no ".join(CALLED[part] for part in missing)
            remedy = " and ".join(dict.fromkeys(REMEDIES[part] for part in missing))
            raise CheckpointError(f"{self.where} holds no {parts}: pass {remedy}, of its family")
        if absent := [key for part in self.read.values() for key in self._absent(part)]:
            raise CheckpointError(f"{self.where} lacks {len(absent)} of its tensors: {listed(absent)}")
        if (unknown := list(self.found.unknown)) and "unet" in self.read:
            raise CheckpointError(f"{self.where} has unknown tensors in its U-Net ({len(unknown)}): {listed(unknown)}")
        stored = {entry.dtype for part in self.read.values() for entry in self._entries(part).values()}
        if strange := sorted(stored - set(DTYPES)):
            raise CheckpointError(
                f"{self.where} stores weights as {listed(strange)}; read are {listed(sorted(DTYPES))}"
            )
        self._require_one_family()

    def stored_dtype(self) -> torch.dtype:
        """Of the U-Net, read or given."""
        if "unet" in self.read:
            return main_dtype(self._entries(self.read["unet"]))
        given: torch.dtype = next(self.given["unet"].parameters()).dtype
        return given

    def _entries(self, part: Part) -> dict[str, Entry]:
        return {name.original: self.source.entries[name.original] for name in part.names}

    def _absent(self, part: Part) -> list[str]:
        names = dict.fromkeys(name.original for name in part.names)
        return [name for name in names if name not in self.source.entries]

    def _require_one_family(self) -> None:
        config = self.given["unet"].config if "unet" in self.given else self.unet_config
        width = sum(_width(part, self.given, self.found) for part in ENCODERS[self.found.family])
        whole = self.given.get("text_encoder")
        if isinstance(whole, PairedTextEncoder):
            width = whole.first.model.config.width + whole.second.model.config.width
        elif isinstance(whole, CLIPTextEncoder):
            width = whole.model.config.width
        if width != config.context_dim:
            raise CheckpointError(
                f"{self.where}: the U-Net takes text of width {described(config.context_dim)}, but the text encoders "
                f"give {described(width)}; they belong to different families, take both from one model"
            )

    def notes(self) -> list[str]:
        """What a person should know of the file."""
        if not (foreign := list(self.found.foreign)):
            return []
        return [f"tensors that belong to no part of a model were left out ({len(foreign)}): {listed(foreign)}"]

    # the parts

    def unet(self) -> UNet:
        if "unet" in self.given:
            given: UNet = self.given["unet"]
            return given
        unet = self._unet(self.dtype)
        if not self.found.ema:  # the same file may hold others too
            remember_files(unet, [self.source.path])
        return unet

    def _unet(self, dtype: torch.dtype | None) -> UNet:
        unet = on_meta(self.source.path, UNet, self.unet_config)
        self._fill(unet, self.found.parts["unet"], dtype)
        return unet

    def prediction(self, unet: UNet) -> tuple[str, list[str]]:
        """What the U-Net predicts, and what to say about how that is known. The U-Net's settings follow."""
        prediction = self.found.prediction
        if prediction.kind is not None or "scheduler" in self.given:
            return prediction.kind or "epsilon", []
        velocity, mean = predicts_velocity(unet if self.dtype else self._unet(self.stored_dtype()))
        kind = "v_prediction" if velocity else "epsilon"
        told = replace(prediction, kind=kind)
        if "unet" not in self.given:
            unet.config = completed(unet.config, self.found.family, self.found.task, told, self.source.metadata)
        note = f"{prediction.reason}; asked, this U-Net answers {mean:+.2f}, so it is taken for {kind}"
        return kind, [f"{note} (prediction_type=... decides otherwise)"]

    def autoencoder(self) -> Autoencoder:
        if "vae" in self.given:
            given: Autoencoder = self.given["vae"]
            return given
        part = self.found.parts["vae"]
        assert isinstance(part.config, AutoencoderConfig)
        autoencoder = on_meta(self.source.path, AutoencoderKL, part.config)
        self._fill(autoencoder, part, vae_dtype(autoencoder, self._entries(part), self.dtype))
        return autoencoder

    def text_encoder(self, unet: UNet) -> CLIPTextEncoder | PairedTextEncoder:
        if isinstance(whole := self.given.get("text_encoder"), Whole):
            return whole
        parts = ENCODERS[self.found.family]
        return composed(unet.config, [(self._tokenizer(part), self._text_model(part)) for part in parts])

    def _tokenizer(self, part: str) -> Tokenizer:
        """CLIP's own, which is in no file: OpenCLIP pads with "!", the first token."""
        name = part.replace("text_encoder", "tokenizer")
        if name in self.given:
            given: Tokenizer = self.given[name]
            return given
        openclip = part == "text_encoder_2" or self.found.family == "sd2"
        return Tokenizer.clip(pad="!") if openclip else Tokenizer.clip()

    def _text_model(self, name: str) -> CLIPTextModel:
        if name in self.given:
            given: CLIPTextModel = self.given[name]
            return given
        part = self.found.parts[name]
        assert isinstance(part.config, TextEncoderConfig)
        model = on_meta(self.source.path, CLIPTextModel, part.config)
        self._fill(model, part, self.dtype)
        return model

    def _fill(self, module: nn.Module, part: Part, dtype: torch.dtype | None) -> None:
        entries = self._entries(part)
        shapes = {own: tuple(tensor.shape) for own, tensor in module.state_dict().items()}
        wrong = [
            f"{name.original} {entries[name.original].shape}"
            for name in part.names
            if not fits(name, shapes[name.own], entries[name.original].shape)
        ]
        if wrong:
            raise CheckpointError(
                f"{self.where} has tensors of a shape that does not fit the "
                f"others ({len(wrong)}): {listed(wrong)}; fetch it again"
            )
        load_weights(module, entries, dtype, renaming(part.names))


def _width(part: str, given: Mapping[str, Any], found: Recognised) -> int:
    if isinstance(model := given.get(part), CLIPTextModel):
        return model.config.width
    config = found.parts[part].config if part in found.parts else None
    return config.width if isinstance(config, TextEncoderConfig) else 0


def _pooled_width(given: Mapping[str, Any]) -> int | None:
    """The width of the pooled text of a given text encoder."""
    model = given.get("text_encoder_2", given.get("text_encoder"))
    model = model.second if isinstance(model, PairedTextEncoder) else model
    model = model.model if isinstance(model, CLIPTextEncoder) else model
    return model.config.projection_dim if isinstance(model, CLIPTextModel) else None
