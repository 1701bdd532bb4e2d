"""Figures of concept maps: what a map fitted on few texts returns, and what its vectors do over β.

Each function draws the rows of one tidy table. In `interpolation_figure` the line at n/d = 1 is
where least squares stops interpolating: left of it ``own`` and ``noise_source`` are 1 by algebra.
"""

import math

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    HIGHLIGHT,
    NEUTRAL,
    ArmStyle,
    require_columns,
    use_template,
)

STYLES: dict[str, ArmStyle] = {
    "none": ARM_STYLES["none"],
    "source": ArmStyle(
        "small model, its own vector", "#E69F00", dash="dash", symbol="triangle-up", width=2.5
    ),
    "native": ArmStyle("native (Self)", "#0072B2", symbol="square", width=2.5),
    "own": ArmStyle("own concept, same texts", "#D55E00", width=3.0),
    "noise_source": ArmStyle(
        "own concept, random source", "#CC79A7", dash="dash", symbol="diamond", width=2.5
    ),
    "own_disjoint": ArmStyle("own concept, other texts", "#E69F00", symbol="circle-open"),
    "own_disjoint_ridge": ArmStyle(
        "own concept, other texts, ridge", "#E69F00", dash="dot", symbol="circle"
    ),
    "other": ArmStyle("another concept", "#009E73", symbol="triangle-up-open"),
    "other_ridge": ArmStyle("another concept, ridge", "#009E73", dash="dot", symbol="triangle-up"),
    "others": ArmStyle("all other concepts", "#56B4E9", symbol="star-open"),
    "others_ridge": ArmStyle("all other concepts, ridge", "#56B4E9", dash="dot", symbol="star"),
    "stitch": ArmStyle(
        "generic text (stitch)", "#9A8C00", dash="longdashdot", symbol="pentagon", width=2.5
    ),
    "native_other_texts": ArmStyle(
        "no map: native from other texts", "#56B4E9", dash="dash", symbol="square-open"
    ),
    "untransformed": ArmStyle("no map", "#9A8C00", dash="longdash", symbol="star-triangle-up"),
    "mean_only": ArmStyle("mean states alone", NEUTRAL, dash="longdash", symbol="cross"),
    "shuffled": ArmStyle("shuffled texts", "#8C8C8C", dash="dashdot", symbol="x"),
    "random": ArmStyle("random T", "#8C8C8C", dash="dot", symbol="hexagon-open", width=1.5),
    "random_matched": ArmStyle("random T, native length", "#8C8C8C", symbol="hexagon", width=1.5),
}
"""In the order in which figures list them."""
WEAK_TO_STRONG = (
    "source",
    "native",
    "own",
    "own_disjoint_ridge",
    "other_ridge",
    "stitch",
    "random_matched",
)
"""What `weak_to_strong_figure` shows of a table."""


