"""The loop: batches in, weights and checkpoints out. It knows stages and players, and nothing of what they learn."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from configs.training import OptimizerConfig
from ldm.training import checkpoint as checkpoints
from ldm.training.checkpoint import Checkpoint
from ldm.training.ema import Average
from ldm.training.examples import batches
from ldm.training.fingerprint import require
from ldm.training.muon import Muon
from ldm.training.stage import Batch, Player, Stage

_ENDS = ("conv_in", "conv_out", "embedding")  # Muon is for what lies between them


@dataclass(frozen=True)
class Report:
    """After `step` steps: means over the steps since the last report, None between reports."""

    step: int
    numbers: dict[str, float] | None = None


class Trainer:
    """Runs a stage to its end; a run that was interrupted goes on from its newest sound checkpoint.

    for report in Trainer(stage, folder):
        ...

    A run on n processes takes the same examples as on one, cut in n; a resumed run is the run that was not
    interrupted, bit for bit on the CPU. Leaving the loop early loses the steps since the last checkpoint, unless
    `save()` is called. `run` is the fingerprint that checkpoints carry and are checked for, "" for none.
    """

    def __init__(self, stage: Stage, folder: Path, *, cpu: bool = False, run: str = "") -> None:
        self.stage, self.folder, self.run = stage, Path(folder), run
        AcceleratorState._reset_state()  # or accelerate refuses a stage of another precision than the one before
        self.accelerator = Accelerator(mixed_precision=stage.loop.precision, cpu=cpu)
        self.players = [_Active(player, stage, self.accelerator) for player in stage.players]
        self.step = 0
        found = checkpoints.newest(self.checkpoints)
        if found is not None:
            self._restore(found)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def averaged(self) -> dict[str, nn.Module]:
        """Modules with averaged weights, by player; the trained ones where none are kept."""
        return {active.player.name: active.best for active in self.players}

    def __iter__(self) -> Iterator[Report]:
        loop = self.stage.loop
        source = batches(self.stage, self.step, self.accelerator.process_index, self.accelerator.num_processes)
        sums: dict[str, list[Tensor]] = {}
        begun, first = time.perf_counter(), self.step
        while self.step < loop.steps:
            for key, value in self._train(source).items():
                sums.setdefault(key, []).append(value)
            self.step += 1
            numbers, kept = None, self.step % loop.checkpoint_every == 0 or self.step == loop.steps
            if kept or self.step % loop.log_every == 0:  # nothing is kept before it was looked at
                numbers = self._means(sums)
                numbers["rate"] = factor(loop.optimizer, self.step - 1, loop.steps) * loop.optimizer.rate
                numbers["examples/s"] = (self.step - first) * loop.batch / (time.perf_counter() - begun)
                sums, begun, first = {}, time.perf_counter(), self.step
            if kept:
                self.save()
            yield Report(self.step, numbers)

    def save(self) -> None:
        """A checkpoint of this step."""
        self.accelerator.wait_for_everyone()
        states = self.accelerator.gather(torch.get_rng_state().to(self.accelerator.device)[None])
        if self.accelerator.is_main_process:
            tensors: dict[str, dict[str, Tensor]] = {}
            for active in self.players:
                tensors |= active.tensors()
            objects = {f"{active.player.name}-optimizer": active.optimizer_state() for active in self.players}
            found = Checkpoint(self.step, tensors, {**objects, "random": states.cpu()}, self.run)
            checkpoints.write(self.checkpoints, found, self.stage.loop.keep)
        self.accelerator.wait_for_everyone()

    def _train(self, source: Iterator[Batch]) -> dict[str, Tensor]:
        """One optimizer step of each player that takes part."""
        loop = self.stage.loop
        parts = [self._here(next(source)) for _ in range(loop.accumulation)]
        numbers: dict[str, Tensor] = {}
        for active in self.players:
            if self.step >= active.player.starts:
                numbers |= active.advance(parts, self.step, loop.steps)
        return numbers

    def _here(self, batch: Batch) -> Batch:
        return {key: value.to(self.accelerator.device, non_blocking=True) for key, value in batch.items()}

    def _means(self, sums: dict[str, list[Tensor]]) -> dict[str, float]:
        """Means over steps and processes. Raises ValueError for a loss that is no number."""
        names = sorted(sums)
        means = torch.stack([torch.stack(sums[name]).mean().to(self.accelerator.device) for name in names])
        numbers = dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        broken = [name for name, value in numbers.items() if not math.isfinite(value)]
        if broken:
            raise ValueError(
                f"{', '.join(broken)} became infinite or NaN before step {self.step}; the last checkpoint is kept: "
                'lower optimizer.rate, or use precision = "no", and start again'
            )
        return numbers

    def _restore(self, found: Checkpoint) -> None:
        if self.run:
            require(found.run, self.run, self.folder)
        if found.step > self.stage.loop.steps:
            raise ValueError(
                f"{self.checkpoints} holds step {found.step}, beyond the {self.stage.loop.steps} of this run: raise "
                "steps, or start anew with --fresh"
            )
        for active in self.players:
            active.restore(found, self.folder)
        states = found.objects["random"]
        if self.accelerator.process_index < len(states):
            torch.set_rng_state(states[self.accelerator.process_index])
        self.step = found.step


class _Active:
    """A player in a run: its module as accelerate wraps it, its optimizer, its average."""

    def __init__(self, player: Player, stage: Stage, accelerator: Accelerator) -> None:
        self.player, self.config, self.accelerator = player, stage.loop.optimizer, accelerator
        self.raw = player.module.to(accelerator.device)
        keeps = stage.loop.ema > 0 and player.averaged
        self.average = Average(self.raw, stage.loop.ema) if keeps else None
        self.module, *self.optimizers = accelerator.prepare(self.raw, *optimizers(player, self.config))
        self.module.train()

    @property
    def best(self) -> nn.Module:
        return self.raw if self.average is None else self.average.module

    def advance(self, parts: list[Batch], step: int, steps: int) -> dict[str, Tensor]:
        """Forward and backward over the parts of a batch, one optimizer step; loss and metrics by name."""
        numbers: list[dict[str, Any]] = []
        left = steps - self.player.starts
        for number, part in enumerate(parts, start=1):
            held = nullcontext() if number == len(parts) else self.accelerator.no_sync(self.module)
            with held:
                loss, results = self.module(part, step)
                self.accelerator.backward(loss / len(parts))
            added = {key: value for key, value in results.items() if isinstance(value, Tensor) and value.ndim}
            part |= added
            numbers.append({"loss": loss.detach(), **{key: results[key] for key in results.keys() - added.keys()}})
        if self.config.clip:
            numbers[-1]["norm"] = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip)
        rate = self.config.rate * factor(self.config, step - self.player.starts, left)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.raw, step)
        values = {key: [part[key] for part in numbers if key in part] for key in numbers[-1]}
        return {f"{self.player.name}/{key}": _mean(value) for key, value in values.items()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state dicts to save, by file."""
        files = {self.player.name: dict(self.raw.state_dict())}
        if self.average is not None:
            files[f"{self.player.name}-average"] = dict(self.average.module.state_dict())
        return files

    def optimizer_state(self) -> Any:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def restore(self, found: Checkpoint, folder: Path) -> None:
        name = self.player.name
        try:
            self.raw.load_state_dict(found.tensors[name])
            if self.average is not None:
                self.average.module.load_state_dict(found.tensors[f"{name}-average"])
            for optimizer, state in zip(self.optimizers, found.objects[f"{name}-optimizer"], strict=True):
                groups = optimizer.state_dict()["param_groups"]  # rates and decay are the run file's of today
                optimizer.load_state_dict({**state, "param_groups": groups})
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the checkpoints in {folder} belong to another run file ({error}): choose another --output, or start "
                "anew with --fresh"
            ) from error


def factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """What the rate is multiplied with in step `step` of `steps`: linear warm-up, then a half cosine to `floor`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(steps - config.warmup, 1)
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def optimizers(player: Player, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW; with kind = "muon", Muon for the matrices and kernels that are neither an end of a network nor a table of
    embeddings, and AdamW for the others. Weight decay on matrices and kernels alone."""
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in player.module.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1
            inside = matrix and not any(end in name for end in _ENDS)
            rate = next((rate for prefix, rate in player.rates.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((config.kind == "muon" and inside, matrix, rate), []).append(parameter)
    adamw, muon = (
        [
            {"params": some, "factor": rate, "lr": rate * config.rate, "weight_decay": config.weight_decay * matrix}
            for (by_muon, matrix, rate), some in groups.items()
            if by_muon is wanted
        ]
        for wanted in (False, True)
    )
    return ([AdamW(adamw, betas=config.betas)] if adamw else []) + ([Muon(muon)] if muon else [])


def _mean(values: list[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float32).detach() for value in values]).mean()
