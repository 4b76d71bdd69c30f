"""The alphas of formats whose files keep them beside the tensors, as diffusers and peft do."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import read_json
from ldm.checkpoint.source import Source
from ldm.lora.names import Names

DIFFUSERS_KEY = "lora_adapter_metadata"  # in a file's metadata: JSON, "unet.lora_alpha" and so on
PEFT_FILE = "adapter_config.json"  # beside a file: JSON, "lora_alpha" and so on


class Alphas:
    """What alpha each module has by the settings of a file's training, where it says so."""

    def __init__(self, source: Source, names: Names):
        self._where = source.path
        self._settings = {part: self._of_part(_diffusers(source), part) for part in names.parts}
        beside = source.path.with_name(PEFT_FILE)
        if not any(self._settings.values()) and source.path.name.startswith("adapter_model") and beside.exists():
            self._settings = dict.fromkeys(names.parts, read_json(beside))

    def of(self, own: str, rank: int | None) -> float | None:
        """The alpha of a module, None where nothing is said: then the change is taken as it is, as everybody does.

        With `use_rslora` (Kalajdzievski 2023, arXiv:2312.03732) changes are scaled by alpha / sqrt(rank); the alpha
        returned is the one that alpha / rank needs for the same.
        """
        part, _, path = own.partition(".")
        settings = self._settings[part]
        alpha = _matching(self._mapping(settings, "alpha_pattern"), path, settings.get("lora_alpha"))
        if alpha is None or rank is None:
            return None
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise CheckpointError(f"{self._where}: its settings give {own} the alpha {alpha!r}, which is no number")
        return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)

    def _of_part(self, settings: Mapping[str, Any], part: str) -> dict[str, Any]:
        return {k.removeprefix(f"{part}."): value for k, value in settings.items() if k.startswith(f"{part}.")}

    def _mapping(self, settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        value = settings.get(name) or {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{self._where}: {name} in its settings is a {type(value).__name__}, not an object")
        return value


def _diffusers(source: Source) -> dict[str, Any]:
    text = source.metadata.get(DIFFUSERS_KEY)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.path}: {DIFFUSERS_KEY} in its metadata is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source.path}: {DIFFUSERS_KEY} in its metadata is a {type(value).__name__}, no object")
    return value


def _matching(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first pattern that ends the path.

    peft reads patterns as regular expressions; what is written there are paths, and as such they are read here, since
    an expression from a stranger's file may take for ever.
    """
    bare = path.removeprefix("text_model.")
    for pattern, value in patterns.items():
        plain = pattern.removesuffix("$").replace("\\.", ".")
        anchored, plain = plain.startswith("^"), plain.removeprefix("^").removeprefix("text_model.")
        if bare == plain or (not anchored and bare.endswith(f".{plain}")):
            return value
    return default