def interpolation_figure(summary: pd.DataFrame) -> "go.Figure":
    """Returns cosine to the native vector against n/d, a line an arm, a panel a concept; a bar is
    the range over draws.

    Args: summary: `ConceptInterpolation.summary` of one concept or of several: `concept`, `arm`,
        `n`, `n_over_d`, `cosine`, `low`, `high`, `norm_ratio`.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    require_columns(
        summary, "concept", "arm", "n", "n_over_d", "cosine", "low", "high", "norm_ratio"
    )
    concepts = _concepts(summary)
    figure = _panels(concepts, share_y=True)
    for column, concept in enumerate(concepts, start=1):
        part = _where(summary, "concept", concept)
        for arm in _ordered(part):
            figure.add_trace(
                _curve(_where(part, "arm", arm).sort_values("n"), arm, first=column == 1),
                row=1,
                col=column,
            )
    figure.add_vline(x=1, line={"color": NEUTRAL, "dash": "dot", "width": 1.5})
    figure.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    figure.update_xaxes(
        type="log",
        title_text="texts ÷ source dimensions (n/d)",
        tickvals=[0.05, 0.1, 0.2, 0.5, 1, 2, 5],
    )
    figure.update_yaxes(title_text="cosine to the native vector", row=1, col=1)
    return _titled(
        figure,
        "What a map fitted on n texts returns",
        "left of the dotted line least squares runs through every text, whatever the source’s rows are<br>bars: range over draws",
    )


def concept_summary_figure(summary: pd.DataFrame, *, equal_damage: bool = True) -> "go.Figure":
    """Returns the effect of each arm with its interval, a panel a concept; an arm that was not
    bracketed has its flag written.

    Args:
        summary: `ConceptTransfer.summary`.
        equal_damage: show effects at equal damage, else at β = 1.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    value, low, high = (
        ("effect_at_equal_damage", "low", "high")
        if equal_damage
        else ("effect", "effect_low", "effect_high")
    )
    require_columns(summary, "concept", "arm", "cosine", value, low, high)
    concepts, arms = _concepts(summary), _ordered(summary)
    figure = make_subplots(
        cols=len(concepts), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=concepts
    )
    for column, concept in enumerate(concepts, start=1):
        for record in _where(summary, "concept", concept).to_dict("records"):
            style = _style(record["arm"])
            if math.isnan(record[value]):
                trace = go.Scatter(
                    x=[0],
                    y=[style.label],
                    mode="text",
                    text=[record.get("flag", "")],
                    hoverinfo="skip",
                    showlegend=False,
                )
            else:
                trace = go.Scatter(
                    x=[record[value]],
                    y=[style.label],
                    mode="markers",
                    marker=style.marker,
                    showlegend=False,
                    name=record["arm"],
                    error_x={
                        "array": [record[high] - record[value]],
                        "arrayminus": [record[value] - record[low]],
                        "color": style.colour,
                    },
                    hovertemplate=f"{style.label}<br>{record[value]:.3f} [{record[low]:.3f}, {record[high]:.3f}] nats<br>"
                    f"cosine to native {record['cosine']:.3f}<extra></extra>",
                )
            figure.add_trace(trace, row=1, col=column)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[_style(arm).label for arm in reversed(arms)],
        ticks="",
    )
    figure.update_xaxes(title_text="effect (nats)")
    where = "at equal damage on neutral text" if equal_damage else "at β = 1"
    _titled(
        figure,
        "Effect of vectors through concept maps",
        f"change of propensity {where}; 95% intervals",
    )
    return figure.update_layout(height=190 + 30 * len(arms), showlegend=False)


def beta_figure(table: pd.DataFrame, arms: tuple[str, ...] | None = None) -> "go.Figure":
    """Returns the probability of the concept's choice over the β that all arms share, a line an arm
    (mean over draws), a panel a concept.

    Args: table: `ConceptTransfer.table`: `concept`, `arm`, `draw`, `beta`, `probability`,
        `probability_low`, `probability_high`. arms: which to draw; all where None.

    Raises:
        ValueError: a column is not in the table, or nothing is left to draw.
    """
    require_columns(
        table,
        "concept",
        "arm",
        "draw",
        "beta",
        "probability",
        "probability_low",
        "probability_high",
    )
    concepts = _concepts(table)
    shown = [arm for arm in _ordered(table) if arm != "none" and (arms is None or arm in arms)]
    if not shown:
        raise ValueError(
            f"no arm to draw; the table holds {sorted(set(table['arm']))} and arms is {arms}"
        )
    figure = _panels(concepts, share_y=True)
    for column, concept in enumerate(concepts, start=1):
        part = _at_common_strengths(_where(table, "concept", concept))
        for arm in shown:
            # The target's β = 0 is one row, "none", through which all its arms pass.
            rows = _where(part, "arm", *([arm] if arm == "source" else [arm, "none"]))
            figure.add_trace(_beta_line(rows, arm, first=column == 1), row=1, col=column)
    figure.update_xaxes(title_text="β (multiples of the vector as mapped)")
    figure.update_yaxes(title_text="concept’s choice (%)", row=1, col=1)
    return _titled(
        figure,
        "Concept’s choice over β",
        "share of the concept’s continuation among both; bars: 95% over items",
    )


