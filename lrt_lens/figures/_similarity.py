"""Figures of how alike layers are: each measure beside what is left of it against its null, and
layer by layer as lines.

Problem: similarity grows with width over rows, so a map of bare values misleads. Mechanism: two
heat maps a measure on one colour scale, the value on the left and the effect against shuffled pairs
on the right; intervals, null and the held-out value stand in the hover text. A line figure shows
one measure against the target's layers, a line a source layer, as layers are chosen in figure 6 of
the Stitching paper.

Example:
    from lrt_lens.figures._similarity import similarity_figure, similarity_lines_figure

    table = similarities(moments)
    similarity_figure(table).show()
    similarity_lines_figure(table, measure="svcca", column="effect").show()

Limits: a row a pair and measure; tables of several sample sizes are refused, so select one first.
"""

import math

import pandas as pd
from plotly.colors import sample_colorscale

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    FAINT,
    HEAT_SCALE,
    NEUTRAL,
    hook_order,
    require_columns,
    short_hook,
    use_template,
)

MEASURE_NAMES: dict[str, str] = {
    "cka": "CKA, debiased",
    "cka_biased": "CKA, biased",
    "cca": "CCA (mean)",
    "svcca": "SVCCA (mean)",
    "procrustes": "Procrustes",
}
"""Headings of measures; any other is shown under its own name."""

_PANELS = {"value": "value", "effect": "effect: (value − null) / (1 − null)"}
_HOVER = ("value", "low", "high", "null", "effect", "effect_low", "effect_high", "held_out", "n")
_TEXT_LIMIT = 8
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


def similarity_figure(table: pd.DataFrame) -> "go.Figure":
    """Returns two heat maps a measure, target hook (up) by source hook (right): its value, and its
    effect against the null.

    All share one colour scale from 0 to 1; what lies below 0 takes the colour of 0. Without a null
    in the table the effects are left out; a single measure without one has an empty panel that says
    so.

    Args: table: of `lrt_lens.stitching._similarity.similarities`: `source_hook`, `target_hook`,
        `measure`, `value` and `effect`; the other columns go
            into the hover text.

    Raises:
        ValueError: a column is not in the table, it is empty, or a pair has two rows of a measure.
    """
    measures = _checked(table, "value", "effect")
    columns = list(_PANELS) if bool(table["effect"].notna().to_numpy().any()) else ["value"]
    sources, targets = (
        sorted(set(table[side]), key=hook_order) for side in ("source_hook", "target_hook")
    )
    headings = [
        f"{MEASURE_NAMES.get(measure, measure)}<br>{_PANELS[column]}"
        for measure in measures
        for column in columns
    ]
    panel_height = 70 + 26 * max(len(targets), 4)
    height = 150 + panel_height * len(measures)
    spacing = 70 / (height - 150) if len(measures) > 1 else 0.0
    figure = make_subplots(
        rows=len(measures),
        cols=len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=spacing,
        horizontal_spacing=0.05,
        subplot_titles=headings,
    )
    for row, measure in enumerate(measures, start=1):
        cells = {
            (r["source_hook"], r["target_hook"]): r
            for r in _rows_where(table, "measure", measure).to_dict("records")
        }
        for col, column in enumerate(columns, start=1):
            heat_map, empty = _heat_map(cells, column, sources, targets)
            figure.add_trace(heat_map, row=row, col=col)
            if empty:
                figure.add_annotation(
                    x=0.5,
                    y=0.5,
                    xref="x domain",
                    yref="y domain",
                    text="no null in these moments",
                    showarrow=False,
                    row=row,
                    col=col,
                )
        figure.update_yaxes(title_text="target hook", row=row, col=1)
    figure.update_xaxes(title_text="source hook", row=len(measures))
    return _lay_out(figure, height)


def similarity_lines_figure(
    table: pd.DataFrame, *, measure: str = "svcca", column: str = "value"
) -> "go.Figure":
    """Returns one measure against the target's hook points with its intervals, a line a source hook
    point.

    Args: table: as in `similarity_figure`, with `low` and `high` for the value and `effect_low` and
        `effect_high` for the effect. measure: which rows to show. column: "value" or "effect" (both
        read the fitting folds), or "held_out", which must not choose.

    Raises:
        ValueError: the measure or a column is not in the table, or a pair has two rows.
    """
    measures = _checked(table, column)
    if measure not in measures:
        raise ValueError(f"the table has no measure {measure!r}; it has {measures}")
    rows = _rows_where(table, "measure", measure)
    bounds = {"value": ("low", "high"), "effect": ("effect_low", "effect_high")}.get(column, ())
    require_columns(rows, *bounds)
    sources, targets = (
        sorted(set(rows[side]), key=hook_order) for side in ("source_hook", "target_hook")
    )
    colours = sample_colorscale(
        HEAT_SCALE, [0.85 * i / max(1, len(sources) - 1) for i in range(len(sources))]
    )
    figure = go.Figure()
    for i, (source, colour) in enumerate(zip(sources, colours, strict=True)):
        line = _rows_where(rows, "source_hook", source).set_index("target_hook").reindex(targets)
        trace = go.Scatter(
            x=[short_hook(t) for t in targets],
            y=line[column].tolist(),
            mode="lines+markers",
            name=short_hook(source),
        )
        trace.update(
            line={"color": colour, "width": 2},
            hovertemplate="<b>" + short_hook(source) + " → %{x}</b><br>%{y:.3f}<extra></extra>",
        )
        trace.update(
            marker={
                "symbol": _SYMBOLS[i % len(_SYMBOLS)],
                "size": 7,
                "line": {"color": NEUTRAL, "width": 1},
            }
        )
        if bounds:
            low, high = (
                (line[column] - line[bounds[0]]).tolist(),
                (line[bounds[1]] - line[column]).tolist(),
            )
            trace.update(
                error_y={"array": high, "arrayminus": low, "symmetric": False, "thickness": 1}
            )
        figure.add_trace(trace)
    name = MEASURE_NAMES.get(measure, measure)
    subtitle = (
        f"{_PANELS.get(column, column)}; a line a source hook, bars: 95% over folds"
        if bounds
        else "test fold; a line a source hook"
    )
    figure.update_layout(
        template=use_template(),
        height=480,
        title={"text": f"{name} of layer pairs", "subtitle": {"text": subtitle}},
    )
    figure.update_xaxes(
        title_text="target hook",
        type="category",
        categoryorder="array",
        categoryarray=[short_hook(t) for t in targets],
    )
    return figure.update_yaxes(title_text=f"{name}, {column}").update_layout(
        legend_title_text="source hook"
    )


