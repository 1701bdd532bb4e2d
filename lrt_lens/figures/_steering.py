"""Figures: functions from a tidy table to a plotly `Figure`.

Problem: a number of a comparison is worth what its controls are worth, so a figure must show both
and must show the numbers of the table, not numbers of its own. Mechanism: each function takes one
table with a row per observation, checks its columns, and places what it finds; the only arithmetic
is the difference to the unsteered row, where that is what an axis shows. Arms look the same in
every figure (`template.ARM_STYLES`), intervals are those of the table, and what could not be
measured is written where its point would stand.

Example:
    from lrt_lens.figures._steering import effect_damage_figure, grid_figure

    grid_figure(grid.scores, value="r2_uniform", chosen=(stitch.source_hook,
    stitch.target_hook)).show() effect_damage_figure(result.table, concept="sycophancy",
    budget=0.1).show()

Limits: hundreds of layers or dozens of concepts in one figure are drawn, but not made readable;
select first.
"""

import math
from textwrap import wrap

import pandas as pd

from lrt_lens.figures._grid import grid_figure
from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    HIGHLIGHT,
    MENU_LOOKS,
    arm_style,
    ordered_arms,
    require_columns,
    use_template,
)

__all__ = [
    "calibration_figure",
    "effect_damage_figure",
    "grid_figure",
    "steering_figure",
    "summary_figure",
]

_DAMAGE_TITLE = "damage (nats per token)"
_SCALE_TITLE = "scale (1 = the vector's own length)"
_PROPENSITY_TITLE = "propensity (nats)"
_EFFECT_TITLE = "effect (nats)"
_EFFECT_MEANING = "effect: propensity minus that without steering"
_DAMAGE_MEANING = "damage: rise of the loss on neutral text"
_PROPENSITY_MEANING = "propensity: log-odds of the positive continuation"
_FLAG_WIDTH = 24
_ZOOM = 5.0


def steering_figure(table: pd.DataFrame, *, concept: str) -> "go.Figure":
    """Returns propensity against scale, a line with its interval an arm, for one concept.

    Args: table: a row per concept, arm and scale: `concept`, `arm`, `scale`, `propensity` (nats:
        log-odds of the positive
            continuation), `propensity_low`, `propensity_high`, optionally `damage` and, for many
            random directions, `draw`: draws are thin grey lines under one legend entry.
        concept: which concept's rows to show.

    Raises:
        ValueError: a column or the concept is not in the table.
    """
    rows = _of_concept(
        table, concept, "arm", "scale", "propensity", "propensity_low", "propensity_high"
    )
    figure = go.Figure()
    for arm in reversed(ordered_arms(rows["arm"].tolist())):
        frame = _rows_where(rows, "arm", arm)
        if _has_draws(frame):
            figure.add_trace(_draw_lines(frame, x="scale", y="propensity"))
            continue
        if len(frame) > 1:
            figure.add_trace(_band(frame, arm))
        figure.add_trace(
            _arm_line(frame, arm, x="scale", y="propensity", intervals=len(frame) == 1)
        )
        if arm == "none":
            figure.add_hline(
                y=float(frame["propensity"].to_list()[0]), line=arm_style(arm).line, opacity=0.7
            )
    figure.update_layout(
        title=_title(f"Steering: {concept}", _PROPENSITY_MEANING), legend_traceorder="reversed"
    )
    return _lay_out(figure, x=_SCALE_TITLE, y=_PROPENSITY_TITLE)


