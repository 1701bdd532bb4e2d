"""Figure of a learning curve: scores on held-out text against the number of fitting tokens.

    learning_curve_figure(curve.table, verdict=curve.verdict, n_test=curve.n_test_tokens)

Problem: one number does not say whether more text would help. Mechanism: each score is a line over
a logarithmic axis, so that equal steps are equal factors of text; the network, which need not be
linear, is a diamond at the end of the same axis.

Limits: scores of different kinds share the axis; compare points of one line.
"""

from typing import Any

import pandas as pd

from lrt_lens.figures._plotly import go
from lrt_lens.figures._template import (
    ARM_STYLES,
    error_bars,
    require_columns,
    require_rows,
    use_template,
    with_counts,
)

_LABELS = {
    "r2": "R²",
    "r2_uniform": "R², mean over dimensions",
    "gain": "gain over tokens",
    "fve_nrm": "fve_nrm",
    "write": "ρ write",
    "read": "ρ read",
}
"""Names of the scores in the legend."""
_STYLES = tuple(style for name, style in ARM_STYLES.items() if name not in ("none", "random"))


def learning_curve_figure(table: pd.DataFrame, *, verdict: str, n_test: int) -> "go.Figure":
    """Return the scores of each map against the number of tokens, with 95% intervals.

    Args:
        table: `LearningCurve.table`: `map`, `n_tokens`, `score`, `direction`, `value`, `low`,
            `high`.
        verdict: answer that stands in the title.
        n_test: held-out tokens, for the line under the title.

    Raises:
        ValueError: a column is missing, or the table has no rows.
    """
    require_columns(table, "map", "n_tokens", "score", "direction", "value", "low", "high")
    require_rows(table)
    figure = go.Figure()
    lines = dict.fromkeys(zip(table["score"], table["direction"], strict=True))
    for number, (score, direction) in enumerate(lines):
        rows = table[(table["score"] == score) & (table["direction"] == direction)]
        style = _STYLES[number % len(_STYLES)]
        label = f"{_LABELS.get(str(score), score)} {direction}".strip()
        for name in ("affine", "mlp"):
            points = pd.DataFrame(rows[rows["map"] == name]).sort_values("n_tokens")
            if len(points):
                figure.add_trace(_trace(points, name, label, style))
    has_network = "mlp" in table["map"].tolist()
    figure.update_xaxes(title_text="tokens that fitted", type="log", dtick="D2")
    figure.update_yaxes(title_text="score on held-out text")
    figure.update_layout(
        template=use_template(),
        title={
            "text": f"Learning curve: {verdict}",
            "subtitle": {
                "text": "diamonds: a network instead of the affine map" if has_network else None
            },
        },
        height=460,
    )
    n_points = len(set(table["n_tokens"].tolist()))
    return with_counts(figure, {"points": n_points, "held-out tokens": n_test})


def _trace(points: pd.DataFrame, name: str, label: str, style: Any) -> "go.Scatter":
    """Return one line of the affine map, or the point of the network."""
    is_network = name == "mlp"
    marker = style.marker | ({"symbol": "diamond", "size": 11} if is_network else {})
    bars = error_bars(points["value"], points["low"], points["high"], color=style.colour)
    return go.Scatter(
        x=points["n_tokens"],
        y=points["value"],
        name=f"{label}, network" if is_network else label,
        mode="markers" if is_network else "lines+markers",
        marker=marker,
        line=None if is_network else style.line,
        error_y=bars | {"thickness": 1, "width": 3},
        showlegend=not is_network,
        hovertemplate="%{x:,} tokens: %{y:.3f}<extra>" + label + "</extra>",
    )
