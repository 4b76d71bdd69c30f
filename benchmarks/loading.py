"""Loading Stable Diffusion 1.5 at its real size, ours and diffusers in turn, each time in a fresh process.

    python benchmarks/loading.py [--dtypes float16 float32] [--rounds 3] [--threads 2] [--folder FOLDER]

Writes a model of seeded weights in float16, once as a folder and once as a single file (4.2 GB together, in a temporary
folder unless one is named), and prints the medians as a markdown table. One run of each, not counted, brings the files
into the system's cache.

Total seconds are imports and loading up to a pipeline that is ready, and the processor seconds are what that takes of
all threads, which a busy machine changes less. "First pass" adds one pass of the U-Net over 8 x 8 latents, which reads
the weights that were only mapped. Peak memory is what the kernel counted as resident, pages of mapped files included;
private memory is the part of it that is no file's.
"""

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from common import environment, machine, resident, versions

NEEDED = 6e9  # bytes on the disk
COLUMNS = {
    "imports": "imports s",
    "load": "load s",
    "total": "total s",
    "cpu": "total processor s",
    "pass": "total with first pass s",
    "peak": "peak GB",
    "private": "private GB",
    "pass peak": "peak with pass GB",
    "pass private": "private with pass GB",
}
SIDES = ("ours", "diffusers")

Run = dict[str, float]  # by the keys of COLUMNS


def build(folder: Path) -> None:
    """The model as `folder/model` and `folder/model.safetensors`, in float16."""
    import torch
    from systems import Setting, seeded_model

    from ldm.checkpoint.export import save_single_file
    from ldm.checkpoint.save import save_folder

    model = seeded_model(Setting("sd15", 512, 0, "euler", torch.float16, torch.device("cpu")))
    save_folder(model, folder / "model")
    save_single_file(model, folder / "model.safetensors")


def load(side: str, source: str, folder: Path, dtype: str) -> None:
    """In the child: loads, says so, runs the U-Net once, says so."""
    start = time.perf_counter()
    made: Any
    if side == "ours":
        from pipelines import TextToImagePipeline as made
    else:
        from diffusers import StableDiffusionPipeline as made
    import torch

    imported = time.perf_counter()
    precision = getattr(torch, dtype)
    if source == "folder":
        pipe = made.from_pretrained(folder / "model", torch_dtype=precision)
    elif side == "ours":
        pipe = made.from_pretrained(folder / "model.safetensors", torch_dtype=precision)
    else:
        pipe = made.from_single_file(
            str(folder / "model.safetensors"),
            config=str(folder / "model"),
            local_files_only=True,
            torch_dtype=precision,
        )
    ready = time.perf_counter()
    say({"imports": imported - start, "load": ready - imported, "total": ready - start, "cpu": time.process_time()})
    x, context = torch.ones(1, 4, 8, 8, dtype=precision), torch.ones(1, 77, 768, dtype=precision)
    with torch.no_grad():
        pipe.unet(x, torch.tensor([500]), context)
    say({"pass": time.perf_counter() - start})


def say(times: Run) -> None:
    print(json.dumps({**times, "resident": resident("VmHWM")}), flush=True)


def measure(side: str, source: str, folder: Path, dtype: str, threads: int) -> Run:
    """One child from start to end. RuntimeError with what it said when it fails."""
    command = [sys.executable, __file__, "--child", side, source, "--folder", str(folder), "--dtypes", dtype]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, env=environment(threads), stdout=subprocess.PIPE, stderr=said)
        run: Run = {}
        for prefix, (times, private) in zip(("", "pass "), reports(child), strict=False):
            run |= {f"{prefix}peak": times.pop("resident") / 1e6, f"{prefix}private": private / 1e6, **times}
        if child.wait() != 0:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{said.read().decode(errors='replace')}")
    return run


def reports(child: "subprocess.Popen[bytes]") -> Iterator[tuple[Run, int]]:
    """What the child says, each with its peak of private memory until then, in kilobytes."""
    assert child.stdout is not None
    private = 0
    while True:
        private = max(private, resident("RssAnon", child.pid))
        if select.select([child.stdout], [], [], 0.005)[0]:
            if not (line := child.stdout.readline()):
                return
            yield json.loads(line), private


def rows(runs: dict[str, list[Run]], what: str) -> Iterator[str]:
    """Medians of both sides and their ratio, as lines of a table."""
    middle = {side: {key: median(run[key] for run in runs[side]) for key in COLUMNS} for side in SIDES}
    middle["ratio"] = {key: middle["ours"][key] / middle["diffusers"][key] for key in COLUMNS}
    for name, values in middle.items():
        yield f"| {what} | {name} | " + " | ".join(f"{values[key]:.2f}" for key in COLUMNS) + " |"


def compare(folder: Path, dtypes: list[str], rounds: int, threads: int) -> None:
    print(f"{machine(threads)}, {versions('torch', 'diffusers', 'transformers', 'safetensors')}\n")
    print(f"| Stable Diffusion 1.5 | | {' | '.join(COLUMNS.values())} |")
    print("|---|---|" + "---:|" * len(COLUMNS))
    for dtype in dtypes:
        for source in ("file", "folder"):
            runs: dict[str, list[Run]] = {side: [] for side in SIDES}
            for _ in range(rounds + 1):
                for side in SIDES:
                    runs[side].append(measure(side, source, folder, dtype, threads))
            print("\n".join(rows({side: kept[1:] for side, kept in runs.items()}, f"{source}, {dtype}")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float16", "float32"], choices=("float16", "float32"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--folder", type=Path, help="for the files, kept there and used again")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, source = options.child
        load(side, source, options.folder, options.dtypes[0])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "model.safetensors").exists():
            if (free := shutil.disk_usage(folder).free) < NEEDED:
                sys.exit(f"{folder} has {free / 1e9:.1f} GB free, and this needs {NEEDED / 1e9:.0f}: name a --folder")
            build(folder)
        compare(folder, options.dtypes, options.rounds, options.threads)


if __name__ == "__main__":
    main()
