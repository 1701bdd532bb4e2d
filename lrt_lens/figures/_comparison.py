"""Figure of solvers side by side: held-out scores of each family of maps, up and down.

    comparison_figure(comparison.table, value="r2_uniform")

Problem: a mean over hook pairs hides pairs in which a solver fails. Mechanism: bars are means, and
each pair is a small mark.

Limits: one column at a time.
"""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from lrt_lens.figures._plotly import go
from lrt_lens.figures._template import HIGHLIGHT, require_columns, use_template

# Blue and orange of Okabe and Ito, one per direction of the map.
_COLOURS = {"up": "#0072B2", "down": "#E69F00"}
_LEAST = -0.25
"""Lower end of a bar: a longer one would compress all others; its number is written in it."""


def comparison_figure(table: pd.DataFrame, *, value: str = "r2_uniform") -> "go.Figure":
    """Return one bar per solver and direction, the worst family first.

    For R², vertical lines mark the shuffled null and token identity. If the table holds several
    hook pairs, bars are means over them and each pair is a small mark.

    Args:
        table: `SolverComparison.table`: `solver`, `direction`, ``value``, and for R² `r2_null` and
            `r2_token`.
        value: the column shown.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(table, "solver", "direction", value)
    records = table.to_dict("records")
    # Means over hook pairs, per direction and solver.
    means = {
        direction: {
            name: _mean(row[value] for row in rows if row["solver"] == name)
            for name in _names(records)
        }
        for direction in _COLOURS
        for rows in [[row for row in records if row["direction"] == direction]]
    }
    order = sorted(_names(records), key=lambda name: means["up"][name])
    figure = go.Figure()
    for direction in _COLOURS:
        _add_bars(figure, order, means[direction], direction)
        pairs = [row for row in records if row["direction"] == direction]
        # With one hook pair the mark would lie on the end of its bar.
        if len(pairs) > len(order):
            _add_pairs(figure, pairs, value, direction)
    if value == "r2":
        _add_references(figure, records)
    plot_height = 26 + 46 * len(order)
    title = {"text": "Families of maps", "subtitle": {"text": "mean over hook pairs"}}
    return figure.update_layout(
        template=use_template(),
        barmode="group",
        xaxis_title=f"{value} on the test fold (bars end at {_LEAST})",
        height=plot_height + 154,
        yaxis_title=None,
        legend_title=None,
        legend={"y": -55 / plot_height},  # in units of the plot: 55 pixels below it
        margin={"t": 70, "b": 90},
        title=title,
    )


def _add_bars(
    figure: "go.Figure", order: list[str], means: dict[str, float], direction: str
) -> None:
    figure.add_bar(
        y=order,
        # The text of a bar is its true number, even if the bar ends at _LEAST.
        x=[max(means[name], _LEAST) for name in order],
        orientation="h",
        name=direction,
        marker_color=_COLOURS[direction],
        text=[f"{means[name]:.3f}" for name in order],
        textposition="auto",
        hovertext=[f"{name} {direction}: {means[name]:.4f}" for name in order],
        hoverinfo="text",
    )


def _add_pairs(figure: "go.Figure", rows: list[dict], value: str, direction: str) -> None:
    figure.add_scatter(
        y=[row["solver"] for row in rows],
        x=[max(row[value], _LEAST) for row in rows],
        mode="markers",
        showlegend=False,
        marker={"color": _COLOURS[direction], "symbol": "line-ns-open"},
        hoverinfo="skip",
    )


def _add_references(figure: "go.Figure", records: list[dict]) -> None:
    for column, label in (("r2_null", "shuffled pairs"), ("r2_token", "token identity")):
        # Leaves out a missing column (None is not NaN) and NaN (which is unequal to itself).
        known = [row[column] for row in records if row.get(column) == row.get(column, math.nan)]
        if known:
            line: dict[str, Any] = {"line_dash": "dot", "line_color": HIGHLIGHT}
            figure.add_vline(x=_mean(known), annotation_text=label, **line)


def _names(records: list[dict]) -> list[str]:
    return list(dict.fromkeys(str(record["solver"]) for record in records))


def _mean(values: Iterable[float]) -> float:
    """Return the mean; NaN if there are no values."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan
