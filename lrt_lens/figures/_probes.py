"""Probes carried over: accuracy by arm, the learning curve over labels of the target, and accuracy
over sparse features.
"""

from dataclasses import replace

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    NEUTRAL,
    ArmStyle,
    arm_style,
    require_columns,
    use_template,
)

_STYLES = {
    "source": ArmStyle("on the source", "#9A8C00", symbol="star-triangle-up"),
    "native": replace(ARM_STYLES["native"], label="native"),
    "transferred": replace(ARM_STYLES["transferred"], label="transferred"),
    "refit": ArmStyle("transferred, refitted", "#E69F00", dash="dash", symbol="cross"),
    "transferred_refit": ArmStyle("transferred, refitted", "#E69F00", dash="dash", symbol="cross"),
    "scratch": ArmStyle("from scratch", "#56B4E9", dash="longdash", symbol="square-open"),
    "token_identity": ArmStyle("token identity", "#009E73", dash="dot", symbol="triangle-up"),
    "shuffled": ARM_STYLES["shuffled"],
    "permuted": replace(ARM_STYLES["permuted"], colour="#5E5E5E", symbol="triangle-down"),
    "random": ARM_STYLES["random"],
    "dense_native": ArmStyle("dense, native", "#0072B2", dash="dot"),
    "dense_transferred": ArmStyle("dense, transferred", "#D55E00", dash="dot"),
}
"""In the order in which arms are listed."""
_COLUMNS = ("task", "arm", "k", "accuracy", "low", "high", "auroc")


def probe_figure(table: pd.DataFrame, *, chance: float) -> "go.Figure":
    """Returns left the accuracy of every arm without a learning curve, right accuracy over k labels
    of the target.

    Args:
        table: `ProbeEvaluation.table`: `task`, `arm`, `k`, `accuracy`, `low`, `high`, `auroc`.
        chance: accuracy of always naming the largest class.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    rows = _records(table)
    curves = ("refit", "scratch")
    single = [arm for arm in _ordered(rows) if arm not in curves]
    titles = ["accuracy on the target, by arm", "what k labels of the target add"]
    figure = make_subplots(
        cols=2, subplot_titles=titles, column_widths=[0.5, 0.5], horizontal_spacing=0.1
    )
    for arm in reversed(single):
        figure.add_trace(_point(next(row for row in rows if row["arm"] == arm), arm), row=1, col=1)
    figure.add_vline(x=chance, line={"color": NEUTRAL, "dash": "dot", "width": 1}, row=1, col=1)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" only)
    for arm in curves:
        if part := [row for row in rows if row["arm"] == arm]:
            figure.add_trace(_curve(part, arm), row=1, col=2)
    spans = sorted({row["k"] for row in rows if row["arm"] in curves}) or [1, 10]
    for arm in ("native", "transferred", "token_identity"):
        if part := [row for row in rows if row["arm"] == arm]:
            figure.add_trace(_level(part[0], arm, [spans[0], spans[-1]]), row=1, col=2)
    figure.update_xaxes(title_text="accuracy (dotted: largest class)", row=1, col=1)
    figure.update_xaxes(
        title_text="labels of the target (k)",
        type="log",
        tickvals=spans,
        ticktext=[str(k) for k in spans],
        row=1,
        col=2,
    )
    figure.update_yaxes(title_text="accuracy", row=1, col=2)
    title = {
        "text": f"Probe carried over: {rows[0]['task']}",
        "subtitle": {
            "text": "95% intervals over test texts; random and permuted: range of the draws"
        },
    }
    figure.update_layout(template=use_template(), title=title, height=480, margin={"t": 110})
    return figure.update_annotations(font_size=13)


def sparse_probe_figure(table: pd.DataFrame, *, chance: float) -> "go.Figure":
    """Returns accuracy over the number of features that a probe may read, a line an arm; dense
    probes are levels (Stitching, figure 3a).

    Args: table: `SparseProbeEvaluation.table`: `task`, `arm`, `k` (NaN for dense probes),
        `accuracy`, `low`, `high`, `auroc`. chance: accuracy of always naming the largest class.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    rows = _records(table)
    spans = sorted({int(row["k"]) for row in rows if row["k"] == row["k"]})
    figure = go.Figure()
    for arm in _ordered(rows):
        part = [row for row in rows if row["arm"] == arm]
        dense = part[0]["k"] != part[0]["k"]
        figure.add_trace(
            _level(part[0], arm, [spans[0], spans[-1]], legend=True) if dense else _curve(part, arm)
        )
    figure.add_hline(
        y=chance,
        line={"color": NEUTRAL, "dash": "dot", "width": 1},
        annotation_text="largest class",
        annotation_font_size=11,
    )
    figure.update_xaxes(
        title_text="features that the probe reads (k)",
        type="log",
        tickvals=spans,
        ticktext=[str(k) for k in spans],
    )
    subtitle = "95% intervals over test texts; random features: range of the draws"
    figure.update_yaxes(title_text="accuracy")
    title = {
        "text": f"Sparse probes through SAEs: {rows[0]['task']}",
        "subtitle": {"text": subtitle},
    }
    return figure.update_layout(template=use_template(), title=title, height=480, margin={"t": 90})


def _records(table: pd.DataFrame) -> list[dict]:
    require_columns(table, *_COLUMNS)
    if table.empty:
        raise ValueError("the table has no rows; there is nothing to show")
    return table.to_dict("records")


def _ordered(rows: list[dict]) -> list[str]:
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))
    return [arm for arm in _STYLES if arm in arms] + [arm for arm in arms if arm not in _STYLES]


def _style(arm: str) -> ArmStyle:
    return _STYLES.get(arm) or arm_style(arm)


def _errors(part: list[dict]) -> dict[str, list[float]]:
    return {
        "array": [row["high"] - row["accuracy"] for row in part],
        "arrayminus": [row["accuracy"] - row["low"] for row in part],
    }


def _hover(row: dict, arm: str) -> str:
    return f"<b>{_style(arm).label}</b><br>accuracy {row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]<br>AUROC {row['auroc']:.3f}"


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


def _level(row: dict, arm: str, span: list[int], *, legend: bool = True) -> "go.Scatter":
    style = _style(arm)
    line = style.line | {"dash": "dot" if arm != "transferred" else "solid", "width": 2}
    return go.Scatter(
        x=span,
        y=[row["accuracy"]] * 2,
        mode="lines",
        line=line,
        name=style.label,
        showlegend=legend,
        hovertemplate=_hover(row, arm) + "<extra></extra>",
    )
