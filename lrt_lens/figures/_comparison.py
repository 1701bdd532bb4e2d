"""Solvers side by side: what each family of maps explains of the held-out stream, both ways."""

import pandas as pd
import plotly.graph_objects as go

from lrt_lens.figures._template import HIGHLIGHT, TEMPLATE_NAME, require_columns

_COLOURS = {"up": "#0072B2", "down": "#E69F00"}
_LEAST = -0.25
"""A bar that runs far below zero would squeeze all others; its number stands in it."""


def comparison_figure(table: pd.DataFrame, *, value: str = "r2_uniform") -> go.Figure:
    """Returns bars by solver and direction, worst family first; lines mark the shuffled null and
    token identity.

    Args: table: `SolverComparison.table`: `solver`, `direction`, ``value``, and for R² `r2_null`
        and `r2_token`. Several pairs of hook points
            are averaged, with a point for each.
        value: the column that is shown.
    """
    require_columns(table, "solver", "direction", value)
    records = table.to_dict("records")
    means = {
        direction: {
            name: _mean(
                [r[value] for r in records if (r["solver"], r["direction"]) == (name, direction)]
            )
            for name in _names(records)
        }
        for direction in _COLOURS
    }
    order = sorted(_names(records), key=lambda name: means["up"][name])
    figure = go.Figure()
    for direction, colour in _COLOURS.items():
        numbers = [means[direction][name] for name in order]
        figure.add_bar(
            y=order,
            x=[max(number, _LEAST) for number in numbers],
            orientation="h",
            name=direction,
            marker_color=colour,
            text=[f"{number:.3f}" for number in numbers],
            textposition="auto",
            hovertext=[
                f"{name} {direction}: {number:.4f}"
                for name, number in zip(order, numbers, strict=True)
            ],
            hoverinfo="text",
        )
        points = [r for r in records if r["direction"] == direction]
        if len(points) > len(order):
            figure.add_scatter(
                y=[r["solver"] for r in points],
                x=[max(r[value], _LEAST) for r in points],
                mode="markers",
                showlegend=False,
                marker={"color": colour, "symbol": "line-ns-open"},
                hoverinfo="skip",
            )
    if value == "r2":
        for column, label in (("r2_null", "shuffled pairs"), ("r2_token", "token identity")):
            known = [r[column] for r in records if column in r and r[column] == r[column]]
            if known:
                figure.add_vline(
                    x=_mean(known), line_dash="dot", line_color=HIGHLIGHT, annotation_text=label
                )
    figure.update_layout(
        template=TEMPLATE_NAME,
        barmode="group",
        xaxis_title=f"{value} on the test fold (bars end at {_LEAST})",
        height=180 + 46 * len(order),
        yaxis_title=None,
        legend_title=None,
        legend={"y": -55 / (26 + 46 * len(order))},
        margin={"t": 70, "b": 90},
        title={"text": "Families of maps", "subtitle": {"text": "mean over pairs of hook points"}},
    )
    return figure


def _names(records: list[dict]) -> list[str]:
    return list(dict.fromkeys(str(record["solver"]) for record in records))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
