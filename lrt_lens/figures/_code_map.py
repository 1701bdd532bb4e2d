"""Figure of a map fitted from SAE codes, next to the map fitted from states.

    code_map_figure(result.table, result.features)

Problem: two maps with the same R² may map features to different directions. Mechanism: R² on the
left, agreement of single features on the right.

Limits: without compared features there is one panel.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    DOTTED,
    ArmStyle,
    error_bars,
    panel,
    require_columns,
    use_template,
)

_STYLES = {
    "s2l": ArmStyle("from codes (s2l)", "#D55E00"),
    "l2l": ArmStyle("from states (l2l)", "#0072B2", symbol="square"),
    "reconstruction": ArmStyle("from the SAE's reconstruction", "#56B4E9", symbol="square-open"),
    "other": ArmStyle("another feature's row", "#CC79A7", symbol="diamond"),
    "random": ArmStyle("random direction", "#8C8C8C", symbol="circle-open"),
}
"""Style of each arm; those of the right panel include two controls."""
_SCORES = {
    "r2": ("circle", "#D55E00", "R²"),
    "r2_uniform": ("diamond-open", "#0072B2", "mean R² over dimensions"),
}
"""Marker, colour and name of each score."""


def code_map_figure(table: pd.DataFrame, features: pd.DataFrame) -> "go.Figure":
    """Return the R² of each map with its interval, and boxes of agreement per arm.

    The boxes are left out if no features were compared.

    Args:
        table: `CodeMapEvaluation.table`: `arm`, `r2`, `r2_uniform` and the ends of their intervals
            (`r2_low`, `r2_high`, …).
        features: `CodeMapEvaluation.features`: `feature`, `cosine` and `agreement_…`; may be empty.

    Raises:
        ValueError: a column is not in the table.
    """
    bounds = [f"{score}{end}" for score in _SCORES for end in ("", "_low", "_high")]
    require_columns(table, "arm", *bounds)
    # One panel without compared features, two with them.
    titles = ["R² on the test fold"]
    titles += ["agreement with the effect on the source"] if len(features) else []
    figure = make_subplots(cols=len(titles), horizontal_spacing=0.22)
    for score in _SCORES:
        figure.add_trace(_points(table, score), **panel(1, 1))
    if len(features):
        for arm in ("s2l", "l2l", "other", "random"):
            figure.add_trace(_box(features, arm, _STYLES[arm]), **panel(1, 2))
        figure.add_vline(x=0, line=DOTTED, **panel(1, 2))
    for column, text in enumerate(titles, start=1):
        figure.update_xaxes(title_text=text, **panel(1, column))
    # plotly lists categories from below: reversed, the first arm is on top.
    figure.update_yaxes(autorange="reversed", ticks="")
    title = "Predicting the target from codes or from states"
    subtitle = "left: 95% intervals over groups of test documents; right: one point per feature"
    return figure.update_layout(
        template=use_template(),
        height=420,
        title={"text": title, "subtitle": {"text": subtitle}},
        margin={"t": 80},
    )


def _points(table: pd.DataFrame, score: str) -> "go.Scatter":
    symbol, colour, name = _SCORES[score]
    # Order of `error_bars`: value, lower end, upper end.
    bounds = (table[f"{score}{end}"] for end in ("", "_low", "_high"))
    return go.Scatter(
        x=table[score],
        y=[_STYLES[str(arm)].label for arm in table["arm"]],
        mode="markers",
        name=name,
        marker={"symbol": symbol, "size": 10, "color": colour},
        error_x=error_bars(*bounds, type="data", color=colour),
    )


def _box(features: pd.DataFrame, arm: str, style: ArmStyle) -> "go.Box":
    hover = "feature %{customdata[0]}: agreement %{x:.2f}"
    return go.Box(
        x=features[f"agreement_{arm}"],
        y=[style.label] * len(features),
        orientation="h",
        name=style.label,
        showlegend=False,
        # All points are drawn on the box itself, spread a little so that they do not hide each
        # other.
        boxpoints="all",
        jitter=0.5,
        pointpos=0,
        marker={"color": style.colour, "size": 5},
        line={"color": style.colour, "width": 1.5},
        customdata=features[["feature", "cosine"]],
        fillcolor=style.fill(),
        hovertemplate=f"{hover}, cosine of the two rows %{{customdata[1]:.2f}}<extra></extra>",
    )
