"""Figure 5 of LRT and its controls: agreement of native and transferred steering per task.

    propensity_figure(result.table)

Problem: r of propensities is high even without steering. Mechanism: four measures side by side,
each with the arm "no steering" as its own box.

Limits: one box holds all scales and draws of an arm, which are not independent.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    arm_style,
    ordered_arms,
    panel,
    require_columns,
    rows_where,
    use_template,
)

PANELS = {
    "r": "r of propensities<br>(as LRT)",
    "r_change": "r of changes",
    "mse": "mean squared<br>error (nats²)",
    "mse_share": "error ÷ error of<br>“no change”",
}
"""Columns that the figure shows, with the titles of their panels."""
_DECADES = {"type": "log", "dtick": "D2"}
"""Logarithmic axis with ticks at 1, 2 and 5 of each decade."""


def propensity_figure(table: pd.DataFrame, arms: list[str] | None = None) -> "go.Figure":
    """Return a box over scales (and draws) per task and arm, one panel per measure.

    Args:
        table: `PropensityEvaluation.table`: `task`, `arm`, `scale`, `r`, `r_change`, `mse`,
            `mse_share`.
        arms: names of the arms to draw; if None, all but the native one, which the others are
            compared with.

    Raises:
        ValueError: a column is not in the table, or no arm is left to draw.
    """
    require_columns(table, "task", "arm", "scale", *PANELS)
    table = table.loc[(table["arm"] != "native") if arms is None else table["arm"].isin(arms)]
    if table.empty:
        raise ValueError(
            f"no arm to draw; the table holds {sorted(set(table['arm']))} and arms is {arms}: "
            "give names of arms in the table, or None for all"
        )
    tasks, drawn = list(dict.fromkeys(table["task"])), ordered_arms(table["arm"].tolist())
    figure = make_subplots(cols=len(PANELS), shared_yaxes=True, horizontal_spacing=0.025)
    for column, (measure, title) in enumerate(PANELS.items(), start=1):
        for arm in reversed(drawn):  # plotly stacks groups from below
            box = _box(rows_where(table, "arm", arm), arm, measure, first=column == 1)
            figure.add_trace(box, **panel(1, column))
        figure.update_xaxes(title_text=title, tickangle=0, **panel(1, column))
        # Correlations lie in [−1, 1]; errors span decades.
        axis = {"range": [-1.08, 1.08], "nticks": 4} if measure.startswith("r") else _DECADES
        figure.update_xaxes(axis, **panel(1, column))
    labels = [short_task(task) for task in reversed(tasks)]
    figure.update_yaxes(categoryorder="array", categoryarray=labels, ticks="")
    # In pixels: 15 per box, but at least 44 per task, so that its name fits.
    height = 210 + len(tasks) * max(44, 15 * len(drawn))
    subtitle = (
        "compared with native steering, item by item; a box holds all scales (and draws); "
        "“no steering”: agreement due to item difficulty alone"
    )
    title = {"text": "Propensity under native and other steering", "subtitle": {"text": subtitle}}
    return figure.update_layout(
        template=use_template(),
        boxmode="group",
        boxgap=0.2,
        boxgroupgap=0.1,
        height=height,
        margin={"t": 80, "b": 120},
        title=title | {"y": 1 - 18 / height},
        legend={"y": -80 / (height - 200), "traceorder": "reversed"},
    )


def short_task(task: str, width: int = 34) -> str:
    """Return a task's name for an axis: words with spaces, broken into lines of at most `width`."""
    lines, line = [], ""
    # Names of tasks come from file names, with hyphens and underscores in place of spaces.
    for word in task.replace("_", "-").split("-"):
        if line and len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "<br>".join([*lines, line])


def _box(part: pd.DataFrame, arm: str, measure: str, *, first: bool) -> "go.Box":
    style = arm_style(arm)
    hover = [
        f"{style.label}, scale {scale:g}: {value:.3f}"
        for scale, value in zip(part["scale"], part[measure], strict=True)
    ]
    # offsetgroup puts the boxes of one arm at the same offset within every task.
    return go.Box(
        x=part[measure],
        y=[short_task(task) for task in part["task"]],
        orientation="h",
        name=style.label,
        legendgroup=arm,
        showlegend=first,
        offsetgroup=arm,
        boxpoints="all",
        pointpos=0,
        jitter=0.3,
        line={"color": style.colour, "width": 1.2},
        fillcolor=style.fill(),
        marker={"color": style.colour, "symbol": style.symbol, "size": 4},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
    )
