"""Figures of what becomes of SAE features under a stitch, each from the tidy tables of a feature
evaluation.

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
    FAINT,
    NEUTRAL,
    ArmStyle,
    require_columns,
    use_template,
)

_BASELINES = {
    "attribution_r": replace(ARM_STYLES["transferred"], label="transferred"),
    "attribution_r_random": replace(
        ARM_STYLES["random"], label="random SAE, same maps", dash="dash"
    ),
    "attribution_r_shuffled": ARM_STYLES["shuffled"],
    "attribution_r_other": ArmStyle("another feature", "#009E73", dash="dot"),
}
_SCALED = ("attribution_r", "attribution_r_random")
"""Those that the left panel is scaled to; taller bars run off its top."""
_KINDS = {
    "structural": ArmStyle("structural", "#0072B2", symbol="square"),
    "semantic": ArmStyle("semantic", "#D55E00", dash="dash", symbol="circle"),
    "undecided": ArmStyle("undecided", "#8C8C8C", symbol="x", width=1.0),
}
_EDGES = np.linspace(-1, 1, 41)


def attribution_figure(table: pd.DataFrame) -> "go.Figure":
    """Returns densities of the attribution correlation over features: left against the baselines,
    right by kind, and above it the share that is semantic.

    Args: table: of `FeatureEvaluation`: `attribution_r` and its baselines, `kind`,
        `density_source`, `density_target`. A feature that is dead on
            either side has no correlation and is left out.

    Raises:
        ValueError: a column is missing, or no feature has a correlation.
    """
    require_columns(table, *_BASELINES, "kind", "density_source", "density_target")
    known = table.loc[table["attribution_r"].notna()]
    if known.empty:
        raise ValueError("no feature has an attribution correlation; there is nothing to show")
    figure = make_subplots(
        rows=2,
        cols=2,
        row_heights=[0.28, 0.72],
        vertical_spacing=0.06,
        horizontal_spacing=0.1,
        shared_xaxes=True,
        specs=[[{"rowspan": 2}, {}], [None, {}]],
        subplot_titles=[
            "all features and their baselines (tall bars cut)",
            "semantic ÷ (semantic + structural)",
            "",
        ],
    )
    for column, style in _BASELINES.items():
        values = known[column].dropna().to_numpy()
        if len(values):
            figure.add_trace(_density(values, style, "baselines"), row=1, col=1)
    # Two of the baselines stand in one or two bars: at their height the others would be flat.
    tall = max(
        float(np.histogram(known[column].dropna(), bins=_EDGES, density=True)[0].max())
        for column in _SCALED
        if known[column].notna().any()
    )
    figure.update_yaxes(range=[0, 1.3 * tall], row=1, col=1)
    counts = {
        kind: known.loc[known["kind"] == kind, "attribution_r"].to_numpy()
        for kind in ("structural", "semantic")
    }
    for kind, values in counts.items():
        if len(values):
            figure.add_trace(_density(values, _KINDS[kind], "kinds"), row=2, col=2)
    figure.add_trace(_share(counts["semantic"], counts["structural"]), row=1, col=2)
    figure.add_hline(y=0.5, line={"color": NEUTRAL, "dash": "dot", "width": 1}, row=1, col=2)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" only)
    figure.update_xaxes(range=[-1.02, 1.02])
    figure.update_xaxes(
        title_text="attribution correlation over positions", row=1, col=1, showticklabels=True
    )
    figure.update_xaxes(title_text="attribution correlation over positions", row=2, col=2)
    figure.update_yaxes(title_text="density of features", row=1, col=1)
    figure.update_yaxes(title_text="density of features", row=2, col=2)
    figure.update_yaxes(range=[0, 1.05], title_text="share", row=1, col=2)
    title = {
        "text": "Do features do the same for the next token?",
        "subtitle": {"text": "a transferred feature against its source, feature by feature"},
    }
    return figure.update_layout(
        template=use_template(),
        title=title,
        height=560,
        margin={"t": 120, "b": 110},
        legend={"y": -0.16},
    )


def _density(values: np.ndarray, style: ArmStyle, group: str) -> "go.Scatter":
    height, _ = np.histogram(values, bins=_EDGES, density=True)
    return go.Scatter(
        x=(_EDGES[1:] + _EDGES[:-1]) / 2,
        y=height,
        name=f"{style.label} ({len(values)})",
        legendgroup=group,
        mode="lines",
        line=style.line | {"shape": "hvh"},
        hovertemplate=f"{style.label}: r = %{{x:.2f}}, density %{{y:.2f}}<extra></extra>",
    )


def _share(semantic: np.ndarray, structural: np.ndarray) -> "go.Scatter":
    """Of the two densities in each bin, the semantic one's part; nothing where fewer than five
    features are.
    """
    (a, _), (b, _) = (np.histogram(values, bins=_EDGES[::2]) for values in (semantic, structural))
    of_a, of_b = a / max(1, len(semantic)), b / max(1, len(structural))
    share = np.where(a + b >= 5, of_a / np.where(of_a + of_b > 0, of_a + of_b, 1), np.nan)
    return go.Scatter(
        x=(_EDGES[::2][1:] + _EDGES[::2][:-1]) / 2,
        y=share,
        mode="lines+markers",
        connectgaps=False,
        showlegend=False,
        line={"color": NEUTRAL},
        marker={"size": 5},
        hovertemplate="r = %{x:.2f}: %{y:.2f}<extra></extra>",
    )


def fidelity_figure(table: pd.DataFrame) -> "go.Figure":
    """Returns measured attribution correlation against ρ_write and ρ_read, which the moments give
    beforehand: a point a feature, coloured by kind.
    """
    require_columns(
        table,
        "feature",
        "rho_write",
        "rho_read",
        "attribution_r",
        "attribution_r_low",
        "attribution_r_high",
        "kind",
    )
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for column, predictor in enumerate(("rho_write", "rho_read"), start=1):
        for kind, style in reversed(_KINDS.items()):
            part = table.loc[table["kind"] == kind]
            if part.empty:
                continue
            hover = [
                f"feature {r['feature']}<br>r = {r['attribution_r']:.2f} [{r['attribution_r_low']:.2f}, {r['attribution_r_high']:.2f}]"
                for r in part.to_dict("records")
            ]
            figure.add_trace(
                go.Scatter(
                    x=part[predictor],
                    y=part["attribution_r"],
                    mode="markers",
                    name=f"{style.label} ({len(part)})",
                    legendgroup=kind,
                    showlegend=column == 1,
                    text=hover,
                    hovertemplate="%{text}<extra></extra>",
                    marker=style.marker | {"size": 6, "opacity": 0.7},
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="ρ_write of the decoder row", row=1, col=1)
    figure.update_xaxes(title_text="ρ_read of the encoder column", row=1, col=2)
    figure.update_yaxes(title_text="attribution correlation", row=1, col=1)
    title = {"text": "Foretold from moments, measured on text"}
    return figure.update_layout(
        template=use_template(), title=title, height=480, legend={"y": -0.2}
    )


def entropy_figure(
    table: pd.DataFrame,
    random_share: tuple[float, float],
    *,
    names: tuple[str, str] = ("source", "target"),
) -> "go.Figure":
    """Returns largest activation (right) against the share of the decoder's norm in the
    unembedding's null space (up), a panel a model.

    The same features are marked in both panels: the five of the largest share on the source among
    the stronger half. Dotted: a random direction.
    """
    columns = [
        f"{name}_{side}"
        for name in ("max_activation", "entropy_share")
        for side in ("source", "target")
    ]
    require_columns(table, "feature", *columns)
    titles = [f"on {names[0]}", f"on {names[1]}"]
    figure = make_subplots(
        cols=2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04
    )
    live = table.loc[table["max_activation_source"] > 0]
    strong = live.loc[live["max_activation_source"] >= live["max_activation_source"].median()]
    marked = strong.sort_values("entropy_share_source", ascending=False).head(5)
    for column, (side, share) in enumerate(
        zip(("source", "target"), random_share, strict=True), start=1
    ):
        x, y = f"max_activation_{side}", f"entropy_share_{side}"
        for part, marker, name in (
            (live, {"color": "#0072B2", "size": 5, "opacity": 0.45}, "features"),
            (
                marked,
                {
                    "color": "#D55E00",
                    "size": 10,
                    "symbol": "diamond",
                    "line": {"color": NEUTRAL, "width": 1},
                },
                "largest share on the source",
            ),
        ):
            figure.add_trace(
                go.Scatter(
                    x=part[x],
                    y=part[y],
                    mode="markers" if part is live else "markers+text",
                    text=part["feature"],
                    textposition="top center",
                    marker=marker,
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    hovertemplate="feature %{text}<br>largest activation %{x:.2f}<br>share %{y:.2f}<extra></extra>",
                ),
                row=1,
                col=column,
            )
        figure.add_hline(
            y=share,
            line={"color": NEUTRAL, "dash": "dot", "width": 1.5},
            row=1,
            col=column,  # pyright: ignore[reportArgumentType]
        )
    figure.update_xaxes(title_text="largest activation")
    figure.update_yaxes(title_text="‖P v‖ / ‖v‖, bottom 2% of W_U", row=1, col=1)
    title = {
        "text": "Entropy features: strong, and hardly seen by the unembedding",
        "subtitle": {"text": "dotted: a random direction"},
    }
    return figure.update_layout(
        template=use_template(), title=title, height=480, margin={"t": 110}, legend={"y": -0.2}
    )


def attention_figure(
    attention: pd.DataFrame, *, names: tuple[str, str] = ("source", "target")
) -> "go.Figure":
    """Returns, feature by feature, the attention to BOS that rests on it at its strongest head, on
    both models, with intervals.

    The head was chosen on other examples. Hollow: random directions of the same length at that
    head.
    """
    require_columns(
        attention,
        "feature",
        "model",
        "layer",
        "head",
        "effect",
        "low",
        "high",
        "effect_choosing",
        "effect_random",
    )
    if attention.empty:
        raise ValueError("no feature's attention was measured; there is nothing to show")
    figure = make_subplots(
        cols=2,
        shared_yaxes=True,
        subplot_titles=[f"on {names[0]}", f"on {names[1]}"],
        horizontal_spacing=0.06,
    )
    size = attention["effect_choosing"].abs()
    best = attention.loc[size.groupby([attention["feature"], attention["model"]]).idxmax()]
    labels = [f"feature {feature}" for feature in sorted(set(best["feature"]), reverse=True)]
    for column, role in enumerate(("source", "target"), start=1):
        rows = best.loc[best["model"] == role].to_dict("records")
        figure.add_trace(_effects(rows, legend=column == 1), row=1, col=column)
        for sign in (1, -1):
            figure.add_trace(
                go.Scatter(
                    x=[sign * row["effect_random"] for row in rows],
                    y=[f"feature {row['feature']}" for row in rows],
                    mode="markers",
                    name="random directions (±)",
                    legendgroup="random",
                    showlegend=column == 1 and sign == 1,
                    hoverinfo="skip",
                    marker=ARM_STYLES["random"].marker,
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="p(BOS) − p(BOS) without the feature", zeroline=True)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=labels,
        gridcolor=FAINT,
        range=[-0.7, len(labels) - 0.3],
    )
    title = {
        "text": "Attention that rests on a feature",
        "subtitle": {"text": "right: the feature turns the head off (towards BOS); left: on"},
    }
    height = 260 + 34 * len(labels)
    return figure.update_layout(
        template=use_template(),
        title=title,
        height=height,
        margin={"t": 110, "b": 100},
        legend={"y": -100 / height},
    )


def _effects(rows: list[dict], *, legend: bool) -> "go.Scatter":
    style = ARM_STYLES["transferred"]
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
