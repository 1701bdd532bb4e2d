"""HTML of objects in a notebook: small tables in the notebook's own colours.

Problem: results are read in JupyterLab, VS Code or a web page, with a light or a dark theme.
Mechanism: plain HTML with inline styles, whose only colour is `currentColor`. Text, lines and
shades therefore have the colours of the surrounding page. There is no script, no style sheet and no
network access. Every text is escaped, because names of models and hook points can contain anything.

Example:
    from lrt_lens._repr_html import card, facts, table

    card("Stitch", facts({"source": "blocks.2.hook_resid_post", "R²": 0.62}), table(grid.scores))

Limits: a long table is cut after `MAX_ROWS` rows, and a note gives the number of all rows. The
object's `pandas.DataFrame` has them all. A table that is wider than most pages has a note which
says that it scrolls, because many systems hide scroll bars; the width is estimated from the texts.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape as escape_html
from itertools import pairwise
from numbers import Integral, Real

import pandas as pd

escape = partial(escape_html, quote=False)
"""Escape text between tags; names are never written into an attribute."""
MAX_ROWS = 24
"""Largest number of rows that a table shows."""
# Styles are inline: notebooks remove style sheets of an output, and themes set their own colours.
_LINE = "1px solid color-mix(in srgb, currentColor 25%, transparent)"
_BOX = "max-width:100%;overflow-x:auto;margin:.25em 0"
_TABLE = (
    "border-collapse:collapse;margin:0;font-variant-numeric:tabular-nums;background:transparent;"
    "color:inherit"
)
_CELL = "padding:.2em .7em;white-space:nowrap;background:transparent;color:inherit;border:0"
_DARKEST = 35
"""Darkest shade of a heat map, in per cent of the text's colour.

