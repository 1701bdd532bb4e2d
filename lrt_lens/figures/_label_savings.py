"""Figure of the quality of a vector or probe over the number of labels of the target.

    label_savings_figure(result.summary)

Problem: a saving of labels is a horizontal distance between two curves. Mechanism: one panel per
measure, one line per arm over k; the transfer alone is a horizontal line.

Limits: one task per figure.
"""

from typing import Any

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    ArmStyle,
    arm_style,
    error_bars,
    ordered_arms,
    panel,
    require_columns,
    require_rows,
    rows_where,
    use_template,
)

_STYLES = {
    "combined": ArmStyle("transferred and k labels", "#D55E00", width=3.0),
    "combined_fidelity": ArmStyle(
        "the same, weighed by predicted fidelity", "#E69F00", dash="dash", symbol="cross"
    ),
    "native": ArmStyle("k labels alone (native)", "#0072B2", symbol="square"),
    "transferred": ArmStyle("transferred, no label", "#D55E00", dash="dot", width=1.5),
    "combined_shuffled": ArmStyle(
        "shuffled map and k labels", "#CC79A7", dash="dashdot", symbol="diamond"
    ),
    "shuffled": ArmStyle("shuffled map, no label", "#CC79A7", dash="dot", width=1.5),
}
"""Style of each arm, in the order in which figures list them."""
_NAMES = {"auroc": "AUROC"}
"""Title of the axis of a measure, if it is not its name."""
_TITLES = {"cosine": "cosine to the direction of held-out pairs", "auroc": "held-out AUROC"}
"""Title of the panel of a measure, if it is not its name."""


def label_savings_figure(summary: pd.DataFrame) -> "go.Figure":
    """Return each measure over k, one line per arm; bars show where another draw falls.

    Args:
        summary: `LabelSavings.summary`: `task`, `unit`, `measure`, `arm`, `k`, `value`, `low`,
            `high`.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    columns = ("task", "unit", "measure", "arm", "k", "value", "low", "high")
    require_columns(summary, *columns)
    require_rows(summary)
    measures = [str(name) for name in summary["measure"].unique()]
    arms = ordered_arms([str(arm) for arm in summary["arm"]], {**_STYLES, **ARM_STYLES})
    titles = [_TITLES.get(name, f"held-out {name}") for name in measures]
    figure = make_subplots(cols=len(measures), subplot_titles=titles, horizontal_spacing=0.1)
    counts = sorted({int(k) for k in summary["k"] if k})
    for column, measure in enumerate(measures, start=1):
        figure.update_yaxes(title_text=_NAMES.get(measure, measure), **panel(1, column))
        part = rows_where(summary, "measure", measure)
        for arm in arms:
            rows = rows_where(part, "arm", arm).sort_values("k")
            if len(rows):
                figure.add_trace(_line(rows, arm, counts, first=column == 1), **panel(1, column))
    unit = summary["unit"].to_list()[0]
    ticks: dict[str, Any] = {"tickvals": counts, "ticktext": [str(k) for k in counts]}
    figure.update_xaxes(type="log", title_text=f"labelled {unit} of the target (k)", **ticks)
    subtitle = "bars: where another draw of texts falls"
    text = f"What k labels add to a transfer: {summary['task'].to_list()[0]}"
    title = {"text": text, "subtitle": {"text": subtitle}}
    figure.update_layout(template=use_template(), title=title, height=480, margin={"t": 110})
    return figure.update_annotations(font_size=13)


def _line(rows: pd.DataFrame, arm: str, counts: list[int], *, first: bool) -> "go.Scatter":
    style = _STYLES.get(arm) or arm_style(arm)
    shared: dict[str, Any] = {
        "name": style.label,
        "legendgroup": arm,
        "showlegend": first,
        "line": style.line,
    }
    if list(rows["k"]) == [0]:
        # k = 0 is not on a logarithmic axis: two points draw a horizontal line.
        level, ends = rows["value"].to_list(), [counts[0], counts[-1]] if counts else [1, 2]
        hover = f"{style.label}<br>{level[0]:.3f}<extra></extra>"
        return go.Scatter(x=ends, y=level * 2, mode="lines", hovertemplate=hover, **shared)
    return go.Scatter(
        x=rows["k"],
        y=rows["value"],
        mode="lines+markers",
        marker=style.marker,
        error_y=error_bars(
            rows["value"], rows["low"], rows["high"], color=style.colour, thickness=1
        ),
        hovertemplate=f"{style.label}<br>k = %{{x}}: %{{y:.3f}}<extra></extra>",
        **shared,
    )
