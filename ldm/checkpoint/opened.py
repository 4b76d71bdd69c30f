"""One network in a folder of diffusers or in a single file: its tensors, its configuration, and how it is filled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ldm.checkpoint.errors import CheckpointError, explained
from ldm.checkpoint.files import STEM, find_weights, read_config
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.source import Entry, open_source, read_headers
from ldm.checkpoint.weights import Canonical, load_weights, main_dtype

C = TypeVar("C")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Opened:
    """What is in a folder or file: its tensors, and the `config.json` beside them if it is of the wanted class."""

    path: Path
    entries: Mapping[str, Entry]
    json: Mapping[str, Any] | None
    metadata: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def config(self, from_json: Callable[[Mapping[str, Any]], C], infer_config: Callable[[], C]) -> C:
        """As the `config.json` says, or from the shapes. Complaints begin with the file they are about."""
        try:
            return infer_config() if self.json is None else from_json(self.json)
        except (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError) as error:
            raise CheckpointError(f"{self.path}: {explained(error)}") from None

    def filled(
        self,
        network: Callable[[Any], N],
        config: Any,
        canonical: Canonical,
        dtype: torch.dtype | None,
        *,
        as_stored: bool = False,
    ) -> N:
        """The network of this configuration with the weights from here, see `fill`."""
        module = on_meta(self.path, network, config)
        self.fill(module, canonical, dtype, as_stored=as_stored)
        return module

    def fill(
        self, module: nn.Module, canonical: Canonical, dtype: torch.dtype | None, *, as_stored: bool = False
    ) -> None:
        """Puts the weights from here into a module on `meta`: in this dtype or, with None, that of most of them.

        as_stored: every tensor keeps its own.
        """
        precision = None if as_stored else dtype or main_dtype(self.entries)
        try:
            load_weights(module, self.entries, precision, canonical)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} is damaged, or of a kind that is not known here: {error}") from None


def opened(path: str | Path, part: str, class_name: str, *, allow_unknown_globals: bool = False) -> Opened:
    """A folder of diffusers, a model's folder with such a part, or a single file (`open_source`)."""
    path = Path(path).expanduser()
    if path.is_dir() and (path / "model_index.json").exists():
        path = path / part
    if path.is_dir():
        json = read_config(path / "config.json")
        if json.get("_class_name", class_name) != class_name:
            raise CheckpointError(f"{path} is a {json['_class_name']}, not a {class_name}")
        return Opened(path, read_headers(find_weights(path, part)), json, {})
    source = open_source(path, allow_unknown_globals=allow_unknown_globals)
    beside = path.parent / "config.json"
    own = path.stem.startswith(STEM) and beside.is_file()
    json = read_config(beside) if own else {}
    return Opened(path, source.entries, json if json.get("_class_name") == class_name else None, source.metadata)


def without(prefix: str, canonical: Canonical) -> Canonical:
    return lambda tensors: canonical({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
