"""The loop: batches in, weights and checkpoints out. It knows stages and players, and nothing of what they learn."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from torch import Tensor, nn

from ldm.checkpoint.files import listed
from ldm.training import checkpoint as checkpoints
from ldm.training.active import Active
from ldm.training.checkpoint import Checkpoint
from ldm.training.examples import Positions, batches
from ldm.training.fingerprint import require
from ldm.training.optimizers import factor
from ldm.training.posthoc import keep_snapshot
from ldm.training.sharded import require_known
from ldm.training.stage import Batch, Named, Stage
from ldm.training.zero import configure, is_zero


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
        require_known(self.accelerator, loop.optimizer.kind)
        Positions(loop, 0, 0, self.accelerator.num_processes)  # raises for a batch that cannot be cut evenly
        if is_zero(self.accelerator):
            configure(self.accelerator, loop, len(stage.players))
        self.players = [Active(player, stage, self.accelerator) for player in stage.players]
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
        """A checkpoint of this step, if there is none yet. All processes have to ask."""
        if self._kept == self.step:
            return
        self._kept = self.step
        self.accelerator.wait_for_everyone()
        states = self.accelerator.gather(torch.get_rng_state().to(self.accelerator.device)[None])
        tensors: dict[str, dict[str, Tensor]] = {}
        for active in self.players:  # on every process, where each has its share of them
            tensors |= active.tensors()
        objects = {f"{active.player.name}-optimizer": active.optimizer_state() for active in self.players}
        if self.accelerator.is_main_process:
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
            torch.set_rng_state(states[self.accelerator.process_index].clone())  # torch overlooks a view's offset
        self.step = self._kept = found.step
