"""Figures of transferred probes: accuracy per arm, over labels of the target and over features.

    probe_figure(result.table, chance=result.chance)
    sparse_probe_figure(sparse.table, chance=sparse.chance)

Problem: an accuracy means little without chance, the native probe and controls, and it mixes two
questions: does a direction separate the classes, and is its threshold between them? Mechanism: one
row or line per arm, with chance as a dotted line, and the AUROC beside the accuracy.

Limits: one task per figure.
"""

from dataclasses import replace
from typing import Any

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    DOTTED,
    ArmStyle,
    arm_style,
    ordered_arms,
    panel,
    require_columns,
    require_rows,
    use_template,
)

_STYLES = {
    "source": ArmStyle("on the source", "#9A8C00", symbol="star-triangle-up"),
    "native": replace(ARM_STYLES["native"], label="native"),
    "transferred": replace(ARM_STYLES["transferred"], label="transferred"),
    "transferred_raw": replace(
        ARM_STYLES["transferred"], label="transferred, threshold of the map", symbol="circle-open"
    ),
    "fine_tuned": ArmStyle("transferred, fine-tuned", "#E69F00", dash="dash", symbol="cross"),
    "transferred_new_probe": ArmStyle(
        "transferred, new probe", "#E69F00", dash="dash", symbol="cross"
    ),
    "scratch": ArmStyle("from scratch", "#56B4E9", dash="longdash", symbol="square-open"),
    "token_identity": ArmStyle("token identity", "#009E73", dash="dot", symbol="triangle-up"),
    "shuffled": ARM_STYLES["shuffled"],
    "permuted": replace(ARM_STYLES["permuted"], colour="#5E5E5E", symbol="triangle-down"),
    "random": ARM_STYLES["random"],
    "dense_native": ArmStyle("dense, native", "#0072B2", dash="dot"),
    "dense_transferred": ArmStyle("dense, transferred", "#D55E00", dash="dot"),
}
"""Style of each arm, in the order in which figures list them."""
_COLUMNS = ("task", "arm", "k", "accuracy", "low", "high", "auroc")
"""Columns that both tables need."""


def probe_figure(table: pd.DataFrame, *, chance: float) -> "go.Figure":
    """Return the accuracy and AUROC of each arm, and accuracy over k labels of the target.

    The left panel holds the arms without a learning curve, with the AUROC as a diamond; the right
    one the learning curves with the levels that they are compared with.

    Args:
        table: `ProbeEvaluation.table`: `task`, `arm`, `k`, `accuracy`, `low`, `high`, `auroc`.
        chance: accuracy of always predicting the largest class.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    by_arm = _by_arm(table)
    curves = ("fine_tuned", "scratch")
    titles = ["on the target, per arm", "gain from k labels of the target"]
    figure = make_subplots(
        cols=2, subplot_titles=titles, column_widths=[0.5, 0.5], horizontal_spacing=0.1
    )
    # plotly lists categories from below, so the first arm is drawn last.
    for arm in reversed([arm for arm in by_arm if arm not in curves]):
        figure.add_trace(_point(by_arm[arm][0], arm), **panel(1, 1))
        figure.add_trace(_auroc(by_arm[arm][0], arm), **panel(1, 1))
    figure.add_vline(x=chance, line=DOTTED, **panel(1, 1))
    for arm in curves:
        if arm in by_arm:
            figure.add_trace(_curve(by_arm[arm], arm), **panel(1, 2))
    # Levels span the k of the curves; without curves any two numbers will do.
    spans = sorted({row["k"] for arm in curves for row in by_arm.get(arm, [])}) or [1, 10]
    for arm in ("native", "transferred", "token_identity"):
        if arm in by_arm:
            figure.add_trace(_level(by_arm[arm][0], arm, [spans[0], spans[-1]]), **panel(1, 2))
    title = "accuracy (dotted: largest class), AUROC (◇)"
    figure.update_xaxes(title_text=title, **panel(1, 1))
    figure.update_xaxes(_counts("labels of the target (k)", spans), **panel(1, 2))
    figure.update_yaxes(title_text="accuracy", **panel(1, 2))
    subtitle = "95% over test texts; random, permuted, shuffled: where a new draw falls"
    heading = {"text": f"Transferred probe: {_task(table)}", "subtitle": {"text": subtitle}}
    figure.update_layout(template=use_template(), title=heading, height=480, margin={"t": 110})
    return figure.update_annotations(font_size=13)


def sparse_probe_figure(table: pd.DataFrame, *, chance: float) -> "go.Figure":
    """Return accuracy over the number of features that a probe reads, one line per arm.

    Dense probes are horizontal lines (Stitching, figure 3a).

    Args:
        table: `SparseProbeEvaluation.table`: `task`, `arm`, `k` (NaN for dense probes), `accuracy`,
            `low`, `high`, `auroc`.
        chance: accuracy of always predicting the largest class.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    by_arm = _by_arm(table)
    spans = sorted({int(k) for k in table["k"].dropna()})
    figure = go.Figure()
    for arm, rows in by_arm.items():
        # NaN marks a dense probe, which reads no number of features.
        is_dense = rows[0]["k"] != rows[0]["k"]  # NaN
        ends = [spans[0], spans[-1]]
        figure.add_trace(_level(rows[0], arm, ends) if is_dense else _curve(rows, arm))
    note: dict[str, Any] = {"annotation_text": "largest class", "annotation_font_size": 11}
    figure.add_hline(y=chance, line=DOTTED, **note)
    figure.update_xaxes(_counts("features that the probe reads (k)", spans))
    figure.update_yaxes(title_text="accuracy")
    subtitle = "95% over test texts; random features: where a new draw falls"
    title = {"text": f"Sparse probes through SAEs: {_task(table)}", "subtitle": {"text": subtitle}}
    return figure.update_layout(template=use_template(), title=title, height=480, margin={"t": 90})


