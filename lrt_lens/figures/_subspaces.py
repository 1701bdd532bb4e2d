"""Figure of the fidelity of a subspace: its values over those of random subspaces.

    subspace_fidelity_figure(result.table, n_tokens=result.n).show()

Problem: canonical correlations and angles rise with the rank, so that a value alone says little.
Mechanism: one panel per measure; points are the values in descending order, and grey bars the range
of random subspaces of the same rank.

Limits: one subspace.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    arm_style,
    error_bars,
    panel,
    require_columns,
    require_rows,
    rows_where,
    use_template,
    with_counts,
)

_TITLES = {"correlation": "canonical correlation", "angle": "cosine of the principal angle"}
"""Title of the panel of each measure."""
_COLUMNS = ("measure", "direction", "value", "random_mean", "random_low", "random_high")


def subspace_fidelity_figure(
    table: pd.DataFrame, *, n_tokens: int | None = None, n_random: int | None = None
) -> "go.Figure":
    """Return the values of a subspace by direction, beside those of random subspaces.

    Args:
        table: `SubspaceFidelity.table`.
        n_tokens: number of held-out tokens, for the line of counts.
        n_random: number of random subspaces.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    require_columns(table, *_COLUMNS)
    require_rows(table)
    measures = [name for name in _TITLES if name in set(table["measure"].to_list())]
    figure = make_subplots(
        rows=1, cols=len(measures), subplot_titles=[_TITLES[name] for name in measures]
    )
    own, random = arm_style("transferred"), arm_style("random")
    for column, measure in enumerate(measures, start=1):
        rows, at = rows_where(table, "measure", measure), panel(1, column)
        drawn = {
            "random subspaces, 95%": go.Scatter(
                y=rows["random_mean"],
                error_y=error_bars(rows["random_mean"], rows["random_low"], rows["random_high"]),
                marker=random.marker,
            ),
            "subspace": go.Scatter(y=rows["value"], marker=own.marker),
        }
        for name, trace in drawn.items():
            trace.update(x=rows["direction"], name=name, mode="markers", legendgroup=name)
            trace.update(hovertemplate="direction %{x}: %{y:.3f}<extra></extra>")
            figure.add_trace(trace.update(showlegend=column == 1), **at)
        figure.update_xaxes(title_text="direction", dtick=max(1, len(rows) // 5), **at)
        figure.update_yaxes(title_text=_TITLES[measure], range=[0, 1.05], **at)
    figure.update_layout(
        template=use_template(),
        title={"text": "How much of a subspace arrives"},
        height=420,
        margin={"t": 104},
        legend={"y": -0.28},
    ).update_annotations(font_size=13)
    return with_counts(figure, {"held-out tokens": n_tokens, "random subspaces": n_random})
