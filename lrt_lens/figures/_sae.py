"""SAEs: what every arm does to its model, and how training goes from every initialisation."""

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
    "source": ArmStyle("source SAE on the source", "#009E73", symbol="triangle-up"),
    "transferred": ARM_STYLES["transferred"],
    "native": ARM_STYLES["native"],
    "scratch": replace(ARM_STYLES["native"], label="scratch"),
    "shuffled": ARM_STYLES["shuffled"],
    "rotated": ArmStyle("random rotation", "#8C8C8C", symbol="circle-open", dash="dot"),
    "random": replace(ARM_STYLES["random"], label="random maps"),
}
_PANELS = {
    "l0": "L0",
    "fvu": "FVU",
    "delta_ce": "ΔCE<br>(nats per token)",
    "ce_recovered": "share of CE<br>recovered",
    "dead_fraction": "share of dead<br>features",
}
"""Two lines a title: five panels stand side by side."""


def sae_figure(table: pd.DataFrame) -> "go.Figure":
    """Returns L0, FVU, ΔCE, share of CE recovered and share of dead features by arm with intervals,
    a panel each.

    Args:
        table: `SAEEvaluation.table`: `arm`, and each metric with `_low` and `_high`.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    require_columns(
        table, "arm", *(f"{name}{end}" for name in _PANELS for end in ("", "_low", "_high"))
    )
    if not len(table):
        raise ValueError("the table has no rows; there is nothing to show")
    records = table.to_dict("records")
    figure = make_subplots(cols=len(_PANELS), shared_yaxes=True, horizontal_spacing=0.025)
    for column, (metric, title) in enumerate(_PANELS.items(), start=1):
        label = title.replace("<br>", " ")
        for row in records:
            style = training_style(str(row["arm"]))
            figure.add_trace(
                go.Scatter(
                    x=[row[metric]],
                    y=[style.label],
                    mode="markers",
                    marker=style.marker,
                    name=style.label,
                    showlegend=False,
                    error_x={
                        "array": [row[f"{metric}_high"] - row[metric]],
                        "arrayminus": [row[metric] - row[f"{metric}_low"]],
                        "color": style.colour,
                    },
                    hovertemplate=f"<b>{style.label}</b><br>{label} {row[metric]:.4f} [{row[f'{metric}_low']:.4f}, {row[f'{metric}_high']:.4f}]<extra></extra>",
                ),
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text=title, row=1, col=column)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_layout(
        title={
            "text": "SAEs at home and carried over",
            "subtitle": {"text": "95% intervals, over documents (dead: over features)"},
        }
    )
    return figure.update_layout(
        template=use_template(), height=200 + 40 * len(records), margin={"t": 90}
    )


def training_figure(history: pd.DataFrame) -> "go.Figure":
    """Returns held-out explained variance against training tokens, a line per arm and seed.

    Args:
        history: `arm`, `seed`, `tokens`, `explained_variance`.
    """
    require_columns(history, "arm", "seed", "tokens", "explained_variance")
    figure = go.Figure(_lines(history))
    figure.update_xaxes(title_text="training tokens")
    figure.update_yaxes(title_text="explained variance, held out")
    return figure.update_layout(
        template=use_template(), title={"text": "Training of an SAE"}, height=440
    )


def initialisation_figure(history: pd.DataFrame, cosines: pd.DataFrame) -> "go.Figure":
    """Returns explained variance against training tokens from every initialisation, and decoder
    cosines to it.

    Args:
        history: `arm`, `seed`, `tokens`, `explained_variance`.
        cosines: `arm`, `decoder_cosine`.
    """
    require_columns(history, "arm", "seed", "tokens", "explained_variance")
    require_columns(cosines, "arm", "decoder_cosine")
    figure = make_subplots(
        cols=2,
        column_widths=[0.6, 0.4],
        subplot_titles=("held out", "decoder rows, then and at the beginning"),
    )
    figure.add_traces(_lines(history), rows=1, cols=1)
    for arm, rows in cosines.groupby("arm", sort=False):
        style = training_style(str(arm))
        figure.add_trace(
            go.Violin(
                x=rows["decoder_cosine"],
                y0=style.label,
                name=style.label,
                line_color=style.colour,
                orientation="h",
                side="positive",
                points=False,
                showlegend=False,
                width=1.6,
            ),
            row=1,
            col=2,
        )
    worst = float(history.loc[history["tokens"] > 0, "explained_variance"].min())
    figure.update_xaxes(title_text="training tokens", type="log", row=1, col=1)
    figure.update_yaxes(
        title_text="explained variance", range=[max(min(worst, 0.9), -0.2), 1], row=1, col=1
    )
    figure.update_xaxes(title_text="cosine to the beginning", row=1, col=2)
    figure.update_yaxes(
        side="right", row=1, col=2
    )  # names of arms between the panels would lie over the curves
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(
        template=use_template(), height=480, title="Where an SAE begins", margin={"t": 100}
    )


def savings_figure(savings: pd.DataFrame) -> "go.Figure":
    """Returns FLOPs saved against scratch over thresholds: left as Stitching counts, right with the
    source's SAE charged.

    Args:
        savings: `SAEInitialisation.savings`: `arm`, `share_of_final`, `saved`, `saved_charged`.
    """
    require_columns(savings, "arm", "share_of_final", "saved", "saved_charged")
    figure = make_subplots(
        cols=2,
        subplot_titles=["the stitch charged", "the source's SAE charged too"],
        horizontal_spacing=0.1,
    )
    for arm, part in savings.groupby("arm", sort=False):
        style = training_style(str(arm))
        for column, name in ((1, "saved"), (2, "saved_charged")):
            figure.add_scatter(
                x=part["share_of_final"],
                y=part[name],
                name=style.label,
                legendgroup=style.label,
                showlegend=column == 1,
                mode="lines+markers",
                line=style.line,
                marker=style.marker,
                row=1,
                col=column,
            )
    figure.add_hline(y=0, line={"dash": "dot", "width": 1, "color": NEUTRAL})
    figure.update_xaxes(
        title_text="threshold, share of scratch's final explained variance", tickformat=".0%"
    )
    figure.update_yaxes(title_text="FLOPs saved against scratch", tickformat=".0%")
    return figure.update_layout(
        template=use_template(),
        title={"text": "What a transferred beginning saves"},
        height=460,
        margin={"t": 90},
    )


def _lines(history: pd.DataFrame) -> "list[go.Scatter]":
    lines, seen = [], set()
    for key, rows in history.groupby(["arm", "seed"], sort=False):
        arm, seed = key  # pyright: ignore[reportGeneralTypeIssues] (two columns make a pair)
        style = training_style(str(arm))
        lines.append(
            go.Scatter(
                x=rows["tokens"],
                y=rows["explained_variance"],
                name=style.label,
                legendgroup=style.label,
                showlegend=arm not in seen,
                mode="lines",
                line=style.line,
                hovertemplate=f"<b>{style.label}</b>, seed {seed}<br>%{{x}} tokens: %{{y:.4f}}<extra></extra>",
            )
        )
        seen.add(arm)
    return lines


def training_style(arm: str) -> ArmStyle:
    """Looks of an arm of this module's figures: `scratch` and `rotated` are named as beginnings."""
    return _STYLES.get(arm) or replace(arm_style(arm), colour=NEUTRAL)
