"""A report as one HTML file that loads nothing from the network.

Problem: results are read months later, on another machine or on a phone, by someone who has neither
the notebook nor its packages. Mechanism: a report is a title and sections of blocks (paragraphs,
tables, figures, key numbers, continuations side by side); each block renders itself to HTML, all
text is escaped, figures are stored as JSON and drawn by one inline copy of plotly.js. The page's
content security policy forbids every request, so a missing part cannot be fetched unnoticed.
Colours follow the reader's light or dark setting, in figures too.

Example:
    from lrt_lens.report._html import KeyNumbers, Plot, Section, render_html, write_html

    numbers = KeyNumbers([("R² on held-out documents", 0.62, "null .00, token .21")])
    page = render_html("Stitch report", [Section("Grid", [numbers, Plot(grid_figure(scores))])])
    write_html("report.html", page)

Limits: plotly.js adds about 5 MB to a page with figures (none to one without); without JavaScript
the tables and texts are shown, the figures are not.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from html import escape
from numbers import Real
from pathlib import Path

import pandas as pd

from lrt_lens._files import write_atomically
from lrt_lens._repr_html import format_value
from lrt_lens.figures._plotly import graph_objects
from lrt_lens.figures._template import arm_style
from lrt_lens.report._page import SCRIPT, STYLE


class ReportWriteError(OSError):
    """A report could not be written; the message names the folder and a remedy."""


@dataclass(frozen=True)
class Paragraph:
    """Plain text; blank lines separate paragraphs."""

    text: str
    """Text of the paragraphs, without markup."""


@dataclass(frozen=True)
class Table:
    """A table of numbers and words; a long one is collapsed under its caption."""

    frame: pd.DataFrame
    """Rows to show; the index is shown only if it has a name."""
    caption: str = ""
    """One line above the table, also read by screen readers."""
    digits: int = 3
    """Significant digits of fractional numbers."""
    open_rows: int = 12
    """A table with more rows starts collapsed."""


@dataclass(frozen=True)
class Plot:
    """A plotly figure, as wide as the page."""

    figure: "graph_objects.Figure"
    """The figure; its menus and hover texts work in the page."""
    caption: str = ""
    """Text below the figure that explains it."""
    min_width: int = 0
    """Width in pixels below which the figure scrolls in its own box instead of shrinking."""


@dataclass(frozen=True)
class ContinuationCards:
    """Generated texts side by side: one row per prompt and one card per arm."""

    rows: list[dict[str, str]]
    """Dictionaries with `prompt`, `arm` and `text`.

    Several texts of one prompt and arm share a card; arms keep the order of their first appearance.
    """


@dataclass(frozen=True)
class KeyNumbers:
    """The few most important numbers, as tiles."""

    numbers: list[tuple[str, str | int | float, str]]
    """Triples (label, value, note), one per tile; a number is shown with three significant
    digits."""


Block = Paragraph | Table | Plot | ContinuationCards | KeyNumbers
"""Any part of a section; `render_block` turns it into HTML."""


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading; its title is listed in the table of contents."""

    title: str
    """Heading, and entry in the table of contents."""
    body: list[Block]
    """Blocks in the order of reading."""


def render_html(
    title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = ""
) -> str:
    """Return the whole page as text.

    Args:
        title: heading and window title.
        sections: in the order of reading.
        subtitle: line under the title, such as models, corpus and date.
        footer: line at the end, such as versions and arguments.
    """
    # With the number, two sections of one title have different anchors.
    anchors = [
        f"section-{number}-{_slug(section.title)}"
        for number, section in enumerate(sections, start=1)
    ]
    body = "\n".join(
        _render_section(section, anchor) for section, anchor in zip(sections, anchors, strict=True)
    )
    # plotly.js adds about 5 MB, so it is written only if the page needs it.
    has_figures = any(isinstance(block, Plot) for section in sections for block in section.body)
    scripts = _scripts() if has_figures else ""
    # Everything is inline; no request of any kind is allowed.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="lrt_lens">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{escape(title)}</h1>{_optional("p", subtitle, "subtitle")}</header>
{_render_contents(sections, anchors)}
<main id="main">
{body}
</main>
{_optional("footer", footer, "footer")}
{scripts}
</body>
</html>
"""


def write_html(path: str | os.PathLike[str], html: str) -> Path:
    """Write the page to `path`, whole or not at all, and return the path.

    Missing folders are created. A failure leaves an earlier report as it was.

    Raises:
        ReportWriteError: the folder cannot be created or written, or `path` is itself a folder.
    """
    target = Path(path)
    try:
        # "replace": the text of a model can hold half a surrogate pair, which UTF-8 cannot encode.
        return write_atomically(
            target, lambda temporary: temporary.write_text(html, "utf-8", errors="replace")
        )
    except OSError as error:
        # `write_atomically` gives some errors a message of its own, without a number.
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = cause.strerror or type(cause).__name__
        raise ReportWriteError(
            f"cannot write the report {target.name!r} into folder {str(target.parent)!r} "
            f"({reason}); choose a folder that exists or can be created, is writable and has space"
        ) from error


# ---------------------------------------------------------------- parts of the page


def _scripts() -> str:
    """Return plotly.js and the page's own script, both inline."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>"


def _render_contents(sections: Sequence[Section], anchors: Sequence[str]) -> str:
    if len(sections) < 2:
        return ""
    items = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
        for section, anchor in zip(sections, anchors, strict=True)
    )
    return f'<nav aria-labelledby="contents"><h2 id="contents">Contents</h2><ol>{items}</ol></nav>'


