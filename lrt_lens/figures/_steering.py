"""Figures of steering: propensity over scales, effect at a damage budget, and calibration.

Problem: an effect means nothing without its controls, so a figure must show both, and must show the
numbers of the table instead of numbers of its own. Mechanism: each function takes one table with
one row per observation, checks its columns and draws them; the only arithmetic is the difference to
the unsteered row, if that is what an axis shows. Arms look the same in every figure (`ARM_STYLES`),
intervals are those of the table, and a text replaces the point of anything that could not be
measured.

Example:
    from lrt_lens.figures._steering import effect_damage_figure, summary_figure

    summary_figure(result.summary).show()
    effect_damage_figure(result.table, concept="sycophancy", budget=0.1).show()

Limits: hundreds of layers or dozens of concepts in one figure are drawn but not legible; select
first.
"""

import math
from html import escape
from textwrap import wrap
from typing import Any

import pandas as pd

from lrt_lens.figures._grid import grid_figure
from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    HIGHLIGHT,
    MENU_LOOKS,
    arm_style,
    categories,
    count_range,
    ordered_arms,
    panel,
    require_columns,
    rows_where,
    use_template,
    with_counts,
)

__all__ = [
    "calibration_figure",
    "effect_damage_figure",
    "grid_figure",
    "steering_counts",
    "steering_figure",
    "summary_figure",
]

# Titles of axes and explanations of their units.
_DAMAGE_TITLE = "damage (nats per token)"
_SCALE_TITLE = "scale (1 = the vector's own length)"
_PROPENSITY_TITLE = "propensity (nats)"
_EFFECT_TITLE = "effect (nats)"
_EFFECT_MEANING = "effect: propensity minus that without steering"
_DAMAGE_MEANING = "damage: increase of the loss on neutral text"
_PROPENSITY_MEANING = "propensity: log-odds of the positive continuation"
_BUDGET_LINE = {"color": HIGHLIGHT, "dash": "dash", "width": 1.5}
_FLAG_WIDTH = 24
"""Number of characters per line of a flag in a panel."""
_SUBTITLE_WIDTH = 90
"""Number of characters per line of a flag below the title."""
_ZOOM = 5.0
"""Upper end of the first view, in damage budgets."""
_HOVER_FORMATS = {
    "scale": ".3g",
    "propensity": ".3f",
    "propensity_low": ".3f",
    "propensity_high": ".3f",
    "effect": ".3f",
    "damage": ".3f",
}
"""Columns of a steering table that the hover text shows, with their number formats."""


def steering_figure(table: pd.DataFrame, *, concept: str) -> "go.Figure":
    """Return propensity against scale for one concept, one line with its interval per arm.

    Args:
        table: one row per concept, arm and scale: `concept`, `arm`, `scale`, `propensity` (nats:
            log-odds of the positive continuation), `propensity_low`, `propensity_high`, optionally
            `damage` and, if an arm has several random directions, `draw`: draws are thin grey lines
            with one legend entry.
        concept: the concept shown.

    Raises:
        ValueError: a column or the concept is not in the table.
    """
    columns = ("arm", "scale", "propensity", "propensity_low", "propensity_high")
    rows = _of_concept(table, concept, *columns)
    figure = go.Figure()
    # Drawn in reverse order, so that the first arms of the legend lie on top.
    for arm in reversed(ordered_arms(rows["arm"].tolist())):
        frame = rows_where(rows, "arm", arm)
        if _has_draws(frame):
            figure.add_trace(_draw_lines(frame, x="scale", y="propensity"))
            continue
        # A line needs two points; an arm of one scale gets error bars instead of a band.
        single = len(frame) == 1
        if not single:
            figure.add_trace(_band(frame, arm))
        figure.add_trace(_arm_line(frame, arm, x="scale", y="propensity", intervals=single))
        if arm == "none":
            unsteered = float(frame["propensity"].to_list()[0])
            figure.add_hline(y=unsteered, line=arm_style("none").line, opacity=0.7)
    title = _title(f"Steering: {concept}", _PROPENSITY_MEANING)
    figure.update_layout(title=title, legend_traceorder="reversed")
    return _lay_out(figure, x=_SCALE_TITLE, y=_PROPENSITY_TITLE)


