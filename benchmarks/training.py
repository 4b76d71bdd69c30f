"""One training step of a U-Net, ours beside one put together from the parts of diffusers, on cached latents and text.

    python benchmarks/training.py                                  # SD 1.5's on a GPU, on a CPU a small one
    python benchmarks/training.py --full --rounds 3                # the real one on a CPU: 20 GB, in bfloat16 weights
    python benchmarks/training.py --channels 64,128,256,256 --size 256 --precision float32 --json training.json

Ours is `Denoiser.loss` on our U-Net, with the attention and memory layout our trainer chooses. Theirs is
UNet2DConditionModel, DDPMScheduler.add_noise and the mean squared error. Both have the same weights, latents, noise,
timesteps and text, gradients clipped to 1 and AdamW, and take turns.

    autocast    float32 weights, bfloat16 arithmetic (the default)
    bfloat16    weights too (the default of --full on a CPU)
    float32     everything

First the gate: loss and gradients of the first batch against diffusers in float32. The gradients' error may be 1.1 x
that of diffusers at the same precision (1e-4 in float32), the loss may be off by 0.2 % (1e-5); else the exit status is
1 and nothing is timed. Then: seconds and samples per second, medians and minima, how many times ours a step of
diffusers takes with a bootstrap 95 % interval, the guard kernel, and the peak memory of weights, gradients, optimizer
and step, each side in a process of its own. The last line is one line of ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Budget, Ratio, child, machine, ratio, table, versions, write_json
from gate import EXACT, SLACK, full_precision, problems
from meters import Watch, held, peaks, seconds, settle
from torch import Tensor
from training_sides import PRECISIONS, SIDES, Task, side

from configs.presets import UNET_SD15

SMALL = (64, 128, 256, 256)
LOSS = {True: 1e-5, False: 2e-3}  # how far the loss may be off, in float32 and otherwise


# gate


def first_gradients(name: str, task: Task) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first batch, by the name of the weight."""
    network, loss = side(name, task)
    value = loss(task.examples(0))
    value.backward()
    return value.item(), {n: p.grad.float() for n, p in network.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Relative L2 over all gradients; infinite if one is missing or superfluous."""
    if found.keys() != reference.keys() or not reference:
        return float("inf")
    off = sum((found[n] - reference[n]).square().sum(dtype=torch.float64).item() for n in reference)
    return float((off / sum(g.square().sum(dtype=torch.float64).item() for g in reference.values())) ** 0.5)


def check(task: Task) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Errors of both sides against diffusers in float32, and what is wrong with ours."""
    with full_precision():
        value, reference = first_gradients("diffusers", replace(task, reference=True))
    found = {}
    for name in SIDES:
        own, gradients = first_gradients(name, task)
        found[name] = {"loss": abs(own - value) / abs(value), "gradients": distance(gradients, reference)}
    exact = task.precision == "float32"
    limit = SLACK * found["diffusers"]["gradients"]
    return found, problems(found["ours"], {"loss": LOSS[exact], "gradients": max(limit, EXACT) if exact else limit})


# time and memory


class Training:
    """A side with its optimizer, ready for steps."""

    def __init__(self, name: str, task: Task) -> None:
        self.task, self.taken = task, 0
        self.network, self.loss = side(name, task)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5)

    def step(self) -> None:
        """On a batch that it has not seen."""
        self.taken += 1
        self.loss(self.task.examples(self.taken)).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def compare(task: Task, rounds: int, budget: Budget, watch: Watch) -> dict[str, list[float]]:
    """Seconds of steps by side, in turns, after two that do not count."""
    sides = {name: Training(name, task) for name in SIDES}
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for each in sides.values():
        each.step()
        each.step()

    def turns() -> None:
        for _ in budget.rounds(rounds):
            for name, each in sides.items():
                times[name].append(seconds(each.step, task.device))

    watch.around("step", turns)
    return times


def run_child(name: str, task: Task) -> list[float | None]:
    """In the child: most bytes above what the process held before, allocated and reserved."""
    settle(task.device)
    before = held(task.device)
    training = Training(name, task)
    training.step()
    settle(task.device)
    training.step()
    return [None if peak is None else peak - before for peak in peaks(task.device)]


