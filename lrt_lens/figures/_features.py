"""Figures of a feature evaluation: SAE features before and after transfer through a stitch.

Problem: correlations of thousands of features need their baselines next to them. Mechanism:
densities on common bins, with one style per baseline and kind.

    features = evaluate_features(pair, stitch, sae, documents)
    attribution_figure(features.table)         # Stitching, figures 4b, 14, 15
    entropy_figure(features.table, …)          # Stitching, figure 5a
    attention_figure(features.attention, …)    # Stitching, figures 5b, 16

Limits: a histogram has as many features as its legend says; bars of few features are noise.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    DOTTED,
    FAINT,
    NEUTRAL,
    ArmStyle,
    panel,
    require_columns,
    rows_where,
    use_template,
)

# Columns of the left panel, with the style of each line.
_BASELINES = {
    "attribution_r": replace(ARM_STYLES["transferred"], label="transferred"),
    "attribution_r_random": replace(
        ARM_STYLES["random"], label="random SAE, same maps", dash="dash"
    ),
    "attribution_r_shuffled": ARM_STYLES["shuffled"],
    "attribution_r_other": ArmStyle("another feature", "#009E73", dash="dot"),
}
_SCALED = ("attribution_r", "attribution_r_random")
"""Columns that set the height of the left panel; taller bars of others are cut off."""
# Kinds of features, with the style of their lines and points.
_KINDS = {
    "structural": ArmStyle("structural", "#0072B2", symbol="square"),
    "semantic": ArmStyle("semantic", "#D55E00", dash="dash", symbol="circle"),
    "undecided": ArmStyle("undecided", "#8C8C8C", symbol="x", width=1.0),
}
_EDGES = np.linspace(-1, 1, 41)
"""Bins of a correlation, .05 wide."""
_CORRELATION = "attribution correlation over positions"
"""Title of the axis of correlations."""


def attribution_figure(table: pd.DataFrame) -> "go.Figure":
    """Return densities of the attribution correlation over features.

    The left panel compares them with their baselines, the right one shows each kind of feature and
    above it the share that is semantic. A feature that is dead in either model has no correlation
    and is left out.

    Args:
        table: `FeatureEvaluation.table`: `attribution_r` and its baselines, `kind`,
            `density_source`, `density_target`.

    Raises:
        ValueError: a column is missing, or no feature has a correlation.
    """
    require_columns(table, *_BASELINES, "kind", "density_source", "density_target")
    known = table.loc[table["attribution_r"].notna()]
    if known.empty:
        raise ValueError(
            "no feature has an attribution correlation; there is nothing to show: evaluate an SAE "
            "whose features fire on both models"
        )
    left, right = (
        "all features and their baselines (tall bars cut)",
        "semantic ÷ (semantic + structural)",
    )
    figure = make_subplots(
        rows=2,
        cols=2,
        row_heights=[0.28, 0.72],
        vertical_spacing=0.06,
        horizontal_spacing=0.1,
        shared_xaxes=True,
        # The left panel spans both rows; on the right, the share is above the densities.
        specs=[[{"rowspan": 2}, {}], [None, {}]],
        subplot_titles=[left, right, ""],
    )
    _add_baselines(figure, known)
    kinds = {
        kind: rows_where(known, "kind", kind)["attribution_r"].to_numpy()
        for kind in ("structural", "semantic")
    }
    for kind, values in kinds.items():
        if len(values):
            figure.add_trace(_density(values, _KINDS[kind], "kinds"), **panel(2, 2))
    figure.add_trace(_share(kinds["semantic"], kinds["structural"]), **panel(1, 2))
    figure.add_hline(y=0.5, line=DOTTED, **panel(1, 2))
    figure.update_xaxes(range=[-1.02, 1.02])
    figure.update_xaxes(title_text=_CORRELATION, **panel(1, 1), showticklabels=True)
    figure.update_xaxes(title_text=_CORRELATION, **panel(2, 2))
    figure.update_yaxes(title_text="density of features", **panel(1, 1))
    figure.update_yaxes(title_text="density of features", **panel(2, 2))
    figure.update_yaxes(range=[0, 1.05], title_text="share", **panel(1, 2))
    title = {
        "text": "Do transferred features have the same effect on the next token?",
        "subtitle": {"text": "correlation of a feature's attributions in the two models"},
    }
    return figure.update_layout(
        template=use_template(),
        title=title,
        height=560,
        margin={"t": 120, "b": 110},
        legend={"y": -0.16},
    )


def _add_baselines(figure: "go.Figure", known: pd.DataFrame) -> None:
    values = {column: known[column].dropna().to_numpy() for column in _BASELINES}
    for column, style in _BASELINES.items():
        if len(values[column]):
            figure.add_trace(_density(values[column], style, "baselines"), **panel(1, 1))
    # Two of the baselines fill one or two bins: at their height the others would be flat.
    tallest = max(
        float(np.histogram(values[column], bins=_EDGES, density=True)[0].max())
        for column in _SCALED
        if len(values[column])
    )
    figure.update_yaxes(range=[0, 1.3 * tallest], **panel(1, 1))


def _density(values: np.ndarray, style: ArmStyle, group: str) -> "go.Scatter":
    # density=True: the area under each line is 1, whatever the number of features.
    height, _ = np.histogram(values, bins=_EDGES, density=True)
    return go.Scatter(
        x=(_EDGES[1:] + _EDGES[:-1]) / 2,
        y=height,
        name=f"{style.label} ({len(values)})",
        legendgroup=group,
        mode="lines",
        # "hvh" draws steps that change halfway between the centres of two bins, as in a histogram.
        line=style.line | {"shape": "hvh"},
        hovertemplate=f"{style.label}: r = %{{x:.2f}}, density %{{y:.2f}}<extra></extra>",
    )


def _share(semantic: np.ndarray, structural: np.ndarray) -> "go.Scatter":
    """Return the semantic share of density per bin; bins of fewer than five features are empty."""
    # Bins twice as wide as those of the densities, because a share needs more features.
    edges = _EDGES[::2]
    a, b = (np.histogram(values, bins=edges)[0] for values in (semantic, structural))
    # Densities, not counts, so that the more frequent kind does not win by its number.
    of_a, of_b = a / max(1, len(semantic)), b / max(1, len(structural))
    share = np.where(a + b >= 5, of_a / np.where(of_a + of_b > 0, of_a + of_b, 1), np.nan)
    return go.Scatter(
        x=(edges[1:] + edges[:-1]) / 2,
        y=share,
        mode="lines+markers",
        connectgaps=False,
        showlegend=False,
        line={"color": NEUTRAL},
        marker={"size": 5},
        hovertemplate="r = %{x:.2f}: %{y:.2f}<extra></extra>",
    )


def fidelity_figure(table: pd.DataFrame) -> "go.Figure":
    """Return the measured attribution correlation against ρ_write and ρ_read, per feature.

    ρ_write and ρ_read are predicted from the moments before any feature is transferred.

    Args:
        table: `FeatureEvaluation.table`: `feature`, `kind`, `rho_write`, `rho_read`,
            `attribution_r` and the ends of its interval.

    Raises:
        ValueError: a column is not in the table.
    """
    names = ("attribution_r", "attribution_r_low", "attribution_r_high")
    require_columns(table, "feature", "rho_write", "rho_read", *names, "kind")
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for column, predictor in enumerate(("rho_write", "rho_read"), start=1):
        # Kinds that are drawn later cover earlier ones; structural is drawn last.
        for kind in reversed(_KINDS):
            part = rows_where(table, "kind", kind)
            if len(part):
                points = _correlations(part, predictor, kind, legend=column == 1)
                figure.add_trace(points, **panel(1, column))
    figure.update_xaxes(title_text="ρ_write of the decoder row", **panel(1, 1))
    figure.update_xaxes(title_text="ρ_read of the encoder column", **panel(1, 2))
    figure.update_yaxes(title_text="attribution correlation", **panel(1, 1))
    title = {"text": "Predicted from moments, measured on text"}
    return figure.update_layout(
        template=use_template(), title=title, height=480, legend={"y": -0.2}
    )


def _correlations(part: pd.DataFrame, predictor: str, kind: str, *, legend: bool) -> "go.Scatter":
    style = _KINDS[kind]
    hover = [
        f"feature {row['feature']}<br>r = {row['attribution_r']:.2f} "
        f"[{row['attribution_r_low']:.2f}, {row['attribution_r_high']:.2f}]"
        for row in part.to_dict("records")
    ]
    return go.Scatter(
        x=part[predictor],
        y=part["attribution_r"],
        mode="markers",
        name=f"{style.label} ({len(part)})",
        legendgroup=kind,
        showlegend=legend,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        marker=style.marker | {"size": 6, "opacity": 0.7},
    )


def entropy_figure(
    table: pd.DataFrame,
    random_share: tuple[float, float],
    *,
    names: tuple[str, str] = ("source", "target"),
) -> "go.Figure":
    """Return the null-space share of each decoder row against the feature's largest activation.

    The share is that of the row's norm in the null space of the unembedding; there is one panel per
    model. Marked in both are the same features: among the more active half, the five whose share on
    the source is largest.

    Args:
        table: `FeatureEvaluation.table`: `feature`, and `max_activation_…` and `entropy_share_…` of
            both models.
        random_share: share of a random direction, on the source and on the target.
        names: names of the source and the target model.

    Raises:
        ValueError: a column is not in the table.
    """
    measures = ("max_activation", "entropy_share")
    columns = [f"{name}_{side}" for name in measures for side in ("source", "target")]
    require_columns(table, "feature", *columns)
    titles = [f"on {names[0]}", f"on {names[1]}"]
    figure = make_subplots(
        cols=2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04
    )
    # A feature that never fires on the source has no largest activation there.
    live = table.loc[table["max_activation_source"] > 0]
    strong = live.loc[live["max_activation_source"] >= live["max_activation_source"].median()]
    marked = strong.sort_values("entropy_share_source", ascending=False).head(5)
    for column, side in enumerate(("source", "target"), start=1):
        for part, is_marked in ((live, False), (marked, True)):
            points = _entropy_points(part, side, marked=is_marked)
            figure.add_trace(points.update(showlegend=column == 1), **panel(1, column))
        line = DOTTED | {"width": 1.5}
        figure.add_hline(y=random_share[column - 1], line=line, **panel(1, column))
    figure.update_xaxes(title_text="largest activation")
    figure.update_yaxes(title_text="‖P v‖ / ‖v‖, bottom 2% of W_U", **panel(1, 1))
    title = {
        "text": "Entropy features: active, and nearly invisible to the unembedding",
        "subtitle": {"text": "dotted: a random direction"},
    }
    return figure.update_layout(
        template=use_template(), title=title, height=480, margin={"t": 110}, legend={"y": -0.2}
    )


def _entropy_points(part: pd.DataFrame, side: str, *, marked: bool) -> "go.Scatter":
    rim = {"color": NEUTRAL, "width": 1}
    marker: dict[str, object] = {"color": "#0072B2", "size": 5, "opacity": 0.45}
    # Marked features are drawn a second time, on top of the others.
    if marked:
        marker = {"color": "#D55E00", "size": 10, "symbol": "diamond", "line": rim}
    name = "largest share on the source" if marked else "features"
    hover = "feature %{text}<br>largest activation %{x:.2f}<br>share %{y:.2f}<extra></extra>"
    return go.Scatter(
        x=part[f"max_activation_{side}"],
        y=part[f"entropy_share_{side}"],
        mode="markers+text" if marked else "markers",
        text=part["feature"],
        textposition="top center",
        marker=marker,
        name=name,
        legendgroup=name,
        hovertemplate=hover,
    )


def attention_figure(
    attention: pd.DataFrame, *, names: tuple[str, str] = ("source", "target")
) -> "go.Figure":
    """Return the attention to BOS that depends on each feature, at its strongest head.

    There is one panel per model; bars are 95% intervals. The head was selected on other examples.
    Hollow marks are random directions of the same length at that head.

    Args:
        attention: `FeatureEvaluation.attention`: `feature`, `model`, `layer`, `head`, `effect`,
            `low`, `high`, `effect_choosing`, `effect_random`.
        names: names of the source and the target model.

    Raises:
        ValueError: a column is not in the table, or no feature's attention was measured.
    """
    columns = ("feature", "model", "layer", "head", "effect", "low", "high")
    require_columns(attention, *columns, "effect_choosing", "effect_random")
    if attention.empty:
        raise ValueError(
            "no feature's attention was measured; there is nothing to show: evaluate with "
            "attention_features above 0"
        )
    titles = [f"on {names[0]}", f"on {names[1]}"]
    figure = make_subplots(
        cols=2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.06
    )
    # The head is selected by `effect_choosing`, measured on other examples than `effect`.
    size = attention["effect_choosing"].abs()
    best = attention.loc[size.groupby([attention["feature"], attention["model"]]).idxmax()]
    labels = [f"feature {feature}" for feature in sorted(set(best["feature"]), reverse=True)]
    for column, role in enumerate(("source", "target"), start=1):
        rows = rows_where(best, "model", role).to_dict("records")
        figure.add_trace(_effects(rows, legend=column == 1), **panel(1, column))
        # A random direction has no sign of its own, so its effect is drawn on both sides of 0.
        for sign in (1, -1):
            points = _random_effects(rows, sign, legend=column == 1 and sign == 1)
            figure.add_trace(points, **panel(1, column))
    figure.update_xaxes(title_text="p(BOS) − p(BOS) without the feature", zeroline=True)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=labels,
        gridcolor=FAINT,
        range=[-0.7, len(labels) - 0.3],
    )
    title = {
        "text": "Attention to BOS that depends on a feature",
        "subtitle": {"text": "right: the feature turns the head off (towards BOS); left: on"},
    }
    height = 260 + 34 * len(labels)
    return figure.update_layout(
        template=use_template(),
        title=title,
        height=height,
        margin={"t": 110, "b": 100},
        # In units of the plot, which is 210 pixels lower than the figure: 60 pixels below it.
        legend={"y": -60 / (height - 210)},
    )


def _random_effects(rows: list[dict], sign: int, *, legend: bool) -> "go.Scatter":
    return go.Scatter(
        x=[sign * row["effect_random"] for row in rows],
        y=[f"feature {row['feature']}" for row in rows],
        mode="markers",
        name="random directions (±)",
        legendgroup="random",
        showlegend=legend,
        hoverinfo="skip",
        marker=ARM_STYLES["random"].marker,
    )


def _effects(rows: list[dict], *, legend: bool) -> "go.Scatter":
    style = ARM_STYLES["transferred"]
    # cliponaxis=False: labels at the edge of the panel are not cut off.
    return go.Scatter(
        x=[row["effect"] for row in rows],
        y=[f"feature {row['feature']}" for row in rows],
        mode="markers+text",
        name="strongest head",
        showlegend=legend,
        legendgroup="feature",
        marker=style.marker,
        cliponaxis=False,
        text=[f"L{row['layer']}H{row['head']}" for row in rows],
        textposition="top center",
        textfont={"size": 10},
        error_x={
            "array": [row["high"] - row["effect"] for row in rows],
            "arrayminus": [row["effect"] - row["low"] for row in rows],
            "color": style.colour,
            "thickness": 1.5,
        },
        hovertemplate="%{y}, %{text}: %{x:.3f}<extra></extra>",
    )