def _render_section(section: Section, anchor: str) -> str:
    blocks = "\n".join(render_block(block) for block in section.body)
    heading = f'<h2 id="{anchor}">{escape(section.title)}</h2>'
    return f'<section aria-labelledby="{anchor}">\n{heading}\n{blocks}\n</section>'


def _slug(text: str) -> str:
    # Only letters, digits and hyphens, which need no escaping in a link.
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _optional(tag: str, text: str, css_class: str) -> str:
    return f'<{tag} class="{css_class}">{escape(text)}</{tag}>' if text else ""


# ---------------------------------------------------------------- blocks


@singledispatch
def render_block(block: object) -> str:
    """Return the HTML of a block, with all its text escaped.

    Raises:
        TypeError: no renderer is registered for the block's type.
    """
    raise TypeError(
        # singledispatch calls this function for every type without a renderer of its own.
        f"cannot render a {type(block).__name__} in a report; "
        "give a Paragraph, Table, Plot, ContinuationCards or KeyNumbers"
    )


@render_block.register(Paragraph)
def _render_paragraph(block: Paragraph) -> str:
    parts = [part.strip() for part in re.split(r"\n\s*\n", block.text)]
    return "\n".join(f"<p>{escape(part)}</p>" for part in parts if part)


@render_block.register(KeyNumbers)
def _render_key_numbers(block: KeyNumbers) -> str:
    tiles = ""
    for label, value, note in block.numbers:
        number = f'<dd class="value">{escape(format_value(value))}</dd>'
        tiles += f"<div><dt>{escape(label)}</dt>{number}{_optional('dd', note, 'note')}</div>"
    return f'<dl class="tiles">{tiles}</dl>'


@render_block.register(Plot)
def _render_plot(block: Plot) -> str:
    # "<" must not end the script element early; JSON reads \u003c as the same character.
    figure = str(block.figure.to_json()).replace("<", "\\u003c")
    width = f' style="min-width:{block.min_width}px"' if block.min_width else ""
    label = escape(_plain_title(block.figure))
    plot = (
        f'<div class="plot" role="group" aria-label="{label}"{width}>'
        f'<script type="application/json">{figure}</script></div>'
    )
    caption = _optional("figcaption", block.caption, "caption")
    return f'<figure><div class="scroll">{plot}</div>{caption}</figure>'


def _plain_title(figure: "graph_objects.Figure") -> str:
    title = figure.to_dict()["layout"].get("title", {}).get("text") or "figure"
    return re.sub(r"<[^>]*>", " ", str(title))


@render_block.register(Table)
def _render_table(block: Table) -> str:
    frame = block.frame
    # Levels of a named index become the first columns, which are headers of their rows.
    # Only named levels of the index are data; the default index 0, 1, 2, … has no name.
    n_headers = sum(name is not None for name in frame.index.names)
    if any(frame.index.names):
        frame = frame.reset_index(allow_duplicates=True)
    head = "".join(
        f'<th scope="col"{_number_class(frame.iloc[:, i])}>{escape(str(name))}</th>'
        for i, name in enumerate(frame.columns)
    )
    rows = "".join(
        _render_row(list(row), n_headers, block.digits)
        for row in frame.itertuples(index=False, name=None)
    )
    label = escape(block.caption or "table")
    table = (
        f'<table aria-label="{label}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )
    scrolling = f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{table}</div>'
    if len(frame) > block.open_rows:
        summary = f"<summary>{escape(block.caption or 'Table')} ({len(frame)} rows)</summary>"
        return f"<details>{summary}{scrolling}</details>"
    return f'<div class="table">{_optional("p", block.caption, "caption")}{scrolling}</div>'


def _number_class(column: pd.Series) -> str:
    types = pd.api.types
    # pandas counts bool as numeric, but True and False are words here.
    is_number = types.is_numeric_dtype(column) and not types.is_bool_dtype(column)
    return ' class="number"' if is_number else ""


def _render_row(cells: list[object], n_headers: int, digits: int) -> str:
    rendered = ""
    for position, cell in enumerate(cells):
        # bool is a subclass of int, so it must be excluded.
        is_number = isinstance(cell, Real) and not isinstance(cell, bool)
        tag, attributes = ("td", ' class="number"' if is_number else "")
        if position < n_headers:
            tag, attributes = ("th", ' scope="row"')
        rendered += f"<{tag}{attributes}>{escape(format_value(cell, digits=digits))}</{tag}>"
    return f"<tr>{rendered}</tr>"


@render_block.register(ContinuationCards)
def _render_continuations(block: ContinuationCards) -> str:
    # Both in the order of their first appearance.
    arms = list(dict.fromkeys(row["arm"] for row in block.rows))
    prompts = list(dict.fromkeys(row["prompt"] for row in block.rows))
    return "\n".join(
        _render_prompt(prompt, arms, [row for row in block.rows if row["prompt"] == prompt])
        for prompt in prompts
    )


def _render_prompt(prompt: str, arms: list[str], rows: list[dict[str, str]]) -> str:
    cards = "".join(
        _render_card(arm, [row["text"] for row in rows if row["arm"] == arm]) for arm in arms
    )
    heading = f'<h3 dir="auto">{escape(prompt)}</h3>'
    return f'<div class="prompt">{heading}<div class="cards">{cards}</div></div>'


def _render_card(arm: str, texts: list[str]) -> str:
    style = arm_style(arm)
    # dir="auto": continuations may be in a script that is written from right to left.
    body = "".join(f'<p dir="auto">{escape(text.strip())}</p>' for text in texts)
    body = body or '<p class="note">not generated</p>'
    heading = f"<h4>{escape(style.label)}</h4>"
    return f'<article style="border-top-color:{style.colour}">{heading}{body}</article>'
