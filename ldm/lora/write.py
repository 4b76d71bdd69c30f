"""LoRA files in the two layouts people exchange: peft's, which diffusers reads, and kohya's, which everybody reads."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.checkpoint.files import listed
from ldm.checkpoint.writing import placed, require_safetensors, write_tensors
from ldm.lora.factors import Factors
from ldm.lora.formats import Lora
from ldm.lora.metadata import DIFFUSERS_KEY
from ldm.lora.names import Names

Layout = Literal["peft", "kohya"]
KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "up_bias": "lora_up.bias"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight", "up_bias": "lora_B.bias"}
# peft itself leaves `.weight` away and reads both; transformers 5 finds a text encoder's only with it
PEFT["dora_scale"] = "lora_magnitude_vector.weight"
BASES = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0", 1280: "sdxl_refiner_v1-0"}  # by width of the text


def save_lora(lora: Lora, path: str | Path, names: Names, *, layout: Layout = "peft", overwrite: bool = False) -> Path:
    """Writes a LoRA as one safetensors file; returns its path.

    Tensors are written as they are. peft: alphas stand in the metadata, where diffusers looks for them. kohya: beside
    the tensors, and U-Net modules of SDXL in the original checkpoints' spelling. Metadata of the file read is kept.

    Raises FileExistsError unless `overwrite`, and ValueError for a layout that does not exist or has no place for what
    the LoRA holds: peft's has none for LoHa, LoKr, Tucker cores and full differences.
    """
    target = require_safetensors(path)
    tensors, metadata = _laid_out(lora, names, layout)
    with placed(target, overwrite=overwrite) as new:
        write_tensors(tensors, new, metadata=metadata)
    return target


def _laid_out(lora: Lora, names: Names, layout: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    kept = {key: value for key, value in lora.metadata.items() if key != DIFFUSERS_KEY}
    if layout == "peft":
        _require_peft(lora.modules)
        settings = json.dumps(_settings(lora.modules, names), indent=2, sort_keys=True)
        return _peft(lora.modules), {**kept, DIFFUSERS_KEY: settings}
    if layout == "kohya":
        return _kohya(lora.modules, names), {**_training(lora.modules, names), **kept}
    raise ValueError(f'a LoRA is written in the layout "peft" or "kohya", not {layout!r}')


def _kohya(modules: Mapping[str, Factors], names: Names) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for own, factors in modules.items():
        name = names.kohya(own)
        tensors |= {f"{name}.{KOHYA.get(role, role)}": tensor for role, tensor in factors.tensors.items()}
        if factors.rank is not None:
            alpha = factors.rank if factors.alpha is None else factors.alpha
            tensors[f"{name}.alpha"] = _alpha(alpha, next(iter(factors.tensors.values())).dtype)
    return tensors


def _alpha(alpha: float, dtype: torch.dtype) -> Tensor:
    """In the dtype of the tensors beside it, as kohya writes it, unless that would round it."""
    tensor = torch.tensor(alpha, dtype=dtype)
    return tensor if float(tensor) == alpha else torch.tensor(alpha, dtype=torch.float32)


def _training(modules: Mapping[str, Factors], names: Names) -> dict[str, str]:
    """What kohya's own files say of themselves, as far as it is known here."""
    plain = all(set(factors.tensors) <= {"up", "down", "dora_scale"} for factors in modules.values())
    ranks = {factors.rank for factors in modules.values()}
    alphas = {factors.rank if factors.alpha is None else factors.alpha for factors in modules.values()}
    return {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(*alphas) if len(alphas) == 1 else "Dynamic",
        "ss_base_model_version": BASES.get(names.context_dim, "unknown"),
    }


def _require_peft(modules: Mapping[str, Factors]) -> None:
    homeless = [own for own, factors in modules.items() if set(factors.tensors) - set(PEFT)]
    if homeless:
        roles = {role for factors in modules.values() for role in factors.tensors} - set(PEFT)
        raise ValueError(
            f"peft's layout has no place for {listed(sorted(roles))} of {listed(homeless, 3)}: save it as kohya's"
        )
    for part in {own.split(".")[0] for own in modules}:
        for role in ("dora_scale", "up_bias"):
            has = [role in factors.tensors for own, factors in modules.items() if own.split(".")[0] == part]
            if any(has) and not all(has):
                raise ValueError(f"peft has {role} for all modules of the {part} or for none: save it as kohya's")
    for own, factors in modules.items():
        magnitude = factors.tensors.get("dora_scale")
        if magnitude is not None and magnitude.numel() != len(factors.tensors["up"]):
            raise ValueError(f"peft's DoRA is along outputs, that of {own} along inputs: save it as kohya's")


def _peft(modules: Mapping[str, Factors]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for own, factors in modules.items():
        for role, tensor in factors.tensors.items():
            if role == "dora_scale":  # (out,) for a linear layer, (1, out, 1, 1) for a convolution
                window = factors.tensors["down"].ndim - 2
                tensor = tensor.reshape(1, -1, *[1] * window) if window else tensor.flatten()
            tensors[f"{own}.{PEFT[role]}"] = tensor
    return tensors


def _settings(modules: Mapping[str, Factors], names: Names) -> dict[str, Any]:
    """What peft's LoraConfig needs for each part: the commonest rank and alpha, and all others by module."""
    settings: dict[str, Any] = {}
    for part in names.parts:
        inside = {_peft_path(own): factors for own, factors in modules.items() if own.startswith(f"{part}.")}
        if inside:
            settings |= {f"{part}.{key}": value for key, value in _config(inside).items()}
    return settings


def _config(modules: Mapping[str, Factors]) -> dict[str, Any]:
    ranks = {path: factors.rank or 0 for path, factors in modules.items()}
    alphas = {path: ranks[path] if f.alpha is None else f.alpha for path, f in modules.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "target_modules": sorted(modules),
        "use_dora": any("dora_scale" in factors.tensors for factors in modules.values()),
        "lora_bias": any("up_bias" in factors.tensors for factors in modules.values()),
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _peft_path(own: str) -> str:
    """A module as peft finds it, in versions of transformers with `text_model.` and without."""
    return own.partition(".")[2].removeprefix("text_model.")
