"""Figure of exported vectors: how far programs are from our hook, at the block and next to it.

    served_figure(table, limit=1e-4)

Problem: a small difference of logits says that a program acts at the right place only if the
difference from the blocks next to it is large. Mechanism: one line per exported file, with both
differences on a logarithmic axis, and a dotted line at the largest one that is allowed.

Limits: the axis has no 0, so smaller differences than `FLOOR` are drawn there.
"""

import math

import pandas as pd

from lrt_lens.figures._plotly import go
from lrt_lens.figures._template import (
    ARM_STYLES,
    DOTTED,
    NEUTRAL,
    ArmStyle,
    categories,
    require_columns,
    require_rows,
    use_template,
)

FLOOR = 1e-8
"""Smallest difference that has a position of its own on the axis."""
_STYLES = {
    "difference": ArmStyle("at the block of the vector", ARM_STYLES["transferred"].colour),
    "one_block_away": ArmStyle("one block away", NEUTRAL, symbol="diamond-open"),
}
"""Style of each column of differences."""


def served_figure(table: pd.DataFrame, *, limit: float) -> "go.Figure":
    """Return the differences of logits between programs and our hook, one line per exported file.

    Args:
        table: columns ``name`` (label of the line), ``difference`` (largest difference from our
            hook at the block of the file) and ``one_block_away`` (smallest largest difference from
            our hook at a block next to it).
        limit: largest difference that is allowed at the block.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    require_columns(table, "name", *_STYLES)
    require_rows(table)
    figure = go.Figure()
    for column, style in _STYLES.items():
        hover = f"%{{y}}<br>{style.label}: %{{customdata:.3g}}<extra></extra>"
        trace = go.Scatter(
            x=table[column].clip(lower=FLOOR),
            y=table["name"],
            customdata=table[column],
            mode="markers",
            name=style.label,
            marker={**style.marker, "size": 10},
            hovertemplate=hover,
        )
        figure.add_trace(trace)
    figure.add_vline(x=limit, line=DOTTED)
    # An annotation of a logarithmic axis is placed by the logarithm.
    place = {"x": math.log10(limit), "y": 1, "yref": "paper", "yanchor": "bottom"}
    figure.add_annotation(text=f"allowed: {limit:g}", showarrow=False, **place)
    figure.update_xaxes(
        type="log", title_text="max |Δ logits| against our hook", exponentformat="e"
    )
    figure.update_yaxes(**categories([str(name) for name in table["name"]]))
    title = {
        "text": "Programs with an exported vector, against our hook",
        "subtitle": {"text": f"0 and all below {FLOOR:g} are drawn at {FLOOR:g}"},
    }
    height = 210 + 26 * len(table)
    layout = {"template": use_template(), "title": title, "height": height, "margin": {"t": 90}}
    return figure.update_layout(**layout, legend={"y": -60 / (height - 150)})
