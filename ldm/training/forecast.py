# mypy: allow-untyped-calls
"""What a run will need, before it begins: memory, by a step on tensors without content, and time, by real steps."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.training import LoopConfig
from ldm.training.ema import Average
from ldm.training.finetuning import FineTuning
from ldm.training.optimizers import optimizers
from ldm.training.posthoc import PowerAverage
from ldm.training.stage import Batch, Player
from ldm.training.tracker import Tracker
from ldm.training.trainer import Trainer

WARM, STEPS = 1, 2  # steps before and while the time is taken
# activations by value of the latents and width of the first convolution: of SD 1.5 90, of SDXL 160, if computed again
# 8; by value of the pixels in a decoder of SD's autoencoder
_GUESS, _AGAIN, _PIXELS = 110, 8, 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forecast:
    """Bytes in use at the moment of a training step when they are most; a GPU's libraries need some more.

    parameters: of all networks, with averaged ones. optimizer: what it remembers. activations: with the batch itself.
    note: why this is a guess, "" where the step was traced.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    temporaries: int
    note: str = ""

    @property
    def peak(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.temporaries


@dataclass(frozen=True)
class Timing:
    """seconds: of a step. waiting: the share of them in which the loop waited for examples.
    peak: bytes a GPU held at most, 0 on others."""

    seconds: float
    waiting: float
    peak: int = 0


def memory(module: nn.Module, batch: Batch, loop: LoopConfig, device: torch.device | str = "cpu") -> Forecast:
    """The memory of a step on a device, found without its memory: no weight is read, copied or moved.

    module: `forward(batch, step) -> (loss, metrics)`, only what is trained requiring gradients. batch: one of the
    parts a step is made of on one process, of whose tensors the shapes count.
    """
    try:
        with warnings.catch_warnings():  # copies look at places in memory, of which there are none
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            return _traced(module, batch, loop, torch.device(device))
    except Exception as error:  # fake tensors are private to torch, and not every kernel knows them
        _log.debug("the step could not be traced", exc_info=True)
        return _guessed(module, batch, loop, f"a guess, for the step could not be traced: {str(error)[:200]}")


def _traced(module: nn.Module, batch: Batch, loop: LoopConfig, device: torch.device) -> Forecast:
    """Of a step other than the first, which has no moments yet."""
    from torch._subclasses import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    hollow = _hollow(module, mode, device)
    averages = [Average(hollow, loop.ema)] if loop.ema else []
    powers = [PowerAverage(hollow, length) for length in loop.ema_lengths]
    trained = [parameter for parameter in hollow.parameters() if parameter.requires_grad]
    tracker = Tracker()
    with mode:
        parts = [_empty(batch, device) for _ in range(loop.accumulation)]
        steppers, share = _optimizers(hollow, loop)
        for each in (hollow, *(average.module for average in averages)):
            tracker.add([*each.parameters(), *each.buffers()], "parameters")
        tracker.add((value for power in powers for value in power.weights.values()), "parameters")
        tracker.add(_states(steppers), "optimizer", share)
        tracker.add((value for part in parts for value in part.values()), "activations")
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda own: tracker.add(_gradient(own), "gradients"))
        with tracker:
            for part in parts[:2]:  # from the second on gradients are there already
                _pass(hollow, part, loop, device, tracker)
            if loop.optimizer.clip:
                nn.utils.clip_grad_norm_(trained, loop.optimizer.clip)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            for average in averages:
                average.update(hollow, 1)
            for power in powers:
                power.update(hollow, 1)
    at = tracker.at_peak
    return Forecast(at["parameters"], at["gradients"], at["optimizer"], at["activations"], at["temporaries"])


def _hollow(module: nn.Module, mode: Any, device: torch.device) -> nn.Module:
    """A copy of a module whose tensors have no content, as if on a device."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        with mode:
            empty = torch.empty_like(tensor, device=device)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(module, memo).train()


def _empty(batch: Batch, device: torch.device) -> Batch:
    return {name: torch.empty(value.shape, dtype=value.dtype, device=device) for name, value in batch.items()}


def _optimizers(module: nn.Module, loop: LoopConfig) -> tuple[list[Optimizer], float]:
    """As the trainer makes them, after a first step, and what share of their states' bytes is really held."""
    eight = loop.optimizer.kind == "adamw8bit"  # bitsandbytes needs real memory: the same in 32 bits
    found = optimizers(Player("tuned", module), replace(loop.optimizer, kind="adamw") if eight else loop.optimizer)
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    for optimizer in found:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return found, 0.25 if eight else 1.0


