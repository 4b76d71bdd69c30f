"""One training step of our trainer beside one put together from the parts of diffusers, for each mode of fine-tuning.

    python benchmarks/training.py                                  # SD 1.5's U-Net on a GPU, on a CPU a small one
    python benchmarks/training.py --mode lora                      # or inversion, controlnet, autoencoder
    python benchmarks/training.py --full --rounds 3                # the real one on a CPU: 20 GB, in bfloat16 weights
    python benchmarks/training.py --channels 64,128,256,256 --size 256 --precision float32 --json training.json

Ours is the module that `ldm train` prepares in that mode and a step of its loop: `Denoiser.loss` on our networks, with
the attention and memory layout our trainer chooses. Theirs is what diffusers' example script of the mode does, by its
U-Net, DDPMScheduler.add_noise and the mean squared error:

    full         the whole U-Net                              train_text_to_image.py
    lora         rank 16 on the attention's layers            train_text_to_image_lora.py: peft, by unet.add_adapter
    inversion    the row of one new word, through the text    textual_inversion.py: the whole table is trained, and
                 encoder                                      all but the new row put back after each step
    controlnet   a copy of the U-Net's way down               train_controlnet.py: ControlNetModel.from_unet
    autoencoder  the decoder; L2 of what comes back           train_autoencoderkl.py, its reconstruction loss alone

Both have the same weights, initial values of what a mode adds (small, but not zero: else few gradients could be
compared), latents' distributions or pixels, noise, timesteps and text, encoded beforehand where the mode lets it be.
Both hold the model's other networks too, as trainer and scripts do. Gradients are clipped to 1 (but not in their
inversion), AdamW steps, and they take turns. A U-Net other than SD 1.5's goes with an autoencoder of half its channels.

    autocast    bfloat16 arithmetic; weights that are trained in float32, others in bfloat16 (the default)
    bfloat16    all weights too, in mode full alone (the default of --full on a CPU in that mode)
    float32     everything

First the gate: loss and gradients of the first batch against diffusers in float32. The gradients' error may be 1.1 x
that of diffusers at the same precision (1e-4 in float32), the loss may be off by 0.2 % (1e-5); else the exit status is
1 and nothing is timed. Then: seconds and samples per second, medians and minima, how many times ours a step of
diffusers takes with a bootstrap 95 % interval, the same of the processor's time, which others on the machine change
less, the guard kernel, and the peak memory of weights, gradients, optimizer and step, each side in a process of its
own. Last, in another process: the share of two steps in which the trainer waits for its own loader, which reads cached
latents and text, or pictures, of a folder of 16 that is written for it; it should be below 2 %. The last line is one
line of ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Budget, Ratio, child, machine, ratio, table, versions, write_json
from gate import EXACT, SLACK, full_precision, problems
from meters import Watch, held, peaks, seconds, settle
from torch import Tensor
from training_sides import PRECISIONS, SIDES, Task
from training_theirs import side
from training_waiting import verdict, waiting

from configs.finetuning import MODES
from configs.presets import UNET_SD15
from configs.training import LoopConfig
from ldm.training.forecast import Timing

Times = dict[str, list[float]]  # seconds by side
WAITING = "waiting"  # the third child
SMALL = (64, 128, 256, 256)
LOSS = {True: 1e-5, False: 2e-3}  # how far the loss may be off, in float32 and otherwise


# gate


def first_gradients(name: str, task: Task) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first batch, by the name of the weight."""
    own = side(name, task)
    value = own.loss(task.examples(0))
    value.backward()  # type: ignore[no-untyped-call]
    return value.item(), {n: gradient.float() for n, gradient in own.gradients().items()}


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
    """A side taking steps."""

    def __init__(self, name: str, task: Task) -> None:
        self.task, self.taken = task, 0
        self.side = side(name, task)

    def step(self) -> tuple[float, float]:
        """On a batch that it has not seen, made beforehand: seconds on the wall and of the processor."""
        self.taken += 1
        batch = self.task.examples(self.taken)
        before = time.process_time()
        wall = seconds(lambda: self.side.step(batch), self.task.device)
        return wall, time.process_time() - before


def compare(task: Task, rounds: int, budget: Budget, watch: Watch) -> tuple[Times, Times]:
    """Seconds of steps by side, in turns, after two that do not count: on the wall and of the processor."""
    sides = {name: Training(name, task) for name in SIDES}
    walls: Times = {name: [] for name in SIDES}
    processor: Times = {name: [] for name in SIDES}
    for each in sides.values():
        each.step()
        each.step()

    def turns() -> None:
        for _ in budget.rounds(rounds):
            for name, each in sides.items():
                wall, own = each.step()
                walls[name].append(wall)
                processor[name].append(own)

    watch.around("step", turns)
    return walls, processor


def peak_bytes(name: str, task: Task) -> list[float | None]:
    """Most bytes above what the process held before, allocated and reserved."""
    settle(task.device)
    before = held(task.device)
    training = Training(name, task)
    training.step()
    gc.collect()
    settle(task.device)
    training.step()
    return [None if peak is None else peak - before for peak in peaks(task.device)]


