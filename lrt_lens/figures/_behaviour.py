"""Figures of clamping and of directional ablation: shares, drops and damage per arm.

Problem: the rate of a behaviour alone does not show which of it the direction caused. Mechanism:
each arm is one point with its interval, and all controls have their own row.

    clamp_figure(result.summary)
    ablation_figure(result.summary)

Limits: interval ends are those of the tables; nothing is computed here.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    arm_style,
    categories,
    error_bars,
    ordered_arms,
    panel,
    require_columns,
    rows_where,
    use_template,
)

# Titles of the rows of panels, by the value of the column `where`.
_SITES = {"hook": "at the stitch's hook point", "everywhere": "after every component"}
_MEASURES = {
    "drop": "drop of propensity (nats)",
    "share": "share of continuations",
    "damage": "damage (nats per token)",
}
"""Columns that `ablation_figure` shows, with the titles of their axes."""


def clamp_figure(summary: pd.DataFrame) -> "go.Figure":
    """Return the share of continuations that show each concept, with intervals, per arm.

    There is one panel per concept and one point per arm.

    Args:
        summary: `ClampEvaluation.summary` (of several concepts, concatenated): `concept`, `arm`,
            `share`, `low`, `high`, `clipped_ratio`.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(summary, "concept", "arm", "share", "low", "high", "clipped_ratio")
    concepts, arms = list(dict.fromkeys(summary["concept"])), ordered_arms(summary["arm"].tolist())
    # One list of arms, on the left, serves all panels.
    figure = make_subplots(
        cols=len(concepts),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[str(concept) for concept in concepts],
    )
    for column, concept in enumerate(concepts, start=1):
        for row in rows_where(summary, "concept", concept).to_dict("records"):
            note = f"clipped ratio {row['clipped_ratio']:.2f}"
            point = _point(row, "share", "low", "high", note=note)
            figure.add_trace(point, **panel(1, column))
        # Without a margin on both sides, points at 0 and at 1 would be cut off.
        looks = {"range": [-0.03, 1.03], "title_text": "share of continuations"}
        figure.update_xaxes(looks, **panel(1, column))
    subtitle = "share of continuations that the classifier assigns to the concept, 95% intervals"
    return _lay_out(figure, arms, "Features clamped to the concept's mean", subtitle)


def ablation_figure(summary: pd.DataFrame) -> "go.Figure":
    """Return the drop of a behaviour and the damage under directional ablation, per arm.

    There is one row of panels per site of the ablation and one column per measure: propensity,
    share of continuations (whichever the table holds) and damage.

    Args:
        summary: `AblationEvaluation.summary`: `where`, `arm`, `damage` with its interval, and
            `drop` or `share` with theirs.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(summary, "where", "arm", "damage", "damage_low", "damage_high")
    measures = [name for name in _MEASURES if name in summary.columns]
    sites, arms = list(dict.fromkeys(summary["where"])), ordered_arms(summary["arm"].tolist())
    # Titles are listed row by row: the first panel of each row names its site.
    titles = [
        _SITES.get(site, site) if number == 0 else ""
        for site in sites
        for number in range(len(measures))
    ]
    figure = make_subplots(
        rows=len(sites),
        cols=len(measures),
        shared_yaxes=True,
        shared_xaxes=True,
        subplot_titles=titles,
        vertical_spacing=0.12,
    )
    for number, site in enumerate(sites, start=1):
        for row in rows_where(summary, "where", site).to_dict("records"):
            for column, name in enumerate(measures, start=1):
                point = _point(row, name, f"{name}_low", f"{name}_high")
                figure.add_trace(point, **panel(number, column))
    for column, name in enumerate(measures, start=1):
        figure.update_xaxes(title_text=_MEASURES[name], **panel(len(sites), column))
    figure.update_annotations(font={"size": 13})
    subtitle = "effect of projecting a direction out of the residual stream; 95% intervals"
    return _lay_out(figure, arms, "Directional ablation", subtitle, n_rows=len(sites))


def _point(row: dict, value: str, low: str, high: str, note: str = "") -> "go.Scatter":
    style = arm_style(str(row["arm"]))
    numbers = f"{row[value]:.3f} [{row[low]:.3f}, {row[high]:.3f}]"
    return go.Scatter(
        x=[row[value]],
        y=[style.label],
        mode="markers",
        marker=style.marker,
        hovertemplate=f"<b>{style.label}</b><br>{numbers}<br>{note}<extra></extra>",
        error_x=error_bars(row[value], row[low], row[high], color=style.colour, thickness=2),
    )


def _lay_out(
    figure: "go.Figure", arms: list[str], title: str, subtitle: str, n_rows: int = 1
) -> "go.Figure":
    # In pixels: 30 per arm, 70 for the axis and title of a row of panels.
    height = 170 + n_rows * (70 + 30 * len(arms))
    figure.update_yaxes(categories([arm_style(arm).label for arm in arms]))
    return figure.update_layout(
        template=use_template(),
        height=height,
        showlegend=False,
        margin={"t": 110},
        # `y` counts from below, as a share of the height: the title begins 18 pixels below the top.
        title={"text": title, "subtitle": {"text": subtitle}, "y": 1 - 18 / height},
    )
