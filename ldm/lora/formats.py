"""Any LoRA file -> the factors of each module it changes, checked against the model before anything of it is used."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import listed, sha256_of
from ldm.checkpoint.source import Source, open_source
from ldm.checkpoint.weights import DTYPES
from ldm.lora.factors import Factors, bias_change, weight_change
from ldm.lora.guess import made_for
from ldm.lora.layout import find_lora, role_of
from ldm.lora.metadata import Alphas
from ldm.lora.names import Names

WHOLE = ("I64", "I32", "I16", "I8")  # what an alpha may be stored as too, as by sd-scripts


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA file as this model reads it.

    modules: own name of a module (`ldm.lora.names`) -> its factors, copied: such files are small, and are often written
        over while they are tried.
    foreign: keys that belong to no module, or to nothing we know how to merge. keys: how many the file has.
    sha256: of the whole file.
    """

    path: Path
    sha256: str
    modules: Mapping[str, Factors]
    foreign: tuple[str, ...]
    metadata: Mapping[str, str]
    keys: int = 0

    @property
    def note(self) -> str:
        """What to tell about keys left out, "" when there are none."""
        if not self.foreign:
            return ""
        some = listed(list(self.foreign), 5)
        return f"{self.path}: {len(self.foreign)} of {self.keys} keys fit nothing here and were left out: {some}"


def read_lora(path: str | Path, names: Names) -> Lora:
    """Reads a LoRA in any format: a safetensors or torch file, or a folder that diffusers or peft wrote.

    Nothing of the model is changed. Raises FileNotFoundError, and CheckpointError when the file is damaged, when
    nothing in it fits the model (saying what it seems to be made for), or when shapes do not fit or values are NaN or
    infinite (naming the modules).
    """
    file = find_lora(Path(path).expanduser())
    source = open_source(file)
    roles, foreign = _sorted_out(source, names)
    if not roles:
        raise CheckpointError(
            f"{file}: none of its {len(source.entries)} keys belongs to a module of this model ({names.description}); "
            f"the first is {next(iter(source.entries), '')[:200]!r}. {made_for(source)}: use it with what it is for"
        )
    alphas = Alphas(source, names)
    modules = {own: _factors(own, keys, source, alphas) for own, keys in roles.items()}
    _check(file, modules, names, source)
    return Lora(file, sha256_of([file]), modules, tuple(foreign), source.metadata, len(source.entries))


def _sorted_out(source: Source, names: Names) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Own name -> role -> key of the file; and the keys that are foreign."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    foreign: list[str] = []
    for key in source.entries:
        name, role = role_of(key)
        own = names.own.get(name)
        if own is None or role is None:
            foreign.append(key)
        elif role in modules[own]:
            raise CheckpointError(f"{source.path} holds {own} twice, as {modules[own][role]} and {key}; remove one")
        else:
            modules[own][role] = key
    lone = [own for own, keys in modules.items() if list(keys) == ["alpha"]]  # it scales nothing
    foreign += [modules.pop(own)["alpha"] for own in lone]
    return {own: keys for own, keys in modules.items() if keys}, foreign


def _factors(own: str, keys: Mapping[str, str], source: Source, alphas: Alphas) -> Factors:
    """The tensors of a module. Raises CheckpointError for a dtype that holds no weights, or an odd alpha."""
    for role, key in keys.items():
        known = {*DTYPES, *WHOLE} if role == "alpha" else DTYPES
        if source.entries[key].dtype not in known:
            wanted = listed(sorted(known))
            raise CheckpointError(f"{source.path}: {key} is stored as {source.entries[key].dtype}; read are {wanted}")
    tensors = {role: source.tensor(key).clone() for role, key in keys.items() if role != "alpha"}
    if keys.get("dora_scale", "").rpartition("lora_magnitude_vector")[1] and "down" in tensors:
        tensors["dora_scale"] = tensors["dora_scale"].reshape(-1, *[1] * (tensors["down"].ndim - 1))
    factors = Factors(tensors)
    if "alpha" not in keys:
        return Factors(tensors, alphas.of(own, factors.rank))
    alpha = source.tensor(keys["alpha"])
    if alpha.numel() != 1 or not alpha.isfinite().all():
        raise CheckpointError(f"{source.path}: {keys['alpha']} must be one finite number, not {tuple(alpha.shape)}")
    return Factors(tensors, float(alpha))


def _check(file: Path, modules: Mapping[str, Factors], names: Names, source: Source) -> None:
    """Raises CheckpointError for incomplete modules, shapes that do not fit, and values that are no numbers."""
    lacking = [f"{own} lacks {', '.join(lacks)}" for own, factors in modules.items() if (lacks := factors.lacks())]
    if lacking:
        raise CheckpointError(f"{file} is incomplete: {listed(lacking, 5)}; fetch it again")
    wrong = [f"{own} ({error})" for own, f in modules.items() if (error := _misfit(f, names.modules[own]))]
    if wrong:
        raise CheckpointError(
            f"{file} does not fit this model ({names.description}): {len(wrong)} of its {len(modules)} modules have "
            f"other shapes, {listed(wrong, 3)}. {made_for(source)}"
        )
    for own, factors in modules.items():
        if bad := [role for role, tensor in factors.tensors.items() if not tensor.isfinite().all()]:
            raise CheckpointError(f"{file}: {own} holds NaN or infinity in {', '.join(bad)}; it was spoilt in training")


def _misfit(factors: Factors, module: nn.Module) -> str:
    """Why the factors' change cannot be added to the module's weights, "" if it can. Computed on shapes alone."""
    on_meta = Factors({role: _on_meta(tensor) for role, tensor in factors.tensors.items()}, factors.alpha)
    for kind in factors.changes:
        parameter = getattr(module, kind, None)
        if parameter is None:
            return f"it has no {kind}"
        change = weight_change if kind == "weight" else bias_change
        try:
            change(on_meta, _on_meta(parameter))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            return str(error).splitlines()[0]
    return ""


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, device="meta")
