"""Figure of the scaling of SAE training: error over compute, and savings per width.

    scaling_figure(study.history, study.frontier, study.summary, study.savings, bill="stitch")

Problem: a power law must be judged by the points that it was fitted to. Mechanism: points, law and
single runs are in one panel.

Limits: single runs are drawn for two arms only.
"""

import numpy as np
import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._sae import training_style
from lrt_lens.figures._template import error_bars, panel, require_columns, rows_where, use_template

# Titles of the axis of FLOPs, by bill.
_AXES = {
    "training": "FLOPs of training alone",
    "stitch": "FLOPs, the stitch charged",
    "source_sae": "FLOPs, stitch and source SAE charged",
}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Patterns of lines, one per width."""


def scaling_figure(
    history: pd.DataFrame,
    frontier: pd.DataFrame,
    summary: pd.DataFrame,
    savings: pd.DataFrame,
    *,
    bill: str = "stitch",
) -> "go.Figure":
    """Return FVU over FLOPs with the fitted laws, and the savings of the transferred arm.

    The left panel holds frontiers as points, laws as lines and single runs of two arms as faint
    lines; the right one has one line per width.

    Args:
        history: `width`, `arm`, `seed`, `fvu`, and FLOPs in a column of the bill's name.
        frontier: `bill`, `arm`, `flops`, `fvu`.
        summary: `bill`, `arm`, `amplitude`, `exponent`.
        savings: `width`, `arm`, `share_of_final`, `saved`, `low`, `high`.
        bill: a value of `bill`.

    Raises:
        ValueError: a column is missing, or the bill has no rows because its cost is unknown.
    """
    require_columns(history, "width", "arm", "seed", "fvu", bill)
    require_columns(frontier, "bill", "arm", "flops", "fvu")
    require_columns(summary, "bill", "arm", "amplitude", "exponent")
    require_columns(savings, "width", "arm", "share_of_final", "saved", "low", "high")
    laws = summary.query("bill == @bill").to_dict("records")
    if not laws:
        raise ValueError(
            f"no rows of bill {bill!r}; there are {sorted(set(summary['bill']))}: choose "
            "one of them, or give source_sae_tokens to the study"
        )
    titles = ("lowest error of any width", "saved by the transferred initialisation")
    figure = make_subplots(
        cols=2, column_widths=[0.56, 0.44], subplot_titles=titles, horizontal_spacing=0.12
    )
    # The first measurement of a run is at 0 FLOPs, which has no logarithm.
    _add_runs(figure, history.query(f"{bill} > 0"), bill)
    points = frontier.query("bill == @bill")
    for law in laws:
        own = rows_where(points, "arm", law["arm"])
        _add_law(figure, str(law["arm"]), own, float(law["amplitude"]), float(law["exponent"]))
    _add_savings(figure, savings.query("arm == 'transferred'"))
    figure.add_hline(y=0, line={"dash": "dot", "width": 1}, **panel(1, 2))
    # plotly takes the range of a logarithmic axis as exponents of ten.
    lowest, highest = np.log10(points["fvu"].min()), np.log10(points["fvu"].max())
    span = {"type": "log", "range": [lowest - 0.05, highest + 0.1]}
    flops = {"title_text": _AXES.get(bill, "FLOPs"), "type": "log", "exponentformat": "power"}
    threshold = "threshold, share of scratch's final value"
    saved = "FLOPs saved relative to scratch, the stitch charged"
    figure.update_xaxes(flops, **panel(1, 1))
    figure.update_yaxes(span, title_text="FVU, held out", **panel(1, 1))
    figure.update_xaxes(title_text=threshold, tickformat=".0%", **panel(1, 2))
    figure.update_yaxes(title_text=saved, tickformat=".0%", **panel(1, 2))
    return figure.update_layout(
        template=use_template(),
        title={"text": "Error of an SAE over compute"},
        height=520,
        margin={"t": 90, "r": 200},
        legend={"orientation": "v", "x": 1.02, "y": 1.0},
        legend2={"orientation": "v", "x": 1.02, "y": 0.45},
    )


def _add_runs(figure: "go.Figure", history: pd.DataFrame, bill: str) -> None:
    """Add the single runs of two arms; those of all arms would cover each other."""
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
                **panel(1, 1),
            )


def _add_law(
    figure: "go.Figure", arm: str, points: pd.DataFrame, amplitude: float, exponent: float
) -> None:
    style = training_style(arm)
    # Seeds are averaged: one point per budget.
    means = pd.Series(points.groupby("flops")["fvu"].mean())
    flops = means.index.to_numpy(dtype=float)
    name = f"<b>{style.label}</b>"
    figure.add_scatter(
        x=flops,
        y=means.to_numpy(),
        name=style.label,
        legendgroup=style.label,
        mode="markers",
        marker=style.marker,
        hovertemplate=f"{name}<br>%{{x:.2e}} FLOPs: FVU %{{y:.4f}}<extra></extra>",
        **panel(1, 1),
    )
    figure.add_scatter(
        x=flops,
        y=amplitude * flops**-exponent,  # the law: FVU = a·C^(−b)
        mode="lines",
        line=style.line,
        showlegend=False,
        legendgroup=style.label,
        hovertemplate=f"{name}: {amplitude:.3g} · FLOPs^−{exponent:.3f}<extra></extra>",
        **panel(1, 1),
    )


def _add_savings(figure: "go.Figure", savings: pd.DataFrame) -> None:
    colour = training_style("transferred").colour
    for i, (width, part) in enumerate(savings.groupby("width")):
        # Order of `error_bars`: value, lower end, upper end.
        bounds = (part["saved"], part["low"], part["high"])
        figure.add_scatter(
            x=part["share_of_final"],
            y=part["saved"],
            name=f"{width} features",
            mode="lines+markers",
            legend="legend2",
            line={"color": colour, "dash": _DASHES[i % len(_DASHES)]},
            error_y=error_bars(*bounds, color=colour, thickness=1),
            **panel(1, 2),
        )
