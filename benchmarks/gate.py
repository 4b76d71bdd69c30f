"""The output gate: no further from float32 diffusers than diffusers is at the same precision, or the run fails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from meters import relative
from systems import Setting, System, Theirs
from torch import Tensor

SLACK = 1.1
EXACT = 1e-4  # in float32 diffusers has no error against itself

WHAT = {
    "eval": "one guided evaluation of the U-Net",
    "latents": "final latents",
    "decode": "picture decoded from the reference's latents",
    "image": "picture decoded from its own latents",
}

Errors = dict[str, float]  # relative L2, by the keys of WHAT


@dataclass(frozen=True)
class Outputs:
    """What a system made of the same inputs, in float32 on the CPU, (n, c, h, w) each."""

    eval: Tensor
    latents: Tensor
    decode: Tensor
    image: Tensor


@dataclass(frozen=True)
class Reference:
    """float32 diffusers: the text's embeddings for everyone, where its evaluation began, and its outputs."""

    embeds: dict[str, Tensor]
    start: Tensor
    outputs: Outputs


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 as it is written, without TF32."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def refer(reference: Theirs, setting: Setting, seeds: Sequence[int]) -> Reference:
    """Runs the reference, whose text is what every system is given, rounded to the precision of the comparison."""
    with full_precision():
        embeds = {name: value.to(setting.dtype).float() for name, value in reference.embeds().items()}
        outputs = collect(reference, embeds, seeds, None)
        starts = []
        for seed in seeds:
            reference.evaluate(setting.noise(1, seed), embeds)
            starts.append(reference.start.cpu())
    return Reference(embeds, torch.cat(starts), outputs)


def collect(system: System, embeds: dict[str, Tensor], seeds: Sequence[int], known: Tensor | None) -> Outputs:
    """The system's outputs; `known` (n, c, h, w) are the latents to decode, by default its own."""
    rows: dict[str, list[Tensor]] = {name: [] for name in WHAT}
    for i, seed in enumerate(seeds):
        noise = system.setting.noise(1, seed)
        latents = system.denoise(noise, embeds, lambda: None)
        given = latents if known is None else known[i : i + 1].to(latents)
        rows["eval"].append(system.evaluate(noise, embeds))
        rows["latents"].append(latents)
        rows["image"].append(system.decode(latents))
        rows["decode"].append(rows["image"][-1] if known is None else system.decode(given))
    return Outputs(**{name: torch.cat(each).float().cpu() for name, each in rows.items()})


def errors(outputs: Outputs, reference: Reference) -> Errors:
    """That of the evaluation is the network's own: what the step left of the state is taken off."""
    found = {name: relative(getattr(outputs, name), getattr(reference.outputs, name)) for name in WHAT}
    found["eval"] = relative(outputs.eval - reference.start, reference.outputs.eval - reference.start)
    return found


def limits(diffusers: Errors, dtype: torch.dtype) -> Errors:
    """What each error may be: SLACK times that of diffusers at the same precision; NaN where that is no number."""
    least = EXACT if dtype == torch.float32 else 0.0
    return {name: max(SLACK * error, least) if math.isfinite(error) else math.nan for name, error in diffusers.items()}


def problems(found: Mapping[str, float], allowed: Mapping[str, float]) -> list[str]:
    """What is wrong, empty only if every error was measured, is a number and is within its limit."""
    wrong = []
    for name in {**allowed, **found}:
        error, limit = found.get(name, math.nan), allowed.get(name, math.nan)
        if not (math.isfinite(error) and math.isfinite(limit) and error <= limit):
            wrong.append(f"{WHAT.get(name, name)}: error {error:.3g}, at most {limit:.3g} allowed")
    return wrong if found and allowed else [*wrong, "nothing was compared"]
