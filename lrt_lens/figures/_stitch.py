"""One stitch: what its maps explain of the held-out stream, beside what shuffled pairs and token
identity explain.
"""

from collections.abc import Mapping
from typing import Any

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import HIGHLIGHT, NEUTRAL, ArmStyle, short_hook, use_template

_PANELS = {"r2": "R² (share of variance)", "r2_uniform": "R², mean over dimensions"}
_POINTS = {
    "test": ArmStyle("test fold", HIGHLIGHT, width=3.0),
    "cv": ArmStyle("cross-validated", "#0072B2", symbol="square-open"),
    "token": ArmStyle("token identity alone", "#009E73", symbol="triangle-up"),
    "null": ArmStyle("shuffled pairs", "#CC79A7", symbol="diamond"),
}


def stitch_figure(scores: Mapping[str, Any]) -> "go.Figure":
    """Returns R² of both maps of one stitch, a row a direction, with its null and token identity,
    which the way up alone has.

    Args:
        scores: a row of ``grid.scores`` as `Stitch.scores` holds it; what is missing is left out.

    Raises:
        ValueError: none of the scores that the figure shows is known.
    """
    ways = {
        "up": f"up: {_hooks(scores, 'source_hook', 'target_hook')}",
        "down": f"down: {_hooks(scores, 'target_hook', 'source_hook')}",
    }
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for column, metric in enumerate(_PANELS, start=1):
        for name, style in reversed(_POINTS.items()):
            points = [
                (value, label)
                for way, label in ways.items()
                if (value := _score(scores, metric, way, name)) is not None
            ]
            if points:
                values, labels = zip(*points, strict=True)
                figure.add_trace(
                    go.Scatter(
                        x=values,
                        y=labels,
                        mode="markers",
                        name=style.label,
                        legendgroup=name,
                        marker=style.marker | {"size": 11},
                        showlegend=column == 1,
                        hovertemplate=f"<b>{style.label}</b><br>%{{y}}<br>%{{x:.3f}}<extra></extra>",
                    ),
                    row=1,
                    col=column,
                )
        figure.update_xaxes(title_text=_PANELS[metric], row=1, col=column)
    if not figure.to_dict()["data"]:
        raise ValueError(
            f"none of r2, r2_uniform and their controls is among the scores; they are {sorted(scores)}"
        )
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    figure.update_yaxes(type="category", autorange="reversed")
    title = {
        "text": "What the stitch explains",
        "subtitle": {"text": "of the stream at the other end, on documents that fitted nothing"},
    }
    return figure.update_layout(
        template=use_template(),
        title=title,
        height=320,
        margin={"t": 80},
        legend={"y": -0.45, "traceorder": "reversed"},
    )


def _score(scores: Mapping[str, Any], metric: str, way: str, point: str) -> float | None:
    """A score of one direction; None where there is none. Null and token identity were measured for
    the way up.
    """
    down = "" if way == "up" else "_down"
    names = {"test": f"{metric}{down}", "cv": f"{metric}{down}_cv"}
    if way == "up":
        names |= {"token": {"r2": "r2_token", "r2_uniform": "r2_uniform_token"}[metric]} | (
            {"null": "r2_null"} if metric == "r2" else {}
        )
    value = scores.get(names.get(point, ""))
    return float(value) if isinstance(value, int | float) and value == value else None


def _hooks(scores: Mapping[str, Any], start: str, end: str) -> str:
    return f"{short_hook(str(scores.get(start, '?')))} → {short_hook(str(scores.get(end, '?')))}"
