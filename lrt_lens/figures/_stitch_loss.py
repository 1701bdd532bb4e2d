"""Figure of the loss of a stitched pass, compared with the unmodified and the ablated model.

    stitch_loss_figure(result.table)

Problem: a loss means nothing without the losses of the models themselves. Mechanism: each route has
its own panel, with dotted lines at the unmodified and the mean-ablated model.

Limits: routes end in different models, so losses of two panels cannot be compared.
"""

import math
from dataclasses import replace

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    NEUTRAL,
    ArmStyle,
    arm_style,
    categories,
    count_range,
    error_bars,
    panel,
    require_columns,
    require_rows,
    use_template,
    with_counts,
)

_STYLES = {
    "own": replace(ARM_STYLES["native"], label="finishing model, own state"),
    "stitched": replace(ARM_STYLES["transferred"], label="stitched"),
    "token": ArmStyle("token identity", "#009E73", symbol="triangle-up"),
    "shuffled": ARM_STYLES["shuffled"],
    "mean": ArmStyle("mean-ablated", NEUTRAL, symbol="x"),
    "zero": ArmStyle("zero-ablated", "#8C8C8C", symbol="x-open"),
}
"""Style of each arm, in the order of the figure; arms of other solvers follow ``stitched``."""
_COLUMNS = ("route", "arm", "finishes_in", "ce", "ce_low", "ce_high", "recovered", "kl")
"""Columns of the table that every route needs."""


def stitch_loss_figure(table: pd.DataFrame) -> "go.Figure":
    """Return the cross-entropy of each arm with its interval, one panel per route.

    Dotted lines mark the unmodified and the mean-ablated model.

    Args:
        table: `StitchLoss.table`: `route`, `arm`, `finishes_in`, `ce`, `ce_low`, `ce_high` (nats
            per token), `recovered`, `kl`, `increase_percent`; `n_tokens` and `n_documents` for the
            line under the title.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    require_columns(table, *_COLUMNS, "increase_percent")
    require_rows(table)
    # Routes and arms in the order in which the table first names them.
    by_route: dict[str, dict[str, dict]] = {}
    for record in table.to_dict("records"):
        by_route.setdefault(str(record["route"]), {})[str(record["arm"])] = record
    arms = _ordered([str(arm) for arm in table["arm"]])
    titles = [
        f"{route}   (finishes in {next(iter(rows.values()))['finishes_in']})"
        for route, rows in by_route.items()
    ]
    n_routes = len(by_route)
    height = 170 + n_routes * (50 + 24 * len(arms))
    # 50 pixels between panels hold the title of the lower one.
    spacing = 50 / height if n_routes > 1 else 0
    figure = make_subplots(
        rows=n_routes, shared_xaxes=True, vertical_spacing=spacing, subplot_titles=titles
    )
    for number, rows in enumerate(by_route.values(), start=1):
        for arm in (arm for arm in arms if arm in rows):
            figure.add_trace(_point(rows[arm], arm), **panel(number, 1))
            if arm != "own":
                figure.add_trace(_increase(rows[arm], arm), **panel(number, 1))
        for arm in ("own", "mean"):
            if arm in rows:
                line = {"color": _style(arm).colour, "dash": "dot", "width": 1.5}
                figure.add_vline(x=rows[arm]["ce"], line=line, **panel(number, 1))
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure.update_yaxes(categories([_style(arm).label for arm in arms]))
    subtitle = (
        "lower is better; dotted: the finishing model with its own state, and with its mean; "
        "beside each point: increase over its own"
    )
    title = {"text": "Loss of the stitched pass", "subtitle": {"text": subtitle}}
    figure.update_layout(
        template=use_template(),
        title=title | {"y": 1 - 30 / height, "yanchor": "top"},
        height=height,
        showlegend=False,
        margin={"t": 130, "r": 60},
    )
    loss = "next-token cross-entropy (nats per token)"
    figure.update_xaxes(title_text=loss, **panel(n_routes, 1))
    counts = {unit: count_range(table, f"n_{unit}") for unit in ("tokens", "documents")}
    return with_counts(figure, counts)


def _ordered(arms: list[str]) -> list[str]:
    others = [arm for arm in dict.fromkeys(arms) if arm not in _STYLES]
    known = [arm for arm in _STYLES if arm in arms]
    # Arms of other solvers come after the stitched one, with which they compete.
    position = known.index("stitched") + 1 if "stitched" in known else 0
    return known[:position] + others + known[position:]


def _style(arm: str) -> ArmStyle:
    return _STYLES.get(arm) or arm_style(arm)


def _point(row: dict, arm: str) -> "go.Scatter":
    style = _style(arm)
    recovered = "undefined" if math.isnan(row["recovered"]) else f"{row['recovered']:.3f}"
    hover = (
        f"<b>{style.label}</b><br>{row['ce']:.3f} [{row['ce_low']:.3f}, {row['ce_high']:.3f}] nats"
        f"<br>KL from own {row['kl']:.3f}<br>recovered {recovered}<extra></extra>"
    )
    bounds = (row["ce"], row["ce_low"], row["ce_high"])
    return go.Scatter(
        x=[row["ce"]],
        y=[style.label],
        name=arm,
        mode="markers",
        marker=style.marker,
        hovertemplate=hover,
        error_x=error_bars(*bounds, color=style.colour, thickness=2),
    )


def _increase(row: dict, arm: str) -> "go.Scatter":
    """Return the increase of the loss over the finishing model's own, as text after the bar."""
    # The text begins at the upper end of the interval, so that it does not lie on the bar.
    return go.Scatter(
        x=[row["ce_high"]],
        y=[_style(arm).label],
        mode="text",
        text=[f"  {row['increase_percent']:+.1f}%"],
        textposition="middle right",
        hoverinfo="skip",
        cliponaxis=False,
    )
