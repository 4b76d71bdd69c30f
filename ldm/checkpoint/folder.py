"""A folder in diffusers format -> LatentDiffusion: configurations first, then weights straight from mapped files."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from configs import interchange
from configs.architecture import TextEncoderConfig, TinyConfig, UNetConfig
from configs.interchange_extras import tiny_from_json
from ldm.checkpoint.compose import composed
from ldm.checkpoint.errors import explained
from ldm.checkpoint.family import context_width, described, family_of
from ldm.checkpoint.files import find_weights, has_weights, read_config, read_json
from ldm.checkpoint.hash import remember_files
from ldm.checkpoint.hub import NETWORKS, require_folder
from ldm.checkpoint.mend import mended_scheduler, mended_unet
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.overrides import checked
from ldm.checkpoint.published import CALL_DEFAULTS, distilled_defaults, distilled_folder, distilled_note
from ldm.checkpoint.source import Entry, read_headers
from ldm.checkpoint.weights import load_weights, main_dtype, vae_dtype
from ldm.model import LatentDiffusion
from ldm.vocabulary import DEFAULTS, are_defaults, read_vocabulary
from text_encoder import CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer
from text_encoder.clip import canonical_keys as canonical_text_keys
from unet import UNet
from vae import Autoencoder, AutoencoderKL, AutoencoderTiny
from vae.autoencoder import canonical_keys as canonical_vae_keys

T = TypeVar("T")

logger = logging.getLogger(__name__)

# The tasks people publish folders for. Their parts are the same, so any of them gives the model.
TASKS = ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint", "Adapter", "InstructPix2Pix")
PIPELINES = {f"{family}{task}Pipeline" for family in ("StableDiffusion", "StableDiffusionXL") for task in TASKS} | {
    "StableDiffusionInpaintPipelineLegacy",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionUpscalePipeline",
}
BY_US = ("_diffusers_version", CALL_DEFAULTS)  # written anew each time
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}


def load_folder(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    components: Mapping[str, Any] | None = None,
    subfolder: str | None = None,
    as_stored: bool = False,
) -> LatentDiffusion:
    """Loads a Stable Diffusion 1, 2 or XL model from a folder in diffusers format, on the CPU.

    dtype: of all networks; None keeps the one the U-Net is stored in. A VAE that overflows in float16 runs in float32.
    variant: weights such as `model.fp16.safetensors`, where a part has them; an error if none has.
    components: parts to use instead of reading them (`unet`, `vae`, `text_encoder`, `text_encoder_2`, `tokenizer`,
        `tokenizer_2`, `scheduler`); None for `safety_checker`, `feature_extractor` and `image_encoder` is accepted.
    as_stored: leaves every tensor in the dtype it has in the files, to be written elsewhere rather than run.

    Weights that have the dtype already stay mapped to their files: memory holds them once, and only what is used. Such
    files may be replaced or deleted meanwhile, but not shortened in place: that ends the process (SIGBUS).

    Raises FileNotFoundError for what is missing and ValueError for what does not fit, naming file and remedy.
    """
    root = require_folder(path, subfolder)
    folder = Folder(root, _model_index(root), variant, checked(components or {}))
    entries = folder.entries()
    if dtype is None and not as_stored:
        dtype = next(folder.given["unet"].parameters()).dtype if "unet" in folder.given else main_dtype(entries["unet"])
    _require_one_family(folder)
    encoder = _text_encoder(folder, entries, dtype)
    unet = _unet(folder, entries, dtype)
    scheduler, family = folder.scheduler(), family_of(unet.config, 2 if isinstance(encoder, PairedTextEncoder) else 1)
    defaults, notes = folder.defaults(family, scheduler)
    for note in notes:
        logger.warning("%s: %s", path, note)
    return LatentDiffusion(
        autoencoder=_autoencoder(folder, entries, dtype),
        text_encoder=encoder,
        unet=unet,
        scheduler_config=scheduler,
        family=family,
        model_index={k: v for k, v in folder.index.items() if not isinstance(v, list) and k not in BY_US},
        source=str(path),
        vocabulary=read_vocabulary(root),
        notes=tuple(notes),
        defaults=defaults,
    )


@dataclass(frozen=True)
class Folder:
    """A model's folder as its index describes it, and what the caller gives in place of its parts."""

    path: Path
    index: Mapping[str, Any]
    variant: str | None
    given: Mapping[str, Any]

    def has(self, part: str) -> bool:
        """Whether the model has this part, given or in the index (which writes absent parts as [null, null])."""
        return part in self.given or bool(self._class(part))

    def _class(self, part: str) -> str | None:
        entry = self.index.get(part)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 else None

    def reads(self) -> list[str]:
        """The networks to read, those of other kinds refused."""
        whole_encoder = isinstance(self.given.get("text_encoder"), (CLIPTextEncoder, PairedTextEncoder))
        encoders = ("text_encoder", "text_encoder_2") if whole_encoder else ()
        parts = [part for part in NETWORKS if self._class(part) and part not in self.given and part not in encoders]
        for part in parts:
            if self._class(part) not in CLASSES[part]:
                wanted = " or ".join(CLASSES[part])
                raise ValueError(f"{self.path}: its {part} is a {self._class(part)}; supported is {wanted}")
        for part, other in (("unet", "unet"), ("vae", "vae"), ("text_encoder", "text_encoder_2")):
            if not self.has(part) and not self.has(other):
                raise ValueError(f"{self.path / 'model_index.json'} lists no {part}; pass {part}=...")
        return parts

    def entries(self) -> dict[str, dict[str, Entry]]:
        """What the weight files of each network to read hold. ValueError when the variant is nowhere."""
        parts, variant = self.reads(), self.variant
        if variant and parts and not any(has_weights(self.path / part, part, variant) for part in NETWORKS):
            raise ValueError(f"no part of {self.path} has weights of variant {variant!r}; leave variant out")
        return {part: read_headers(find_weights(self.path / part, part, variant)) for part in parts}

    def config(self, part: str) -> dict[str, Any]:
        return read_config(self.path / part / "config.json")

    def unet_config(self) -> UNetConfig:
        if "unet" in self.given:
            config: UNetConfig = self.given["unet"].config
            return config
        json = mended_unet(self.config("unet"), self.index["_class_name"])
        return _read(self.path / "unet", interchange.unet_from_json, json)

    def text_config(self, part: str) -> TextEncoderConfig:
        if part in self.given:
            config: TextEncoderConfig = self.given[part].config
            return config
        json = self.config(part) | {"architectures": [self._class(part)]}  # the index decides, as in diffusers
        return _read(self.path / part, interchange.text_encoder_from_json, json)

    def tiny_config(self) -> TinyConfig:
        return _read(self.path / "vae", tiny_from_json, self.config("vae"))

    def defaults(self, family: str, scheduler: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What calls take where they say nothing, as we wrote it or as a distilled model needs it, and what to say."""
        stored = self.index.get(CALL_DEFAULTS, {})
        if isinstance(stored, dict):  # later versions may write others
            stored = {name: value for name, value in stored.items() if name in DEFAULTS}
        if not are_defaults(stored):
            raise ValueError(f"{self.path / 'model_index.json'}: {CALL_DEFAULTS} are no defaults of calls; remove them")
        word, name = distilled_folder(family, self.path, scheduler)
        if stored or not word:
            return stored, []
        defaults = distilled_defaults(word, name)
        return defaults, [distilled_note(f"its name says {word}", defaults)]

    def scheduler(self) -> dict[str, Any]:
        json = self.given.get("scheduler") or read_json(self.path / "scheduler" / "scheduler_config.json")
        json.setdefault("_class_name", self._class("scheduler"))
        return mended_scheduler(json, self.index["_class_name"])


def _read(folder: Path, from_json: Callable[[dict[str, Any]], T], json: dict[str, Any]) -> T:
    """`from_json(json)`, whose complaints begin with the file they are about."""
    try:
        return from_json(json)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{folder / 'config.json'}: {explained(error)}") from None


def _model_index(root: Path) -> dict[str, Any]:
    index = read_json(root / "model_index.json")
    if str(name := index.get("_class_name")) not in PIPELINES:
        raise ValueError(
            f"{root} is a model for {name!r}; supported are Stable Diffusion 1, 2 and XL, "
            f"that is {', '.join(sorted(PIPELINES))}"
        )
    return index


def _require_one_family(folder: Folder) -> None:
    """Raises ValueError when the U-Net attends to another width of text than the text encoders give."""
    given, wanted = folder.given.get("text_encoder"), folder.unet_config().context_dim
    if isinstance(given, PairedTextEncoder):
        width = given.first.model.config.width + given.second.model.config.width
    elif isinstance(given, CLIPTextEncoder):
        width = given.model.config.width
    else:
        width = sum(folder.text_config(part).width for part in ("text_encoder", "text_encoder_2") if folder.has(part))
    if width != wanted:
        raise ValueError(
            f"{folder.path}: the U-Net attends to text of width {described(wanted)}, but the text encoders give "
            f"{described(width)}; they belong to different families, take both from one model"
        )


def _text_encoder(
    folder: Folder, entries: Mapping[str, dict[str, Entry]], dtype: torch.dtype | None
) -> CLIPTextEncoder | PairedTextEncoder:
    if isinstance(whole := folder.given.get("text_encoder"), (CLIPTextEncoder, PairedTextEncoder)):
        return whole
    parts = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]
    return composed(
        folder.unet_config(),
        [
            (_tokenizer(folder, own), _text_model(folder, part, entries, dtype))
            for part, own in parts
            if folder.has(part)
        ],
    )


def _tokenizer(folder: Folder, part: str) -> Tokenizer:
    given: Tokenizer | None = folder.given.get(part)
    return Tokenizer.from_folder(folder.path / part) if given is None else given


def _text_model(
    folder: Folder, part: str, entries: Mapping[str, dict[str, Entry]], dtype: torch.dtype | None
) -> CLIPTextModel:
    if part in folder.given:
        given: CLIPTextModel = folder.given[part]
        return given
    model = on_meta(folder.path / part / "config.json", CLIPTextModel, folder.text_config(part))
    load_weights(model, entries[part], dtype, canonical_text_keys)
    return model


def _autoencoder(folder: Folder, entries: Mapping[str, dict[str, Entry]], dtype: torch.dtype | None) -> Autoencoder:
    if "vae" in folder.given:
        given: Autoencoder = folder.given["vae"]
        return given
    if folder.index["vae"][1] == "AutoencoderTiny":
        tiny = on_meta(folder.path / "vae" / "config.json", AutoencoderTiny, folder.tiny_config())
        load_weights(tiny, entries["vae"], dtype, dict)
        return tiny
    config = _read(folder.path / "vae", interchange.autoencoder_from_json, folder.config("vae"))
    autoencoder = on_meta(folder.path / "vae" / "config.json", AutoencoderKL, config)
    load_weights(autoencoder, entries["vae"], vae_dtype(autoencoder, entries["vae"], dtype), canonical_vae_keys)
    return autoencoder


def _unet(folder: Folder, entries: Mapping[str, dict[str, Entry]], dtype: torch.dtype | None) -> UNet:
    if "unet" in folder.given:
        given: UNet = folder.given["unet"]
        return given
    unet = on_meta(folder.path / "unet" / "config.json", UNet, folder.unet_config())
    try:
        load_weights(unet, entries["unet"], dtype, dict)
    except ValueError as error:
        found = context_width({name: entry.shape for name, entry in entries["unet"].items()})
        if found is None or found == unet.config.context_dim:
            raise
        raise ValueError(
            f"these U-Net weights attend to text of width {described(found)}, not {described(unet.config.context_dim)} "
            f"as their config.json says: they belong to another family. {error}"
        ) from None
    remember_files(unet, find_weights(folder.path / "unet", "unet", folder.variant))
    return unet
