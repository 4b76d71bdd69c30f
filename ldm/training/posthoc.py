"""Averaged weights whose length is chosen after the run (Karras et al. 2024, 2312.02696, section 3).

In training, averages with power-function profiles are kept: after t steps, the weights of step s count as s^gamma.
Their snapshots span others: any wanted profile is fitted by the snapshots' profiles, in the least-squares sense; the
same combination of the snapshots' weights is the wanted average. A length is the profile's standard deviation as a
share of the run: sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.training.sharded import blend

LONGEST = 0.28  # below 1 / sqrt(12), an average over the whole run


def gamma_of(length: float) -> float:
    """The exponent of a profile of a length. ValueError for a length that no profile has."""
    if not 0 < length <= LONGEST:
        raise ValueError(f"the length of an average is a share of the run above 0 and up to {LONGEST}, not {length}")
    low, high = 0.0, 1 / length  # the length falls as gamma rises, from 0.2887 on
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if length_of(middle) > length else (low, middle)
    return (low + high) / 2


def length_of(gamma: float) -> float:
    """sigma_rel of a profile."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


class PowerAverage:
    """The average of the trained weights of a module with the profile of a length."""

    def __init__(self, module: nn.Module, length: float) -> None:
        self.length, self.gamma = length, gamma_of(length)
        self.weights = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the weights after step `step`, from 0."""
        keep = (1 - 1 / (step + 1)) ** (self.gamma + 1)
        trained = [p.detach() for p in module.parameters() if p.requires_grad]
        blend(list(self.weights.values()), trained, 1 - keep)


def keep_snapshot(average: PowerAverage, step: int, folder: Path) -> None:
    """Writes an average after `step` steps beside those before it. All are kept, for what they are to be combined to
    is not known. Raises OSError with what to do where it cannot be written."""
    place = folder / f"length-{average.length:g}-step-{step:08d}.safetensors"
    draft = place.with_suffix(".part")
    notes = {"step": str(step), "gamma": repr(average.gamma)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.cpu().contiguous() for name, value in average.weights.items()}, draft, notes)
        draft.replace(place)
    except (OSError, SafetensorError, RuntimeError) as error:
        draft.unlink(missing_ok=True)
        raise OSError(
            f"the averages of step {step} could not be written to {folder} ({error}): make room, or leave out "
            "loop.ema_lengths, and start the same command again"
        ) from error


def averaged_over(folder: Path, length: float, steps: int) -> dict[str, Tensor]:
    """The average of a length over the first `steps` steps, from the snapshots in a folder; by parameter, float32.

    Raises ValueError where there are fewer than two snapshots.
    """
    notes = {path: _notes(path) for path in sorted(folder.glob("*.safetensors"))}
    notes = {path: (t, gamma) for path, (t, gamma) in notes.items() if t <= steps}
    if len(notes) < 2:
        raise ValueError(
            f"{folder} has {len(notes)} snapshots of averages, and it takes two: set loop.ema_lengths = [0.05, 0.1] in "
            "the run file before training"
        )
    weights = combination(list(notes.values()), (float(steps), gamma_of(length)))
    total: dict[str, Tensor] = {}
    for path, weight in zip(notes, weights.tolist(), strict=True):
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, not a mapping
                value = opened.get_tensor(name).double() * weight
                total[name] = total[name] + value if name in total else value
    return {name: value.float() for name, value in total.items()}


def combination(profiles: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> Tensor:
    """Weights of profiles (t, gamma) whose sum comes nearest to the wanted one, float64."""
    matrix = torch.tensor([[inner(a, b) for b in profiles] for a in profiles], dtype=torch.float64)
    right = torch.tensor([inner(a, wanted) for a in profiles], dtype=torch.float64)
    solution: Tensor = torch.linalg.lstsq(matrix, right[:, None], driver="gelsd").solution
    return solution[:, 0]


def inner(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of the product of two profiles (gamma + 1) s^gamma / t^(gamma + 1) on [0, t]."""
    (t, p), (u, q) = (a, b) if a[0] <= b[0] else (b, a)
    overlap: float = (t / u) ** q
    return (p + 1) * (q + 1) / (p + q + 1) * overlap / u


@torch.no_grad()
def load_average(module: nn.Module, average: Mapping[str, Tensor]) -> None:
    """Gives a module the averaged weights. KeyError where they are of another."""
    parameters = dict(module.named_parameters())
    for name, value in average.items():
        parameters[name].copy_(value)


def _notes(path: Path) -> tuple[float, float]:
    with safe_open(path, "pt") as opened:
        notes = opened.metadata() or {}
    return float(notes["step"]), float(notes["gamma"])