# the command


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="Stable Diffusion 1.5's U-Net also on a CPU")
    parser.add_argument("--channels", help="of a smaller one, such as 64,128,256,256")
    parser.add_argument("--size", type=int, help="pixels; 512, of a small U-Net 256")
    parser.add_argument("--batch", type=int, help="32, of a small U-Net 4, of the real one on a CPU 1")
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--threads", type=int, help="of a CPU; PyTorch's own choice")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    return parser


def task_of(options: argparse.Namespace) -> Task:
    """With the device's defaults where nothing is said."""
    cpu = options.device == "cpu"
    given = tuple(int(c) for c in options.channels.split(",")) if options.channels else None
    channels = given or (SMALL if cpu and not options.full else UNET_SD15.channels)
    real = channels == UNET_SD15.channels
    batch = options.batch or ((1 if cpu else 32) if real else 4)
    precision = options.precision or ("bfloat16" if cpu and real else "autocast")
    size = options.size or (512 if real else 256)
    return Task(replace(UNET_SD15, channels=channels), size, batch, precision, torch.device(options.device))


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    task, budget = task_of(options), Budget(options.minutes)
    if options.child:
        print(json.dumps(run_child(options.child, task)))
        return 0
    head = headline(task)
    print(head, flush=True)
    found, wrong = check(task)
    rows = [[name, *(f"{error:.3e}" for error in each.values())] for name, each in found.items()]
    print("\n" + table(["error against float32 diffusers", "loss", "gradients"], rows))
    report: dict[str, Any] = {"head": head, "options": vars(options), "errors": found, "problems": wrong}
    if wrong:
        print("gate: FAILED\n" + "\n".join(f"  {problem}" for problem in wrong))
        write_json(options.json, report)
        return 1
    print("gate: passed", flush=True)

    watch = Watch(task.device)
    times = compare(task, options.rounds, Budget(budget.left * 0.75 / 60), watch)
    against = ratio(times["diffusers"], times["ours"])
    memory = measure_memory(task, options.threads)
    print(f"\n{results(task, times, against, memory)}\n\n{watch}")
    share = memory["diffusers"][0] / memory["ours"][0]
    mark = "" if watch.valid else "INVALID "
    print(f"{mark}x ours, training step {task.precision} {task.device}: diffusers {against}; memory {share:.2f}")
    report |= {"times": times, "ratio": against, "memory": memory, "guard": watch.blocks, "valid": watch.valid}
    write_json(options.json, report)
    return 0


def headline(task: Task) -> str:
    gpu = f"{torch.cuda.get_device_name(task.device)}, " if task.device.type == "cuda" else ""
    channels = ", ".join(map(str, task.config.channels))
    what = f"U-Net of {channels} channels, {task.size} px, batch {task.batch}, {task.precision}, {task.device}"
    return f"{machine(torch.get_num_threads())}\n{gpu}{versions('torch', 'diffusers')}\n{what}"


def measure_memory(task: Task, threads: int | None) -> dict[str, list[Any]]:
    """[allocated, reserved] bytes by side, each in a process of its own."""
    command = [sys.executable, __file__, "--channels", ",".join(map(str, task.config.channels))]
    command += ["--size", str(task.size), "--batch", str(task.batch), "--precision", task.precision]
    command += ["--device", task.device.type, *(["--threads", str(threads)] if threads else [])]
    return {name: child([*command, "--child", name]).answer for name in SIDES}


def results(task: Task, times: dict[str, list[float]], against: Ratio, memory: dict[str, list[Any]]) -> str:
    rows = []
    for name, values in times.items():
        middle = median(values)
        allocated, reserved = (f"{peak / 1e9:.2f}" if peak else "-" for peak in memory[name])
        compared = against if name == "diffusers" else None
        row = [name, f"{middle:.4f}", f"{min(values):.4f}", f"{task.batch / middle:.2f}", compared, len(values)]
        rows.append([*row, allocated, reserved])
    head = ["step", "median s", "minimum s", "samples/s", "x ours [95 %]", "rounds", "peak GB", "reserved GB"]
    return table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
