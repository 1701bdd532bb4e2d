"""Figures of the similarity of layers: each measure with its null, as heat maps and as lines.

Problem: similarity grows with width over rows, so a map of bare values misleads. Mechanism: two
heat maps per measure on one colour scale, the value on the left and the effect relative to shuffled
pairs on the right; interval, null and held-out value are in the hover text. A line figure shows one
measure against the target's layers, one line per source layer, as in figure 6 of the Stitching
paper, which selects layers by it.

Example:
    table = grid.similarities(measures=("cka", "svcca"))
    lrt.figures.similarity_figure(table).show()
    lrt.figures.similarity_lines_figure(table, measure="svcca", column="effect").show()

Limits: one row per hook pair and measure; tables of several sample sizes are refused, so select
one first.
"""

import math

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    FAINT,
    HEAT_SCALE,
    NEUTRAL,
    count_range,
    hook_order,
    panel,
    require_columns,
    require_rows,
    rows_where,
    short_hook,
    use_template,
    with_counts,
)

MEASURE_NAMES: dict[str, str] = {
    "cka": "CKA, debiased",
    "cka_biased": "CKA, biased",
    "cca": "CCA (mean)",
    "svcca": "SVCCA (mean)",
    "procrustes": "Procrustes",
    "cka_differences": "CKA of contrast differences",
    "cka_states": "CKA of states",
}
"""Titles of measures; any other measure is shown under its own name."""

