"""A player in a run: what one step does, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.checkpoint.files import listed
from ldm.training.checkpoint import Checkpoint
from ldm.training.ema import Average
from ldm.training.optimizers import factor, optimizers
from ldm.training.posthoc import PowerAverage
from ldm.training.sharded import compute_in, is_sharded, kept, kept_state, prepare_sharing, share, share_state, whole
from ldm.training.stage import Batch, Player, Stage
from ldm.training.zero import gathered_state, is_zero, require_same, restore_state


class Active:
    """A player's module as accelerate wraps it, its optimizers, its averages."""

    def __init__(self, player: Player, stage: Stage, accelerator: Accelerator) -> None:
        self.player, self.loop, self.accelerator = player, stage.loop, accelerator
        self.config = self.loop.optimizer
        self.raw = player.module.to(accelerator.device)
        self.frozen = {name for name, value in self.raw.named_parameters() if not value.requires_grad}
        keeps = stage.loop.ema > 0 or is_sharded(accelerator)  # which leaves no whole weights elsewhere
        self.average = Average(self.raw, stage.loop.ema) if keeps and player.averaged else None
        lengths = stage.loop.ema_lengths if player.averaged else ()
        self.powers = [PowerAverage(self.raw, length) for length in lengths]
        if is_sharded(accelerator):
            prepare_sharing(self.raw, accelerator)
        if is_sharded(accelerator) or is_zero(accelerator):
            compute_in(self.raw, accelerator, self.loop.precision)
        self.module, *self.optimizers = accelerator.prepare(self.raw, *optimizers(player, self.config))
        self.module.train()

    @property
    def best(self) -> nn.Module:
        return self.raw if self.average is None else self.average.module

    def advance(self, parts: list[Batch], step: int, steps: int) -> dict[str, Tensor]:
        """Forward and backward over the parts of a batch, one optimizer step; loss and metrics by name."""
        numbers: list[dict[str, Any]] = []
        self._set_rate(step, steps)  # DeepSpeed steps at the end of the last backward pass
        for number, part in enumerate(parts, start=1):
            with self._part(last=number == len(parts)):
                loss, results = self.module(part, step)
                self.accelerator.backward(loss / len(parts))
            added = {key: value for key, value in results.items() if isinstance(value, Tensor) and value.ndim}
            part |= added
            numbers.append({"loss": loss.detach(), **{key: results[key] for key in results.keys() - added.keys()}})
        if self.config.clip:
            norm = whole(torch.as_tensor(self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip)))
            # an overflow is met by a smaller scale where there is one: no reason to stop
            scaled = self.accelerator.scaler is not None
            numbers[-1]["norm"] = torch.where(norm.isfinite(), norm, 0.0) if scaled else norm
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:  # by the scaler of float16, which met an overflow
            for average in (*([self.average] if self.average else ()), *self.powers):
                average.update(self.raw, step)
        values = {key: [part[key] for part in numbers if key in part] for key in numbers[-1]}
        return {f"{self.player.name}/{key}": _mean(value) for key, value in values.items()}

    def _set_rate(self, step: int, steps: int) -> None:
        starts = self.player.starts
        rate = self.config.rate * factor(self.config, step - starts, steps - starts)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * rate

    def _part(self, *, last: bool) -> AbstractContextManager[Any]:
        """For a part of a batch; processes tell each other their gradients after the last one."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        held: AbstractContextManager[Any] = nullcontext() if last else self.accelerator.no_sync(self.module)
        return held

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state dicts to save, by file. All processes have to ask; only what the main one gets is of use."""
        files = {self.player.name: self._trained(self.raw)}
        if self.average is not None and self.average.decay:
            files[f"{self.player.name}-average"] = self._trained(self.average.module)
        for power in self.powers:
            files[f"{self.player.name}-length-{power.length:g}"] = power.weights
        return files

    def _trained(self, module: nn.Module) -> dict[str, Tensor]:
        """What of a state dict changes in training: all but frozen parameters, which a run finds where it began."""
        trained = {name: value for name, value in module.state_dict().items() if name not in self.frozen}
        return {name: kept(value, self.accelerator.is_main_process) for name, value in trained.items()}

    def _load(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        own = module.state_dict()
        shares = {name: share(value, own[name]) if name in own else value for name, value in tensors.items()}
        missing, unexpected = module.load_state_dict(shares, strict=False)
        if wrong := [*(set(missing) - self.frozen), *unexpected]:
            raise KeyError(f"{listed(sorted(wrong), 3)} is in one of them alone")

    def optimizer_state(self) -> Any:
        """As `tensors`."""
        keep = self.accelerator.is_main_process
        if is_zero(self.accelerator):
            return [gathered_state(optimizer, keep=keep) for optimizer in self.optimizers]
        return [kept_state(optimizer.state_dict(), keep) for optimizer in self.optimizers]

    def restore(self, found: Checkpoint, folder: Path) -> None:
        """Raises ValueError for a checkpoint of another run file, or of another way to share the optimizer out."""
        name = self.player.name
        for state in found.objects.get(f"{name}-optimizer", ()):
            require_same(state, self.accelerator.num_processes if is_zero(self.accelerator) else 0)
        try:
            self._load(self.raw, found.tensors[name])
            if self.average is not None:
                self._load(self.average.module, found.tensors[f"{name}-average" if self.average.decay else name])
            for power in self.powers:
                values = found.tensors[f"{name}-length-{power.length:g}"]
                power.weights = {key: values[key].to(value.device) for key, value in power.weights.items()}
            for optimizer, state in zip(self.optimizers, found.objects[f"{name}-optimizer"], strict=True):
                if is_zero(self.accelerator):
                    restore_state(optimizer, state)
                    continue
                groups = optimizer.state_dict()["param_groups"]  # rates and decay are the run file's of today
                shares = {"state": share_state(state["state"], optimizer), "param_groups": groups}
                optimizer.load_state_dict(shares)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the checkpoints in {folder} belong to another run file ({error}): choose another --output, or start "
                "anew with --fresh"
            ) from error


def _mean(values: list[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float32).detach() for value in values]).mean()
