"""The loss behind a stitch, route by route: how far is the stitched pass from the untouched model,
how far from an ablated one?
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
    require_columns,
    use_template,
)

_STYLES = {
    "own": replace(ARM_STYLES["native"], label="finishing model, own state"),
    "stitched": replace(ARM_STYLES["transferred"], label="stitched"),
    "token": ArmStyle("token identity", "#009E73", symbol="triangle-up"),
    "shuffled": ARM_STYLES["shuffled"],
    "mean": ArmStyle("mean-ablated", NEUTRAL, symbol="x"),
    "zero": ArmStyle("zero-ablated", "#8C8C8C", symbol="x-open"),
}
"""In the order in which arms are listed; those of other solvers stand behind ``stitched``."""


def stitch_loss_figure(table: pd.DataFrame) -> "go.Figure":
    """Returns cross-entropy by arm with its interval, a panel a route; dotted lines mark the
    untouched and the mean-ablated model.

    Args: table: `StitchLoss.table`: `route`, `arm`, `finishes_in`, `ce`, `ce_low`, `ce_high` (nats
        per token), `recovered`, `kl`, `increase_percent`.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    require_columns(
        table,
        "route",
        "arm",
        "finishes_in",
        "ce",
        "ce_low",
        "ce_high",
        "recovered",
        "kl",
        "increase_percent",
    )
    records = table.to_dict("records")
    routes = list(dict.fromkeys(str(record["route"]) for record in records))
    if not routes:
        raise ValueError("the table has no rows; there is nothing to show")
    arms = _ordered([str(record["arm"]) for record in records])
    titles = [
        f"{route}   (finishes in {next(r['finishes_in'] for r in records if r['route'] == route)})"
        for route in routes
    ]
    height = 170 + len(routes) * (50 + 24 * len(arms))
    spacing = 50 / height if len(routes) > 1 else 0
    figure = make_subplots(
        rows=len(routes), shared_xaxes=True, vertical_spacing=spacing, subplot_titles=titles
    )
    for number, route in enumerate(routes, start=1):
        rows = {str(record["arm"]): record for record in records if record["route"] == route}
        for arm in (arm for arm in arms if arm in rows):
            figure.add_trace(_point(rows[arm], arm), row=number, col=1)
            if arm != "own":
                figure.add_trace(_rise(rows[arm], arm), row=number, col=1)
        for arm in ("own", "mean"):
            if arm in rows:
                line = {"color": _style(arm).colour, "dash": "dot", "width": 1.5}
                figure.add_vline(x=rows[arm]["ce"], line=line, row=number, col=1)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" only)
    labels = [_style(arm).label for arm in reversed(arms)]
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=labels,
        range=[-0.6, len(arms) - 0.4],
        ticks="",
    )
    subtitle = "lower is better; dotted: the finishing model with its own state, and with its mean; beside each point: rise over its own"
    figure.update_layout(
        title={"text": "Loss behind the stitch", "subtitle": {"text": subtitle}},
        height=height,
        showlegend=False,
    )
    figure.update_layout(
        template=use_template(),
        margin={"t": 130, "r": 60},
        title_y=1 - 30 / height,
        title_yanchor="top",
    )
    return figure.update_xaxes(
        title_text="next-token cross-entropy (nats per token)", row=len(routes), col=1
    )


def _ordered(arms: list[str]) -> list[str]:
    others = [arm for arm in dict.fromkeys(arms) if arm not in _STYLES]
    known = [arm for arm in _STYLES if arm in arms]
    place = known.index("stitched") + 1 if "stitched" in known else 0
    return known[:place] + others + known[place:]


def _style(arm: str) -> ArmStyle:
    return _STYLES.get(arm) or arm_style(arm)


def _point(row: dict, arm: str) -> "go.Scatter":
    style = _style(arm)
    above, below = row["ce_high"] - row["ce"], row["ce"] - row["ce_low"]
    share = "undefined" if math.isnan(row["recovered"]) else f"{row['recovered']:.3f}"
    hover = (
        f"<b>{style.label}</b><br>{row['ce']:.3f} [{row['ce_low']:.3f}, {row['ce_high']:.3f}] nats<br>KL from own {row['kl']:.3f}"
        f"<br>recovered {share}<extra></extra>"
    )
    return go.Scatter(
        x=[row["ce"]],
        y=[style.label],
        name=arm,
        mode="markers",
        marker=style.marker,
        hovertemplate=hover,
        error_x={"array": [above], "arrayminus": [below], "color": style.colour, "thickness": 2},
    )


def _rise(row: dict, arm: str) -> "go.Scatter":
    """By how much the loss is above the finishing model's own, behind the interval."""
    text = f"  {row['increase_percent']:+.1f}%"
    return go.Scatter(
        x=[row["ce_high"]],
        y=[_style(arm).label],
        mode="text",
        text=[text],
        textposition="middle right",
        hoverinfo="skip",
        cliponaxis=False,
    )
