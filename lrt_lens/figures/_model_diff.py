"""Figure of a comparison of two models: eigenvalues of each kind, over the level of noise.

    diff_figure(result.table).show()

Problem: principal directions of noise look like those of a signal. Mechanism: one panel per kind;
points are eigenvalues with 95% intervals, crosses the same on held-out text, and the dotted line is
the eigenvalue that 5% of noises exceed.

Limits: eigenvalues of 0 are not drawn, because the axis is logarithmic.
"""

from typing import Any

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    DOTTED,
    arm_style,
    error_bars,
    panel,
    require_columns,
    require_rows,
    rows_where,
    use_template,
)

_TITLES = {
    "gained": "gained: left of the target",
    "lost": "lost: left of the source",
    "difference": "difference y − x",
    "shared": "shared: canonical",
}
"""Title of the panel of each kind that has several directions."""
_COLUMNS = ("kind", "index", "eigenvalue", "low", "high", "held_out", "noise")


def diff_figure(table: pd.DataFrame) -> "go.Figure":
    """Return the eigenvalues of each kind of direction against their index.

    Args:
        table: `ModelDiff.table`: `kind`, `index`, `eigenvalue`, `low`, `high`, `held_out`, `noise`.

    Raises:
        ValueError: a column is missing, or no kind has directions.
    """
    require_columns(table, *_COLUMNS)
    known = set(table["kind"].to_list())
    kinds = [kind for kind in _TITLES if kind in known]
    require_rows(rows_where(table, "kind", *kinds))
    n_rows = (len(kinds) + 1) // 2
    n_columns = min(2, len(kinds))
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=[_TITLES[kind] for kind in kinds],
        horizontal_spacing=0.14,
        vertical_spacing=0.2,
    )
    for number, kind in enumerate(kinds):
        at = panel(number // n_columns + 1, number % n_columns + 1)
        rows = rows_where(table, "kind", kind)
        _add_points(figure, rows, at, in_legend=number == 0)
        unit = "squared correlation" if kind == "shared" else "variance per token"
        figure.update_yaxes(title_text=unit, type="linear" if kind == "shared" else "log", **at)
        figure.update_xaxes(title_text="direction", dtick=max(1, len(rows) // 5), **at)
    return figure.update_layout(
        template=use_template(),
        title={
            "text": "What the models do not share",
            "subtitle": {"text": "above the dotted line: more than noise"},
        },
        height=120 + 300 * n_rows,
        margin={"t": 104},
        legend={"y": -0.16 if n_rows > 1 else -0.28},
    ).update_annotations(font_size=13)


def _add_points(
    figure: "go.Figure", rows: pd.DataFrame, at: dict[str, Any], *, in_legend: bool
) -> None:
    """Add eigenvalues, those on held-out text, and the level of noise to one panel."""
    style, held_out = arm_style("transferred"), arm_style("native")
    drawn = {name: rows[rows[name] > 0] for name in ("eigenvalue", "held_out", "noise")}
    looks: dict[str, dict[str, Any]] = {
        "eigenvalue": {
            "name": "eigenvalue, 95% over documents",
            "mode": "markers",
            "marker": style.marker,
            "error_y": error_bars(*(drawn["eigenvalue"][n] for n in ("eigenvalue", "low", "high"))),
        },
        "held_out": {
            "name": "on held-out text",
            "mode": "markers",
            "marker": {"symbol": "x-thin-open", "size": 8, "color": held_out.colour},
        },
        "noise": {"name": "noise, 95%", "mode": "lines", "line": DOTTED},
    }
    for name, points in drawn.items():
        trace = go.Scatter(
            x=points["index"],
            y=points[name],
            hovertemplate=f"%{{x}}: {name.replace('_', ' ')} %{{y:.3g}}<extra></extra>",
            legendgroup=name,
            showlegend=in_legend,
            **looks[name],
        )
        figure.add_trace(trace, **at)
