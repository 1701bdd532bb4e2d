"""Short text of a result in a terminal: what it is, and the beginning of its main table.

Problem: the default text of a dataclass prints every table in full, which is hundreds of lines of a
result with thirty columns. Mechanism: one line with the class and its plain fields, one line per
table with its size, and the first rows and columns of the main table, as far as a terminal is wide.

    @dataclass(frozen=True, repr=False)
    class Result(ShortRepr): ...

Limits: columns that do not fit are counted, not shown; the tables have them all.
"""

from dataclasses import fields
from typing import Any

import pandas as pd

WIDTH = 100
"""Columns of a terminal."""
_ROWS = 12
"""Most rows that are shown."""
_TEXT = 40
"""Most characters of a plain field or a cell."""
_MAIN = ("summary", "scores", "table", "curve", "history")
"""Fields that may hold the main table; the first one with rows is shown."""


class ShortRepr:
    """A dataclass of tables and plain values with a short ``repr``; give it ``repr=False``."""

    def __repr__(self) -> str:
        """Return at most about thirty lines of at most `WIDTH` characters."""
        result: Any = self
        values = {one.name: getattr(self, one.name) for one in fields(result) if one.init}
        plain = [
            f"{name}={_shortened(repr(value))}"
            for name, value in values.items()
            if isinstance(value, str | int | float) and value not in ("", 0)
        ]
        lines = _wrapped(f"{type(self).__name__}(", plain)
        tables = {name: one for name, one in values.items() if isinstance(one, pd.DataFrame)}
        lines += [
            f"  .{name}: {len(one):,} rows × {one.shape[1]} columns" for name, one in tables.items()
        ]
        # Only fields: a table that is computed on request may be slow, or fail.
        main = next((name for name in (*_MAIN, *tables) if len(tables.get(name, ()))), None)
        return "\n".join(lines if main is None else [*lines, *_beginning(main, tables[main])])


def _beginning(name: str, table: pd.DataFrame) -> list[str]:
    """Return the lines of the first rows and of the columns that fit."""
    if any(table.index.names):
        table = table.reset_index(allow_duplicates=True)
    head = pd.DataFrame(table.head(_ROWS))
    shown = 0
    lines: list[str] = []
    for n_columns in range(1, head.shape[1] + 1):
        text = head.iloc[:, :n_columns].to_string(
            index=False, max_colwidth=_TEXT, float_format="{:.3g}".format
        )
        wider = [f"  {line}" for line in text.split("\n")]
        if max(map(len, wider)) > WIDTH:
            break
        shown, lines = n_columns, wider
    cut = [
        f"{shown} of {table.shape[1]} columns" * (shown < table.shape[1]),
        f"{_ROWS} of {len(table):,} rows" * (len(table) > _ROWS),
    ]
    note = ", ".join(part for part in cut if part)
    return [f"  .{name}{f' ({note})' if note else ''}:", *lines]


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"


def _wrapped(start: str, parts: list[str]) -> list[str]:
    """Return the parts behind ``start``, in lines that fit."""
    lines = [start]
    for number, part in enumerate(parts):
        ending = ")" if number == len(parts) - 1 else ", "
        if len(lines[-1]) + len(part) + len(ending) > WIDTH:
            lines.append("  ")
        lines[-1] += part + ending
    if not parts:
        lines[-1] += ")"
    return [line.rstrip() for line in lines]
