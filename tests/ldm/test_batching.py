"""Batches in parts: the whole is what it was, memory is measured, and running out of it halves the parts."""

import sys

import pytest
import torch
from torch import Tensor

from ldm import batching
from ldm.batching import Batched, Batching, Memory
from ldm.conditioning import Conditioning

CPU = torch.device("cpu")


FULL = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
)


class Work:
    """Rows plus one, in parts of at most `fits` rows; remembers the parts it was given."""

    def __init__(self, x: Tensor, fits: int = 1000, error: Exception = FULL[0]) -> None:
        self.x, self.fits, self.error = x, fits, error
        self.parts: list[tuple[int, int]] = []

    def __call__(self, rows: slice) -> Tensor:
        self.parts.append((rows.start, rows.stop))
        if rows.stop - rows.start > self.fits:
            raise self.error
        return self.x[rows] + 1


def metered(monkeypatch: pytest.MonkeyPatch, each: int | None, free: int = 1000) -> None:
    """Memory of which a pass of one row takes `each`."""
    readings = iter([Memory(100, 100, free), Memory(100, 100 + (each or 0), free)] * 9)
    monkeypatch.setattr(batching, "memory", lambda _: None if each is None else next(readings))


@pytest.mark.parametrize(
    ("each", "parts"),
    [
        (40, [(0, 7)]),  # half of 1000 holds 12
        (200, [(0, 2), (2, 4), (4, 6), (6, 7)]),
        (9999, [(i, i + 1) for i in range(7)]),
        (None, [(0, 7)]),
    ],
)
def test_parts_are_as_large_as_fits(monkeypatch: pytest.MonkeyPatch, each: int | None, parts: list[int]) -> None:
    metered(monkeypatch, each)
    work, run = Work(torch.arange(7.0)), Batching()
    for _ in range(2):
        assert torch.equal(run(work, 7, CPU), work.x + 1)
    assert work.parts == [(0, 1), *parts, *parts]  # measured once, and every call in the same parts


def test_one_row_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "memory", lambda _: pytest.fail("measured"))
    work = Work(torch.arange(1.0))
    assert torch.equal(Batching()(work, 1, CPU), work.x + 1)
    assert work.parts == [(0, 1)]


@pytest.mark.parametrize("error", FULL)
def test_running_out_of_memory_halves_the_parts_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    metered(monkeypatch, 1)
    work, run = Work(torch.arange(11.0), fits=3, error=error), Batching()
    assert torch.equal(run(work, 11, CPU), work.x + 1)
    assert work.parts == [(0, 1), (0, 11), (0, 5), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]
    work.parts.clear()
    run(work, 11, CPU)
    assert len(work.parts) == 6  # without trying again


def test_one_row_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    metered(monkeypatch, 1)
    with pytest.raises(torch.OutOfMemoryError):
        Batching()(Work(torch.arange(4.0), fits=0), 4, CPU)


def test_other_errors_are_not_taken_for_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    metered(monkeypatch, 1)
    work = Work(torch.arange(4.0), fits=0, error=RuntimeError("mat1 and mat2"))
    with pytest.raises(RuntimeError, match="mat1"):
        Batching()(work, 4, CPU)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_network_in_parts_is_the_network(most: int, k: int, by_row: bool) -> None:
    x, t = torch.randn(5, 2, 3, 4), torch.arange(5.0) if by_row else 3.0
    cond = Conditioning(torch.randn(5 * k, 2, 1), mask=torch.rand(5 * k, 2) > 0.5, vector=torch.randn(5 * k, 2))
    seen: list[Conditioning] = []

    def network(x: Tensor, t: Tensor | float, cond: Conditioning) -> Tensor:
        seen.append(cond)
        rows = len(cond.context) // len(x)
        assert cond.mask is not None
        assert cond.vector is not None
        t = t.repeat(rows) if isinstance(t, Tensor) else torch.tensor(t)
        words = (cond.context[..., 0] * cond.mask).sum(1) + cond.vector[:, 0] + t
        return x.repeat(rows, 1, 1, 1) * words[:, None, None, None]

    parts = Batching()
    parts.most = most
    batched = Batched(network, parts)
    torch.testing.assert_close(batched(x, t, cond), network(x, t, cond), rtol=0, atol=0)
    seen.clear()
    batched(x, t, cond)
    again, seen[:] = list(seen), []
    batched(x, t, cond)
    assert [id(one) for one in seen] == [id(one) for one in again]  # so that a plan knows them again


def test_memory_of_this_process() -> None:
    before = batching.memory(CPU)
    held = torch.ones(2**25)  # 128 MiB
    during = batching.memory(CPU)
    assert before is not None
    assert during is not None
    assert during.used - before.used > 0.5 * held.nbytes  # the system may take other pages back meanwhile
    assert during.peak >= during.used - 2**20
    del held
    after = batching.memory(CPU)
    assert after is not None
    assert after.peak >= during.used - 2**20
    assert 0 < after.free < 2**50
    batching.forget_peak(CPU)
    anew = batching.memory(CPU)
    assert anew is not None
    assert anew.peak < during.used - 2**26 or not sys.platform.startswith("linux")
