"""Figure of rules of transfer: the fraction of native that each keeps, concept by concept.

Problem: there are many rules and few concepts, and only differences beyond the intervals count.
Mechanism: one panel per concept, one line per rule, in the order and with the numbers of the table.

    transfer_figure(comparison.summary).show()
    transfer_figure(pd.concat([one.summary, other.summary]), fraction="mean").show()

Limits: intervals of two rules overlap although their paired difference may exclude 0; the hover
text shows that difference.
"""

from typing import Literal

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._steering import steering_counts
from lrt_lens.figures._template import (
    DOTTED,
    arm_style,
    categories,
    error_bars,
    panel,
    require_columns,
    require_rows,
    rows_where,
    use_template,
    with_counts,
)

_COLUMNS = {
    "vector": ("fraction_of_native", "fraction", "difference"),
    "mean": ("fraction_mean", "fraction_mean", "difference_mean"),
}
"""Columns of the fraction, of its ends, and of the difference from the reference."""
_TITLES = {"vector": "the vector itself", "mean": "mean of both signs"}
_HOVER = "%{y}: %{x:.2f}<br>minus the reference: %{customdata[0]:.2f}"
_HOVER += " (%{customdata[1]:.2f} to %{customdata[2]:.2f})<extra></extra>"


def transfer_figure(
    summary: pd.DataFrame, *, fraction: Literal["vector", "mean"] = "vector"
) -> "go.Figure":
    """Return the fraction of native per rule with its interval, one panel per concept.

    Args:
        summary: `concept`, `rule`, and the fraction of native and the difference from the reference
            with their ends, as in `TransferComparison.summary`; several may be joined. `n_items`
            and `n_texts` are for the line under the title.
        fraction: ``"vector"`` or ``"mean"``: of the vector itself, or of the mean of both signs.

    Raises:
        ValueError: a column is not in the table, or the table is empty.
    """
    value, ends, difference = _COLUMNS[fraction]
    low, high = f"{ends}_low", f"{ends}_high"
    shown = [difference, f"{difference}_low", f"{difference}_high"]
    require_columns(summary, "concept", "rule", value, low, high, *shown)
    require_rows(summary)
    concepts = list(dict.fromkeys(summary["concept"]))
    rules = list(dict.fromkeys(summary["rule"]))
    figure = make_subplots(cols=len(concepts), shared_yaxes=True, subplot_titles=concepts)
    for number, concept in enumerate(concepts, start=1):
        rows = rows_where(summary, "concept", concept)
        style = arm_style("transferred")
        figure.add_trace(
            go.Scatter(
                x=rows[value],
                y=rows["rule"],
                mode="markers",
                marker=style.marker,
                error_x=error_bars(rows[value], rows[low], rows[high], color=style.colour),
                customdata=rows[shown],
                hovertemplate=_HOVER,
                name=concept,
                showlegend=False,
            ),
            **panel(1, number),
        )
        figure.add_vline(x=1, line=DOTTED, **panel(1, number))
        figure.update_xaxes(title_text="fraction of native", **panel(1, number))
    figure.update_yaxes(categories(rules))
    figure.update_layout(
        template=use_template(),
        title=f"Effect at equal damage, {_TITLES[fraction]}",
        height=190 + 28 * len(rules),
        margin={"t": 90},
    )
    return with_counts(figure, steering_counts(summary))
