"""Figure 2 of LRT with random rows on its own scale, and R² on features that were not fitted.

Problem: the norm of a residual tells nothing without the norm that chance would leave. Mechanism:
the paper shows the norm of the residual alone; its chance level and the held-out R² are added.

    decoder_geometry_figure(result.summary)

Limits: exact fits lie outside of the logarithmic axis and are cut off.
"""

import math

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    DOTTED,
    NEUTRAL,
    ArmStyle,
    error_bars,
    panel,
    require_columns,
    use_template,
)

_STYLES = {
    "index": ArmStyle("row i on row i (as LRT)", "#0072B2", symbol="square"),
    "matched": ArmStyle("matched by activation", "#D55E00"),
    "stitch": ArmStyle("matched, the stitch's map", "#009E73", symbol="triangle-up"),
    "permuted": ArmStyle("matched rows, permuted", "#CC79A7", symbol="diamond"),
    "random_unit": ArmStyle("random rows, same norms", "#8C8C8C", symbol="circle-open"),
    "random_gaussian": ArmStyle("random rows, N(0, 1)", "#E69F00", symbol="x"),
}
"""Style of each arm, in the order in which the figure lists them."""


def decoder_geometry_figure(summary: pd.DataFrame) -> "go.Figure":
    """Return the residual's Frobenius norm with its chance level, and held-out R², per arm.

    The norm ‖E‖_F has a logarithmic axis; R² has its 95% interval.

    Args:
        summary: `DecoderGeometry.summary`: `arm`, `residual`, `chance`, `r2`, `r2_low`, `r2_high`,
            `n_features`.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    require_columns(summary, "arm", "residual", "chance", "r2", "r2_low", "r2_high", "n_features")
    records = {str(row["arm"]): row for row in summary.to_dict("records")}
    # The order of _STYLES, not of the table.
    rows = {arm: records[arm] for arm in _STYLES if arm in records}
    if not rows:
        raise ValueError("the table has no rows; there is nothing to show: give one with rows")
    titles = ["‖residual‖ (fitted rows, as LRT)", "R² on features that were not fitted"]
    figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles
    )
    for number, (arm, row) in enumerate(rows.items()):
        figure.add_trace(_residual(row, _STYLES[arm]), **panel(1, 1))
        # If d ≥ n, least squares fits exactly: chance is 0, which has no logarithm.
        if row["chance"] > 0:
            figure.add_trace(_chance(row, _STYLES[arm], first=number == 0), **panel(1, 1))
        figure.add_trace(_held_out(row, _STYLES[arm]), **panel(1, 2))
    # Exact fits (1e-6 and less) would stretch the logarithmic axis over many empty decades.
    numbers = [row[name] for row in rows.values() for name in ("residual", "chance")]
    if positive := [number for number in numbers if number > 1e-6]:
        low, high = math.log10(min(positive)), math.log10(max(positive))
        figure.update_xaxes(type="log", range=[low - 0.15, high + 0.35], dtick=1, **panel(1, 1))
    figure.add_vline(x=0, line=DOTTED, **panel(1, 2))
    figure.update_xaxes(title_text="‖residual‖ (Frobenius)", **panel(1, 1))
    figure.update_xaxes(title_text="R² (share of variance)", **panel(1, 2))
    figure.update_yaxes(autorange="reversed", ticks="")
    figure.update_annotations(font={"size": 13})
    title = "Are two decoders linearly related?"
    subtitle = (
        "95% intervals over features, or over draws of random rows; "
        "a residual at its chance level is no evidence"
    )
    return figure.update_layout(
        template=use_template(),
        height=260 + 42 * len(rows),
        title={"text": title, "subtitle": {"text": subtitle}},
        margin={"t": 110, "b": 100},
        # Legend positions are in units of the plot's height: 60 pixels below it.
        legend={"y": -60 / (50 + 42 * len(rows))},
    )


def _residual(row: dict, style: ArmStyle) -> "go.Scatter":
    hover = f"{style.label}: %{{x:.4g}}, {row['n_features']} features<extra></extra>"
    return go.Scatter(
        x=[row["residual"]],
        y=[_label(style)],
        mode="markers+text",
        text=[f"<b>{row['residual']:.3g}</b>"],
        textposition="middle right",
        marker=_marker(style),
        hovertemplate=hover,
        showlegend=False,
    )


def _chance(row: dict, style: ArmStyle, *, first: bool) -> "go.Scatter":
    # n independent targets of the same norm: least squares on d directions leaves ‖Y‖·√(1 − d/n).
    return go.Scatter(
        x=[row["chance"]],
        y=[_label(style)],
        mode="markers",
        marker={"color": NEUTRAL, "symbol": "line-ns-open", "size": 22, "line": {"width": 2}},
        name="chance: norm·√(1 − d/n)",
        legendgroup="chance",
        showlegend=first,
        hovertemplate="chance %{x:.4g}<extra></extra>",
    )


def _held_out(row: dict, style: ArmStyle) -> "go.Scatter":
    bounds = (row["r2"], row["r2_low"], row["r2_high"])
    return go.Scatter(
        x=[row["r2"]],
        y=[_label(style)],
        mode="markers",
        marker=_marker(style),
        error_x=error_bars(*bounds, type="data", color=style.colour),
        showlegend=False,
        hovertemplate="R² %{x:.3f}<extra></extra>",
    )


def _marker(style: ArmStyle) -> dict[str, object]:
    return {"color": style.colour, "symbol": style.symbol, "size": 11}


def _label(style: ArmStyle) -> str:
    return f"{style.label}  "  # two spaces keep the label away from the axis