def effect_damage_figure(table: pd.DataFrame, *, concept: str, budget: float) -> "go.Figure":
    """Return effect against damage, one line per arm in the order of scale.

    The effect is the propensity minus that of the arm "none"; a vertical line marks the budget. If
    damages reach far beyond five budgets, the first view ends there, and a button shows all.

    Args:
        table: as in `steering_figure`, with `damage` in nats per token.
        concept: the concept shown.
        budget: damage at which arms are compared, nats per token.

    Raises:
        ValueError: a column, the concept or its arm "none" is not in the table.
    """
    rows = _of_concept(table, concept, "arm", "scale", "propensity", "damage")
    rows = rows.assign(effect=rows["propensity"] - _unsteered_propensity(rows, concept))
    figure = go.Figure()
    # The arm "none" has effect 0 and damage 0 by definition: it is the origin, not a line.
    for arm in reversed(ordered_arms(rows.loc[rows["arm"] != "none", "arm"].tolist())):
        frame = rows_where(rows, "arm", arm)
        if _has_draws(frame):
            figure.add_trace(_draw_lines(frame, x="damage", y="effect"))
        else:
            figure.add_trace(_arm_line(frame, arm, x="damage", y="effect"))
    figure.add_hline(y=0, line=arm_style("none").line)
    figure.add_vline(x=budget, line=_BUDGET_LINE, annotation=_label(f"budget {budget:g}"))
    title = _title(f"Effect and damage: {concept}", _EFFECT_MEANING, _DAMAGE_MEANING)
    figure.update_layout(title=title, legend_traceorder="reversed")
    _add_zoom(figure, "xaxis", budget=budget, damages=rows["damage"].to_list())
    return _lay_out(figure, x=_DAMAGE_TITLE, y=_EFFECT_TITLE)


def summary_figure(summary: pd.DataFrame, *, concept: str | None = None) -> "go.Figure":
    """Return effects at equal damage with their intervals: one panel per concept, one row per arm.

    An arm without an effect (the tried scales do not bracket the budget) shows its flag instead of
    a point.

    Args:
        summary: `concept`, `arm`, `effect_at_equal_damage`, `low`, `high` (nats); for the ticks
            `effect_negated`, `negated_low`, `negated_high`; for the hover text
            `fraction_of_native`, `fraction_low`, `fraction_high`, `scale`, `contains`,
            `transferred_p`, `p_floor`, `flag` and `interval_flag`; for the line under the title
            `n_items` and `n_texts`.
        concept: the concept shown; all if None.

    Raises:
        ValueError: a column or the concept is not in the table.
    """
    columns = ("arm", "effect_at_equal_damage", "low", "high")
    require_columns(summary, "concept", *columns)
    concepts = list(dict.fromkeys(summary["concept"])) if concept is None else [concept]
    if not concepts:
        raise ValueError("the summary has no rows; there is nothing to show: give one with rows")
    arms = ordered_arms(rows_where(summary, "concept", *concepts)["arm"].tolist())
    height = 150 + len(concepts) * (46 + 30 * len(arms))
    # 46 pixels between panels hold the title of the lower one.
    spacing = 46 / height if len(concepts) > 1 else 0
    figure = make_subplots(
        rows=len(concepts), shared_xaxes=True, vertical_spacing=spacing, subplot_titles=concepts
    )
    for number, name in enumerate(concepts, start=1):
        for trace in _summary_traces(_of_concept(summary, name, *columns), arms):
            figure.add_trace(trace, **panel(number, 1))
    figure.add_vline(x=0, line=arm_style("none").line)
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure.update_yaxes(categories([arm_style(arm).label for arm in arms]))
    figure.update_layout(
        template=use_template(),
        title=_title("Effect at equal damage", *_summary_subtitle(summary)),
        height=height,
        showlegend=False,
        margin={"t": 125},
    )
    figure.update_xaxes(title_text=_EFFECT_TITLE, **panel(len(concepts), 1))
    return with_counts(figure, steering_counts(rows_where(summary, "concept", *concepts)))


