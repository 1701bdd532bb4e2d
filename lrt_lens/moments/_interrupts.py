"""Handlers of Ctrl-C, SIGTERM and SIGHUP that wait while data is being changed.

Problem: a signal (schedulers and torchrun send SIGTERM, a closed terminal SIGHUP) that arrives
while rows are added leaves half of a block in the moments. Mechanism: the signals become exceptions
at once, except within `Interrupts.held`, which raises the exception when it ends. SIGHUP stays
ignored where it is, as under nohup.

    interrupts = Interrupts()
    interrupts.install()
    with interrupts.held():
        moments.add_block(part, x, y)

Limits: Python lets only the main thread set signal handlers; in other threads this does nothing.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HANGUP = getattr(signal, "SIGHUP", None)
"""Signal of a closed terminal; None on Windows."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM, *([] if _HANGUP is None else [_HANGUP]))


class Interrupts:
    """Handlers of SIGINT, SIGTERM and SIGHUP; no effect outside the main thread."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._is_held = False
        self._pending: int | None = None

    def install(self) -> None:
        """Install the handlers and remember those that they replace."""
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._on_signal)
                for number in _NUMBERS
                if not (number == _HANGUP and signal.getsignal(number) is signal.SIG_IGN)
            }

    def uninstall(self) -> None:
        """Restore the handlers that `install` replaced."""
        while self._before:
            signal.signal(*self._before.popitem())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay a first signal to the end of this context; a second one is raised at once."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        # Not in `finally`: an exception of the body takes precedence over the signal.
        if self._pending is not None:
            _raise(self._pending)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # A second signal does not wait, so that a body that hangs can be ended.
        if not self._is_held or self._pending is not None:
            self._pending = None
            _raise(number)
        self._pending = number


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    # Shells report a process that a signal ended with the exit status 128 + signal number.
    raise SystemExit(128 + number)