def effect_damage_figure(table: pd.DataFrame, *, concept: str, budget: float) -> "go.Figure":
    """Returns effect against damage, a line an arm in the order of scale, with the damage budget as
    a vertical line.

    The effect is the propensity minus that of the arm "none". The view starts at damages up to five
    budgets, where the arms can be compared; a button shows all.

    Args:
        table: as in `steering_figure`, with `damage` in nats per token.
        concept: which concept's rows to show.
        budget: damage at which arms are compared, nats per token.

    Raises:
        ValueError: a column, the concept or its arm "none" is not in the table.
    """
    rows = _of_concept(table, concept, "arm", "scale", "propensity", "damage")
    rows = rows.assign(effect=rows["propensity"] - _unsteered_propensity(rows, concept))
    figure = go.Figure()
    for arm in reversed(ordered_arms(rows.loc[rows["arm"] != "none", "arm"].tolist())):
        frame = _rows_where(rows, "arm", arm)
        draws = _has_draws(frame)
        figure.add_trace(
            _draw_lines(frame, x="damage", y="effect")
            if draws
            else _arm_line(frame, arm, x="damage", y="effect")
        )
    figure.add_hline(y=0, line=arm_style("none").line)
    figure.add_vline(
        x=budget,
        line={"color": HIGHLIGHT, "dash": "dash", "width": 1.5},
        annotation=_label(f"budget {budget:g}"),
    )
    figure.update_layout(
        title=_title(f"Effect and damage: {concept}", _EFFECT_MEANING, _DAMAGE_MEANING),
        legend_traceorder="reversed",
    )
    _add_zoom(figure, "xaxis", budget=budget, damages=rows["damage"].to_list())
    return _lay_out(figure, x=_DAMAGE_TITLE, y=_EFFECT_TITLE)


def summary_figure(summary: pd.DataFrame, *, concept: str | None = None) -> "go.Figure":
    """Returns effects at equal damage with their intervals: a row an arm, a facet a concept.

    An arm without an effect (the tried scales do not bracket the budget) has its flag written in
    place of a point.

    Args: summary: `concept`, `arm`, `effect_at_equal_damage`, `low`, `high` (nats); for the hover
        text
            `fraction_of_native`, `fraction_low`, `fraction_high`, `scale` and `flag`.
        concept: show this concept only; None shows all.

    Raises:
        ValueError: a column or the concept is not in the table.
    """
    columns = ("arm", "effect_at_equal_damage", "low", "high")
    require_columns(summary, "concept", *columns)
    concepts = list(dict.fromkeys(summary["concept"])) if concept is None else [concept]
    if not concepts:
        raise ValueError("the summary has no rows; there is nothing to show")
    arms = ordered_arms(summary.loc[summary["concept"].isin(concepts), "arm"].tolist())
    height = 150 + len(concepts) * (46 + 30 * len(arms))
    spacing = 46 / height if len(concepts) > 1 else 0
    figure = make_subplots(
        rows=len(concepts), shared_xaxes=True, vertical_spacing=spacing, subplot_titles=concepts
    )
    for number, name in enumerate(concepts, start=1):
        for trace in _summary_traces(_of_concept(summary, name, *columns), arms):
            figure.add_trace(trace, row=number, col=1)
    figure.add_vline(x=0, line=arm_style("none").line)
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    labels = [arm_style(arm).label for arm in reversed(arms)]
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=labels,
        range=[-0.6, len(arms) - 0.4],
        ticks="",
    )
    figure.update_layout(
        title=_title("Effect at equal damage", _EFFECT_MEANING), height=height, showlegend=False
    )
    figure.update_layout(template=use_template(), margin={"t": 90})
    return figure.update_xaxes(title_text=_EFFECT_TITLE, row=len(concepts), col=1)