def steering_counts(summary: pd.DataFrame) -> dict[str, tuple[int, int] | None]:
    """Return the numbers of items and of neutral texts behind a summary, for `with_counts`.

    Args:
        summary: `concept`, and if they are known `n_items` and `n_texts`.
    """
    items = "items per concept" if len(set(summary["concept"])) > 1 else "items"
    return {
        items: count_range(summary, "n_items"),
        "neutral texts": count_range(summary, "n_texts"),
    }


def calibration_figure(
    curve: pd.DataFrame,
    *,
    budget: float,
    chosen: float | None = None,
    meaning: str = _DAMAGE_MEANING,
    scale: str = _SCALE_TITLE,
    flag: str = "",
) -> "go.Figure":
    """Return damage against scale, with the budget and the calibrated scale.

    Args:
        curve: `scale` and `damage` (nats per token on neutral text), one row per tried scale.
        budget: damage to reach, nats per token.
        chosen: the calibrated scale; None or NaN: no tried scale meets the budget, and the figure
            says so.
        meaning: what is counted as damage.
        scale: title of the scale axis.
        flag: sentence on what is unusual, shown below the title.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(curve, "scale", "damage")
    rows, style = curve.sort_values("scale"), arm_style("native")
    points = go.Scatter(
        x=rows["scale"].tolist(),
        y=rows["damage"].tolist(),
        mode="lines+markers",
        line=style.line,
        marker=style.marker,
        hovertemplate="scale %{x:.3g}<br>damage %{y:.3g} nats per token<extra></extra>",
    )
    figure = go.Figure(points)
    left: dict[str, Any] = {"annotation_position": "top left"}
    right: dict[str, Any] = {"annotation_position": "top right"}
    figure.add_hline(y=budget, line=_BUDGET_LINE, annotation=_label(f"budget {budget:g}"), **left)
    outcome = "no scale chosen: none of the tried ones meets the budget"
    # NaN means that the search ended without a scale.
    if chosen is not None and not math.isnan(chosen):
        label = f"scale {chosen:.3g}"
        outcome = f"chosen: {label}"
        figure.add_vline(x=chosen, line=_BUDGET_LINE, annotation=_label(label), **right)
    lines = wrap(flag, _SUBTITLE_WIDTH)
    title = _title("Scale at the damage budget", meaning, outcome, *map(escape, lines))
    figure.update_layout(title=title, showlegend=False)
    if lines:
        # Room for the title, its two usual lines and those of the flag, in pixels.
        figure.update_layout(margin={"t": 110 + 18 * len(lines)})
    _add_zoom(figure, "yaxis", budget=budget, damages=rows["damage"].to_list())
    return _lay_out(figure, x=scale, y=_DAMAGE_TITLE)


def _of_concept(table: pd.DataFrame, concept: str, *columns: str) -> pd.DataFrame:
    require_columns(table, "concept", *columns)
    rows = rows_where(table, "concept", concept)
    if rows.empty:
        raise ValueError(
            f"the table has no concept {concept!r}; it has {list(dict.fromkeys(table['concept']))}"
            ": choose one of them"
        )
    return rows.sort_values(by="scale", kind="stable") if "scale" in rows.columns else rows


def _lay_out(figure: "go.Figure", *, x: str, y: str) -> "go.Figure":
    figure.update_layout(template=use_template(), height=500)
    return figure.update_xaxes(title_text=x).update_yaxes(title_text=y)


def _title(text: str, *explanations: str) -> dict[str, object]:
    subtitle = "<br>".join(explanation for explanation in explanations if explanation)
    return {"text": text, "subtitle": {"text": subtitle}}


def _label(text: str) -> dict[str, object]:
    return {"text": text, "font": {"size": 12}, "showarrow": False}


# ---------------------------------------------------------------- arms


def _has_draws(frame: pd.DataFrame) -> bool:
    # An arm of one vector has no draw, or the same draw in each row.
    return "draw" in frame.columns and len(set(frame["draw"].dropna())) > 1


def _hover(frame: pd.DataFrame, label: str) -> tuple[list[list[float]], str]:
    """Return `customdata` and `hovertemplate` for the columns that a steering table has."""
    present = [column for column in _HOVER_FORMATS if column in frame.columns]
    lines = [
        f"{column.replace('_', ' ')}: %{{customdata[{i}]:{_HOVER_FORMATS[column]}}}"
        for i, column in enumerate(present)
    ]
    template = "<br>".join([f"<b>{label}</b>", *lines]) + "<extra></extra>"
    return frame[present].to_numpy(dtype=float).tolist(), template


def _arm_line(
    frame: pd.DataFrame, arm: str, *, x: str, y: str, intervals: bool = False
) -> "go.Scatter":
    style = arm_style(arm)
    custom, template = _hover(frame, style.label)
    trace = go.Scatter(
        x=frame[x].tolist(),
        y=frame[y].tolist(),
        mode="lines+markers",
        name=style.label,
        legendgroup=arm,
        line=style.line,
        marker=style.marker,
        customdata=custom,
        hovertemplate=template,
    )
    if intervals:
        # plotly takes distances from the point, not the ends of the interval.
        above = (frame["propensity_high"] - frame[y]).tolist()
        below = (frame[y] - frame["propensity_low"]).tolist()
        bars = {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1.5}
        trace.update(error_y=bars)
    return trace


def _band(frame: pd.DataFrame, arm: str) -> "go.Scatter":
    known = frame.dropna(subset=["propensity_low", "propensity_high"])
    # One closed outline: along the upper ends and back along the lower ones.
    outline_x = [*known["scale"], *reversed(known["scale"].tolist())]
    outline_y = [*known["propensity_high"], *reversed(known["propensity_low"].tolist())]
    return go.Scatter(
        x=outline_x,
        y=outline_y,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=arm_style(arm).fill(),
        name=f"{arm_style(arm).label}, interval",
        legendgroup=arm,
        showlegend=False,
        hoverinfo="skip",
    )


def _draw_lines(frame: pd.DataFrame, *, x: str, y: str) -> "go.Scatter":
    """Return all draws as one trace, with a gap between one draw's line and the next."""
    arm = str(frame["arm"].to_list()[0])
    xs: list[float | None] = []
    ys: list[float | None] = []
    custom: list[list[float] | None] = []
    groups = [rows for _, rows in frame.groupby("draw", sort=True)]
    for rows in groups:
        # None ends a line; one trace per draw would slow the page down.
        xs += [*rows[x].tolist(), None]
        ys += [*rows[y].tolist(), None]
        custom += [*_hover(rows, "")[0], None]
    style = arm_style(arm)
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        name=f"{style.label} ({len(groups)} draws)",
        legendgroup=arm,
        connectgaps=False,
        opacity=0.55,
        line=style.line,
        customdata=custom,
        hovertemplate=_hover(frame, style.label)[1],
    )


