"""Which LoRAs a model has: merged into its weights, at no cost per step, and taken out again to the bit."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm.lora.factors import Factors, bias_change, weight_change
from ldm.lora.formats import Lora, read_lora
from ldm.lora.names import Names
from ldm.lora.scales import Given, Scale
from ldm.quantize import require_unquantized

if TYPE_CHECKING:
    from ldm.model import LatentDiffusion

Parts = tuple[tuple[Factors, float], ...]  # changes of one weight and their scales


@dataclass(frozen=True)
class _Loaded:
    lora: Lora
    scale: Scale


@dataclass
class _Held:
    """A weight that is changed: what it was, on the CPU, and what was merged into it."""

    parameter: nn.Parameter
    original: Tensor
    parts: Parts = ()


class Loras:
    """The LoRAs of one model.

    Weights are always `original + sum of scale * change`, summed in float32 in an order of its own and rounded once, so
    that neither the order of loading nor anything loaded before leaves a trace.

    The originals of changed weights are kept in the CPU's memory. For weights on the CPU that costs nothing but what
    the merged ones take: those mapped from a file stay mapped, and the system may drop their pages. For a model on an
    accelerator it is a copy of the changed weights in main memory.
    """

    def __init__(self, model: "LatentDiffusion"):
        self._model = model
        self._loaded: dict[str, _Loaded] = {}
        self._held: dict[str, _Held] = {}

    @property
    def scales(self) -> dict[str, Given]:
        """Name -> scale, in the order of loading."""
        return {name: loaded.scale.given for name, loaded in self._loaded.items()}

    def __len__(self) -> int:
        return len(self._loaded)

    def __getitem__(self, name: str) -> Lora:
        """A loaded LoRA. ValueError for a name that is not loaded."""
        self._require([name])
        return self._loaded[name].lora

    def record(self) -> list[dict[str, Any]]:
        """Name, scale and SHA-256 of each, as plain JSON."""
        return [
            {"name": name, "scale": loaded.scale.given, "sha256": loaded.lora.sha256}
            for name, loaded in sorted(self._loaded.items())
        ]

    def load(self, path: str | Path, name: str | None = None, scale: Given = 1.0) -> str:
        """Reads a file and merges it; returns its name, by default that of the file.

        Raises what `read_lora` raises, ValueError for a name that is taken, a scale that is none, or weights held in 8
        bits; then nothing has changed.
        """
        from ldm.checkpoint.hash import pin_hash

        require_unquantized(self._model.unet, "changed by a LoRA")
        if name in self._loaded:
            raise ValueError(f"a LoRA {name!r} is loaded already; unload it, or choose another name")
        names = Names.of(self._model)
        strength = Scale.of(scale, names.modules)
        lora = read_lora(path, names)
        name = name or self._free_name(lora.path)
        pin_hash(self._model)
        self._become({**self._loaded, name: _Loaded(lora, strength)})
        return name

    def set_scales(self, scales: Mapping[str, Given]) -> None:
        """Gives the LoRAs named other scales. ValueError for a name that is not loaded or a scale that is none."""
        self._require(scales)
        modules = Names.of(self._model).modules
        changed = {name: _Loaded(self._loaded[name].lora, Scale.of(scale, modules)) for name, scale in scales.items()}
        self._become({**self._loaded, **changed})

    def unload(self, name: str | None = None) -> None:
        """Takes one out, or all. Weights that no other LoRA changes are then what they were, bit for bit."""
        self._require([] if name is None else [name])
        self._become({} if name is None else {key: kept for key, kept in self._loaded.items() if key != name})

    def fuse(self) -> None:
        """Makes the merged weights the model's own and forgets LoRAs and originals."""
        from ldm.checkpoint.hash import forget_hash

        if self._loaded:
            forget_hash(self._model.unet)
        self._loaded, self._held = {}, {}

    def remerge(self) -> None:
        """Merges again after the model's weights were converted to another dtype: one rounding instead of two."""
        self._merge(self._loaded)

    def require_settled(self) -> None:
        """Raises ValueError while LoRAs are merged: who saves the weights must say whether they belong to them."""
        if self._loaded:
            raise ValueError(
                f"LoRAs are merged into these weights ({', '.join(self._loaded)}): fuse_lora() to save them with the "
                "model, or unload_lora() first"
            )

    def _require(self, names: Any) -> None:
        for name in names:
            if name not in self._loaded:
                there = ", ".join(map(repr, self._loaded)) or "none"
                raise ValueError(f"no LoRA {name!r} is loaded; there is {there}")

    def _free_name(self, path: Path) -> str:
        stem, taken = path.stem, 1
        while stem in self._loaded:
            taken += 1
            stem = f"{path.stem}_{taken}"
        return stem

    def _become(self, wanted: dict[str, _Loaded]) -> None:
        """Merges exactly these, or, when that fails, what was merged before."""
        try:
            self._merge(wanted)
        except BaseException:
            self._merge(self._loaded)
            raise
        self._loaded = wanted

    @torch.no_grad()
    def _merge(self, wanted: Mapping[str, _Loaded]) -> None:
        modules, plan = Names.of(self._model).modules, _plan(wanted)
        for name, held in list(self._held.items()):
            if name not in plan or held.parameter is not _parameter(modules, name):
                held.parameter.data = _as(held.original, held.parameter)
                del self._held[name]
        for name, parts in plan.items():
            parameter = _parameter(modules, name)
            held = self._held.get(name) or _Held(parameter, parameter.data.cpu())
            self._held[name] = held
            stale = held.original.dtype != parameter.dtype
            if stale or held.parts != parts:
                held.original = held.original.to(parameter.dtype)
                parameter.data = _merged(name, _as(held.original, parameter), parts)
                held.parts = parts


def _plan(wanted: Mapping[str, _Loaded]) -> dict[str, Parts]:
    """What each weight gets, in an order that does not depend on the order of loading."""
    plan: dict[str, list[tuple[Factors, float]]] = defaultdict(list)
    for _, loaded in sorted(wanted.items(), key=lambda item: (item[1].lora.sha256, item[0])):
        for module, factors in loaded.lora.modules.items():
            if scale := loaded.scale.at(module):
                for kind in factors.changes:
                    plan[f"{module}.{kind}"].append((factors, scale))
    return {name: tuple(parts) for name, parts in plan.items()}


def _parameter(modules: Mapping[str, nn.Module], name: str) -> nn.Parameter:
    module, _, kind = name.rpartition(".")
    parameter = getattr(modules[module], kind)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def _as(original: Tensor, parameter: nn.Parameter) -> Tensor:
    return original.to(parameter.device, parameter.dtype)


def _merged(name: str, original: Tensor, parts: Parts) -> Tensor:
    """original + sum of scale * change, in float32 at least, rounded once to the dtype of the original."""
    total = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
    change = bias_change if name.endswith(".bias") else weight_change
    for factors, scale in parts:
        total += scale * change(factors, original)
    merged = total.to(original.dtype)
    if not merged.isfinite().all():
        raise ValueError(f"{name} becomes infinite in {original.dtype}: lower the scale, or load in float32")
    return merged