# the command


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="full", help="what is trained (default: full)")
    parser.add_argument("--full", action="store_true", help="Stable Diffusion 1.5's U-Net also on a CPU")
    parser.add_argument("--channels", help="of a smaller one, such as 64,128,256,256")
    parser.add_argument("--size", type=int, help="pixels; 512, of a small U-Net 256")
    parser.add_argument("--batch", type=int, help="32, of a small U-Net 4, of the real one on a CPU 1")
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--threads", type=int, help="of a CPU; PyTorch's own choice")
    own = LoopConfig().workers
    parser.add_argument(
        "--workers", type=int, default=own, help=f"that make examples ahead of time; {own}, as of a run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", choices=(*SIDES, WAITING), help=argparse.SUPPRESS)
    return parser


def task_of(options: argparse.Namespace) -> Task:
    """With the device's defaults where nothing is said. ValueError for bfloat16 weights in a mode that has none."""
    cpu = options.device == "cpu"
    given = tuple(int(c) for c in options.channels.split(",")) if options.channels else None
    channels = given or (SMALL if cpu and not options.full else UNET_SD15.channels)
    real = channels == UNET_SD15.channels
    batch = options.batch or ((1 if cpu else 32) if real else 4)
    full = options.mode == "full"
    if options.precision == "bfloat16" and not full:
        raise ValueError("--precision bfloat16 is for --mode full: others train float32 weights, take autocast")
    precision = options.precision or ("bfloat16" if cpu and real and full else "autocast")
    size = options.size or (512 if real else 256)
    device = torch.device(options.device)
    return Task(replace(UNET_SD15, channels=channels), size, batch, precision, device, options.mode)


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        task, budget = task_of(options), Budget(options.minutes)
    except ValueError as error:
        parser.error(str(error))
    if options.child:
        print(json.dumps(run_child(options.child, task, options.workers)))
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
    times, processor = compare(task, options.rounds, Budget(budget.left * 0.75 / 60), watch)
    against, busy = (ratio(each["diffusers"], each["ours"]) for each in (times, processor))
    memory = {name: ask(name, task, options) for name in SIDES}
    print(f"\n{results(task, times, against, memory)}\n", flush=True)
    print(f"{table(['processor', 'median s', 'x ours [95 %]'], used(processor, busy))}\n\n{watch}", flush=True)
    timing = Timing(*ask(WAITING, task, options))
    print(verdict(timing, options.workers))
    share = memory["diffusers"][0] / memory["ours"][0]
    mark = "" if watch.valid else "INVALID "
    what = f"training step {task.mode} {task.precision} {task.device}"
    print(f"{mark}x ours, {what}: diffusers {against}; memory {share:.2f}; waiting {timing.waiting:.2%}")
    report |= {"times": times, "ratio": against, "processor": processor, "processor ratio": busy}
    report |= {"memory": memory, "waiting": vars(timing)}
    report |= {"guard": watch.blocks, "valid": watch.valid}
    write_json(options.json, report)
    return 0


def headline(task: Task) -> str:
    gpu = f"{torch.cuda.get_device_name(task.device)}, " if task.device.type == "cuda" else ""
    channels = ", ".join(map(str, task.config.channels))
    what = f"{task.mode}, U-Net of {channels} channels"
    if task.mode == "autoencoder":
        what = f"autoencoder of {', '.join(map(str, task.autoencoder.channels))} channels"
    what += f", {task.size} px, batch {task.batch}, {task.precision}, {task.device}"
    return f"{machine(torch.get_num_threads())}\n{gpu}{versions('torch', 'diffusers', 'transformers', 'peft')}\n{what}"


def ask(name: str, task: Task, options: argparse.Namespace) -> Any:
    """What `run_child` says in a process of its own."""
    command = [sys.executable, __file__, "--mode", task.mode, "--channels", ",".join(map(str, task.config.channels))]
    command += ["--size", str(task.size), "--batch", str(task.batch), "--precision", task.precision]
    command += ["--device", task.device.type, *(["--threads", str(options.threads)] if options.threads else [])]
    return child([*command, "--workers", str(options.workers), "--child", name]).answer


def run_child(name: str, task: Task, workers: int) -> list[float | None]:
    """In the child: the peak bytes of a side, or what `Timing` holds of the loader."""
    if name != WAITING:
        return peak_bytes(name, task)
    timing = waiting(task, workers)
    return [timing.seconds, timing.waiting, timing.peak]


def results(task: Task, times: Times, against: Ratio, memory: dict[str, list[Any]]) -> str:
    rows = []
    for name, values in times.items():
        middle = median(values)
        allocated, reserved = (f"{peak / 1e9:.2f}" if peak else "-" for peak in memory[name])
        compared = against if name == "diffusers" else None
        row = [name, f"{middle:.4f}", f"{min(values):.4f}", f"{task.batch / middle:.2f}", compared, len(values)]
        rows.append([*row, allocated, reserved])
    head = ["step", "median s", "minimum s", "samples/s", "x ours [95 %]", "rounds", "peak GB", "reserved GB"]
    return table(head, rows)


def used(processor: Times, against: Ratio) -> list[list[Any]]:
    return [[name, f"{median(each):.4f}", against if name != "ours" else None] for name, each in processor.items()]


if __name__ == "__main__":
    sys.exit(main())