def _unsteered_propensity(rows: pd.DataFrame, concept: str) -> float:
    unsteered = rows_where(rows, "arm", "none")["propensity"].to_list()
    if not unsteered:
        raise ValueError(
            f"concept {concept!r} has no row with arm 'none'; "
            "effects are differences to it, so add one"
        )
    return float(unsteered[0])


def _add_zoom(figure: "go.Figure", axis: str, *, budget: float, damages: list[float]) -> None:
    """Limit the first view to a few budgets if the table goes beyond, and add buttons.

    One button shows the first view, the other all damages.
    """
    top = _ZOOM * budget
    if not any(damage > top for damage in damages):
        return
    # Some space below the lowest damage, which can be negative.
    near = [min([0.0, *damages]) - 0.04 * top, top]
    views = {
        "near the budget": {f"{axis}.range": near, f"{axis}.autorange": False},
        "all": {f"{axis}.autorange": True},
    }
    buttons = [
        {"label": label, "method": "relayout", "args": [view]} for label, view in views.items()
    ]
    position = {"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    menu = {"type": "buttons", "direction": "right", "buttons": buttons} | position | MENU_LOOKS
    figure.update_layout({axis: {"range": near}}, updatemenus=[menu], margin_t=130)


# ---------------------------------------------------------------- effects at equal damage


def _summary_traces(rows: pd.DataFrame, arms: list[str]) -> "list[go.Scatter]":
    measured = rows.dropna(subset=["effect_at_equal_damage"])
    traces = [
        _summary_points(rows_where(measured, "arm", arm), arm, negated=negated)
        for negated in ([False, True] if "effect_negated" in rows.columns else [False])
        for arm in arms
        # No steering has no negative.
        if not (negated and arm == "none")
    ]
    absent = [row for row in rows.to_dict("records") if pd.isna(row["effect_at_equal_damage"])]
    notes = go.Scatter(
        x=[0.0] * len(absent),
        y=[arm_style(row["arm"]).label for row in absent],
        # An arm without an effect has its flag at 0, as text.
        text=["<br>".join(wrap(_flag(row) or "not measured", _FLAG_WIDTH)) for row in absent],
        mode="text",
        name="not measured",
        textposition="middle right",
        textfont={"size": 12},
        hoverinfo="skip",
    )
    # A trace without points would still take a row of the legend and of the axis.
    return [trace for trace in [*traces, notes] if trace["y"]]


def _summary_subtitle(summary: pd.DataFrame) -> list[str]:
    """Return what points and bars are."""
    if "contains" not in summary.columns:
        return [_EFFECT_MEANING]
    # Lines that a phone shows whole.
    ticks = ["tick: the vector's negative"] if "effect_negated" in summary.columns else []
    return [_EFFECT_MEANING, "bars: 95%; of draws: where a new one falls", *ticks]


def _summary_points(rows: pd.DataFrame, arm: str, *, negated: bool = False) -> "go.Scatter":
    """Return the effect of an arm with its interval; a tick for the vector's negative."""
    style = arm_style(arm)
    column, ends = ("effect_negated", "negated_") if negated else ("effect_at_equal_damage", "")
    rows = rows.dropna(subset=[column])
    effect = rows[column]
    marker = {**style.marker, "size": 10}
    if negated:
        # Some arms have open symbols, so a tick tells the negative of each.
        line = {"color": style.colour, "width": 2}
        marker = {"symbol": "line-ns", "size": 14, "color": style.colour, "line": line}
    return go.Scatter(
        x=effect.tolist(),
        y=[style.label] * len(rows),
        mode="markers",
        name=f"{style.label}, negative" if negated else style.label,
        text=[
            "the vector's negative" if negated else _summary_hover(row)
            for row in rows.to_dict("records")
        ],
        marker=marker,
        error_x={
            "array": (rows[f"{ends}high"] - effect).tolist(),
            "arrayminus": (effect - rows[f"{ends}low"]).tolist(),
            "symmetric": False,
            "color": style.colour,
            "thickness": 1 if negated else 2,
        },
        hovertemplate="<b>%{y}</b><br>%{text}<extra></extra>",
    )


def _is_known(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _flag(row: dict[str, object], name: str = "flag") -> str:
    flag = row.get(name)
    return flag if isinstance(flag, str) else ""


def _summary_hover(row: dict[str, object]) -> str:
    fraction = (
        "fraction of native: {fraction_of_native:.2f} [{fraction_low:.2f}, {fraction_high:.2f}]"
    )
    parts = ["effect: {effect_at_equal_damage:.3f} [{low:.3f}, {high:.3f}] nats"]
    if {"fraction_of_native", "fraction_low", "fraction_high"} <= row.keys():
        parts.append(fraction)
    if _is_known(row.get("scale")):
        parts.append("scale: {scale:.3g}")
    if isinstance(row.get("contains"), str):
        parts.append("interval over: {contains}")
    if _is_known(row.get("transferred_p")):
        parts.append("p of the transferred effect: {transferred_p:.3f} (at least {p_floor:.3f})")
    parts += [f"{{{name}}}" for name in ("flag", "interval_flag") if _flag(row, name)]
    return "<br>".join(parts).format_map(row)
