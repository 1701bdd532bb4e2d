"""Ctrl-C and SIGTERM (schedulers and torchrun send it) at moments where they do no harm.

Both become exceptions at once, except within ``held()``, whose end they wait for: rows are in the
moments whole or not at all.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Handlers of SIGINT and SIGTERM; outside the main thread, which alone may set them, this does
    nothing.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._is_held = False
        self._pending: int | None = None

    def install(self) -> None:
        """Put the handlers on."""
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._on_signal)
                for number in (signal.SIGINT, signal.SIGTERM)
            }

    def uninstall(self) -> None:
        """Put back what was there."""
        while self._before:
            signal.signal(*self._before.popitem())

    @contextmanager
    def held(self) -> Iterator[None]:
        """While open, a first signal waits; a second one does not."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._pending is not None:
            _raise(self._pending)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self._is_held or self._pending is not None:
            self._pending = None
            _raise(number)
        self._pending = number


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
