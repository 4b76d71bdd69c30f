"""What a LoRA file says about one module, and the change of the module's weights that it stands for.

Formulas: LoRA (Hu et al. 2021, arXiv:2106.09685), LoCon, LoHa and LoKr (Yeh et al. 2023, arXiv:2309.14859, as LyCORIS
writes them), DoRA (Liu et al. 2024, arXiv:2402.09353).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.lora.layout import RANKED, kinds_of


@dataclass(frozen=True, eq=False)
class Factors:
    """The tensors that change one module.

    tensors: by role. `down` (r, in, ...), `up` (out, r, ...) and `mid` (r, r, kh, kw); `hada_*` and `lokr_*` as LyCORIS
        names them; `dora_scale`; `diff` and `diff_b`, changes of weight and bias themselves; `up_bias` (out,).
    alpha: the change is scaled by alpha / rank; None for no scaling.
    """

    tensors: Mapping[str, Tensor]
    alpha: float | None = None

    @property
    def kinds(self) -> list[str]:
        """Which changes of the weight there are; all of them are added."""
        return kinds_of(self.tensors)

    @property
    def rank(self) -> int | None:
        """Rows of the factor on the input's side; None for a change that is given whole."""
        for role in RANKED:
            if role in self.tensors and self.tensors[role].ndim:
                return self.tensors[role].shape[0]
        return None

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def changes(self) -> list[str]:
        """Which of the module's tensors are changed: `weight`, `bias` or both."""
        has_bias = "diff_b" in self.tensors or "up_bias" in self.tensors
        return ["weight"] * bool(self.kinds) + ["bias"] * has_bias

    def lacks(self) -> list[str]:
        """Roles without which the others mean nothing; empty when the factors are complete."""
        wanted = [role for kind in self.kinds for role in NEEDED[kind](self.tensors)]
        if not self.changes or ("dora_scale" in self.tensors and not self.kinds):
            wanted.append("up and down")
        return [role for role in wanted if role not in self.tensors]


def _whole_or_product(tensors: Mapping[str, Tensor], role: str) -> list[str]:
    return [role] if role in tensors else [f"{role}_a", f"{role}_b"]


NEEDED: dict[str, Callable[[Mapping[str, Tensor]], list[str]]] = {
    "lora": lambda _: ["up", "down"],
    "loha": lambda t: [
        *(f"hada_w{i}_{side}" for i in (1, 2) for side in "ab"),
        *(f"hada_t{i}" for i in (1, 2) if "hada_t1" in t or "hada_t2" in t),
    ],
    "lokr": lambda t: [
        *_whole_or_product(t, "lokr_w1"),
        *(["lokr_w2_a", "lokr_w2_b"] if "lokr_t2" in t else _whole_or_product(t, "lokr_w2")),
    ],
    "diff": lambda _: ["diff"],
}


def weight_change(factors: Factors, weight: Tensor) -> Tensor:
    """dW in float32, of the shape of `weight`, which only DoRA looks at.

    Raises RuntimeError or ValueError when shapes do not fit, also on `meta`, where nothing is computed.
    """
    t = {role: tensor.to(weight.device, torch.float32) for role, tensor in factors.tensors.items()}
    change = torch.zeros((), device=weight.device)
    for kind in factors.kinds:
        scale = 1.0 if kind == "diff" else factors.scale
        change = change + scale * _shaped(PRODUCTS[kind](t), weight)
    return _decomposed(change, weight.float(), t["dora_scale"]) if "dora_scale" in t else change


def bias_change(factors: Factors, bias: Tensor) -> Tensor:
    """db in float32, of the shape of `bias` (out,). Raises RuntimeError or ValueError when shapes do not fit."""
    change = torch.zeros((), device=bias.device)
    for role, scale in {"diff_b": 1.0, "up_bias": factors.scale}.items():
        if role in factors.tensors:
            change = change + scale * _shaped(factors.tensors[role].to(bias.device, torch.float32), bias)
    return change


def _shaped(change: Tensor, weight: Tensor) -> Tensor:
    """A convolution's change may come flattened, and a linear layer's with sides of 1 behind."""
    if len(change) != len(weight) or change.numel() != weight.numel():
        raise ValueError(f"the change has the shape {tuple(change.shape)}, the weight {tuple(weight.shape)}")
    return change.reshape(weight.shape)


def _lora(t: Mapping[str, Tensor]) -> Tensor:
    """up @ down, over a convolution's window too; with `mid` that window is Tucker's core."""
    if "mid" in t:
        return _tucker(t["mid"], t["up"].flatten(1).T, t["down"].flatten(1))
    return t["up"].flatten(1) @ t["down"].flatten(1)


def _loha(t: Mapping[str, Tensor]) -> Tensor:
    """The product, element by element, of two low-rank matrices."""
    one, two = (_product(t, f"hada_w{i}", f"hada_t{i}") for i in (1, 2))
    return one * two


def _lokr(t: Mapping[str, Tensor]) -> Tensor:
    """The Kronecker product of a small matrix and a larger one, which holds a convolution's window."""
    one = t["lokr_w1"] if "lokr_w1" in t else _product(t, "lokr_w1", "")
    two = t["lokr_w2"] if "lokr_w2" in t else _product(t, "lokr_w2", "lokr_t2")
    return torch.kron(one.contiguous(), two.flatten(1).contiguous())


def _product(t: Mapping[str, Tensor], role: str, core: str) -> Tensor:
    a, b = t[f"{role}_a"], t[f"{role}_b"]
    return _tucker(t[core], a, b).flatten(1) if core in t else a @ b.flatten(1)


def _tucker(core: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """core (r, s, kh, kw), out (r, o), into (s, i) -> (o, i, kh, kw)"""
    return torch.einsum("rskl,ro,si->oikl", core, out, into)


PRODUCTS: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "diff": lambda t: t["diff"],
}


def _decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: m V / |V| - W with V = W + dW; the norm runs over all axes but the one along which `magnitude` varies."""
    axis = _axis(magnitude, weight)
    v = weight + change
    norm = torch.linalg.vector_norm(v, dim=[i for i in range(v.ndim) if i != axis], keepdim=True)
    along = [1] * v.ndim
    along[axis] = -1
    tiny = torch.finfo(torch.float32).tiny  # a row of zeros stays one
    decomposed: Tensor = magnitude.reshape(along) * v / norm.clamp_min(tiny)
    return decomposed - weight


def _axis(magnitude: Tensor, weight: Tensor) -> int:
    varies = [i for i, side in enumerate(magnitude.shape) if side != 1]
    fitting = [i for i in varies or (0, 1) if i < 2 and magnitude.numel() == weight.shape[i]]
    if len(varies) > 1 or not fitting:
        raise ValueError(f"dora_scale has the shape {tuple(magnitude.shape)}, the weight {tuple(weight.shape)}")
    return fitting[0]
