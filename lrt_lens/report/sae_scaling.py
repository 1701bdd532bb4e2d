"""Scaling of SAE training: error over compute with the fitted laws, and what is saved at every width."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lrt_lens.report.sae import training_style
from lrt_lens.report.template import TEMPLATE_NAME, require_columns

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def scaling_figure(history: pd.DataFrame, frontier: pd.DataFrame, summary: pd.DataFrame, savings: pd.DataFrame) -> go.Figure:
    """Returns FVU over FLOPs, runs faint, frontiers as points, laws as lines; and the transferred arm's savings, a line per width.

    Args:
        history: `width`, `arm`, `seed`, `flops`, `fvu`.
        frontier: `arm`, `flops`, `fvu`.
        summary: `arm`, `amplitude`, `exponent`.
        savings: `width`, `arm`, `share_of_final`, `saved`, `low`, `high`.
    """
    require_columns(history, "width", "arm", "seed", "flops", "fvu")
    require_columns(frontier, "arm", "flops", "fvu")
    require_columns(summary, "arm", "amplitude", "exponent")
    require_columns(savings, "width", "arm", "share_of_final", "saved", "low", "high")
    figure = make_subplots(
        cols=2,
        column_widths=[0.58, 0.42],
        subplot_titles=("least error of any width", "saved by the transferred beginning"),
        horizontal_spacing=0.12,
    )
    for key, run in history[history["flops"] > 0].groupby(["arm", "width", "seed"], sort=False):
        style = training_style(str(key[0]))  # pyright: ignore[reportIndexIssue] (three columns make a triple)
        figure.add_scatter(
            x=run["flops"], y=run["fvu"], mode="lines", line={"color": style.fill(opacity=0.25), "width": 1}, hoverinfo="skip", showlegend=False,
            legendgroup=style.label, row=1, col=1,
        )  # fmt: skip
    for law in summary.to_dict("records"):
        style = training_style(str(law["arm"]))
        amplitude, exponent = float(law["amplitude"]), float(law["exponent"])
        points = pd.Series(frontier[frontier["arm"] == law["arm"]].groupby("flops")["fvu"].mean())
        flops = points.index.to_numpy(dtype=float)
        figure.add_scatter(
            x=flops, y=points.to_numpy(), name=style.label, legendgroup=style.label, mode="markers", marker=style.marker, row=1, col=1,
            hovertemplate=f"<b>{style.label}</b><br>%{{x:.2e}} FLOPs: FVU %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=flops, y=amplitude * flops**-exponent, mode="lines", line=style.line, showlegend=False,
            legendgroup=style.label, row=1, col=1,
            hovertemplate=f"<b>{style.label}</b>: {amplitude:.3g} · FLOPs^−{exponent:.3f}<extra></extra>",
        )  # fmt: skip
    carried = training_style("transferred")
    moved = savings[savings["arm"] == "transferred"]
    for i, (width, part) in enumerate(moved.groupby("width")):
        figure.add_scatter(
            x=part["share_of_final"], y=part["saved"], name=f"{width} features", mode="lines+markers", legend="legend2",
            line={"color": carried.colour, "dash": _DASHES[i % len(_DASHES)]}, row=1, col=2,
            error_y={"array": part["high"] - part["saved"], "arrayminus": part["saved"] - part["low"], "color": carried.colour, "thickness": 1},
        )  # fmt: skip
    figure.add_hline(y=0, line={"dash": "dot", "width": 1}, row=1, col=2)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" alone)
    figure.update_xaxes(title_text="training FLOPs, what a run began with charged", type="log", row=1, col=1)
    lowest, highest = np.log10(frontier["fvu"].min()), np.log10(frontier["fvu"].max())
    figure.update_yaxes(title_text="FVU, held out", type="log", range=[lowest - 0.05, highest + 0.1], row=1, col=1)
    figure.update_xaxes(title_text="threshold, share of scratch's final explained variance", tickformat=".0%", row=1, col=2)
    figure.update_yaxes(title_text="FLOPs saved against scratch", tickformat=".0%", row=1, col=2)
    figure.update_layout(
        template=TEMPLATE_NAME, title={"text": "How an SAE's error falls with compute"}, height=520, margin={"t": 90, "b": 130},
        legend={"orientation": "h", "y": -0.24, "x": 0}, legend2={"orientation": "h", "y": -0.24, "x": 0.62},
    )  # fmt: skip
    return figure
