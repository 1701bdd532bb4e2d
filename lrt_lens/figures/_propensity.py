"""LRT's figure 5 and what it lacks: agreement of native and transferred steering by task, over
scales.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import arm_style, ordered_arms, require_columns, use_template

PANELS = {
    "r": "r of propensities<br>(as LRT)",
    "r_change": "r of changes",
    "mse": "mean squared<br>error (nats²)",
    "mse_share": "error ÷ error of<br>“no change”",
}
"""Column of the table, and what the panel is called."""


def propensity_figure(table: pd.DataFrame, arms: list[str] | None = None) -> "go.Figure":
    """Returns a box over scales (and draws) for every task and arm, a panel a measure.

    Args: table: `PropensityEvaluation.table`: `task`, `arm`, `scale`, `r`, `r_change`, `mse`,
        `mse_share`. arms: which to draw; all but the native one, which everything is compared with,
        where None.

    Raises:
        ValueError: a column is not in the table, or nothing is left to draw.
    """
    require_columns(table, "task", "arm", "scale", *PANELS)
    table = table.loc[(table["arm"] != "native") if arms is None else table["arm"].isin(arms)]
    if table.empty:
        raise ValueError(
            f"no arm to draw; the table holds {sorted(set(table['arm']))} and arms is {arms}"
        )
    tasks, drawn = list(dict.fromkeys(table["task"])), ordered_arms(table["arm"].tolist())
    figure = make_subplots(cols=len(PANELS), shared_yaxes=True, horizontal_spacing=0.025)
    for column, measure in enumerate(PANELS, start=1):
        for arm in reversed(drawn):  # plotly stacks groups from below
            figure.add_trace(
                _box(table.loc[table["arm"] == arm], arm, measure, first=column == 1),
                row=1,
                col=column,
            )
    height = 210 + len(tasks) * max(44, 15 * len(drawn))
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[short_task(task) for task in reversed(tasks)],
        ticks="",
    )
    for column, measure in enumerate(PANELS, start=1):
        figure.update_xaxes(title_text=PANELS[measure], row=1, col=column)
        if measure.startswith("r"):
            figure.update_xaxes(range=[-1.08, 1.08], tickangle=0, nticks=4, row=1, col=column)
        else:
            figure.update_xaxes(type="log", dtick="D2", tickangle=0, row=1, col=column)
    subtitle = "against native steering, item by item; a box holds all scales (and draws); “no steering” is what item difficulty alone gives"
    figure.update_layout(
        template=use_template(),
        boxmode="group",
        boxgap=0.2,
        boxgroupgap=0.1,
        height=height,
        margin={"t": 80, "b": 120},
        title={
            "text": "Propensity under native and other steering",
            "subtitle": {"text": subtitle},
            "y": 1 - 18 / height,
        },
        legend={"y": -80 / (height - 200), "traceorder": "reversed"},
    )
    return figure


def short_task(task: str, width: int = 34) -> str:
    """Returns a task's name as short as an axis needs it, broken over lines."""
    lines, line = [], ""
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
