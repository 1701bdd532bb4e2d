"""Scaling of SAE training: error over compute with the fitted laws, and what is saved at every
width.
"""

import numpy as np
import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._sae import training_style
from lrt_lens.figures._template import require_columns, use_template

_AXES = {
    "training": "FLOPs of training alone",
    "stitch": "FLOPs, the stitch charged",
    "source_sae": "FLOPs, stitch and source SAE charged",
}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def scaling_figure(
    history: pd.DataFrame,
    frontier: pd.DataFrame,
    summary: pd.DataFrame,
    savings: pd.DataFrame,
    *,
    bill: str = "stitch",
) -> "go.Figure":
    """Returns FVU over FLOPs, frontiers as points, laws as lines, single runs of two arms faint;
    and the transferred arm's savings, a line per width.

    Args:
        history: `width`, `arm`, `seed`, `fvu`, and FLOPs in a column of the bill's name.
        frontier: `bill`, `arm`, `flops`, `fvu`.
        summary: `bill`, `arm`, `amplitude`, `exponent`.
        savings: `width`, `arm`, `share_of_final`, `saved`, `low`, `high`.
        bill: a value of `bill`.

    Raises:
        ValueError: a column is missing, or the bill has no rows: what it charges is not known.
    """
    require_columns(history, "width", "arm", "seed", "fvu", bill)
    require_columns(frontier, "bill", "arm", "flops", "fvu")
    require_columns(summary, "bill", "arm", "amplitude", "exponent")
    require_columns(savings, "width", "arm", "share_of_final", "saved", "low", "high")
    laws = summary.query("bill == @bill").to_dict("records")
    if not laws:
        raise ValueError(f"no rows of bill {bill!r}; there are {sorted(set(summary['bill']))}")
    figure = make_subplots(
        cols=2,
        column_widths=[0.56, 0.44],
        subplot_titles=("least error of any width", "saved by the transferred beginning"),
        horizontal_spacing=0.12,
    )
    _add_runs(figure, history.query(f"{bill} > 0"), bill)
    points = frontier.query("bill == @bill")
    for law in laws:
        arm = str(law["arm"])
        _add_law(
            figure,
            arm,
            points.query("arm == @arm"),
            float(law["amplitude"]),
            float(law["exponent"]),
        )
    _add_savings(figure, savings.query("arm == 'transferred'"))
    figure.add_hline(y=0, line={"dash": "dot", "width": 1}, row=1, col=2)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" alone)
    lowest, highest = np.log10(points["fvu"].min()), np.log10(points["fvu"].max())
    figure.update_xaxes(
        title_text=_AXES.get(bill, "FLOPs"), type="log", exponentformat="power", row=1, col=1
    )
    figure.update_yaxes(
        title_text="FVU, held out", type="log", range=[lowest - 0.05, highest + 0.1], row=1, col=1
    )
    figure.update_xaxes(
        title_text="threshold, share of scratch's final value", tickformat=".0%", row=1, col=2
    )
    figure.update_yaxes(
        title_text="FLOPs saved against scratch, the stitch charged", tickformat=".0%", row=1, col=2
    )
    return figure.update_layout(
        template=use_template(),
        title={"text": "How an SAE's error falls with compute"},
        height=520,
        margin={"t": 90, "r": 200},
        legend={"orientation": "v", "x": 1.02, "y": 1.0},
        legend2={"orientation": "v", "x": 1.02, "y": 0.45},
    )


def _add_runs(figure: "go.Figure", history: pd.DataFrame, bill: str) -> None:
    """Single runs of two arms: those of all would hide each other."""
    for arm in ("scratch", "transferred"):
        style = training_style(arm)
        for _, run in history[history["arm"] == arm].groupby(["width", "seed"], sort=False):
            figure.add_scatter(
                x=run[bill],
                y=run["fvu"],
                mode="lines",
                line={"color": style.fill(opacity=0.25), "width": 1},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=style.label,
                row=1,
                col=1,
            )


def _add_law(
    figure: "go.Figure", arm: str, points: pd.DataFrame, amplitude: float, exponent: float
) -> None:
    style = training_style(arm)
    means = pd.Series(points.groupby("flops")["fvu"].mean())
    flops = means.index.to_numpy(dtype=float)
    figure.add_scatter(
        x=flops,
        y=means.to_numpy(),
        name=style.label,
        legendgroup=style.label,
        mode="markers",
        marker=style.marker,
        row=1,
        col=1,
        hovertemplate=f"<b>{style.label}</b><br>%{{x:.2e}} FLOPs: FVU %{{y:.4f}}<extra></extra>",
    )
    figure.add_scatter(
        x=flops,
        y=amplitude * flops**-exponent,
        mode="lines",
        line=style.line,
        showlegend=False,
        legendgroup=style.label,
        row=1,
        col=1,
        hovertemplate=f"<b>{style.label}</b>: {amplitude:.3g} · FLOPs^−{exponent:.3f}<extra></extra>",
    )


def _add_savings(figure: "go.Figure", savings: pd.DataFrame) -> None:
    colour = training_style("transferred").colour
    for i, (width, part) in enumerate(savings.groupby("width")):
        figure.add_scatter(
            x=part["share_of_final"],
            y=part["saved"],
            name=f"{width} features",
            mode="lines+markers",
            legend="legend2",
            line={"color": colour, "dash": _DASHES[i % len(_DASHES)]},
            row=1,
            col=2,
            error_y={
                "array": part["high"] - part["saved"],
                "arrayminus": part["saved"] - part["low"],
                "color": colour,
                "thickness": 1,
            },
        )
