"""What a run leaves for people to read: lines of JSON, what trackers make of them, a progress bar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from accelerate.tracking import GeneralTracker
from tqdm import tqdm


class Log:
    """`log.jsonl` in `folder`, one object a line, going on behind the line of step `start`; and the bar on stderr.

    trackers: of accelerate, which get the same numbers.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        start: int,
        steps: int,
        *,
        progress: bool = True,
        trackers: Sequence[GeneralTracker] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        _cut(self.path, start)
        self._trackers = trackers
        self._bar = tqdm(total=steps, initial=start, desc=name, disable=not progress, unit="step", leave=True)

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """A line of numbers after `step` steps."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"step": step, **{key: float(f"{value:.6g}") for key, value in numbers.items()}}) + "\n"
            )
        for tracker in self._trackers:
            tracker.log(numbers, step=step)
        shown = {key: f"{value:.4g}" for key, value in numbers.items() if key.endswith("loss")}
        self._bar.set_postfix(shown, refresh=False)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        for tracker in self._trackers:
            tracker.finish()


def read_log(path: Path) -> Iterator[dict[str, float]]:
    """The lines of a log, but for those that are damaged."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _cut(path: Path, start: int) -> None:
    """Drops the lines behind the step a run goes on from, and a half-written last one."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= start] if start else []
    draft = path.with_suffix(".part")
    draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    draft.replace(path)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
