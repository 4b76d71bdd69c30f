"""One picture from a shell, process start included: seconds and memory of `ldm "a cat holding a banana"`.

    python benchmarks/embedded.py [--model PATH] [--runs 5] [--threads 2] [--steps N]

Every run is a fresh interpreter; one more beforehand, which is not counted, brings the files into the system's cache.
Prints wall time, processor time and peak resident memory of each run, and their medians. With the embedded model the
aim is under 5 s and 1.2 GB on two cores.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import environment, found

PROMPT = "a cat holding a banana"


@dataclass(frozen=True)
class Run:
    """One process: wall and processor seconds, peak resident memory in GB."""

    wall: float
    cpu: float
    memory: float


def measure(command: list[str], threads: int, folder: str) -> Run:
    """Runs the command to its end. RuntimeError with what it said when it fails."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        child = subprocess.Popen(command, env=environment(threads), cwd=folder, stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{said.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder in diffusers format (default: the embedded model)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    options = parser.parse_args()
    extra = ["--model", str(Path(options.model).resolve())] if options.model else []
    extra += ["--steps", str(options.steps)] if options.steps else []
    command = [sys.executable, "-m", "pipelines.cli", PROMPT, "--device", "cpu", "--seed", "1", *extra]

    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(command, options.threads, folder) for _ in range(options.runs + 1)][1:]
        pictures = len(list(Path(folder).glob("*.png")))
    assert pictures == options.runs + 1, f"{pictures} pictures of {options.runs + 1}"

    print(f'ldm "{PROMPT}" {" ".join(extra)}'.rstrip())
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, ", end="")
    print(f"Python {platform.python_version()}, torch {found('torch')}, tokenizers {found('tokenizers')}")
    print(f"{'run':8}{'wall s':>10}{'cpu s':>10}{'peak GB':>10}")
    middle = Run(*(median(getattr(run, name) for run in runs) for name in ("wall", "cpu", "memory")))
    for name, run in [*enumerate(runs, start=1), ("median", middle)]:
        print(f"{name!s:8}{run.wall:10.2f}{run.cpu:10.2f}{run.memory:10.2f}")


if __name__ == "__main__":
    main()