Its contrast with the text is 8.6 for black text and 5.9 for white text.
"""
_CLEAR = "background:transparent"
_WIDE = 120
"""Characters of a row, with `_GAP` per column, from which on a table may not fit its page."""
_GAP = 2
"""Characters that the space between two columns is wide."""


def names_in_tables(source: str, target: str) -> tuple[str, str]:
    """Return the names of two models as tables show them; equal names get their role."""
    return (f"{source} (source)", f"{target} (target)") if source == target else (source, target)


def card(title: str, *parts: str) -> str:
    """Return the HTML of an object: its title, then parts made by the functions below."""
    head = f'<div style="font-weight:600">{escape(title)}</div>'
    return f'<div style="max-width:100%">{head}{"".join(parts)}</div>'


def note(text: str) -> str:
    """Return the HTML of a sentence above or below a table; nothing for an empty text."""
    if not text:
        return ""
    return f'<div style="opacity:.8;margin:.25em 0;max-width:60em">{escape(text)}</div>'


def facts(values: Mapping[str, object]) -> str:
    """Return the HTML of a table with one row per fact; a fact that is None is left out."""
    rows = "".join(
        f'<tr style="{_CLEAR}">{_head(name, scope="row")}{_cell(format_value(value))}</tr>'
        for name, value in values.items()
        if value is not None
    )
    return _boxed(f"<tbody>{rows}</tbody>")


def table(frame: pd.DataFrame, *, digits: int = 3, max_rows: int = MAX_ROWS) -> str:
    """Return the HTML of a table of rounded numbers.

    A value and its interval share one cell, as in ``0.52 [0.41, 0.60]``. An interval is a pair of
    neighbouring columns: ``x_low`` and ``x_high`` belong to column ``x``, ``low`` and ``high`` to
    the column before them. Empty columns are left out; the index is shown if it has a name.
    """
    if any(frame.index.names):
        frame = frame.reset_index(allow_duplicates=True)
    columns = [
        (name, cells)
        for name, cells in _columns(frame)
        if not len(frame) or not _is_empty(frame.iloc[:, cells[0]])
    ]
    numeric = [pd.api.types.is_numeric_dtype(frame.iloc[:, cells[0]]) for _, cells in columns]
    head = "".join(
        _head(name, right=right) for (name, _), right in zip(columns, numeric, strict=True)
    )
    texts = [
        [_text([row[i] for i in cells], digits) for _, cells in columns]
        for row in frame.head(max_rows).itertuples(index=False, name=None)
    ]
    rows = "".join(
        f'<tr style="{_CLEAR};border-top:{_LINE}">'
        + "".join(_cell(text, right=right) for text, right in zip(row, numeric, strict=True))
        + "</tr>"
        for row in texts
    )
    # A cut table looks complete, so a note gives the number of all rows.
    cut = f"{max_rows} of {len(frame)} rows." if len(frame) > max_rows else ""
    widths = _widths([[name for name, _ in columns], *texts])
    return _scroll_note(widths) + _with_head(head, rows) + note(cut)


def heat_table(frame: pd.DataFrame, *, corner: str = "", digits: int = 2) -> str:
    """Return the HTML of a matrix, each cell shaded by its number.

    The smallest number is not shaded. ``corner`` says what rows and columns are. NaN cells are
    empty.
    """
    values = frame.to_numpy(dtype=float)
    known = values[values == values]  # NaN is not equal to itself
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    head = _head(corner) + "".join(_head(str(name), right=True) for name in frame.columns)
    rows = "".join(
        f'<tr style="{_CLEAR}">{_head(str(name), scope="row")}'
        + "".join(_shaded(value, low, high, digits) for value in row)
        + "</tr>"
        for name, row in zip(frame.index, values.tolist(), strict=True)
    )
    names = [corner, *map(str, frame.columns)]
    number = f"-0.{'0' * digits}"
    return _scroll_note(_widths([names, [number] * len(names)])) + _with_head(head, rows)


def format_value(value: object, *, digits: int = 3) -> str:
    """Return the text of a cell.

    Whole numbers have commas, others ``digits`` significant digits; None and NaN are "n/a".
    """
    missing = value is None or value is pd.NA or value is pd.NaT
    if missing or (isinstance(value, Real) and value != value):
        return "n/a"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return f"{int(value):,}"
    number = float(value)
    # Exponents only where fixed notation needs many digits: below 0.001 and from 100,000 on.
    if number and not 1e-3 <= abs(number) < 1e5:
        return f"{number:.{digits}g}"
    return _fixed(number, digits)


# --------------------------------------------------------------------------------------- parts


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column in characters, from the texts of all rows."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _scroll_note(widths: Sequence[int]) -> str:
    """Return a note above a table of columns so wide that it may scroll; else nothing."""
    if sum(width + _GAP for width in widths) <= _WIDE:
        return ""
    return note(f"← {len(widths)} columns: if some are cut off, scroll the table sideways →")


def _fixed(number: float, digits: int) -> str:
    """Return a number with ``digits`` significant digits, without exponent: 0.50, not 0.5."""
    # The flag # keeps trailing zeros, but 1234 with three digits becomes 1.23e+03.
    text = f"{number:#.{digits}g}" if number else "0"
    return f"{number:.0f}" if "e" in text else text.rstrip(".")


def _is_empty(column: pd.Series) -> bool:
    return bool((column.isna() | column.eq("")).all())


def _columns(frame: pd.DataFrame) -> list[tuple[str, tuple[int, ...]]]:
    """Return (heading, column numbers of its cells) in order.

    The numbers are those of a value, of a value and both ends of its interval, or of both ends of
    an interval that belongs to no column.
    """
    names = [str(name) for name in frame.columns]
    ends: dict[int, tuple[int, int]] = {}
    alone: dict[int, str] = {}
    bounds: set[int] = set()
    for column, (name, following) in enumerate(pairwise(names)):
        low = re.fullmatch(r"(.*?)_?low", name)
        high = re.fullmatch(r"(.*?)_?high", following)
        if low is None or high is None or low[1] != high[1]:
            continue
        # The column with the interval's name owns it, else the column to its left.
        owner = names.index(low[1]) if low[1] in names else column - 1
        bounds |= {column, column + 1}
        if owner < 0 or owner in bounds or owner in ends:
            alone[column] = low[1]
        else:
            ends[owner] = (column, column + 1)
    headings: list[tuple[str, tuple[int, ...]]] = []
    for column, name in enumerate(names):
        if column in alone:
            headings.append((alone[column], (column, column + 1)))
        elif column not in bounds:
            headings.append((name, (column, *ends.get(column, ()))))
    return headings


def _text(cells: Sequence[object], digits: int) -> str:
    texts = [format_value(cell, digits=digits) for cell in cells]
    # One cell is a value, two are an interval, three are a value and its interval.
    value, interval = (texts[:1], texts[1:]) if len(texts) != 2 else ([], texts)
    if not interval or "n/a" in interval:
        return " ".join(value)
    return " ".join([*value, f"[{', '.join(interval)}]"])


def _head(name: str, *, right: bool = False, scope: str = "col") -> str:
    style = f"{_CELL};font-weight:600;text-align:{'right' if right else 'left'}"
    return f'<th scope="{scope}" style="{style}">{escape(name)}</th>'


def _cell(text: str, *, right: bool = False) -> str:
    return f'<td style="{_CELL};text-align:{"right" if right else "left"}">{escape(text)}</td>'


def _shaded(value: float, low: float, high: float, digits: int) -> str:
    if value != value:
        return f'<td style="{_CELL}"></td>'
    # Shade = darkest · (value − min) / (max − min)
    share = (value - low) / (high - low) if high > low else 0.0
    shade = f"background:color-mix(in srgb, currentColor {_DARKEST * share:.0f}%, transparent)"
    return f'<td style="{_CELL};text-align:right;{shade}">{value:.{digits}f}</td>'


def _with_head(head: str, rows: str) -> str:
    return _boxed(f'<thead><tr style="{_CLEAR}">{head}</tr></thead><tbody>{rows}</tbody>')


def _boxed(rows: str) -> str:
    return f'<div style="{_BOX}"><table style="{_TABLE}">{rows}</table></div>'