def calibration_figure(
    curve: pd.DataFrame,
    *,
    budget: float,
    chosen: float | None = None,
    meaning: str = _DAMAGE_MEANING,
    scale: str = _SCALE_TITLE,
) -> "go.Figure":
    """Returns damage against scale, with the budget and the scale chosen for it.

    Args: curve: `scale` and `damage` (nats per token on neutral text), a row per tried scale.
        budget: the damage aimed at, nats per token. chosen: the calibrated scale; None or NaN where
        the tried scales do not bracket the budget, which the figure says. meaning: what damage
        counts. scale: what a scale of 1 is.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(curve, "scale", "damage")
    rows = curve.sort_values("scale")
    hover = "scale %{x:.3g}<br>damage %{y:.3g} nats per token<extra></extra>"
    points = go.Scatter(
        x=rows["scale"].tolist(),
        y=rows["damage"].tolist(),
        mode="lines+markers",
        hovertemplate=hover,
    )
    figure = go.Figure(
        points.update(line=arm_style("native").line, marker=arm_style("native").marker)
    )
    dashed = {"color": HIGHLIGHT, "dash": "dash", "width": 1.5}
    figure.add_hline(
        y=budget,
        line=dashed,
        annotation=_label(f"budget {budget:g}"),
        annotation_position="top left",
    )
    if chosen is None or math.isnan(chosen):
        outcome = "no scale chosen: those tried do not bracket the budget"
    else:
        outcome = f"chosen: scale {chosen:.3g}"
        figure.add_vline(
            x=chosen,
            line=dashed,
            annotation=_label(f"scale {chosen:.3g}"),
            annotation_position="top right",
        )
    figure.update_layout(
        title=_title("Scale at the damage budget", meaning, outcome), showlegend=False
    )
    _add_zoom(figure, "yaxis", budget=budget, damages=rows["damage"].to_list())
    return _lay_out(figure, x=scale, y=_DAMAGE_TITLE)


def _of_concept(table: pd.DataFrame, concept: str, *columns: str) -> pd.DataFrame:
    require_columns(table, "concept", *columns)
    rows = _rows_where(table, "concept", concept)
    if rows.empty:
        raise ValueError(
            f"the table has no concept {concept!r}; it has {list(dict.fromkeys(table['concept']))}"
        )
    return rows.sort_values(by="scale", kind="stable") if "scale" in rows.columns else rows


def _rows_where(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    return pd.DataFrame(table.loc[table[column] == value])


def _lay_out(figure: "go.Figure", *, x: str, y: str) -> "go.Figure":
    figure.update_layout(template=use_template(), height=500)
    return figure.update_xaxes(title_text=x).update_yaxes(title_text=y)


def _title(text: str, *explanations: str) -> dict[str, object]:
    return {
        "text": text,
        "subtitle": {
            "text": "<br>".join(explanation for explanation in explanations if explanation)
        },
    }


def _label(text: str) -> dict[str, object]:
    return {"text": text, "font": {"size": 12}, "showarrow": False}


# ---------------------------------------------------------------- arms


def _has_draws(frame: pd.DataFrame) -> bool:
    return "draw" in frame.columns and len(set(frame["draw"].dropna())) > 1


def _hover(frame: pd.DataFrame, label: str) -> tuple[list[list[float]], str]:
    """Returns `customdata` and `hovertemplate` for the columns that a steering table has."""
    formats = {
        "scale": ".3g",
        "propensity": ".3f",
        "propensity_low": ".3f",
        "propensity_high": ".3f",
        "effect": ".3f",
        "damage": ".3f",
    }
    present = [column for column in formats if column in frame.columns]
    lines = [
        f"{column.replace('_', ' ')}: %{{customdata[{i}]:{formats[column]}}}"
        for i, column in enumerate(present)
    ]
    return frame[present].to_numpy(dtype=float).tolist(), "<br>".join(
        [f"<b>{label}</b>", *lines]
    ) + "<extra></extra>"


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
    )
    trace.update(line=style.line, marker=style.marker, customdata=custom, hovertemplate=template)
    if intervals:
        high, low = (
            (frame["propensity_high"] - frame[y]).tolist(),
            (frame[y] - frame["propensity_low"]).tolist(),
        )
        trace.update(
            error_y={"array": high, "arrayminus": low, "symmetric": False, "thickness": 1.5}
        )
    return trace


def _band(frame: pd.DataFrame, arm: str) -> "go.Scatter":
    known = frame.dropna(subset=["propensity_low", "propensity_high"])
    outline_x = [*known["scale"], *reversed(known["scale"].tolist())]
    outline_y = [*known["propensity_high"], *reversed(known["propensity_low"].tolist())]
    band = go.Scatter(
        x=outline_x,
        y=outline_y,
        mode="lines",
        fill="toself",
        fillcolor=arm_style(arm).fill(),
        legendgroup=arm,
    )
    return band.update(
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        name=f"{arm_style(arm).label}, interval",
    )


def _draw_lines(frame: pd.DataFrame, *, x: str, y: str) -> "go.Scatter":
    """Returns all draws as one trace, with a gap between one draw's line and the next."""
    arm = str(frame["arm"].to_list()[0])
    xs: list[float | None] = []
    ys: list[float | None] = []
    custom: list[list[float] | None] = []
    groups = [rows for _, rows in frame.groupby("draw", sort=True)]
    _, template = _hover(frame, arm_style(arm).label)
    for rows in groups:
        xs += [*rows[x].tolist(), None]
        ys += [*rows[y].tolist(), None]
        custom += [*_hover(rows, "")[0], None]
    name = f"{arm_style(arm).label} ({len(groups)} draws)"
    lines = go.Scatter(
        x=xs, y=ys, mode="lines", name=name, legendgroup=arm, connectgaps=False, opacity=0.55
    )
    return lines.update(line=arm_style(arm).line, customdata=custom, hovertemplate=template)


