"""The order of pictures depends on (seed, position) alone; an epoch meets each, no batch mixes shapes."""

import pickle
import time
from collections import Counter

import pytest

from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.pictures.item import Item
from ldm.data.pictures.order import Order, Pick

SHAPES = ((64, 64), (96, 48), (48, 96))


def order(number: int, batch: int = 0, seed: int = 0) -> tuple[Order, list[Item], list[tuple[int, int]]]:
    """Some items with repeats, in buckets, some of which are smaller than a batch."""
    drawn = Keyed("order", number)
    count = 1 + drawn.bits() % 40
    items = [Item(f"{i}", (), bytes, repeats=drawn.pick((1, 1, 2, 5)), digest=f"{i}") for i in range(count)]
    buckets = [drawn.pick(SHAPES[: 1 + number % 3]) for _ in items]
    return Order(items, buckets, batch or 1 + drawn.bits() % 7, seed), items, buckets


@pytest.mark.parametrize("number", range(30))
def test_an_epoch_meets_every_picture_as_often_as_it_repeats(number: int) -> None:
    ours, items, buckets = order(number)
    for epoch in (0, 1):
        picks = [ours.pick(epoch * len(ours) + p) for p in range(len(ours))]
        met = Counter(pick.item for pick in picks)
        assert {pick.epoch for pick in picks} == {epoch}
        assert set(met) == set(range(len(items)))
        assert len({(pick.item, pick.copy) for pick in picks}) == len(picks)
        assert all(pick.bucket == buckets[pick.item] for pick in picks)
        for shape in set(buckets):
            members = [i for i, bucket in enumerate(buckets) if bucket == shape]
            whole = sum(items[i].repeats for i in members)
            filled = sum(met[i] for i in members)
            assert filled == -(-whole // ours.batch) * ours.batch
            rounds = filled // whole  # a fill goes round before it meets one a second time
            assert all(items[i].repeats * rounds <= met[i] <= items[i].repeats * (rounds + 1) for i in members)


@pytest.mark.parametrize("number", range(30))
def test_no_batch_mixes_shapes(number: int) -> None:
    ours, _, _ = order(number)
    for step in range(3 * ours.steps):
        batch = [ours.pick(step * ours.batch + slot) for slot in range(ours.batch)]
        assert len({pick.bucket for pick in batch}) == 1


@pytest.mark.parametrize("number", range(10))
def test_a_pick_depends_on_nothing_asked_before(number: int) -> None:
    ours, _, _ = order(number)
    whole = [ours.pick(p) for p in range(4 * len(ours))]
    jumps = [Keyed("jump", number, i).bits() % len(whole) for i in range(60)]
    assert [ours.pick(p) for p in jumps] == [whole[p] for p in jumps]
    assert [order(number)[0].pick(p) for p in jumps[:5]] == [whole[p] for p in jumps[:5]]
    copy = pickle.loads(pickle.dumps(ours))
    assert [copy.pick(p) for p in jumps] == [whole[p] for p in jumps]


def test_epochs_and_seeds_differ() -> None:
    ours, other = order(7, batch=2)[0], order(7, batch=2, seed=1)[0]
    epochs = [tuple(ours.pick(e * len(ours) + p).item for p in range(len(ours))) for e in range(20)]
    assert len(set(epochs)) == 20
    assert epochs[0] != tuple(other.pick(p).item for p in range(len(other)))
    assert len({ours.fingerprint, other.fingerprint, order(7, batch=4)[0].fingerprint, order(8)[0].fingerprint}) == 4
    assert ours.fingerprint == order(7, batch=2)[0].fingerprint


def test_every_place_in_an_epoch_is_as_likely() -> None:
    items = [Item(f"{i}", (), bytes, digest=f"{i}") for i in range(6)]
    ours = Order(items, [(64, 64)] * 6, 2, 0)
    first = Counter(ours.pick(6 * epoch).item for epoch in range(3000))
    assert all(abs(first[i] - 500) < 5 * (3000 * 1 / 6 * 5 / 6) ** 0.5 for i in range(6))


def test_a_known_order_stays_what_it_was() -> None:
    """A changed one would change what resumed runs go on with."""
    items = [Item(f"{i}", (), bytes, digest=f"{i}") for i in range(5)]
    ours = Order(items, [(64, 64), (64, 64), (96, 48), (64, 64), (64, 64)], 2, 3)
    assert [ours.pick(p).item for p in range(len(ours))] == [4, 1, 2, 2, 3, 0]
    assert ours.pick(3) == Pick(2, 0, 1, (96, 48))
    assert ours.pick(1) == Pick(1, 0, 0, (64, 64))


def test_large_sets_are_planned_in_linear_time() -> None:
    def seconds(count: int) -> float:
        items = [Item("a", (), bytes)] * count
        ours = Order(items, [SHAPES[i % 3] for i in range(count)], 16, 0)
        begun = time.perf_counter()
        ours.pick(0)
        return time.perf_counter() - begun

    seconds(1000)
    assert seconds(80_000) < 40 * max(seconds(8_000), 1e-3)  # 100 times, if it were quadratic


def test_nothing_to_order() -> None:
    with pytest.raises(ValueError, match="there must be pictures"):
        Order([], [], 4, 0)
