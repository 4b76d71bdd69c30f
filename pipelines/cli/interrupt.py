"""Ctrl-C: once stops with nothing half-written, twice kills."""

import signal
import threading
from types import FrameType
from typing import Self


class Stop(KeyboardInterrupt):
    """Ctrl-C was pressed, or another signal came; `status` is what the command then exits with.

    A class of its own: where a plain KeyboardInterrupt has once passed through code that a C extension runs, as it may
    while torch is imported, `python -m` dies of the signal in the end, even though it was caught.
    """

    def __init__(self, text: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.status = 128 + number


class CtrlC:
    """While in use, Ctrl-C raises `Stop`, and `pressed` remembers it where a library has swallowed the exception."""

    def __init__(self) -> None:
        self.pressed = False
        self._installed = False

    def __enter__(self) -> Self:
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored, as under nohup
            signal.signal(signal.SIGINT, self._press)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raises `Stop` if Ctrl-C was pressed before."""
        if self.pressed:
            raise Stop

    def _press(self, _signal: int, _frame: FrameType | None) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise Stop
