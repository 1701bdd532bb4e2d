"""Model cards: the README.md of a hub repository, with front matter that the hub accepts.

    card_text("Vector `mood`", {"Measured": markdown_table(table)}, CardHead(tags=("steering",)))

Problem: a card is read by people who never saw the run, and its front matter by a hub that refuses
an invalid one. Mechanism: the front matter is made by `huggingface_hub.ModelCardData`, and numbers
are written so that they can be read (`shown`): 50,880 tokens instead of 5.088e+04, and three
decimals for shares. Names are shown as code, so that no name can change the layout.

Limits: whether a base model exists on the hub is not asked.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd

from lrt_lens._hub import HUB_ID
from lrt_lens._messages import printable

LIBRARY = "lrt_lens"
"""Name of this library in the front matter."""
_OUR_CARD = re.compile(r"---\n(?:(?!---\n).*\n)*?library_name: lrt[_-]lens\n")
"""Start of a card of this package; earlier versions named the library with a hyphen."""
NO_LICENCE = "Not stated. The licences of the base models apply to what was computed from them."
"""Text of a card whose author has stated no licence."""


@dataclass(frozen=True)
class CardHead:
    """Front matter of a card, and the repository that its code names."""

    base_models: tuple[str, ...] = ()
    """Ids of the models that the artefact belongs to, as the hub knows them."""
    tags: tuple[str, ...] = ()
    """Words by which the hub finds it."""
    licence: str | None = None
    """Identifier of the licence as the hub lists them, such as ``"apache-2.0"``; None states
    none."""


def card_text(title: str, sections: Mapping[str, str], head: CardHead) -> str:
    """Return a whole card: front matter, title, sections in their order, and the licence.

    The section named ``""`` has no heading.
    """
    from huggingface_hub import ModelCardData

    known: dict[str, Any] = {"base_model": list(head.base_models)} if head.base_models else {}
    if head.base_models:
        # Without it the hub takes every repository for a fine-tuned copy of its base model.
        known["base_model_relation"] = "adapter"
    if head.licence:
        known["license"] = head.licence
    data = ModelCardData(library_name=LIBRARY, tags=[LIBRARY, *head.tags], **known)
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}"]
    licence = f"{code(head.licence)}." if head.licence else NO_LICENCE
    for heading, text in [*sections.items(), ("Licence", licence)]:
        parts.append(f"## {heading}\n\n{text}" if heading else text)
    return "\n\n".join(parts) + "\n"


def is_our_card(path: Path) -> bool:
    """Return whether a file is a card that this package wrote: its front matter says so."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return _OUR_CARD.match(text) is not None


def hub_ids(names: Iterable[str | None]) -> tuple[str, ...]:
    """Return the names that have the form of a hub id, each once."""
    return tuple(dict.fromkeys(name for name in names if name and HUB_ID.fullmatch(name)))


def code(name: object) -> str:
    """Return a name as Markdown that shows it as it is, also in a cell of a table."""
    text = printable(str(name)).replace("`", "'").replace("|", "/")
    return f"`{text}`"


def shown(value: Any, *, digits: int = 3) -> str:
    """Return a value for people: thousands separated, three decimals, and a dash for none.

    Whole numbers are shown as such, also if they are stored as floats of at least 1,000. Numbers of
    less than a thousandth have three significant digits.
    """
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        number = float(value)
        if math.isinf(number):
            return "∞" if number > 0 else "−∞"
        if abs(number) >= 1000:
            return f"{number:,.0f}".replace("-", "−")
        tiny = 0 < abs(number) < 10**-digits
        return (f"{number:.{digits}g}" if tiny else f"{number:.{digits}f}").replace("-", "−")
    return code(value) if str(value) else "–"


def interval(low: float, high: float) -> str:
    """Return an interval as text; a dash if one of its ends is not known."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{shown(low)} to {shown(high)}"


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a tidy table in Markdown, with numbers as `shown` writes them.

    Columns ``x_low`` and ``x_high`` (or ``low`` and ``high``) are joined into one, ``95% of x``.
    Columns without any value are left out.
    """
    table = table.loc[:, (table.notna() & (table != "")).any()]
    header, columns = [], []
    for name in map(str, table.columns):
        stem, _, end = name.rpartition("_")
        partner = name[: -len("low")] + "high"
        if end == "low" and partner in table.columns:
            header.append(f"95% of {stem}" if stem else "95%")
            ends = zip(table[name], table[partner], strict=True)
            columns.append([_ends(low, high) for low, high in ends])
        elif end == "high" and name[: -len("high")] + "low" in table.columns:
            continue
        else:
            header.append(name)
            columns.append([shown(value) for value in table[name]])
    return markdown_rows(header, list(zip(*columns, strict=True)))


def _ends(low: Any, high: Any) -> str:
    is_number = isinstance(low, Real) and isinstance(high, Real)
    return interval(float(low), float(high)) if is_number else "–"
