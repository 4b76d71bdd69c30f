"""What the benchmarks share. It imports nothing heavy, since the children whose imports are timed import it too."""

import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DRAWS = 2000  # of the bootstrap
LEVEL = 0.95

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it tells of what is neither installed nor used


def environment(threads: int | None = None) -> dict[str, str]:
    """For a child that runs this repository's code."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}


def found(package: str) -> str:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions(*packages: str) -> str:
    return ", ".join(f"{name} {found(name)}" for name in packages)


def machine(threads: int) -> str:
    """Date, system, processor, what else ran in the last minute, and interpreter, to read results with."""
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.system()} {platform.machine()}, {processor()}, "
        f"{os.cpu_count()} cores, {threads} threads, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "processor unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "processor unknown")


def resident(field: str, process: int | str = "self") -> int:
    """Kilobytes, from the kernel's account of a process; 0 for one that has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


@dataclass(frozen=True)
class Ratio:
    """Of medians, with its bootstrap interval; one round alone has none."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.2f} [-]"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(above: Sequence[float], below: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Ratio:
    """Median of `above` over median of `below`, with a percentile bootstrap over rounds (Efron and Tibshirani 1993).

    Rounds are drawn whole, since both sides of one met the same machine; of unequal lists the end is left out.
    ValueError without a whole round.
    """
    rounds = list(zip(above, below, strict=False))
    if not rounds:
        raise ValueError("no round was measured to its end, so there is no ratio")
    value = median(a for a, _ in rounds) / median(b for _, b in rounds)
    if len(rounds) == 1:
        return Ratio(value, None, None)
    source = random.Random(seed)
    values = []
    for _ in range(draws):
        drawn = source.choices(rounds, k=len(rounds))
        values.append(median(a for a, _ in drawn) / median(b for _, b in drawn))
    values.sort()
    tail = (1 - LEVEL) / 2
    return Ratio(value, values[math.floor(tail * (draws - 1))], values[math.ceil((1 - tail) * (draws - 1))])


class Budget:
    """Time for a whole run, of which each of its parts gets an equal share of what is left."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - time.monotonic())

    def share(self, parts: int) -> "Budget":
        return Budget(self.left / max(parts, 1) / 60)

    def rounds(self, count: int) -> Iterator[int]:
        """Numbers of rounds: the first whatever the time, others while they can be expected to end in time."""
        begun = time.monotonic()
        for i in range(count):
            if i and self.left < (time.monotonic() - begun) / i:
                return
            yield i


@dataclass(frozen=True)
class Run:
    """One process: wall and processor seconds, peak resident memory in GB, and what it printed."""

    wall: float
    cpu: float
    memory: float
    said: str

    @property
    def answer(self) -> Any:
        """The JSON of its last line."""
        return json.loads(self.said.strip().splitlines()[-1])


def child(command: Sequence[str], *, threads: int | None = None, folder: str | None = None) -> Run:
    """Runs the command to its end. RuntimeError with what it said when it fails."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment(threads), cwd=folder, stdout=said, stderr=complained)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        complained.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{complained.read().decode(errors='replace')}")
        unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
        memory = used.ru_maxrss * unit / 1e9
        return Run(wall, used.ru_utime + used.ru_stime, memory, said.read().decode(errors="replace"))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns as wide as they must be: the first to the left, the others to the right; empty where there is None."""
    lines = [[*map(str, head)], *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    first, *others = widths
    text = [
        line[0].ljust(first) + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], others, strict=True)) for line in lines
    ]
    return "\n".join(line.rstrip() for line in text)


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """The content, NaN and infinity as null, which JSON has no words for; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Ratio):
        return _plain(vars(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
