"""Figures of single features: activations in both models, and matched pairs of two SAEs.

    activation_figure(contexts, names=("small", "large"), index=17)
    matches_figure(matches.table)

Problem: a correlation hides where two models disagree. Mechanism: one point per token, or per pair.

Limits: only tokens of the strongest contexts are drawn, not all tokens.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lrt_lens.figures._plotly import go
from lrt_lens.figures._template import (
    ARM_STYLES,
    DOTTED,
    ArmStyle,
    require_columns,
    use_template,
    with_counts,
)

# Both roles have the same words in the legend; the name of the model follows.
_ROLES = {
    "source": ArmStyle("contexts most active on", "#D55E00"),
    "target": ArmStyle("contexts most active on", "#0072B2", symbol="square-open"),
}


def activation_figure(
    places: dict[str, Sequence[Any]], *, names: tuple[str, str], index: int
) -> "go.Figure":
    """Return a feature's activation on the target against that on the source, per token.

    Args:
        places: the contexts in which the feature is most active, under the keys ``"source"`` and
            ``"target"``; each context has ``tokens`` and their ``source`` and ``target``
            activations.
        names: names of the source and of the target model.
        index: index of the feature, for the title.
    """
    figure, n_tokens = go.Figure(), 0
    for (role, style), name in zip(_ROLES.items(), names, strict=True):
        tokens = [
            point
            for context in places.get(role, [])
            for point in zip(context.tokens, context.source, context.target, strict=True)
        ]
        n_tokens += len(tokens)
        figure.add_scatter(
            x=[source for _, source, _ in tokens],
            y=[target for _, _, target in tokens],
            mode="markers",
            name=f"{style.label} {name}",
            # repr shows the spaces and line ends of a token.
            text=[repr(token) for token, _, _ in tokens],
            marker=style.marker | {"opacity": 0.75},
            hovertemplate="%{text}<br>source %{x:.3g}<br>target %{y:.3g}<extra></extra>",
        )
    # An empty figure would look like an error, so it says why it is empty.
    if not n_tokens:
        note = {"text": "never active on the documents", "showarrow": False}
        figure.add_annotation(**note, x=0.5, y=0.5, xref="paper", yref="paper")
    figure.update_xaxes(title_text=f"activation on {names[0]} (SAE units)")
    figure.update_yaxes(title_text=f"activation on {names[1]} (SAE units)")
    subtitle = "one point per token of the contexts in which it is most active"
    title = {"text": f"Feature {index} on both models", "subtitle": {"text": subtitle}}
    figure.update_layout(template=use_template(), title=title, height=460, margin={"t": 80})
    n_contexts = sum(len(contexts) for contexts in places.values())
    return with_counts(figure, {"contexts": n_contexts, "tokens": n_tokens})


def matches_figure(table: pd.DataFrame) -> "go.Figure":
    """Return held-out correlation against that on the documents used for matching, per pair.

    Args:
        table: `FeatureMatches.table`: `source`, `target`, `correlation`, `correlation_test`.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(table, "source", "target", "correlation", "correlation_test")
    style = ARM_STYLES["native"]
    hover = "%{customdata[0]} and %{customdata[1]}<br>matched %{x:.2f}<br>held out %{y:.2f}"
    points = go.Scatter(
        x=table["correlation"].tolist(),
        y=table["correlation_test"].tolist(),
        mode="markers",
        showlegend=False,
        customdata=table[["source", "target"]].to_numpy().tolist(),
        marker=style.marker | {"size": 6, "opacity": 0.6},
        hovertemplate=f"{hover}<extra></extra>",
    )
    figure = go.Figure(points)
    # Points on the diagonal have the same correlation on both sets of documents.
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line=DOTTED)
    figure.update_xaxes(title_text="correlation on the documents used for matching")
    figure.update_yaxes(title_text="correlation on other documents")
    subtitle = "below the diagonal: optimism of the matching"
    title = {"text": "Matched features", "subtitle": {"text": subtitle}}
    return figure.update_layout(template=use_template(), title=title, height=460, margin={"t": 80})