def _by_arm(table: pd.DataFrame) -> dict[str, list[dict]]:
    """Return the rows of each arm, in the order in which figures list the arms."""
    require_columns(table, *_COLUMNS)
    require_rows(table)
    records = table.to_dict("records")
    arms = ordered_arms([str(record["arm"]) for record in records], _STYLES)
    return {arm: [record for record in records if record["arm"] == arm] for arm in arms}


def _task(table: pd.DataFrame) -> str:
    return str(table["task"].to_list()[0])


def _counts(title: str, counts: list[int]) -> dict[str, Any]:
    """Return the settings of a logarithmic axis with a tick at each count."""
    # Ticks at the measured counts only; a logarithmic axis would put them at powers of ten.
    names = [str(count) for count in counts]
    return {"title_text": title, "type": "log", "tickvals": counts, "ticktext": names}


def _style(arm: str) -> ArmStyle:
    return _STYLES.get(arm) or arm_style(arm)


def _errors(part: list[dict]) -> dict[str, list[float]]:
    return {
        "array": [row["high"] - row["accuracy"] for row in part],
        "arrayminus": [row["accuracy"] - row["low"] for row in part],
    }


def _hover(row: dict, arm: str) -> str:
    accuracy = f"accuracy {row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return f"<b>{_style(arm).label}</b><br>{accuracy}<br>AUROC {row['auroc']:.3f}"


def _point(row: dict, arm: str) -> "go.Scatter":
    style = _style(arm)
    return go.Scatter(
        x=[row["accuracy"]],
        y=[style.label],
        mode="markers",
        marker=style.marker,
        name=style.label,
        showlegend=False,
        error_x=_errors([row]) | {"color": style.colour, "thickness": 2},
        hovertemplate=_hover(row, arm) + "<extra></extra>",
    )


def _auroc(row: dict, arm: str) -> "go.Scatter":
    style = _style(arm)
    return go.Scatter(
        x=[row["auroc"]],
        y=[style.label],
        mode="markers",
        marker={"symbol": "diamond-open", "color": style.colour, "size": 8},
        name=f"{style.label}, AUROC",
        showlegend=False,
        hovertemplate=_hover(row, arm) + "<extra></extra>",
    )


def _curve(part: list[dict], arm: str) -> "go.Scatter":
    style = _style(arm)
    return go.Scatter(
        x=[row["k"] for row in part],
        y=[row["accuracy"] for row in part],
        mode="lines+markers",
        line=style.line,
        marker=style.marker,
        name=style.label,
        error_y=_errors(part) | {"color": style.colour, "thickness": 1},
        text=[_hover(row, arm) for row in part],
        hovertemplate="%{text}<br>k = %{x}<extra></extra>",
    )


def _level(row: dict, arm: str, span: list[int]) -> "go.Scatter":
    style = _style(arm)
    line = style.line | {"dash": "dot" if arm != "transferred" else "solid", "width": 2}
    # Two points at the ends of the axis draw a horizontal line with its own legend entry.
    return go.Scatter(
        x=span,
        y=[row["accuracy"]] * 2,
        mode="lines",
        line=line,
        name=style.label,
        showlegend=True,
        hovertemplate=_hover(row, arm) + "<extra></extra>",
    )
