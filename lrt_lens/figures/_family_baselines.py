"""Maps that cross families: prediction, steering and reading of every method in three columns that
share their rows.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import HIGHLIGHT, NEUTRAL, require_columns, use_template

_COLUMNS = (
    ("cosine", "cosine", None, "prediction: cosine on held-out tokens"),
    ("fraction_of_native", "fraction", "effect_null", "steering: share of native effect"),
    ("share_of_native", "share", "auroc_null", "reading: share of native AUROC − ½"),
)
"""(column, beginning of its interval's columns, column of the null, title)."""
_LEAST, _MOST = -0.75, 1.75
"""Marks beyond are drawn at the edge, with their number in the hover text."""


def family_figure(summary: pd.DataFrame) -> "go.Figure":
    """Returns a row a method: points with 95% intervals, crosses for each method's own null, a line
    at 1 for native.

    Args:
        summary: `FamilyBaselines.summary`.
    """
    require_columns(
        summary, "method", "cosine", "fraction_of_native", "share_of_native", "effect", "auroc"
    )
    rows = [row for row in summary.to_dict("records") if row["method"] != "native"][::-1]
    native = next(row for row in summary.to_dict("records") if row["method"] == "native")
    figure = make_subplots(cols=3, shared_yaxes=True, horizontal_spacing=0.04)
    for place, (column, stem, null, _) in enumerate(_COLUMNS, start=1):
        known = [
            row for row in rows if row["method"] != "random" and row.get(column) == row.get(column)
        ]
        figure.add_scatter(
            y=[row["method"] for row in known],
            x=[_inside(row[column]) for row in known],
            mode="markers",
            name="carried over",
            showlegend=place == 1,
            marker={"color": HIGHLIGHT, "size": 9},
            error_x={
                "array": [
                    max(0.0, _inside(row[f"{stem}_high"]) - _inside(row[column])) for row in known
                ],
                "arrayminus": [
                    max(0.0, _inside(row[column]) - _inside(row[f"{stem}_low"])) for row in known
                ],
                "symmetric": False,
                "thickness": 1.5,
            },
            hovertext=[
                f"{row['method']}: {row[column]:.3f} ({row[f'{stem}_low']:.3f} to {row[f'{stem}_high']:.3f})"
                for row in known
            ],
            hoverinfo="text",
            row=1,
            col=place,
        )
        if null is not None:
            _add_nulls(figure, place, rows, null, native)
        figure.add_vline(x=0, line_color=NEUTRAL, line_width=1, row=1, col=place)  # pyright: ignore[reportArgumentType] (plotly takes numbers)
    for place in (2, 3):
        figure.add_vline(x=1, line_color=NEUTRAL, line_dash="dot", row=1, col=place)  # pyright: ignore[reportArgumentType] (plotly takes numbers)
        figure.update_xaxes(range=[_LEAST - 0.05, _MOST + 0.05], row=1, col=place)
    for place, (*_, text) in enumerate(_COLUMNS, start=1):
        figure.update_xaxes(title_text=text.replace(": ", ":<br>"), row=1, col=place)
    title = {
        "text": "Maps that cross families",
        "subtitle": {
            "text": "points: 95% intervals; crosses: each method's own null; dotted: native"
        },
    }
    figure.update_yaxes(categoryorder="array", categoryarray=[row["method"] for row in rows])
    return figure.update_layout(
        template=use_template(),
        height=220 + 34 * len(rows),
        margin={"t": 80, "l": 150, "b": 120},
        title=title,
        legend={"y": -80 / (34 * len(rows))},
    )


def _add_nulls(figure: "go.Figure", place: int, rows: list[dict], null: str, native: dict) -> None:
    """Crosses where each method's own null is, and the range of random draws, on the same scale."""
    value = null.removesuffix("_null")
    # A random draw has no null of its own: it is one.
    columns = {
        row["method"]: (value, f"{value}_low", f"{value}_high")
        if row["method"] == "random"
        else (null, null, null)
        for row in rows
    }
    found = {
        row["method"]: [_relative(row.get(name), value, native) for name in columns[row["method"]]]
        for row in rows
    }
    known = {name: numbers for name, numbers in found.items() if numbers[0] == numbers[0]}
    figure.add_scatter(
        y=list(known),
        x=[_inside(at) for at, _, _ in known.values()],
        mode="markers",
        name="null: shuffled or random pairs; 95% of random draws",
        showlegend=place == 2,
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
        row=1,
        col=place,
    )


def _relative(value: float | None, kind: str, native: dict) -> float:
    """An effect or an AUROC as a share of native's."""
    if value is None or value != value:
        return float("nan")
    return value / native["effect"] if kind == "effect" else (value - 0.5) / (native["auroc"] - 0.5)


def _inside(value: float) -> float:
    return min(_MOST, max(_LEAST, value))