def _unsteered_propensity(rows: pd.DataFrame, concept: str) -> float:
    unsteered = _rows_where(rows, "arm", "none")["propensity"].to_list()
    if not unsteered:
        raise ValueError(
            f"concept {concept!r} has no row with arm 'none'; effects are differences to it, so add one"
        )
    return float(unsteered[0])


def _add_zoom(figure: "go.Figure", axis: str, *, budget: float, damages: list[float]) -> None:
    """Starts the view at damages up to five budgets where the table goes far beyond, with buttons
    for that view and for all.
    """
    top = _ZOOM * budget
    if not any(damage > top for damage in damages):
        return
    near = [min([0.0, *damages]) - 0.04 * top, top]
    buttons = [
        {
            "label": "near the budget",
            "method": "relayout",
            "args": [{f"{axis}.range": near, f"{axis}.autorange": False}],
        },
        {"label": "all", "method": "relayout", "args": [{f"{axis}.autorange": True}]},
    ]
    place = {
        "type": "buttons",
        "direction": "right",
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
    }
    figure.update_layout(
        {axis: {"range": near}},
        updatemenus=[{"buttons": buttons, **place, **MENU_LOOKS}],
        margin_t=130,
    )


# ---------------------------------------------------------------- effects at equal damage


def _summary_traces(rows: pd.DataFrame, arms: list[str]) -> "list[go.Scatter]":
    measured = rows.dropna(subset=["effect_at_equal_damage"])
    traces = [_summary_points(_rows_where(measured, "arm", arm), arm) for arm in arms]
    absent = [row for row in rows.to_dict("records") if pd.isna(row["effect_at_equal_damage"])]
    texts = ["<br>".join(wrap(_flag(row) or "not measured", _FLAG_WIDTH)) for row in absent]
    labels = [arm_style(row["arm"]).label for row in absent]
    notes = go.Scatter(
        x=[0.0] * len(labels),
        y=labels,
        text=texts,
        mode="text",
        textposition="middle right",
        hoverinfo="skip",
    )
    return [
        trace
        for trace in [*traces, notes.update(textfont={"size": 12}, name="not measured")]
        if trace["y"]
    ]


def _summary_points(rows: pd.DataFrame, arm: str) -> "go.Scatter":
    style = arm_style(arm)
    effect = rows["effect_at_equal_damage"]
    error = {
        "array": (rows["high"] - effect).tolist(),
        "arrayminus": (effect - rows["low"]).tolist(),
        "symmetric": False,
    }
    details = [_summary_hover(row) for row in rows.to_dict("records")]
    points = go.Scatter(
        x=effect.tolist(),
        y=[style.label] * len(rows),
        mode="markers",
        name=style.label,
        text=details,
    )
    hover = "<b>%{y}</b><br>%{text}<extra></extra>"
    return points.update(
        marker={**style.marker, "size": 10},
        error_x={**error, "color": style.colour, "thickness": 2},
        hovertemplate=hover,
    )


def _flag(row: dict[str, object]) -> str:
    flag = row.get("flag")
    return flag if isinstance(flag, str) else ""


def _summary_hover(row: dict[str, object]) -> str:
    fraction = (
        "fraction of native: {fraction_of_native:.2f} [{fraction_low:.2f}, {fraction_high:.2f}]"
    )
    parts = ["effect: {effect_at_equal_damage:.3f} [{low:.3f}, {high:.3f}] nats"]
    parts += (
        [fraction] if {"fraction_of_native", "fraction_low", "fraction_high"} <= row.keys() else []
    )
    parts += ["scale: {scale:.3g}"] if "scale" in row else []
    parts += ["{flag}"] if _flag(row) else []
    return "<br>".join(parts).format_map(row)