def _states(found: list[Optimizer]) -> Iterator[Tensor]:
    for optimizer in found:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _gradient(parameter: Tensor) -> list[Tensor]:
    return [] if parameter.grad is None else [parameter.grad]


def _pass(module: nn.Module, part: Batch, loop: LoopConfig, device: torch.device, tracker: Tracker) -> None:
    """Forward and backward."""
    tracker.making = "activations"
    with autocast(loop, device):
        loss, _ = module(part, 1)
    tracker.making = "temporaries"
    (loss / loop.accumulation).backward()


def autocast(loop: LoopConfig, device: torch.device) -> AbstractContextManager[Any]:
    """As accelerate does it: fp16 is for GPUs alone."""
    if loop.precision == "bf16" or (loop.precision == "fp16" and device.type != "cpu"):
        return torch.autocast(device.type, torch.bfloat16 if loop.precision == "bf16" else torch.float16)
    return nullcontext()


def _guessed(module: nn.Module, batch: Batch, loop: LoopConfig, note: str) -> Forecast:
    """By rule of thumb: 4 bytes a trained weight for its gradient, 8 for AdamW's moments, 4 for its average. Gradients
    and activations are most at different moments, unless gradients of an earlier part are there already."""
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    everything = sum(one.nbytes for one in (*module.parameters(), *module.buffers()))
    gradients, moments = 4 * trained, {"adamw": 8, "muon": 4, "adamw8bit": 2}[loop.optimizer.kind]
    first = next((one.shape[0] for one in module.parameters() if one.ndim == 4), 1)  # of the first convolution
    values, each = batch["pixels"].numel() if "pixels" in batch else 0, _PIXELS
    if "noise" in batch:
        values, each = batch["noise"].numel(), _AGAIN if loop.checkpointing else _GUESS
    activations = values * first * (4 if loop.precision == "no" else 2) * each
    both = loop.accumulation > 1
    return Forecast(
        parameters=everything + 4 * trained * (bool(loop.ema) + len(loop.ema_lengths)),
        gradients=gradients if both or gradients > activations else 0,
        optimizer=moments * trained,
        activations=activations if both or activations >= gradients else 0,
        temporaries=0,
        note=note,
    )


def seconds(stage: FineTuning, *, cpu: bool = False) -> Timing:
    """Two steps after one that warms up, by the real loop on the real device.

    Nothing of them stays: neither files nor changes of the module's tensors, and the module is where it was.
    """
    short, steps = copy.copy(stage), WARM + STEPS
    never = steps + 1  # the last step would be kept
    loop = replace(stage.config.loop, steps=never, checkpoint_every=never, log_every=1)
    short.config = replace(stage.config, loop=loop)
    with tempfile.TemporaryDirectory() as folder, _untouched(stage.module):
        trainer = Trainer(short, Path(folder), cpu=cpu)
        told = [report.numbers or {} for report in islice(trainer, steps)][WARM:]
        device = trainer.accelerator.device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        del trainer
    taken = [loop.batch / numbers["examples/s"] for numbers in told]
    waited = sum(numbers["waiting"] * each for numbers, each in zip(told, taken, strict=True))
    return Timing(sum(taken) / STEPS, waited / sum(taken), peak)


def settled(device: torch.device) -> None:
    """Waits until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Puts everything back that training changes of a module, and torch's own chance."""
    device, chance = next(module.parameters()).device, torch.get_rng_state()
    kept = {name: value.detach().cpu().clone() for name, value in _changing(module).items()}
    modes, own = {part: part.training for part in module.modules()}, set(vars(module))
    try:
        yield
    finally:
        for name in set(vars(module)) - own:  # accelerate's own forward
            delattr(module, name)
        module.to(device)
        with torch.no_grad():
            for name, value in _changing(module).items():
                value.copy_(kept[name])
                value.grad = None
        for part, mode in modes.items():
            part.training = mode
        torch.set_rng_state(chance)


def _changing(module: nn.Module) -> Mapping[str, Tensor]:
    """What of a module training may change."""
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return trained | dict(module.named_buffers())
