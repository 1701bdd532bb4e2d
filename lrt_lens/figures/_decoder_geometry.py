"""LRT's figure 2 with nulls of its own scale, and beside it what the paper does not show: R² on
features that did not fit.
"""

import math

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import NEUTRAL, ArmStyle, require_columns, use_template

_STYLES = {
    "index": ArmStyle("row i on row i (as LRT)", "#0072B2", symbol="square"),
    "matched": ArmStyle("matched by activation", "#D55E00"),
    "stitch": ArmStyle("matched, the stitch's map", "#009E73", symbol="triangle-up"),
    "permuted": ArmStyle("matched rows, permuted", "#CC79A7", symbol="diamond"),
    "random_unit": ArmStyle("random rows, same norms", "#8C8C8C", symbol="circle-open"),
    "random_gaussian": ArmStyle("random rows, N(0, 1)", "#E69F00", symbol="x"),
}
"""In the order in which arms are listed."""


def decoder_geometry_figure(summary: pd.DataFrame) -> "go.Figure":
    """Returns ‖E‖_F on a logarithmic axis with each arm's chance level, and held-out R² with its
    interval.

    Args: summary: `DecoderGeometry.summary`: `arm`, `residual`, `chance`, `r2`, `r2_low`,
        `r2_high`, `n_features`.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    require_columns(summary, "arm", "residual", "chance", "r2", "r2_low", "r2_high", "n_features")
    records = {str(row["arm"]): row for row in summary.to_dict("records")}
    arms = [arm for arm in _STYLES if arm in records]
    if not arms:
        raise ValueError("the table has no rows; there is nothing to show")
    figure = make_subplots(
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.06,
        subplot_titles=["‖residual‖ (fitted rows, as LRT)", "R² on features that did not fit"],
    )
    for arm in arms:
        style, row = _STYLES[arm], records[arm]
        marker = {"color": style.colour, "symbol": style.symbol, "size": 11}
        label, number = f"{style.label}  ", f"<b>{row['residual']:.3g}</b>"
        figure.add_trace(
            go.Scatter(
                x=[row["residual"]],
                y=[label],
                mode="markers+text",
                text=[number],
                textposition="middle right",
                marker=marker,
                hovertemplate=f"{style.label}: %{{x:.4g}}, {row['n_features']} features<extra></extra>",
                showlegend=False,
            ),
            row=1,
            col=1,
        )
        if row["chance"] > 0:
            tick = {"color": NEUTRAL, "symbol": "line-ns-open", "size": 22, "line": {"width": 2}}
            figure.add_trace(
                go.Scatter(
                    x=[row["chance"]],
                    y=[label],
                    mode="markers",
                    marker=tick,
                    name="chance: norm·√(1 − d/n)",
                    legendgroup="chance",
                    showlegend=arm == arms[0],
                    hovertemplate="chance %{x:.4g}<extra></extra>",
                ),
                row=1,
                col=1,
            )
        error = {
            "type": "data",
            "array": [row["r2_high"] - row["r2"]],
            "arrayminus": [row["r2"] - row["r2_low"]],
            "color": style.colour,
        }
        figure.add_trace(
            go.Scatter(
                x=[row["r2"]],
                y=[label],
                mode="markers",
                marker=marker,
                error_x=error,
                showlegend=False,
                hovertemplate="R² %{x:.3f}<extra></extra>",
            ),
            row=1,
            col=2,
        )
    positive = [
        value
        for arm in arms
        for value in (records[arm]["residual"], records[arm]["chance"])
        if value > 1e-6
    ]
    if positive:
        low, high = math.log10(min(positive)), math.log10(max(positive))
        figure.update_xaxes(type="log", range=[low - 0.15, high + 0.35], dtick=1, row=1, col=1)
    figure.add_vline(x=0, line={"color": NEUTRAL, "dash": "dot", "width": 1}, row=1, col=2)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" only)
    figure.update_xaxes(title_text="‖residual‖ (Frobenius)", row=1, col=1)
    figure.update_xaxes(title_text="R² (share of variance)", row=1, col=2)
    figure.update_yaxes(autorange="reversed", ticks="")
    figure.update_annotations(font={"size": 13})
    title = "Are two decoders linearly related?"
    subtitle = "95%: over features, or over draws for random rows; a residual at its chance mark says nothing"
    return figure.update_layout(
        template=use_template(),
        height=260 + 42 * len(arms),
        title={"text": title, "subtitle": {"text": subtitle}},
        margin={"t": 110, "b": 100},
        legend={"y": -60 / (50 + 42 * len(arms))},
    )