_PANELS = {"value": "value", "effect": "effect: (value − null) / (1 − null)"}
"""Columns of panels, with their titles."""
_HOVER = ("value", "low", "high", "null", "effect", "effect_low", "effect_high", "held_out", "n")
"""Columns of the hover text."""
_TEXT_LIMIT = 8
"""Largest number of rows or columns at which numbers are legible inside the cells."""
_BOUNDS = {"value": ("low", "high"), "effect": ("effect_low", "effect_high")}
"""Columns of the interval of each column that has one."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
"""Markers, one per source hook point, because neighbouring colours are similar."""


def similarity_figure(table: pd.DataFrame) -> "go.Figure":
    """Return two heat maps over hook pairs per measure: its value, and its effect.

    The effect is (value − null) / (1 − null). Source hook points are listed from top to bottom,
    target hook points from left to right. All maps share one colour scale from 0 to 1; a value
    below 0 has the colour of 0. If the table holds no null, effects are left out; a single measure
    without one has an empty panel that says so.

    Args:
        table: result of `similarities`: `source_hook`, `target_hook`, `measure`, `value` and
            `effect`; the other columns are shown in the hover text.

    Raises:
        ValueError: a column is not in the table, it is empty, or a pair has two rows of a measure.
    """
    measures = _checked(table, "value", "effect")
    # Moments without shuffled pairs have no null, and then every effect is NaN.
    columns = list(_PANELS) if bool(table["effect"].notna().to_numpy().any()) else ["value"]
    sources, targets = (
        sorted(set(table[side]), key=hook_order) for side in ("source_hook", "target_hook")
    )
    # In pixels per measure: 26 per source hook point, 70 for the titles.
    plots_height = (70 + 26 * max(len(sources), 4)) * len(measures)
    figure = make_subplots(
        rows=len(measures),
        cols=len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=70 / plots_height if len(measures) > 1 else 0.0,
        horizontal_spacing=0.05,
        subplot_titles=[
            f"{MEASURE_NAMES.get(measure, measure)}<br>{_PANELS[column]}"
            for measure in measures
            for column in columns
        ],
    )
    for row, measure in enumerate(measures, start=1):
        records = rows_where(table, "measure", measure).to_dict("records")
        cells = {(record["source_hook"], record["target_hook"]): record for record in records}
        for number, column in enumerate(columns, start=1):
            heat_map, is_empty = _heat_map(cells, column, sources, targets)
            figure.add_trace(heat_map, **panel(row, number))
            if is_empty:
                centre = {"x": 0.5, "y": 0.5, "xref": "x domain", "yref": "y domain"}
                note = {"text": "no null in these moments", "showarrow": False}
                figure.add_annotation(**centre, **note, **panel(row, number))
        figure.update_yaxes(title_text="source hook point", **panel(row, 1))
    figure.update_xaxes(title_text="target hook point", row=len(measures))
    _lay_out(figure, plots_height + 150)
    return with_counts(figure, {"tokens": count_range(table, "n")})


def similarity_lines_figure(
    table: pd.DataFrame, *, measure: str = "svcca", column: str = "value"
) -> "go.Figure":
    """Return one measure against the target's hook points, one line per source hook point.

    Args:
        table: as in `similarity_figure`, with `low` and `high` for the value and `effect_low` and
            `effect_high` for the effect.
        measure: the measure shown.
        column: "value" or "effect" (computed on the fitting folds), or "held_out", which must not
            be used to select layers.

    Raises:
        ValueError: the measure or a column is not in the table, or a pair has two rows.
    """
    from plotly.colors import sample_colorscale

    measures = _checked(table, column)
    if measure not in measures:
        raise ValueError(
            f"the table has no measure {measure!r}; it has {measures}: choose one of them"
        )
    rows = rows_where(table, "measure", measure)
    require_columns(rows, *_BOUNDS.get(column, ()))
    sources, targets = (
        sorted(set(rows[side]), key=hook_order) for side in ("source_hook", "target_hook")
    )
    # The light end of the scale is left out: it is invisible on white.
    positions = [0.85 * i / max(1, len(sources) - 1) for i in range(len(sources))]
    figure = go.Figure()
    for i, colour in enumerate(sample_colorscale(HEAT_SCALE, positions)):
        # reindex puts NaN where a pair was not measured, which leaves a gap in the line.
        own = rows_where(rows, "source_hook", sources[i]).set_index("target_hook").reindex(targets)
        line = _source_line(own, column, sources[i], str(colour), _SYMBOLS[i % len(_SYMBOLS)])
        figure.add_trace(line)
    name = MEASURE_NAMES.get(measure, measure)
    subtitle = "test fold; one line per source hook point"
    if column in _BOUNDS:
        subtitle = f"{_PANELS[column]}; one line per source hook point, bars: 95% over folds"
    figure.update_layout(
        template=use_template(),
        height=480,
        title={"text": f"{name} of hook pairs", "subtitle": {"text": subtitle}},
        legend_title_text="source hook point",
    )
    figure.update_xaxes(
        title_text="target hook point",
        type="category",
        categoryorder="array",
        categoryarray=[short_hook(target) for target in targets],
    )
    figure.update_yaxes(title_text=f"{name}, {column}")
    return with_counts(figure, {"tokens": count_range(rows, "n")})


def _source_line(
    line: pd.DataFrame, column: str, source: str, colour: str, symbol: str
) -> "go.Scatter":
    rim = {"color": NEUTRAL, "width": 1}
    trace = go.Scatter(
        x=[short_hook(str(target)) for target in line.index],
        y=line[column].tolist(),
        mode="lines+markers",
        name=short_hook(source),
        line={"color": colour, "width": 2},
        marker={"symbol": symbol, "size": 7, "line": rim},
        hovertemplate=f"<b>{short_hook(source)} → %{{x}}</b><br>%{{y:.3f}}<extra></extra>",
    )
    # The held-out value has no interval.
    if column in _BOUNDS:
        low, high = _BOUNDS[column]
        above, below = (line[high] - line[column]).tolist(), (line[column] - line[low]).tolist()
        bars = {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1}
        trace.update(error_y=bars)
    return trace


def spectrum_figure(table: pd.DataFrame) -> "go.Figure":
    """Return singular values against their index, both axes logarithmic.

    Args:
        table: ``index`` (from 1), ``singular_value``, and ``share`` of the largest singular value.

    Raises:
        ValueError: a column is not in the table, or it is empty.
    """
    require_columns(table, "index", "singular_value", "share")
    require_rows(table)
    trace = go.Scatter(
        x=table["index"].tolist(),
        y=table["singular_value"].tolist(),
        mode="lines",
        customdata=table["share"].tolist(),
        line={"width": 2},
        hovertemplate="σ(%{x}) = %{y:.3g}<br>%{customdata:.3g} of the largest<extra></extra>",
    )
    subtitle = "singular values of the weight, largest first; zeros are not drawn"
    title = {"text": "Spectrum of a map", "subtitle": {"text": subtitle}}
    figure = go.Figure(trace)
    figure.update_layout(template=use_template(), height=460, title=title)
    figure.update_xaxes(type="log", title_text="index", gridcolor=FAINT, dtick="D2")
    return figure.update_yaxes(
        type="log", title_text="singular value", exponentformat="power", dtick="D2"
    )


def _checked(table: pd.DataFrame, *columns: str) -> list[str]:
    """Return the measures of a table, after a check that it can be shown."""
    require_columns(table, "source_hook", "target_hook", "measure", *columns)
    require_rows(table)
    if table.duplicated(["source_hook", "target_hook", "measure"]).any():
        raise ValueError("a pair has two rows of one measure; keep one number of tokens")
    return list(dict.fromkeys(table["measure"]))


def _heat_map(
    cells: dict[tuple[str, str], dict], column: str, sources: list[str], targets: list[str]
) -> "tuple[go.Heatmap, bool]":
    """Return the heat map of one measure, and whether all its cells are NaN."""
    shown = [name for name in _HOVER if name in next(iter(cells.values()))]
    # A pair that is not in the table has NaN, which plotly leaves blank.
    absent = dict.fromkeys([*shown, column], math.nan)
    matrix = [[cells.get((source, target), absent) for target in targets] for source in sources]
    lines = [
        f"{name}: %{{customdata[{i}]:{',.0f' if name == 'n' else '.3f'}}}"
        for i, name in enumerate(shown)
    ]
    values = [[float(cell[column]) for cell in row] for row in matrix]
    trace = go.Heatmap(
        z=values,
        x=[short_hook(hook) for hook in targets],
        y=[short_hook(hook) for hook in sources],
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        customdata=[[[float(cell[name]) for name in shown] for cell in row] for row in matrix],
        hovertemplate="<br>".join(["<b>%{y} → %{x}</b>", *lines]) + "<extra></extra>",
    )
    if max(len(sources), len(targets)) <= _TEXT_LIMIT:
        trace.update(texttemplate="%{z:.2f}")
    return trace, all(math.isnan(value) for row in values for value in row)


def _lay_out(figure: "go.Figure", height: int) -> "go.Figure":
    explanation = (
        "null: each x paired with another document's y; "
        "effect 0: as similar as the null, 1: identical"
    )
    bar = {"thickness": 12, "outlinewidth": 0}
    figure.update_layout(
        template=use_template(),
        title={"text": "Similarity of layers", "subtitle": {"text": explanation}},
        height=height,
        coloraxis={"colorscale": HEAT_SCALE, "cmin": 0, "cmax": 1, "colorbar": bar},
        margin={"t": 110},
    )
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(type="category", showgrid=False)
    # plotly counts categories from below.
    return figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
