"""How objects show themselves in a notebook: small tables that follow the notebook's own theme.

Problem: a researcher reads results in JupyterLab, VS Code or a web page, in a light or a dark
theme. Mechanism: plain HTML with inline styles that name no colour but `currentColor`, so that
text, lines and shades are those of the page around; no script, no style sheet, nothing from the
network. Every text is escaped: names of models and hook points may hold anything.

Example:
    from lrt_lens._repr_html import card, facts, table

    card("Stitch", facts({"source": "blocks.2.hook_resid_post", "R²": 0.62}), table(grid.scores))

Limits: for glances. A long table is cut, with a line that says how many rows there are; the whole
of it is a `pandas.DataFrame` of the object.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape as escape_html
from numbers import Integral, Real

import pandas as pd

escape = partial(escape_html, quote=False)
"""For text between tags, the only place where names go."""
MAX_ROWS = 24
"""A table shows so many rows; the rest is counted."""
_LINE = "1px solid color-mix(in srgb, currentColor 25%, transparent)"
_BOX = "max-width:100%;overflow-x:auto;margin:.25em 0"
_TABLE = "border-collapse:collapse;margin:0;font-variant-numeric:tabular-nums;background:transparent;color:inherit"
_CELL = "padding:.2em .7em;white-space:nowrap;background:transparent;color:inherit;border:0"
_DARKEST = 35
"""Per cent of the text's colour behind a number of a heat map: black on it has a contrast of 8.6,
white on its dark twin 5.9.
"""


def card(title: str, *parts: str) -> str:
    """HTML of an object: its name, then parts made by the functions below (empty ones are left
    out).
    """
    return f'<div style="max-width:100%"><div style="font-weight:600">{escape(title)}</div>{"".join(part for part in parts if part)}</div>'


def note(text: str) -> str:
    """A sentence under or over a table."""
    return (
        f'<div style="opacity:.8;margin:.25em 0;max-width:60em">{escape(text)}</div>'
        if text
        else ""
    )


def facts(values: Mapping[str, object]) -> str:
    """A row a fact, its name at the left; a fact that is None is left out."""
    rows = "".join(
        f'<tr style="background:transparent">{_head(name, scope="row")}<td style="{_CELL};text-align:left">{escape(format_value(value))}</td></tr>'
        for name, value in values.items()
        if value is not None
    )
    return _boxed(f"<tbody>{rows}</tbody>")


def table(frame: pd.DataFrame, *, digits: int = 3, max_rows: int = MAX_ROWS) -> str:
    """The table with rounded numbers, an interval beside its value in one cell, as in ``0.52 [0.41,
    0.60]``.

    An interval is a pair of neighbouring columns: ``x_low``, ``x_high`` belong to column ``x``,
    others to the column before them. Columns that hold nothing at all are left out; the index is
    shown where it has a name.
    """
    if any(frame.index.names):
        frame = frame.reset_index(allow_duplicates=True)
    columns = [
        (name, places)
        for name, places in _columns(frame)
        if not len(frame) or not _is_empty(frame.iloc[:, places[0]])
    ]
    right = [pd.api.types.is_numeric_dtype(frame.iloc[:, places[0]]) for _, places in columns]
    head = "".join(
        _head(name, right=numeric) for (name, _), numeric in zip(columns, right, strict=True)
    )
    rows = "".join(
        f'<tr style="background:transparent;border-top:{_LINE}">'
        + "".join(
            _cell(_text([row[i] for i in places], digits), right=numeric)
            for (_, places), numeric in zip(columns, right, strict=True)
        )
        + "</tr>"
        for row in frame.head(max_rows).itertuples(index=False, name=None)
    )
    cut = f"{max_rows} of {len(frame)} rows." if len(frame) > max_rows else ""
    return _boxed(
        f'<thead><tr style="background:transparent">{head}</tr></thead><tbody>{rows}</tbody>'
    ) + note(cut)


def heat_table(frame: pd.DataFrame, *, corner: str = "", digits: int = 2) -> str:
    """A matrix of numbers, rows and columns by their labels, each shaded between the smallest (not
    at all) and the largest.

    ``corner`` says what rows and columns are. NaN cells stay empty.
    """
    values = frame.to_numpy(dtype=float)
    known = values[values == values]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    head = _head(corner) + "".join(_head(str(name), right=True) for name in frame.columns)
    rows = "".join(
        f'<tr style="background:transparent">{_head(str(name), scope="row")}'
        + "".join(_shaded(v, low, high, digits) for v in row)
        + "</tr>"
        for name, row in zip(frame.index, values.tolist(), strict=True)
    )
    return _boxed(
        f'<thead><tr style="background:transparent">{head}</tr></thead><tbody>{rows}</tbody>'
    )


def format_value(value: object, *, digits: int = 3) -> str:
    """Returns a cell's text: whole numbers with commas, others to `digits` significant digits,
    "n/a" where there is none.
    """
    if (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, Real) and value != value)
    ):
        return "n/a"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return f"{int(value):,}"
    number = float(value)
    return (
        f"{number:.{digits}g}"
        if number and not 1e-3 <= abs(number) < 1e5
        else _fixed(number, digits)
    )


# ---------------------------------------------------------------- parts


def _fixed(number: float, digits: int) -> str:
    """Returns `number` to the digits given, never in exponent form, keeping trailing zeros: 0.50,
    not 0.5.
    """
    text = f"{number:#.{digits}g}" if number else "0"
    return f"{number:.0f}" if "e" in text else text.rstrip(".")


def _is_empty(column: pd.Series) -> bool:
    return bool((column.isna() | column.eq("")).all())


def _columns(frame: pd.DataFrame) -> list[tuple[str, tuple[int, ...]]]:
    """(heading, places of its cells) in order: of a value, of a value with both ends of its
    interval, or of an interval alone.
    """
    names = [str(name) for name in frame.columns]
    ends: dict[int, tuple[int, int]] = {}
    alone: dict[int, str] = {}
    taken: set[int] = set()
    for place in range(len(names) - 1):
        low, high = (
            re.fullmatch(r"(.*?)_?low", names[place]),
            re.fullmatch(r"(.*?)_?high", names[place + 1]),
        )
        if low is None or high is None or low[1] != high[1]:
            continue
        owner = names.index(low[1]) if low[1] in names else place - 1
        taken |= {place, place + 1}
        if owner < 0 or owner in taken or owner in ends:
            alone[place] = low[1]
        else:
            ends[owner] = (place, place + 1)
    shown = [place for place in range(len(names)) if place not in taken or place in alone]
    return [
        (
            alone.get(place, names[place]),
            (place, place + 1) if place in alone else (place, *ends.get(place, ())),
        )
        for place in shown
    ]


def _text(cells: Sequence[object], digits: int) -> str:
    texts = [format_value(cell, digits=digits) for cell in cells]
    value, interval = (texts[:1], texts[1:]) if len(texts) != 2 else ([], texts)
    return " ".join(
        [*value, *([f"[{', '.join(interval)}]"] if interval and "n/a" not in interval else [])]
    )


def _head(name: str, *, right: bool = False, scope: str = "col") -> str:
    align = "right" if right else "left"
    return f'<th scope="{scope}" style="{_CELL};font-weight:600;text-align:{align}">{escape(name)}</th>'


def _cell(text: str, *, right: bool) -> str:
    return f'<td style="{_CELL};text-align:{"right" if right else "left"}">{escape(text)}</td>'


def _shaded(value: float, low: float, high: float, digits: int) -> str:
    if value != value:
        return f'<td style="{_CELL}"></td>'
    share = (value - low) / (high - low) if high > low else 0.0
    shade = f"background:color-mix(in srgb, currentColor {_DARKEST * share:.0f}%, transparent)"
    return f'<td style="{_CELL};text-align:right;{shade}">{value:.{digits}f}</td>'


def _boxed(rows: str) -> str:
    return f'<div style="{_BOX}"><table style="{_TABLE}">{rows}</table></div>'
