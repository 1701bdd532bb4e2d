"""Behaviour put in by clamping and taken out by ablation: shares, drops and damage by arm."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lrt_lens.figures._template import TEMPLATE_NAME, arm_style, ordered_arms, require_columns

_PLACES = {"hook": "at the stitch's hook", "everywhere": "everywhere"}


def clamp_figure(summary: pd.DataFrame) -> go.Figure:
    """Returns the share of continuations that show the concept, a point an arm with its interval, a
    panel a concept.

    Args: summary: `ClampEvaluation.summary` (of several concepts, concatenated): `concept`, `arm`,
        `share`, `low`, `high`, `clipped_ratio`.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(summary, "concept", "arm", "share", "low", "high", "clipped_ratio")
    concepts, arms = list(dict.fromkeys(summary["concept"])), ordered_arms(summary["arm"].tolist())
    figure = make_subplots(
        cols=len(concepts),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[str(c) for c in concepts],
    )
    for column, concept in enumerate(concepts, start=1):
        for row in summary.loc[summary["concept"] == concept].to_dict("records"):
            figure.add_trace(
                _point(
                    row, "share", "low", "high", note=f"clipped ratio {row['clipped_ratio']:.2f}"
                ),
                row=1,
                col=column,
            )
        figure.update_xaxes(
            range=[-0.03, 1.03], title_text="share of continuations", row=1, col=column
        )
    return _finish(
        figure,
        arms,
        "Clamped to the concept's mean",
        "share of continuations that the classifier calls the concept, 95% intervals",
    )


def ablation_figure(summary: pd.DataFrame) -> go.Figure:
    """Returns drop of the behaviour (propensity, share, or both) and damage by arm, a row of panels
    a place.

    Args: summary: `AblationEvaluation.summary`: `where`, `arm`, `damage` with interval, and `drop`
        or `share` with theirs.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(summary, "where", "arm", "damage", "damage_low", "damage_high")
    panels = {
        "drop": "drop of propensity (nats)",
        "share": "share of continuations",
        "damage": "damage (nats per token)",
    }
    panels = {name: title for name, title in panels.items() if name in summary.columns}
    places, arms = list(dict.fromkeys(summary["where"])), ordered_arms(summary["arm"].tolist())
    titles = [
        _PLACES.get(place, place) if number == 0 else ""
        for place in places
        for number in range(len(panels))
    ]
    figure = make_subplots(
        rows=len(places),
        cols=len(panels),
        shared_yaxes=True,
        shared_xaxes=True,
        subplot_titles=titles,
        vertical_spacing=0.12,
    )
    for number, place in enumerate(places, start=1):
        for row in summary.loc[summary["where"] == place].to_dict("records"):
            for column, name in enumerate(panels, start=1):
                figure.add_trace(
                    _point(row, name, f"{name}_low", f"{name}_high"), row=number, col=column
                )
    for column, title in enumerate(panels.values(), start=1):
        figure.update_xaxes(title_text=title, row=len(places), col=column)
    figure.update_annotations(font={"size": 13})
    text = "what a direction does to the behaviour when it is projected out of the stream, and to neutral text; 95% intervals"
    return _finish(figure, arms, "Directional ablation", text, n_rows=len(places))


def _point(row: dict, value: str, low: str, high: str, note: str = "") -> go.Scatter:
    style = arm_style(str(row["arm"]))
    hover = f"<b>{style.label}</b><br>{row[value]:.3f} [{row[low]:.3f}, {row[high]:.3f}]<br>{note}<extra></extra>"
    return go.Scatter(
        x=[row[value]],
        y=[style.label],
        mode="markers",
        marker=style.marker,
        hovertemplate=hover,
        error_x={
            "array": [row[high] - row[value]],
            "arrayminus": [row[value] - row[low]],
            "color": style.colour,
            "thickness": 2,
        },
    )


def _finish(
    figure: go.Figure, arms: list[str], title: str, subtitle: str, n_rows: int = 1
) -> go.Figure:
    labels = [arm_style(arm).label for arm in reversed(arms)]
    height = 170 + n_rows * (70 + 30 * len(arms))
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=labels,
        range=[-0.6, len(arms) - 0.4],
        ticks="",
    )
    return figure.update_layout(
        template=TEMPLATE_NAME,
        height=height,
        showlegend=False,
        margin={"t": 110},
        title={"text": title, "subtitle": {"text": subtitle}, "y": 1 - 18 / height},
    )
