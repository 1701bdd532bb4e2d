"""Figure of maps between model families: prediction, steering and reading per method.

Problem: methods succeed at prediction and fail at steering, or the other way round. Mechanism: one
row per method, with a panel for each question.

    family_figure(result.summary)

Limits: marks beyond the ends of an axis are drawn at its end.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import HIGHLIGHT, NEUTRAL, panel, require_columns, use_template

_COLUMNS = (
    ("cosine", "cosine", None, "prediction: cosine on held-out tokens"),
    ("fraction_of_native", "fraction", "effect_null", "steering: share of native effect"),
    ("share_of_native", "share", "auroc_null", "reading: share of native AUROC − ½"),
)
"""Per panel: column, prefix of the columns of its interval, column of the null, and title."""
_LEAST, _MOST = -0.75, 1.75
"""Ends of the axes; marks beyond are drawn at the edge, with their number in the hover text."""


def family_figure(summary: pd.DataFrame) -> "go.Figure":
    """Return one row per method: scores with 95% intervals, and each method's own null.

    Scores are points and nulls are crosses; a dotted line at 1 marks the native arm.

    Args:
        summary: `FamilyBaselines.summary`.

    Raises:
        ValueError: a column is not in the table.
    """
    required = ("method", "cosine", "fraction_of_native", "share_of_native", "effect", "auroc")
    require_columns(summary, *required)
    records = summary.to_dict("records")
    # plotly lists categories from below, so the rows are reversed.
    rows = [row for row in records if row["method"] != "native"][::-1]
    # The native arm has no row of its own: it is the line at 1 in both panels of shares.
    native = next(row for row in records if row["method"] == "native")
    figure = make_subplots(cols=3, shared_yaxes=True, horizontal_spacing=0.04)
    for number, (column, stem, null, text) in enumerate(_COLUMNS, start=1):
        _add_scores(figure, number, rows, column, stem)
        if null is not None:
            _add_nulls(figure, number, rows, null, native)
        figure.add_vline(x=0, line_color=NEUTRAL, line_width=1, **panel(1, number))
        figure.update_xaxes(title_text=text.replace(": ", ":<br>"), **panel(1, number))
    for number in (2, 3):
        figure.add_vline(x=1, line_color=NEUTRAL, line_dash="dot", **panel(1, number))
        figure.update_xaxes(range=[_LEAST - 0.05, _MOST + 0.05], **panel(1, number))
    figure.update_yaxes(categoryorder="array", categoryarray=[row["method"] for row in rows])
    subtitle = "points: 95% intervals; crosses: null of each method; dotted: native"
    return figure.update_layout(
        template=use_template(),
        height=220 + 34 * len(rows),
        margin={"t": 80, "l": 150, "b": 120},
        title={"text": "Maps between model families", "subtitle": {"text": subtitle}},
        legend={"y": -80 / (34 * len(rows))},
    )


def _add_scores(figure: "go.Figure", number: int, rows: list[dict], column: str, stem: str) -> None:
    known = [
        (row["method"], row[column], row[f"{stem}_low"], row[f"{stem}_high"])
        for row in rows
        # A missing or NaN score has no point: NaN is unequal to itself.
        if row["method"] != "random" and row.get(column) == row.get(column)
    ]
    # An interval that does not hold its point (a clipped end) has no bar on that side.
    above = [max(0.0, _inside(high) - _inside(value)) for _, value, _, high in known]
    below = [max(0.0, _inside(value) - _inside(low)) for _, value, low, _ in known]
    figure.add_scatter(
        y=[method for method, *_ in known],
        x=[_inside(value) for _, value, *_ in known],
        mode="markers",
        name="transferred",
        showlegend=number == 1,
        marker={"color": HIGHLIGHT, "size": 9},
        error_x={"array": above, "arrayminus": below, "symmetric": False, "thickness": 1.5},
        hovertext=[
            f"{method}: {value:.3f} ({low:.3f} to {high:.3f})" for method, value, low, high in known
        ],
        hoverinfo="text",
        **panel(1, number),
    )


def _add_nulls(figure: "go.Figure", number: int, rows: list[dict], null: str, native: dict) -> None:
    """Add a cross at each method's own null, and the range of random draws, on the same scale."""
    value = null.removesuffix("_null")
    # A random draw has no null of its own: it is one.
    random_columns = (value, f"{value}_low", f"{value}_high")
    nulls = {
        row["method"]: [
            _relative(row.get(name), value, native)
            for name in (random_columns if row["method"] == "random" else (null, null, null))
        ]
        for row in rows
    }
    # A null that was not measured is NaN, which is unequal to itself.
    known = {name: numbers for name, numbers in nulls.items() if numbers[0] == numbers[0]}
    figure.add_scatter(
        y=list(known),
        x=[_inside(at) for at, _, _ in known.values()],
        mode="markers",
        name="null: shuffled or random pairs; 95% of random draws",
        showlegend=number == 2,
        marker={
            "color": NEUTRAL,
            "symbol": "x-thin",
            "size": 9,
            "line": {"color": NEUTRAL, "width": 2},
        },
        error_x={
            "array": [_inside(high) - _inside(at) for at, _, high in known.values()],
            "arrayminus": [_inside(at) - _inside(low) for at, low, _ in known.values()],
            "symmetric": False,
            "thickness": 1,
        },
        hovertext=[f"{name}, null: {at:.3f}" for name, (at, _, _) in known.items()],
        hoverinfo="text",
        **panel(1, number),
    )


def _relative(value: float | None, kind: str, native: dict) -> float:
    """Return an effect, or an AUROC above one half, as a share of the native arm's."""
    if value is None or value != value:
        return float("nan")
    # An AUROC of ½ is chance, so shares are those of the excess over ½.
    chance = 0.0 if kind == "effect" else 0.5
    excess = native[kind] - chance
    # Nothing is a share of a native arm without an effect, or of one that is not known (NaN).
    return (value - chance) / excess if excess else float("nan")


def _inside(value: float) -> float:
    return min(_MOST, max(_LEAST, value))
