"""Figures of SAEs: metrics per arm, and training curves from each initialisation.

    sae_figure(evaluation.table)
    initialisation_figure(study.history, study.cosines)
    savings_figure(study.savings)

Problem: an SAE can be sparse and wrong, or faithful and dense. Mechanism: all metrics of one arm
are on one row.

Limits: a training curve of a diverged run is cut off at −0.2.
"""

from dataclasses import replace

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    DOTTED,
    NEUTRAL,
    ArmStyle,
    arm_style,
    count_range,
    error_bars,
    panel,
    require_columns,
    require_rows,
    use_template,
    with_counts,
)

# `scratch` and `rotated` are initialisations of training; the other arms are SAEs.
_STYLES = {
    "source": ArmStyle("source SAE on the source", "#009E73", symbol="triangle-up"),
    "transferred": ARM_STYLES["transferred"],
    "refitted": ArmStyle("transferred, refitted", "#56B4E9", symbol="star"),
    "native": ARM_STYLES["native"],
    "scratch": replace(ARM_STYLES["native"], label="scratch"),
    "shuffled": ARM_STYLES["shuffled"],
    "shuffled_refitted": replace(
        ARM_STYLES["shuffled"],
        label="shuffled map, refitted",
        symbol="diamond-open",
        dash="longdash",
    ),
    "random_refitted": replace(
        ARM_STYLES["random"], label="random encoder, refitted", symbol="circle-x", width=2.0
    ),
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
"""Titles of the panels, in up to two lines each: five panels are side by side."""
_HISTORY = ("arm", "seed", "tokens", "explained_variance")
"""Columns of a training curve."""


def sae_figure(table: pd.DataFrame) -> "go.Figure":
    """Return L0, FVU, ΔCE, share of CE recovered and share of dead features, per arm.

    There is one panel per metric; bars are 95% intervals.

    Args:
        table: `SAEEvaluation.table`: `arm`, and each metric with `_low` and `_high`; `n_tokens` and
            `n_documents` for the line under the title.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    columns = [f"{name}{end}" for name in _PANELS for end in ("", "_low", "_high")]
    require_columns(table, "arm", *columns)
    require_rows(table)
    records = table.to_dict("records")
    figure = make_subplots(cols=len(_PANELS), shared_yaxes=True, horizontal_spacing=0.025)
    for column, (metric, title) in enumerate(_PANELS.items(), start=1):
        for row in records:
            figure.add_trace(_metric(row, metric), **panel(1, column))
        figure.update_xaxes(title_text=title, **panel(1, column))
    # plotly lists categories from below: reversed, the first arm is on top.
    figure.update_yaxes(autorange="reversed", type="category")
    subtitle = "95% over documents (dead features: over features); random: where a new map falls"
    figure.update_layout(
        template=use_template(),
        title={"text": "Native and transferred SAEs", "subtitle": {"text": subtitle}},
        height=200 + 40 * len(records),
        margin={"t": 90},
    )
    counts = {unit: count_range(table, f"n_{unit}") for unit in ("tokens", "documents")}
    return with_counts(figure, counts)


def _metric(row: dict, metric: str) -> "go.Scatter":
    style, label = training_style(str(row["arm"])), _PANELS[metric].replace("<br>", " ")
    value, low, high = (row[f"{metric}{end}"] for end in ("", "_low", "_high"))
    hover = f"<b>{style.label}</b><br>{label} {value:.4f} [{low:.4f}, {high:.4f}]<extra></extra>"
    return go.Scatter(
        x=[value],
        y=[style.label],
        mode="markers",
        marker=style.marker,
        name=style.label,
        showlegend=False,
        error_x=error_bars(value, low, high, color=style.colour),
        hovertemplate=hover,
    )


def training_figure(history: pd.DataFrame) -> "go.Figure":
    """Return held-out explained variance against training tokens, one line per arm and seed.

    Args:
        history: `arm`, `seed`, `tokens`, `explained_variance`.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(history, *_HISTORY)
    figure = go.Figure(_lines(history))
    figure.update_xaxes(title_text="training tokens")
    figure.update_yaxes(title_text="explained variance, held out")
    title = {"text": "Training of an SAE"}
    return figure.update_layout(template=use_template(), title=title, height=440)


def initialisation_figure(history: pd.DataFrame, cosines: pd.DataFrame) -> "go.Figure":
    """Return training curves from each initialisation, and the decoder's cosine to it.

    Args:
        history: `arm`, `seed`, `tokens`, `explained_variance`.
        cosines: `arm`, `decoder_cosine`: cosine of each trained decoder row to its initial value.

    Raises:
        ValueError: a column is not in a table.
    """
    require_columns(history, *_HISTORY)
    require_columns(cosines, "arm", "decoder_cosine")
    titles = ("explained variance, held out", "decoder rows: trained and initial")
    figure = make_subplots(cols=2, column_widths=[0.6, 0.4], subplot_titles=titles)
    figure.add_traces(_lines(history), rows=1, cols=1)
    for arm, rows in cosines.groupby("arm", sort=False):
        style = training_style(str(arm))
        violin = go.Violin(
            x=rows["decoder_cosine"],
            # y0 puts the whole violin on the row of its arm.
            y0=style.label,
            name=style.label,
            line_color=style.colour,
            orientation="h",
            side="positive",
            points=False,
            showlegend=False,
            width=1.6,
        )
        figure.add_trace(violin, **panel(1, 2))
    # Axis from 0.9, or lower if a curve needs it; untrained SAEs far below 0 are cut off.
    # The measurement at 0 tokens has no place on a logarithmic axis.
    lowest = float(history.loc[history["tokens"] > 0, "explained_variance"].min())
    span = [max(min(lowest, 0.9), -0.2), 1]
    figure.update_xaxes(title_text="training tokens", type="log", **panel(1, 1))
    figure.update_yaxes(title_text="explained variance", range=span, **panel(1, 1))
    figure.update_xaxes(title_text="cosine to the initial row", **panel(1, 2))
    # Names of arms between the panels would cover the curves.
    figure.update_yaxes(side="right", **panel(1, 2))
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(
        template=use_template(), height=480, title="Initialisation of an SAE", margin={"t": 100}
    )


def savings_figure(savings: pd.DataFrame) -> "go.Figure":
    """Return the FLOPs saved relative to training from scratch, over thresholds.

    The left panel counts as Stitching does (the stitch is charged), the right one charges the
    source's SAE too.

    Args:
        savings: `SAEInitialisation.savings`: `arm`, `share_of_final`, `saved`, `saved_charged`.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(savings, "arm", "share_of_final", "saved", "saved_charged")
    titles = ["the stitch charged", "the source's SAE charged too"]
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.1)
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
                **panel(1, column),
            )
    # Below 0 an initialisation costs more than it saves.
    figure.add_hline(y=0, line=DOTTED)
    threshold = "threshold, share of scratch's final explained variance"
    figure.update_xaxes(title_text=threshold, tickformat=".0%")
    figure.update_yaxes(title_text="FLOPs saved relative to scratch", tickformat=".0%")
    title = {"text": "Savings from a transferred initialisation"}
    return figure.update_layout(template=use_template(), title=title, height=460, margin={"t": 90})


def _lines(history: pd.DataFrame) -> "list[go.Scatter]":
    lines, seen = [], set()
    for key, rows in history.groupby(["arm", "seed"], sort=False):
        arm, seed = key  # pyright: ignore[reportGeneralTypeIssues] (two columns make a pair)
        style = training_style(str(arm))
        hover = f"<b>{style.label}</b>, seed {seed}<br>%{{x}} tokens: %{{y:.4f}}<extra></extra>"
        line = go.Scatter(
            x=rows["tokens"],
            y=rows["explained_variance"],
            name=style.label,
            legendgroup=style.label,
            showlegend=arm not in seen,  # one legend entry per arm, whatever the number of seeds
            mode="lines",
            line=style.line,
            hovertemplate=hover,
        )
        lines.append(line)
        seen.add(arm)
    return lines


def training_style(arm: str) -> ArmStyle:
    """Return the style of an arm of SAE figures.

    In them `scratch` and `rotated` are initialisations; an unknown arm is drawn in neutral grey.
    """
    return _STYLES.get(arm) or replace(arm_style(arm), colour=NEUTRAL)
