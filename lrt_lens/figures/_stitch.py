"""Figure of one stitch: held-out R² of its maps, with the shuffled null and token identity.

    stitch_figure(stitch.scores)

Problem: an R² alone does not show whether the map uses more than the token. Mechanism: four points
per direction: test fold, cross-validation, token identity and shuffled pairs.

Limits: token identity of the direction down is known only if the target's embedding was harvested.
"""

from collections.abc import Mapping
from typing import Any

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    DOTTED,
    HIGHLIGHT,
    ArmStyle,
    panel,
    short_hook,
    use_template,
    with_counts,
)

_SIDES = ("source", "target")
"""Names of the two ends, as prefixes of columns."""
_PANELS = {"r2": "R² (share of variance)", "r2_uniform": "R², mean over dimensions"}
"""Columns of panels, with their titles."""
# Points per direction, the most important one first.
_POINTS = {
    "test": ArmStyle("test fold", HIGHLIGHT, width=3.0),
    "cv": ArmStyle("cross-validated", "#0072B2", symbol="square-open"),
    "token": ArmStyle("token identity alone", "#009E73", symbol="triangle-up"),
    "null": ArmStyle("shuffled pairs", "#CC79A7", symbol="diamond"),
}


def stitch_figure(scores: Mapping[str, Any]) -> "go.Figure":
    """Return R² of both maps of one stitch, one row per direction.

    Controls that were not measured in a direction are left out.

    Args:
        scores: `Stitch.scores`, or one row of ``grid.scores``; missing scores are left out.

    Raises:
        ValueError: none of the scores that the figure shows is known.
    """
    source, target = (short_hook(str(scores.get(f"{side}_hook", "?"))) for side in _SIDES)
    directions = {"up": f"up: {source} → {target}", "down": f"down: {target} → {source}"}
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for column, metric in enumerate(_PANELS, start=1):
        # What is drawn later covers what was drawn earlier: the test fold comes last.
        for name in reversed(_POINTS):
            points = {
                label: score
                for direction, label in directions.items()
                if (score := _score(scores, metric, direction, name)) is not None
            }
            if points:
                trace = _points(points, name)
                figure.add_trace(trace.update(showlegend=column == 1), **panel(1, column))
        figure.update_xaxes(title_text=_PANELS[metric], **panel(1, column))
    if not figure.to_dict()["data"]:
        raise ValueError(
            "none of r2, r2_uniform and their controls is among the scores; "
            f"they are {sorted(scores)}: give the scores of a stitch, stitch.scores"
        )
    figure.add_vline(x=0, line=DOTTED)
    figure.update_yaxes(type="category", autorange="reversed")
    subtitle = "R² of predicted states on test documents"
    figure.update_layout(
        template=use_template(),
        title={"text": "Variance explained by the stitch", "subtitle": {"text": subtitle}},
        height=320,
        margin={"t": 80},
        legend={"y": -0.45, "traceorder": "reversed"},
    )
    n_tokens = scores.get("n_tokens") or 0
    # A grid without a number has NaN, which is not equal to itself.
    return with_counts(figure, {"fitting tokens": int(n_tokens) if n_tokens == n_tokens else None})


def _points(points: dict[str, float], name: str) -> "go.Scatter":
    style = _POINTS[name]
    return go.Scatter(
        x=tuple(points.values()),
        y=tuple(points),
        mode="markers",
        name=style.label,
        legendgroup=name,
        marker=style.marker | {"size": 11},
        hovertemplate=f"<b>{style.label}</b><br>%{{y}}<br>%{{x:.3f}}<extra></extra>",
    )


def _score(scores: Mapping[str, Any], metric: str, direction: str, point: str) -> float | None:
    """Return a score of one direction; None if it was not measured."""
    # A stitch names its scores r2, r2_down, r2_cv, r2_down_cv, r2_null, r2_null_down, r2_token, …
    down = "" if direction == "up" else "_down"
    names = {
        "test": f"{metric}{down}",
        "cv": f"{metric}{down}_cv",
        "token": f"{metric}_token{down}",
    }
    if metric == "r2":
        names["null"] = f"r2_null{down}"
    value = scores.get(names.get(point, ""))
    # `value == value` is False for NaN.
    return float(value) if isinstance(value, int | float) and value == value else None
