"""Signals are noted first and act when they come again; so does the end of the time."""

import signal
import time
from collections.abc import Iterator

import pytest

from ldm.training import interrupt
from ldm.training.interrupt import SIGNALS, TIME, Patience


@pytest.fixture
def came() -> Iterator[list[int]]:
    """Signals that reached the handlers outside."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_an_echo_ignored_a_later_one_acts(
    came: list[int], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with Patience() as patience:
        assert patience.reason == 0
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # a launcher's, at once
        assert (patience.reason, came) == (number, [])
        monkeypatch.setattr(interrupt, "_ECHO", 0.0)
        signal.raise_signal(number)
        assert came == [number]
    signal.raise_signal(number)
    assert came == [number, number]


def test_ignored_signals_stay_ignored(came: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Patience() as patience:
        signal.raise_signal(signal.SIGINT)
        assert patience.reason == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_time_is_over_after_its_minutes_and_signals_come_first(came: list[int]) -> None:
    with Patience(minutes=0.1 / 60) as patience:
        assert patience.reason == 0
        time.sleep(0.11)
        assert patience.reason == TIME
        signal.raise_signal(signal.SIGINT)
        assert patience.reason == signal.SIGINT
