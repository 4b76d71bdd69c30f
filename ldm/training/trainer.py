"""The loop: batches in, weights and checkpoints out. It knows stages and players, and nothing of what they learn."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType
from torch import Tensor, nn

from ldm.checkpoint.files import listed
from ldm.training import checkpoint as checkpoints
from ldm.training.checkpoint import Checkpoint
from ldm.training.ema import Average
from ldm.training.examples import batches
from ldm.training.fingerprint import require
from ldm.training.optimizers import factor, optimizers
from ldm.training.posthoc import PowerAverage, keep_snapshot
from ldm.training.stage import Batch, Named, Player, Stage

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


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
        loop = stage.loop
        for name in loop.trackers:
            if importlib.util.find_spec(name) is None:
                raise ValueError(f'trackers = ["{name}"] needs it: pip install {name}, or leave it out')
        options: dict[str, Any] = {"log_with": list(loop.trackers), "project_dir": self.folder} if loop.trackers else {}
        self.accelerator = Accelerator(mixed_precision=loop.precision, cpu=cpu, **options)
        if self.accelerator.distributed_type in SHARDED:
            raise ValueError(
                f"{self.accelerator.distributed_type} cuts networks among processes, which is not supported yet: run "
                "`accelerate config` and choose multi-GPU without it"
            )
        self.players = [_Active(player, stage, self.accelerator) for player in stage.players]
        self.step, self._kept = 0, -1
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

    def trackers(self, name: str) -> list[GeneralTracker]:
        """Those of the run file, begun under a name."""
        if self.stage.loop.trackers:
            self.accelerator.init_trackers(name)
        return list(self.accelerator.trackers)

    def __iter__(self) -> Iterator[Report]:
        loop = self.stage.loop
        source = batches(self.stage, self.step, self.accelerator.process_index, self.accelerator.num_processes)
        sums: dict[str, list[Tensor]] = {}
        begun, first, self._waited = time.perf_counter(), self.step, 0.0
        while self.step < loop.steps:
            for key, value in self._train(source).items():
                sums.setdefault(key, []).append(value)
            self.step += 1
            numbers, kept = None, self.step % loop.checkpoint_every == 0 or self.step == loop.steps
            if kept or self.step % loop.log_every == 0:  # nothing is kept before it was looked at
                numbers = self._means(sums)
                numbers["rate"] = factor(loop.optimizer, self.step - 1, loop.steps) * loop.optimizer.rate
                took = time.perf_counter() - begun
                numbers |= {"examples/s": (self.step - first) * loop.batch / took, "waiting": self._waited / took}
                sums, begun, first, self._waited = {}, time.perf_counter(), self.step, 0.0
            if kept:
                self.save()
            left = time.perf_counter()
            yield Report(self.step, numbers)
            begun += time.perf_counter() - left  # what others do meanwhile is not the loop's

    def save(self) -> None:
        """A checkpoint of this step, if there is none yet."""
        if self._kept == self.step:
            return
        self._kept = self.step
        self.accelerator.wait_for_everyone()
        states = self.accelerator.gather(torch.get_rng_state().to(self.accelerator.device)[None])
        if self.accelerator.is_main_process:
            tensors: dict[str, dict[str, Tensor]] = {}
            for active in self.players:
                tensors |= active.tensors()
            objects = {f"{active.player.name}-optimizer": active.optimizer_state() for active in self.players}
            if (scaler := self.accelerator.scaler) is not None:
                objects["scaler"] = scaler.state_dict()
            found = Checkpoint(self.step, tensors, {**objects, "random": states.cpu()}, self.run)
            for active in self.players:
                for average in active.powers:
                    keep_snapshot(average, self.step, self.folder / "averages" / active.player.name)
            checkpoints.write(self.checkpoints, found, self.stage.loop.keep)
        self.accelerator.wait_for_everyone()

    def _train(self, source: Iterator[Batch]) -> dict[str, Tensor]:
        """One optimizer step of each player that takes part."""
        loop = self.stage.loop
        begun = time.perf_counter()
        parts = [self._here(next(source)) for _ in range(loop.accumulation)]
        self._waited += time.perf_counter() - begun
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
                f"{', '.join(broken)} became infinite or NaN {self._where(sums)}; the last checkpoint is kept: "
                'lower optimizer.rate, or use precision = "no", and start again'
            )
        return numbers

    def _where(self, sums: dict[str, list[Tensor]]) -> str:
        """In which step it first happened, and what examples that step was made of."""
        back = [len(values) - i for values in sums.values() for i, one in enumerate(values) if not one.isfinite().all()]
        if not back:
            return f"in another process before step {self.step}"
        step, batch = self.step - max(back), self.stage.loop.batch
        told = f"in step {step + 1}"
        if isinstance(self.stage, Named):
            names = dict.fromkeys(self.stage.name_of(index) for index in range(step * batch, (step + 1) * batch))
            told += f", whose examples are {listed(list(names), 8)}"
        return told

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
        if self.accelerator.scaler is not None and "scaler" in found.objects:
            self.accelerator.scaler.load_state_dict(found.objects["scaler"])
        states = found.objects["random"]
        if self.accelerator.process_index < len(states):
            torch.set_rng_state(states[self.accelerator.process_index])
        self.step = self._kept = found.step


class _Active:
    """A player in a run: its module as accelerate wraps it, its optimizer, its average."""

    def __init__(self, player: Player, stage: Stage, accelerator: Accelerator) -> None:
        self.player, self.config, self.accelerator = player, stage.loop.optimizer, accelerator
        self.raw = player.module.to(accelerator.device)
        self.frozen = {name for name, value in self.raw.named_parameters() if not value.requires_grad}
        keeps = stage.loop.ema > 0 and player.averaged
        self.average = Average(self.raw, stage.loop.ema) if keeps else None
        lengths = stage.loop.ema_lengths if player.averaged else ()
        self.powers = [PowerAverage(self.raw, length) for length in lengths]
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
            norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip)
            scaled = (
                self.accelerator.scaler is not None
            )  # then an overflow is met by a smaller scale: no reason to stop
            numbers[-1]["norm"] = torch.where(norm.isfinite(), norm, 0.0) if scaled else norm
        rate = self.config.rate * factor(self.config, step - self.player.starts, left)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:  # by the scaler of float16, which met an overflow
            for average in (*([self.average] if self.average else ()), *self.powers):
                average.update(self.raw, step)
        values = {key: [part[key] for part in numbers if key in part] for key in numbers[-1]}
        return {f"{self.player.name}/{key}": _mean(value) for key, value in values.items()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state dicts to save, by file."""
        files = {self.player.name: self._trained(self.raw)}
        if self.average is not None:
            files[f"{self.player.name}-average"] = self._trained(self.average.module)
        for power in self.powers:
            files[f"{self.player.name}-length-{power.length:g}"] = power.weights
        return files

    def _trained(self, module: nn.Module) -> dict[str, Tensor]:
        """What of a state dict changes in training: all but frozen parameters, which a run finds where it began."""
        return {name: value for name, value in module.state_dict().items() if name not in self.frozen}

    def _load(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        missing, unexpected = module.load_state_dict(tensors, strict=False)
        if wrong := [*(set(missing) - self.frozen), *unexpected]:
            raise KeyError(f"{listed(sorted(wrong), 3)} is in one of them alone")

    def optimizer_state(self) -> Any:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def restore(self, found: Checkpoint, folder: Path) -> None:
        name = self.player.name
        try:
            self._load(self.raw, found.tensors[name])
            if self.average is not None:
                self._load(self.average.module, found.tensors[f"{name}-average"])
            for power in self.powers:
                kept = found.tensors[f"{name}-length-{power.length:g}"]
                power.weights = {key: kept[key].to(value.device) for key, value in power.weights.items()}
            for optimizer, state in zip(self.optimizers, found.objects[f"{name}-optimizer"], strict=True):
                groups = optimizer.state_dict()["param_groups"]  # rates and decay are the run file's of today
                optimizer.load_state_dict({**state, "param_groups": groups})
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the checkpoints in {folder} belong to another run file ({error}): choose another --output, or start "
                "anew with --fresh"
            ) from error


def _mean(values: list[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float32).detach() for value in values]).mean()
