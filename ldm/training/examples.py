"""Which examples each process trains on: step s of a run takes the examples s * batch to (s + 1) * batch - 1."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from configs.training import LoopConfig
from ldm.training.interrupt import deaf
from ldm.training.stage import Batch, Stage


class _Examples(Dataset[Batch]):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __getitem__(self, index: int) -> Batch:
        return self.stage.example(index)


class Positions(Sampler[list[int]]):
    """Numbers of the examples of one process, one list for each forward pass.

    A step's batch is cut first among the processes, then among the accumulated parts. Raises ValueError if it cannot
    be cut evenly.
    """

    def __init__(self, loop: LoopConfig, start: int, process: int = 0, processes: int = 1) -> None:
        self.part, rest = divmod(loop.batch, processes * loop.accumulation)
        if rest:
            raise ValueError(
                f"a batch of {loop.batch} cannot be shared evenly by {processes} processes with {loop.accumulation} "
                f"accumulated parts each: make it a multiple of {processes * loop.accumulation}"
            )
        self.loop, self.start = loop, start
        self.first = process * loop.batch // processes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.loop.steps):
            for part in range(self.loop.accumulation):
                begin = step * self.loop.batch + self.first + part * self.part
                yield list(range(begin, begin + self.part))

    def __len__(self) -> int:
        return (self.loop.steps - self.start) * self.loop.accumulation


def batches(stage: Stage, start: int, process: int, processes: int) -> Iterator[Batch]:
    """The batches of one process from step `start` to the end, `accumulation` of them for each step."""
    workers = stage.loop.workers
    return iter(
        DataLoader(
            _Examples(stage),
            batch_sampler=Positions(stage.loop, start, process, processes),
            num_workers=workers,
            worker_init_fn=deaf,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if workers else None,
            generator=torch.Generator(),  # of seeds for workers, which examples do not use: not the run's own
        )
    )
