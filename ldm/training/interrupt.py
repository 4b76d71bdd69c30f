"""Ctrl-C during training waits for the end of the step, so that there is a state to keep."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Patience:
    """While in use, the first Ctrl-C only sets `asked`; a second one interrupts as always."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Patience:
        self._mine = threading.current_thread() is threading.main_thread()
        if self._mine:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)
