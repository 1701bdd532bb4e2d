"""Features one by one: a feature's activations in both models, and pairs of features matched across
two SAEs.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lrt_lens.figures._plotly import go
from lrt_lens.figures._template import ARM_STYLES, NEUTRAL, ArmStyle, require_columns, use_template

_ROLES = {
    "source": ArmStyle("places strongest on", "#D55E00"),
    "target": ArmStyle("places strongest on", "#0072B2", symbol="square-open"),
}


def activation_figure(
    places: dict[str, Sequence[Any]], *, names: tuple[str, str], index: int
) -> "go.Figure":
    """Returns a feature's activation on the target (up) against that on the source (right): a point
    a token of the contexts shown.

    Args: places: by ``"source"`` and ``"target"``, the contexts strongest there: ``tokens``, and
        ``source`` and ``target`` activations of each. names: of the source and of the target model.
        index: the feature's number, for the title.
    """
    figure = go.Figure()
    for (role, style), name in zip(_ROLES.items(), names, strict=True):
        tokens = [
            point
            for context in places.get(role, [])
            for point in zip(context.tokens, context.source, context.target, strict=True)
        ]
        figure.add_scatter(
            x=[source for _, source, _ in tokens],
            y=[target for _, _, target in tokens],
            mode="markers",
            name=f"{style.label} {name}",
            text=[repr(token) for token, _, _ in tokens],
            marker=style.marker | {"opacity": 0.75},
            hovertemplate="%{text}<br>source %{x:.3g}<br>target %{y:.3g}<extra></extra>",
        )
    if not any(len(trace["x"]) for trace in figure.to_dict()["data"]):
        figure.add_annotation(
            text="never active on the documents",
            showarrow=False,
            x=0.5,
            y=0.5,
            xref="paper",
            yref="paper",
        )
    figure.update_xaxes(title_text=f"activation on {names[0]} (SAE units)").update_yaxes(
        title_text=f"activation on {names[1]} (SAE units)"
    )
    title = {
        "text": f"Feature {index} on both models",
        "subtitle": {"text": "a point a token of its strongest contexts"},
    }
    return figure.update_layout(template=use_template(), title=title, height=460, margin={"t": 80})


def matches_figure(table: pd.DataFrame) -> "go.Figure":
    """Returns correlation on other documents (up) against that on the documents that matched
    (right), a point a pair of features.

    Args:
        table: `FeatureMatches.table`: `source`, `target`, `correlation`, `correlation_test`.
    """
    require_columns(table, "source", "target", "correlation", "correlation_test")
    style = ARM_STYLES["native"]
    figure = go.Figure(
        go.Scatter(
            x=table["correlation"].tolist(),
            y=table["correlation_test"].tolist(),
            mode="markers",
            showlegend=False,
            customdata=table[["source", "target"]].to_numpy().tolist(),
            marker=style.marker | {"size": 6, "opacity": 0.6},
            hovertemplate="%{customdata[0]} and %{customdata[1]}<br>matched %{x:.2f}<br>elsewhere %{y:.2f}<extra></extra>",
        )
    )
    figure.add_shape(
        type="line", x0=0, y0=0, x1=1, y1=1, line={"color": NEUTRAL, "dash": "dot", "width": 1}
    )
    figure.update_xaxes(title_text="correlation where they were matched").update_yaxes(
        title_text="correlation on other documents"
    )
    title = {
        "text": "Matched features",
        "subtitle": {
            "text": f"{len(table)} pairs; below the diagonal: what matching by chance added"
        },
    }
    return figure.update_layout(template=use_template(), title=title, height=460, margin={"t": 80})
