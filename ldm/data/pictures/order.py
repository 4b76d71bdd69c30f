"""Which picture is met when: a function of the seed and the position alone."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from ldm.data.pictures.item import Item, Size
from ldm.data.pictures.shuffled import shuffled


@dataclass(frozen=True)
class Pick:
    """item: its number. epoch: from 0. copy: tells its meetings in this epoch apart: 0, 1 ..., in no order.
    bucket: (width, height), that of the whole batch.
    """

    item: int
    epoch: int
    copy: int
    bucket: Size


@dataclass(frozen=True)
class _Plan:
    """An epoch. entries: of each bucket, numbers of its members, round after round. batches: (bucket, first entry)."""

    epoch: int
    entries: list["array[int]"]
    batches: list[tuple[int, int]]


class Order:
    """Epochs of global batches, each of one bucket.

    In an epoch every picture is met as often as it repeats. Each bucket's pictures are shuffled and cut into batches; a
    bucket's last batch is filled up from a new shuffle of the same bucket, and another, until it is full. So some
    pictures are met once more in an epoch, and those of a bucket smaller than a batch several times.
    """

    def __init__(self, items: Sequence[Item], buckets: Sequence[Size], batch: int, seed: int) -> None:
        """buckets: of each item. batch: of all processes and accumulated parts together."""
        if not items or batch < 1:
            raise ValueError(f"there must be pictures, and at least one in a batch: got {len(items)} and {batch}")
        self.batch, self.seed = batch, seed
        self.shapes = sorted(set(buckets))
        number = {shape: index for index, shape in enumerate(self.shapes)}
        self.members = [array("l") for _ in self.shapes]  # items of each bucket, with repeats
        self.copies = [array("l") for _ in self.shapes]  # which of an item's repeats each of them is
        self.repeats = array("l", (item.repeats for item in items))
        for index, (item, bucket) in enumerate(zip(items, buckets, strict=True)):
            self.members[number[bucket]].extend([index] * item.repeats)
            self.copies[number[bucket]].extend(range(item.repeats))
        self.steps = sum(-(-len(members) // batch) for members in self.members)
        self.fingerprint = self._fingerprint(items, buckets)
        self._plan: _Plan | None = None

    def __len__(self) -> int:
        """Positions in an epoch."""
        return self.steps * self.batch

    def pick(self, position: int) -> Pick:
        """What is met at a position: step * batch + its place in the step."""
        step, slot = divmod(position, self.batch)
        epoch, step = divmod(step, self.steps)
        plan = self._planned(epoch)
        bucket, first = plan.batches[step]
        entry = plan.entries[bucket][first + slot]
        item = self.members[bucket][entry]
        rounds = (first + slot) // len(self.members[bucket])
        return Pick(item, epoch, rounds * self.repeats[item] + self.copies[bucket][entry], self.shapes[bucket])

    def _planned(self, epoch: int) -> _Plan:
        """The epoch's plan, which stays until another one is asked for."""
        plan = self._plan
        if plan is None or plan.epoch != epoch:
            entries = [self._entries(bucket, epoch) for bucket in range(len(self.shapes))]
            plan = self._plan = _Plan(epoch, entries, self._batches(epoch))
        return plan

    def _entries(self, bucket: int, epoch: int) -> "array[int]":
        count = len(self.members[bucket])
        wanted = -(-count // self.batch) * self.batch
        entries = array("l")
        while len(entries) < wanted:
            entries += shuffled(count, "order", self.seed, epoch, self.shapes[bucket], len(entries) // count)
        return entries[:wanted]

    def _batches(self, epoch: int) -> list[tuple[int, int]]:
        batches = [
            (bucket, first)
            for bucket, members in enumerate(self.members)
            for first in range(0, len(members), self.batch)
        ]
        return [batches[index] for index in shuffled(len(batches), "batches", self.seed, epoch)]

    def _fingerprint(self, items: Sequence[Item], buckets: Sequence[Size]) -> str:
        hashed = blake2b(f"{self.seed} {self.batch}".encode(), digest_size=16)
        for item, bucket in zip(items, buckets, strict=True):
            hashed.update(f"\n{item.digest} {item.repeats} {bucket}".encode())
        return hashed.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan": None}  # each worker plans for itself
