"""Figures of concept maps: recovery of vectors by maps fitted on few texts, and steering over β.

Problem: a cosine of 1 between vectors may be algebra and no transfer. Mechanism: every figure shows
the arms that use no source model or no concept.

Each function draws the rows of one tidy table. In `interpolation_figure` the line at n/d = 1 is
the number of texts at which least squares stops interpolating: left of it ``own`` and
``noise_source`` are 1 by algebra.

    interpolation_figure(result.summary)

Limits: more than three concepts side by side are hard to read.
"""

import math
from typing import Any

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    DOTTED,
    HIGHLIGHT,
    NEUTRAL,
    ArmStyle,
    error_bars,
    ordered_arms,
    panel,
    require_columns,
    require_rows,
    rows_where,
    use_template,
)

STYLES: dict[str, ArmStyle] = {
    "none": ARM_STYLES["none"],
    "source": ArmStyle(
        "small model, its own vector", "#E69F00", dash="dash", symbol="triangle-up", width=2.5
    ),
    "native": ArmStyle("native (Self)", "#0072B2", symbol="square", width=2.5),
    "own": ArmStyle("own concept, same texts", "#D55E00", width=3.0),
    "noise_source": ArmStyle(
        "own concept, random source", "#CC79A7", dash="dash", symbol="diamond", width=2.5
    ),
    "own_disjoint": ArmStyle("own concept, other texts", "#E69F00", symbol="circle-open"),
    "own_disjoint_ridge": ArmStyle(
        "own concept, other texts, ridge", "#E69F00", dash="dot", symbol="circle"
    ),
    "other": ArmStyle("another concept", "#009E73", symbol="triangle-up-open"),
    "other_ridge": ArmStyle("another concept, ridge", "#009E73", dash="dot", symbol="triangle-up"),
    "others": ArmStyle("all other concepts", "#56B4E9", symbol="star-open"),
    "others_ridge": ArmStyle("all other concepts, ridge", "#56B4E9", dash="dot", symbol="star"),
    "stitch": ArmStyle(
        "generic text (stitch)", "#9A8C00", dash="longdashdot", symbol="pentagon", width=2.5
    ),
    "native_other_texts": ArmStyle(
        "no map: native from other texts", "#56B4E9", dash="dash", symbol="square-open"
    ),
    "untransformed": ArmStyle("no map", "#9A8C00", dash="longdash", symbol="star-triangle-up"),
    "mean_only": ArmStyle("mean states alone", NEUTRAL, dash="longdash", symbol="cross"),
    "shuffled": ArmStyle("shuffled texts", "#8C8C8C", dash="dashdot", symbol="x"),
    "random": ArmStyle("random T", "#8C8C8C", dash="dot", symbol="hexagon-open", width=1.5),
    "random_matched": ArmStyle("random T, native length", "#8C8C8C", symbol="hexagon", width=1.5),
}
"""Style of each arm, in the order in which figures list them."""
WEAK_TO_STRONG = (
    "source",
    "native",
    "own",
    "own_disjoint_ridge",
    "other_ridge",
    "stitch",
    "random_matched",
)
"""Arms that `weak_to_strong_figure` shows."""
_LIKELIHOODS = ["probability", "probability_low", "probability_high"]
"""Columns of `beta_figure`: value, and the ends of its interval."""