def spectrum_figure(table: pd.DataFrame) -> "go.Figure":
    """Returns singular values against their index, both axes logarithmic, a line a map.

    Args: table: of `lrt_lens.stitching._diagnostics.spectrum_table`: `map`, `index`,
        `singular_value`, `share` of the map's largest.

    Raises:
        ValueError: a column is not in the table, or it is empty.
    """
    require_columns(table, "map", "index", "singular_value", "share")
    if table.empty:
        raise ValueError("the table has no rows; there is nothing to show")
    names = list(dict.fromkeys(table["map"]))
    dashes = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
    figure = go.Figure()
    for i, name in enumerate(names):
        rows = _rows_where(table, "map", name)
        trace = go.Scatter(
            x=rows["index"].tolist(),
            y=rows["singular_value"].tolist(),
            mode="lines",
            name=str(name),
        )
        trace.update(
            customdata=rows["share"].tolist(), line={"width": 2, "dash": dashes[i % len(dashes)]}
        )
        trace.update(
            hovertemplate=f"<b>{name}</b><br>σ(%{{x}}) = %{{y:.3g}}<br>%{{customdata:.3g}} of the largest<extra></extra>"
        )
        figure.add_trace(trace)
    title = {
        "text": "Spectra of maps",
        "subtitle": {
            "text": "singular values of the weight, largest first; those that are 0 are not drawn"
        },
    }
    figure.update_layout(template=use_template(), height=460, title=title, showlegend=True)
    figure.update_xaxes(type="log", title_text="index", gridcolor=FAINT, dtick="D2")
    return figure.update_yaxes(
        type="log", title_text="singular value", exponentformat="power", dtick="D2"
    )


def _checked(table: pd.DataFrame, *columns: str) -> list[str]:
    """The measures of a table that can be shown."""
    require_columns(table, "source_hook", "target_hook", "measure", *columns)
    if table.empty:
        raise ValueError("the table has no rows; there is nothing to show")
    if table.duplicated(["source_hook", "target_hook", "measure"]).any():
        raise ValueError("a pair has two rows of one measure; keep one number of tokens")
    return list(dict.fromkeys(table["measure"]))


def _rows_where(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    return pd.DataFrame(table.loc[table[column] == value])


def _heat_map(
    cells: dict[tuple[str, str], dict], column: str, sources: list[str], targets: list[str]
) -> "tuple[go.Heatmap, bool]":
    """The panel of one measure, and whether it holds no number."""
    shown = [name for name in _HOVER if name in next(iter(cells.values()))]
    absent = dict.fromkeys([*shown, column], math.nan)
    matrix = [[cells.get((s, t), absent) for s in sources] for t in targets]
    lines = [
        f"{name}: %{{customdata[{i}]:{',.0f' if name == 'n' else '.3f'}}}"
        for i, name in enumerate(shown)
    ]
    values = [[float(cell[column]) for cell in row] for row in matrix]
    trace = go.Heatmap(z=values, coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False)
    trace.update(x=[short_hook(hook) for hook in sources], y=[short_hook(hook) for hook in targets])
    trace.update(
        customdata=[[[float(cell[name]) for name in shown] for cell in row] for row in matrix]
    )
    trace.update(hovertemplate="<br>".join(["<b>%{x} → %{y}</b>", *lines]) + "<extra></extra>")
    if max(len(sources), len(targets)) <= _TEXT_LIMIT:
        trace.update(texttemplate="%{z:.2f}")
    return trace, all(math.isnan(value) for row in values for value in row)


def _lay_out(figure: "go.Figure", height: int) -> "go.Figure":
    explanation = "null: each x paired with another document's y; effect 0: no more alike than that, 1: the same"
    figure.update_layout(
        template=use_template(),
        title={"text": "How alike layers are", "subtitle": {"text": explanation}},
        height=height,
    )
    bar = {"thickness": 12, "outlinewidth": 0}
    figure.update_layout(
        coloraxis={"colorscale": HEAT_SCALE, "cmin": 0, "cmax": 1, "colorbar": bar},
        margin={"t": 110},
    )
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(type="category", showgrid=False)
    return figure.update_yaxes(type="category", showgrid=False)
