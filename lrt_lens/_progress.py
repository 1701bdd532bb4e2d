"""Progress bars that suit a terminal, a notebook and a log.

Problem: a bar that redraws itself fills a log with carriage returns and escape codes, and the name
of a vector or a model may hold escapes too. Mechanism: in a terminal and in a notebook the bar is
that of tqdm; anywhere else a line is written every `LOG_SECONDS`, and none for what is done sooner.

    for arm in tqdm(arms, desc="steer", disable=not progress, leave=False): ...

Limits: a loop that is stuck writes no line.
"""

import re
import sys
from typing import Any

from tqdm import auto
from tqdm import tqdm as plain_tqdm

from lrt_lens._messages import printable

LOG_SECONDS = 30.0
"""Seconds between two lines of a bar in a log."""


class _Lines:
    """A file that receives each state of a bar as a line."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        shown = printable(re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\r\n]", "", text).strip())
        if shown and sys.stderr is not None:
            sys.stderr.write(f"{shown}\n")

    def flush(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()


def tqdm(*items: Any, desc: str | None = None, disable: bool = False, **options: Any) -> Any:
    """Return the bar of tqdm with these options, or one that writes lines into a log."""
    shown = None if desc is None else printable(desc)
    is_notebook = any("notebook" in kind.__module__ for kind in auto.tqdm.__mro__)
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if disable or is_notebook or is_terminal:
        return auto.tqdm(*items, desc=shown, disable=disable, **options)
    quiet = {"mininterval": LOG_SECONDS, "maxinterval": 2 * LOG_SECONDS, "delay": LOG_SECONDS}
    lines: Any = _Lines()
    return plain_tqdm(
        *items,
        desc=shown,
        file=lines,
        ascii=True,
        dynamic_ncols=False,
        ncols=80,
        **quiet,
        **options,
    )
