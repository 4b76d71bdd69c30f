"""What to do when the memory is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from configs.training import LoopConfig
from ldm.full_memory import is_full


@contextmanager
def advice(stage: str, loop: LoopConfig, processes: int = 1) -> Iterator[None]:
    """Adds to an error for want of memory, as a note, which keys of the run file to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_full(error):
            error.add_note(_advice(stage, loop, processes))
        raise


def _advice(stage: str, loop: LoopConfig, processes: int) -> str:
    """stage: the table of the run file that has the loop, "" where it is one of its own."""
    first, place = 2 * loop.accumulation, f"{stage}." if stage else ""
    more = next((n for n in range(first, loop.batch + 1) if loop.batch % (n * processes) == 0), None)
    if more is None:
        whose = f"of the stage {stage} " if stage else ""
        return f"the run file's networks {whose}are too large, or its pictures: make them smaller"
    effect = "the same result" if stage != "text" else "fewer pictures to tell a caption from"
    return (
        f"set {place}loop.accumulation = {more} in the run file (a step in smaller parts, with {effect}) and start it "
        "again, or make the networks smaller"
    )
