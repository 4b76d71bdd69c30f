"""Ctrl-C, SIGTERM and the end of the time wait for the end of a training step, so that there is a state to keep."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import gather

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TIME = 1  # the reason that is no signal, and less than each of them
_ECHO = 1.0  # seconds in which launchers pass on what the terminal has sent already


class Interrupted(KeyboardInterrupt):
    """A signal ended training, and its state is kept. `signal` is the number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number


class Patience:
    """While in use, the first Ctrl-C or SIGTERM is only noted; a later one acts as always.

    minutes: from now on, until the time is over.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._signal, self._since = 0, 0.0
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    @property
    def reason(self) -> int:
        """Why to stop: the number of a signal, `TIME`, or 0 where there is no reason."""
        over = self._end is not None and time.monotonic() >= self._end
        return self._signal or (TIME if over else 0)

    def __enter__(self) -> Patience:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self._signal:
            self._signal, self._since = number, time.monotonic()
        elif time.monotonic() > self._since + _ECHO:
            self.__exit__()
            signal.raise_signal(number)


def agreed(reason: int) -> int:
    """The weightiest reason of all processes, which all of them have to ask for at the same point."""
    state = PartialState()
    if state.num_processes == 1:
        return reason
    return int(gather(torch.tensor([reason], device=state.device)).max())


def deaf(_worker: int = 0) -> None:
    """For processes that make examples: a first signal to the whole group is for the one they work for."""
    for number in SIGNALS:
        signal.signal(number, _once)


def _once(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
