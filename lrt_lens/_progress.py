"""Progress bars that suit a terminal, a notebook and a log.

Problem: a bar that redraws itself fills a log with carriage returns and escape codes, and the name
of a vector or a model may hold escapes too. Mechanism: in a terminal and in a notebook the bar is
that of tqdm; anywhere else all bars together, however they are nested, write one line every
`LOG_SECONDS`, none for what is done sooner, and one at the end of each that stays (``leave``).

    for arm in tqdm(arms, desc="steer", disable=not progress, leave=False): ...

Limits: a loop that is stuck writes no line. Of nested bars, the first to move on writes the line.
"""

import math
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

from tqdm import auto
from tqdm import tqdm as plain_tqdm

from lrt_lens._log_stream import is_log
from lrt_lens._messages import printable

LOG_SECONDS = 30.0
"""Seconds between two lines of a bar in a log."""


@dataclass
class _Log:
    """Time at which any bar of this process last wrote a line, by the clock of `time.monotonic`."""

    written: float = -math.inf


_LOG = _Log()


@dataclass
class _Lines:
    """A file that receives the states of a bar, and writes those that are due as lines."""

    encoding = "utf-8"
    is_last: bool = False
    """True while the bar writes its last state, which is always due."""

    def write(self, text: str) -> None:
        shown = printable(re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\r\n]", "", text).strip())
        now = time.monotonic()
        is_due = self.is_last or now - _LOG.written >= LOG_SECONDS
        if shown and is_due and sys.stderr is not None:
            sys.stderr.write(f"{shown}\n")
            _LOG.written = now

    def flush(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()


class _LogBar(plain_tqdm):
    """A bar that writes lines."""

    def __init__(self, *items: Any, **options: Any) -> None:
        self.lines = _Lines()
        super().__init__(*items, file=self.lines, **options)

    def close(self) -> None:
        """Write the last state, if the bar stays."""
        self.lines.is_last = True
        super().close()


def tqdm(*items: Any, desc: str | None = None, disable: bool = False, **options: Any) -> Any:
    """Return the bar of tqdm with these options, or one that writes lines into a log."""
    shown = None if desc is None else printable(desc)
    if disable or not is_log():
        return auto.tqdm(*items, desc=shown, disable=disable, **options)
    quiet = {"mininterval": LOG_SECONDS, "maxinterval": 2 * LOG_SECONDS, "delay": LOG_SECONDS}
    return _LogBar(
        *items, desc=shown, ascii=True, dynamic_ncols=False, ncols=80, **quiet, **options
    )
