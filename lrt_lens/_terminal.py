r"""Tables, lines and errors on a terminal or in a log, as plain text.

    print_table("Scores", frame)
    say("two lines\nof text")
    complain("error: one line")

Problem: a name may hold the markup of rich or terminal escapes, and an output may be closed or
full. Mechanism: every text passes through `lrt_lens._messages`, and `drop_output` gives up what
cannot be written.

Limits: a table is as wide as the terminal, and 80 columns in a log.
"""

import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lrt_lens._messages import lines, one_line, printable

if TYPE_CHECKING:
    import pandas as pd


class PlainFormatter(logging.Formatter):
    """A format of log records without terminal escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text whose line feeds stay."""
        return lines(super().format(record))


def open_closed_streams() -> None:
    """Replace streams that the caller closed, so that nothing fails when it is printed.

    Otherwise the next file that is opened would get the number of the stream.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def drop_output() -> None:
    """Let what is left in the buffer of a closed or full output go nowhere."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python would try again at its end, and print a traceback.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def print_table(title: str, frame: "pd.DataFrame") -> None:
    """Print a table, numbers with three digits."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A Text is printed as it is; rich would read [bold] in a string as markup.
    table = Table(title=Text(printable(title)), box=SIMPLE, padding=0, collapse_padding=True)
    for column in frame.columns:
        # dtype.kind is f for floats and i for integers.
        side = "right" if frame[column].dtype.kind in "fi" else "left"
        table.add_column(Text(printable(column)), overflow="fold", justify=side)
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(printable(_cell(value))) for value in row))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        # NaN (unequal to itself) is shown as an empty cell.
        return "" if value != value else f"{value:.3g}"
    return str(value)


def say(text: str) -> None:
    """Print lines of text."""
    sys.stdout.write(f"{lines(text)}\n")


def complain(text: str) -> None:
    """Print one line on the error output."""
    with suppress(OSError):
        sys.stderr.write(f"{one_line(text)}\n")