def interpolation_figure(summary: pd.DataFrame) -> "go.Figure":
    """Return the cosine to the native vector against n/d, the texts per source dimension.

    There is one panel per concept and one line per arm; bars show where a new draw of texts falls.

    Args:
        summary: `ConceptInterpolation.summary` of one or several concepts: `concept`, `arm`, `n`,
            `n_over_d`, `cosine`, `low`, `high`, `norm_ratio`.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    columns = ("concept", "arm", "n", "n_over_d", "cosine", "low", "high", "norm_ratio")
    require_columns(summary, *columns)
    concepts = _concepts(summary)
    figure = _panels(concepts)
    for column, concept in enumerate(concepts, start=1):
        part = rows_where(summary, "concept", concept)
        for arm in _ordered(part):
            curve = _curve(rows_where(part, "arm", arm).sort_values("n"), arm, first=column == 1)
            figure.add_trace(curve, **panel(1, column))
    # Without row and col, plotly draws a line in every panel.
    figure.add_vline(x=1, line=DOTTED | {"width": 1.5})
    figure.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    figure.update_xaxes(type="log", title_text="texts ÷ source dimensions (n/d)", tickvals=ticks)
    figure.update_yaxes(title_text="cosine to the native vector", **panel(1, 1))
    # n ≤ d: n equations in d unknowns have an exact solution, for any source rows.
    subtitle = (
        "left of the dotted line least squares fits every text exactly, even with a random source"
        "<br>bars: where the cosine of another draw of texts falls"
    )
    return _titled(figure, "Vectors through maps fitted on n texts", subtitle)


def concept_summary_figure(summary: pd.DataFrame, *, equal_damage: bool = True) -> "go.Figure":
    """Return the effect of each arm with its interval, one panel per concept.

    An arm without an effect at equal damage (no tried scale reached the budget) shows its flag.

    Args:
        summary: `ConceptTransfer.summary`.
        equal_damage: show effects at equal damage, else at β = 1.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    # The columns of an interval have short names at equal damage, and long ones at β = 1.
    names = ("effect", "effect_low", "effect_high")
    value, low, high = ("effect_at_equal_damage", "low", "high") if equal_damage else names
    require_columns(summary, "concept", "arm", "cosine", value, low, high)
    concepts, arms = _concepts(summary), _ordered(summary)
    figure = make_subplots(
        cols=len(concepts), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=concepts
    )
    for column, concept in enumerate(concepts, start=1):
        for record in rows_where(summary, "concept", concept).to_dict("records"):
            point = _effect(record, record[value], record[low], record[high])
            figure.add_trace(point, **panel(1, column))
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[_style(arm).label for arm in reversed(arms)],
        ticks="",
    )
    figure.update_xaxes(title_text="effect (nats)")
    strength = "at equal damage on neutral text" if equal_damage else "at β = 1"
    subtitle = f"change of propensity {strength}; 95% intervals"
    _titled(figure, "Effect of vectors through concept maps", subtitle)
    return figure.update_layout(height=190 + 30 * len(arms), showlegend=False)


def _effect(record: dict, value: float, low: float, high: float) -> "go.Scatter":
    style = _style(record["arm"])
    if math.isnan(value):
        # No effect to draw: the reason is written where the point would be.
        text = [record.get("flag", "")]
        shown = go.Scatter(x=[0], y=[style.label], mode="text", text=text, hoverinfo="skip")
        return shown.update(showlegend=False)
    hover = f"{style.label}<br>{value:.3f} [{low:.3f}, {high:.3f}] nats<br>"
    return go.Scatter(
        x=[value],
        y=[style.label],
        mode="markers",
        marker=style.marker,
        showlegend=False,
        name=record["arm"],
        error_x=error_bars(value, low, high, color=style.colour),
        hovertemplate=hover + f"cosine to native {record['cosine']:.3f}<extra></extra>",
    )


def beta_figure(table: pd.DataFrame, arms: tuple[str, ...] | None = None) -> "go.Figure":
    """Return the probability of the concept's choice over the β that all arms share.

    There is one panel per concept and one line per arm, the mean over its draws.

    Args:
        table: `ConceptTransfer.table`: `concept`, `arm`, `draw`, `beta`, `probability`,
            `probability_low`, `probability_high`.
        arms: names of the arms to draw; all if None.

    Raises:
        ValueError: a column is not in the table, or no arm is left to draw.
    """
    require_columns(table, "concept", "arm", "draw", "beta", *_LIKELIHOODS)
    concepts = _concepts(table)
    shown = [arm for arm in _ordered(table) if arm != "none" and (arms is None or arm in arms)]
    if not shown:
        raise ValueError(
            f"no arm to draw; the table holds {sorted(set(table['arm']))} and arms is {arms}: "
            "give names of arms in the table, or None for all"
        )
    figure = _panels(concepts)
    for column, concept in enumerate(concepts, start=1):
        part = _at_common_strengths(rows_where(table, "concept", concept))
        for arm in shown:
            # At β = 0 all arms of the target are one row, "none".
            rows = rows_where(part, "arm", *([arm] if arm == "source" else [arm, "none"]))
            figure.add_trace(_beta_line(rows, arm, first=column == 1), **panel(1, column))
    figure.update_xaxes(title_text="β (multiples of the vector as mapped)")
    figure.update_yaxes(title_text="concept’s choice (%)", **panel(1, 1))
    subtitle = "share of the concept’s continuation among both; bars: 95% over items"
    return _titled(figure, "Concept’s choice over β", subtitle)


