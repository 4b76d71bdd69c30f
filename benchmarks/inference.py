"""Inference side by side in one process: this project, diffusers at two efforts and, on a CPU, OpenVINO.

    python benchmarks/inference.py                                     # SD 1.5 at 512 px
    python benchmarks/inference.py --model sdxl --steps 30 --systems ours,B0
    python benchmarks/inference.py --only step,whole --batches 1,4,16 --json inference.json
    python benchmarks/inference.py --ablate --only step,vae            # what each of our optimisations is worth

All systems have the same seeded random weights, latents, text embeddings, sampler, steps and precision:

    ours       this project
    B0         diffusers as documented; B0-fp32 the same in float32, a CPU's default
    B1         diffusers at its best: channels last, fused projections, U-Net and decoder compiled with max-autotune;
               on a CPU only when asked for, since compiling takes minutes
    openvino   diffusers' pipeline with its U-Net converted to OpenVINO, where that is installed

First comes the output gate: errors against float32 diffusers, of one evaluation, the final latents and the picture.
Ours may be 1.1 x those of diffusers at the same precision; if one is larger or no number, the exit status is 1 and no
time is measured. Then, for each of `--only`, systems take turns: medians, minima, how many times ours each takes with a
bootstrap 95 % interval, and the share of the machine's ceiling, which is measured here. A guard kernel before and after
each block says whether the machine kept its speed; the run is marked INVALID where it moved by more than 5 %.

    text       prompt and empty prompt to embeddings
    step       one guided step, U-Net and sampler, after the first
    vae        latents to pixels
    whole      prompt to PIL images
    memory     peak of weights and a run, without imports, each system in a process of its own

`--minutes` bounds it all: rounds that no longer fit are left out, so a long run can be had in parts. Compiled code is
kept by PyTorch between runs. The last line is one line of ratios; `--json` has everything. On a CPU SDXL is drawn at
512 px and one system is built at a time. Memory on a CPU is read as Linux tells it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from common import Budget, machine, table, versions, write_json
from gate import Errors, Reference, collect, errors, limits, problems, refer
from measure import SECTIONS, Times, ablation, compare, items_of, peak_memory, run_child, times_table
from meters import Watch, ceiling
from systems import MODELS, SCHEDULERS, WITHOUT, Setting, Shelf, missing, switches

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ON_CPU = "ours,B0,B0-fp32,openvino"
ON_CUDA = "ours,B0,B1"
PEERS = ("B0-fp32", "B1", "openvino")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", choices=MODELS)
    parser.add_argument("--systems", type=names, help=f"{ON_CPU} on a CPU, {ON_CUDA} on a GPU")
    parser.add_argument("--only", type=names, default=list(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--batches", type=numbers, default=[1], help="pictures at once, such as 1,4,16")
    parser.add_argument("--size", type=int, help="pixels; 512, SDXL on a GPU 1024")
    parser.add_argument("--steps", type=int, help="20 (on a CPU 4)")
    parser.add_argument("--sampler", default="euler", choices=SCHEDULERS)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--inputs", type=int, help="latents that the gate tries; 4 (on a CPU 1)")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--threads", type=int, help="of a CPU; PyTorch's own choice")
    parser.add_argument("--ablate", action="store_true", help="ours, and ours without each of its optimisations")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    return sorted(int(name) for name in names(text))


def read(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, with the device's defaults filled in. Exits on what cannot be."""
    parser = arguments()
    options = parser.parse_args(argv)
    cpu = options.device == "cpu"
    options.systems = options.systems or names(ON_CPU if cpu else ON_CUDA)
    options.size = options.size or (1024 if options.model == "sdxl" and not cpu else 512)
    options.steps = options.steps or (4 if cpu else 20)
    options.inputs = options.inputs or (1 if cpu else 4)
    if unknown := set(options.only) - SECTIONS.keys():
        parser.error(f"--only has no {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if "step" in options.only and options.steps < 2:
        parser.error("a step is timed from the end of the first to that of the last: --steps 2 or more")
    if "ours" not in options.systems:
        options.systems.insert(0, "ours")
    return options


def setting_of(options: argparse.Namespace) -> Setting:
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    return Setting(options.model, options.size, options.steps, options.sampler, dtype, device)


def chosen(options: argparse.Namespace, shelf: Shelf) -> list[str]:
    """The systems to compare; says which cannot be here."""
    if options.ablate:
        off = switches(shelf["ours"])
        if not off:
            print("this version has no optimisations that can be switched off one by one")
        return ["ours", *(WITHOUT + name for name in off)]
    reasons = {name: missing(name, shelf.setting.device) for name in options.systems}
    for name, reason in reasons.items():
        if reason:
            print(f"{name} is left out: {reason}")
    if options.dtype == "float32":
        reasons["B0-fp32"] = "the same as B0"
    return [name for name in options.systems if not reasons[name]]


def check(systems: list[str], shelf: Shelf, count: int) -> tuple[Reference, dict[str, Errors], list[str]]:
    """Outputs of all systems against the reference: their errors, and what is wrong with those of ours.

    A peer that cannot run, B0 excepted, is taken out of `systems`.
    """
    seeds = range(count)
    reference = refer(shelf["reference"], shelf.setting, seeds)
    shelf.drop("reference")
    found: dict[str, Errors] = {}
    for name in dict.fromkeys(["B0", *systems]):
        try:
            outputs = collect(shelf[name], reference.embeds, seeds, reference.outputs.latents)
        except Exception as error:
            if name not in PEERS:
                raise
            print(f"{name} is left out: {type(error).__name__}: {error}")
            systems.remove(name)
            shelf.drop(name)
            continue
        found[name] = errors(outputs, reference)
        if name not in systems:
            shelf.drop(name)
    allowed = limits(found["B0"], shelf.setting.dtype)
    ours = [name for name in systems if name == "ours" or name.startswith(WITHOUT)]
    wrong = [f"{name}, {problem}" for name in ours for problem in problems(found[name], allowed)]
    return reference, found, wrong


def main(argv: list[str] | None = None) -> int:
    options = read(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    setting, budget = setting_of(options), Budget(options.minutes)
    if options.child:
        print(json.dumps(run_child(options.child, setting, options.batches)))
        return 0
    report: dict[str, Any] = {"options": vars(options)}
    try:
        return run(options, setting, budget, report)
    finally:
        write_json(options.json, report)


def run(options: argparse.Namespace, setting: Setting, budget: Budget, report: dict[str, Any]) -> int:
    """The gate, then the sections; fills the report as it goes, so that it has what there was before an error."""
    shelf = Shelf(setting, room=setting.device.type == "cuda" or options.model != "sdxl")
    systems = chosen(options, shelf)
    report["head"] = headline(setting)
    print(report["head"], flush=True)
    reference, report["errors"], report["problems"] = check(systems, shelf, options.inputs)
    print(gate_table(report["errors"], report["problems"]), flush=True)
    if report["problems"]:
        return 1

    watch, times = Watch(setting.device), Times()
    dtypes = {setting.dtype, torch.float32} if "B0-fp32" in systems else {setting.dtype}
    top = report["ceiling"] = {dtype: ceiling(dtype, setting.device) for dtype in dtypes}
    wanted = items_of([name for name in options.only if name != "memory"], options.batches)
    timing = Budget(budget.left / 60 * (0.7 if "memory" in options.only else 1))
    report |= {"times": times.rounds, "guard": watch.blocks}
    for done in compare(wanted, systems, shelf, reference.embeds, options.rounds, timing, watch, times):
        print("\n" + times_table(done, times, systems, setting, top), flush=True)
    shelf.clear()
    memory = report["memory"] = measure_memory(options, systems, budget) if "memory" in options.only else {}
    if options.ablate:
        print("\n" + ablation(times, systems))
    report |= {"ratios": times.ratios(), "moved": watch.moved, "valid": watch.valid}
    print(f"\n{watch}\n{last_line(setting, times, memory, watch)}")
    return 0


def headline(setting: Setting) -> str:
    gpu = f"{torch.cuda.get_device_name(setting.device)}, " if setting.device.type == "cuda" else ""
    dtype = str(setting.dtype).removeprefix("torch.")
    what = f"{setting.model}, {setting.size} px, {setting.steps} steps of {setting.sampler} with guidance, {dtype}"
    packages = versions("torch", "diffusers", "transformers", "openvino")
    return f"{machine(torch.get_num_threads())}\n{gpu}{packages}\n{what}, {setting.device}"


def gate_table(found: dict[str, Errors], wrong: list[str]) -> str:
    head = ["relative L2 to float32 diffusers", *next(iter(found.values()))]
    rows = [[name, *(f"{error:.3e}" for error in each.values())] for name, each in found.items()]
    verdict = "output gate: passed" if not wrong else "output gate: FAILED\n" + "\n".join(f"  {each}" for each in wrong)
    return f"\n{table(head, rows)}\n{verdict}"


def measure_memory(options: argparse.Namespace, systems: list[str], budget: Budget) -> dict[str, Any]:
    """Peak memory by system and batch, printed as it comes."""
    command = [sys.executable, __file__, "--steps", "2"]
    for name in ("model", "size", "sampler", "dtype", "device", "threads"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    command += ["--batches", ",".join(map(str, options.batches))]
    found = peak_memory(command, systems, budget)
    if not found:
        return found
    columns = ["peak GB", *(f"{kind} b{b}" for b in options.batches for kind in ("allocated", "reserved"))]
    rows = [[name, *(f"{v / 1e9:.2f}" if v else "-" for pair in each.values() for v in pair)]
            for name, each in found.items()]  # fmt: skip
    print("\n" + table(columns, rows), flush=True)
    return found


def last_line(setting: Setting, times: Times, memory: dict[str, Any], watch: Watch) -> str:
    """Everything that can be quoted, as how many times ours the others take."""
    parts = [f"{item} {name} {value}" for (item, name), value in times.against_ours().items()]
    for name, peaks in memory.items():
        if name != "ours" and "ours" in memory:
            parts += [f"memory b{b} {name} {peak[0] / memory['ours'][b][0]:.2f}" for b, peak in peaks.items()]
    mark = "" if watch.valid else "INVALID "
    dtype = str(setting.dtype).removeprefix("torch.")
    return f"{mark}x ours, {setting.model} {setting.size} px {dtype} {setting.device}: " + (
        "; ".join(parts) or "nothing"
    )


if __name__ == "__main__":
    sys.exit(main())