def weak_to_strong_figure(table: pd.DataFrame) -> "go.Figure":
    """Returns L-Cross's figure 4 with its controls: the small model under its own vector, the large
    one under the small one's.

    Args:
        table: as in `beta_figure`.
    """
    figure = beta_figure(table, WEAK_TO_STRONG)
    return _titled(
        figure,
        "The small model’s concept in the large one",
        "orange triangles: the small model itself; all other lines: the large one",
    )


def _curve(rows: pd.DataFrame, arm: str, *, first: bool) -> "go.Scatter":
    style = _style(arm)
    hover = [
        f"{style.label}: {value:.3f}<br>n {n}, length {ratio:.2f} × native"
        for value, n, ratio in zip(rows["cosine"], rows["n"], rows["norm_ratio"], strict=True)
    ]
    return go.Scatter(
        x=rows["n_over_d"],
        y=rows["cosine"],
        mode="lines+markers",
        name=style.label,
        legendgroup=arm,
        showlegend=first,
        line=style.line,
        marker={**style.marker, "size": 6},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        error_y={
            "array": rows["high"] - rows["cosine"],
            "arrayminus": rows["cosine"] - rows["low"],
            "color": style.colour,
            "thickness": 1,
            "width": 2,
        },
    )


def _beta_line(rows: pd.DataFrame, arm: str, *, first: bool) -> "go.Scatter":
    style = _style(arm)
    means = pd.DataFrame(
        rows.groupby("beta")[["probability", "probability_low", "probability_high"]].mean()
    )
    return go.Scatter(
        x=means.index,
        y=means["probability"],
        mode="lines+markers",
        name=style.label,
        legendgroup=arm,
        showlegend=first,
        line=style.line,
        marker={**style.marker, "size": 6},
        hovertemplate=f"{style.label}: %{{y:.1f}}% at β %{{x:.2f}}<extra></extra>",
        error_y={
            "array": means["probability_high"] - means["probability"],
            "arrayminus": means["probability"] - means["probability_low"],
            "color": style.colour,
            "thickness": 1,
            "width": 2,
        },
    )


def _panels(concepts: list[str], *, share_y: bool) -> "go.Figure":
    return make_subplots(
        cols=len(concepts), shared_yaxes=share_y, horizontal_spacing=0.03, subplot_titles=concepts
    )


def _titled(figure: "go.Figure", title: str, subtitle: str) -> "go.Figure":
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(
        template=use_template(),
        title={"text": title, "subtitle": {"text": subtitle}, "y": 0.97},
        height=600,
        margin={"t": 120, "b": 60},
        legend={"y": -0.18},
    )


def _at_common_strengths(table: pd.DataFrame) -> pd.DataFrame:
    """Without the strengths that were only measured around an arm's own equal damage."""
    steered = table[table["arm"] != "none"]
    common = set.intersection(
        *(set(part["beta"]) for _, part in steered.groupby(["arm", "draw"], dropna=False)),
        set(table["beta"]),
    ) | {0.0}
    return pd.DataFrame(table.loc[table["beta"].isin(sorted(common))])


def _where(table: pd.DataFrame, column: str, *values: str) -> pd.DataFrame:
    return pd.DataFrame(table.loc[table[column].isin(values)])


def _concepts(table: pd.DataFrame) -> list[str]:
    if table.empty:
        raise ValueError("the table has no rows; there is nothing to show")
    return [str(name) for name in dict.fromkeys(table["concept"])]


def _ordered(table: pd.DataFrame) -> list[str]:
    present = list(dict.fromkeys(table["arm"]))
    return [arm for arm in STYLES if arm in present] + [arm for arm in present if arm not in STYLES]


def _style(arm: str) -> ArmStyle:
    return STYLES.get(arm, ArmStyle(arm, HIGHLIGHT, dash="dashdot", symbol="hexagon2"))