def weak_to_strong_figure(table: pd.DataFrame) -> "go.Figure":
    """Return figure 4 of L-Cross with its controls.

    It compares the small model under its own vector with the large model under the small one's.

    Args:
        table: as in `beta_figure`.

    Raises:
        ValueError: as in `beta_figure`.
    """
    figure = beta_figure(table, WEAK_TO_STRONG)
    return _titled(
        figure,
        "The small model’s concept in the large one",
        "orange triangles: the small model itself; all other lines: the large one",
    )


def _curve(rows: pd.DataFrame, arm: str, *, first: bool) -> "go.Scatter":
    style = _style(arm)
    hover = [
        f"{style.label}: {value:.3f}<br>n {n}, length {ratio:.2f} × native"
        for value, n, ratio in zip(rows["cosine"], rows["n"], rows["norm_ratio"], strict=True)
    ]
    trace = _line(arm, rows["n_over_d"], pd.DataFrame(rows[["cosine", "low", "high"]]), first=first)
    return trace.update(text=hover, hovertemplate="%{text}<extra></extra>")


def _beta_line(rows: pd.DataFrame, arm: str, *, first: bool) -> "go.Scatter":
    # Rows are draws of one arm at one β; the line is their mean.
    means = pd.DataFrame(rows.groupby("beta")[_LIKELIHOODS].mean())
    trace = _line(arm, means.index, means, first=first)
    label = _style(arm).label
    return trace.update(hovertemplate=f"{label}: %{{y:.1f}}% at β %{{x:.2f}}<extra></extra>")


def _line(arm: str, x: Any, estimates: pd.DataFrame, *, first: bool) -> "go.Scatter":
    """Return the line of an arm; the columns of `estimates` are value, low and high."""
    style = _style(arm)
    value, low, high = (estimates[name] for name in estimates.columns)
    return go.Scatter(
        x=x,
        y=value,
        mode="lines+markers",
        name=style.label,
        legendgroup=arm,
        showlegend=first,
        line=style.line,
        marker={**style.marker, "size": 6},
        error_y=error_bars(value, low, high, color=style.colour, thickness=1, width=2),
    )


def _panels(concepts: list[str]) -> "go.Figure":
    # One vertical axis serves all concepts, so that their heights can be compared.
    return make_subplots(
        cols=len(concepts), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=concepts
    )


def _titled(figure: "go.Figure", title: str, subtitle: str) -> "go.Figure":
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(
        template=use_template(),
        title={"text": title, "subtitle": {"text": subtitle}, "y": 0.97},
        height=600,
        margin={"t": 120, "b": 60},
        legend={"y": -0.18},
    )


def _at_common_strengths(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at strengths common to all arms.

    Rows at strengths that were measured only around one arm's equal damage are left out.
    """
    steered = table[table["arm"] != "none"]
    # Calibrated strengths differ from arm to arm and would draw a line of its own for each.
    common = set.intersection(
        *(set(part["beta"]) for _, part in steered.groupby(["arm", "draw"], dropna=False)),
        set(table["beta"]),
    ) | {0.0}
    return pd.DataFrame(table.loc[table["beta"].isin(sorted(common))])


def _concepts(table: pd.DataFrame) -> list[str]:
    require_rows(table)
    return [str(name) for name in dict.fromkeys(table["concept"])]


def _ordered(table: pd.DataFrame) -> list[str]:
    return ordered_arms(table["arm"], STYLES)


def _style(arm: str) -> ArmStyle:
    return STYLES.get(arm, ArmStyle(arm, HIGHLIGHT, dash="dashdot", symbol="hexagon2"))
