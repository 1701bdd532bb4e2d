"""Heat maps of maps between domains: R², and what probes and vectors do through the same maps.

    domain_figure(result.table).show()

Problem: a map may predict the states of another domain badly and serve its probe well, or the
reverse. Mechanism: one heat map per measure side by side, with the same rows and columns.

Limits: R² below −1 is drawn in the colour of −1; the number in the cell is exact.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    HEAT_SCALE,
    panel,
    require_columns,
    require_rows,
    use_template,
)

_TITLES = {
    "r2": "R² of states",
    "auroc_share": "probe, share of native",
    "effect_share": "vector, share of native",
}
"""Columns that are drawn if they have numbers, with the titles of their panels."""


def domain_figure(table: pd.DataFrame) -> "go.Figure":
    """Return one heat map per measure, with the domain of the map down and the scored one across.

    Args:
        table: `DomainMatrix.table`: `fitted_on`, `scored_on`, `r2`, and `auroc_share` and
            `effect_share` if they were measured.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    require_columns(table, "fitted_on", "scored_on", "r2")
    require_rows(table)
    known = [name for name in _TITLES if name in table and bool(table[name].notna().any())]
    domains = list(dict.fromkeys(table["fitted_on"].to_list()))
    figure = make_subplots(
        cols=len(known),
        subplot_titles=[_TITLES[name] for name in known],
        shared_yaxes=True,
        horizontal_spacing=0.06,
    )
    for number, name in enumerate(known, start=1):
        wide = table.pivot(index="fitted_on", columns="scored_on", values=name)
        heat = go.Heatmap(
            z=wide.loc[domains, domains].astype(float).to_numpy().tolist(),
            x=domains,
            y=domains,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2f}",
            hovertemplate="map of %{y}, scored on %{x}: %{z:.3f}<extra></extra>",
        )
        figure.add_trace(heat, **panel(1, number))
        figure.update_xaxes(title_text="scored on", showgrid=False, **panel(1, number))
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_yaxes(title_text="map fitted on", **panel(1, 1))
    bar = {"title": {"text": "R², share of native", "side": "right"}}
    return figure.update_layout(
        template=use_template(),
        title={
            "text": "Maps of one domain on another",
            "subtitle": {"text": "R² on held-out text; shares above chance"},
        },
        coloraxis={"colorscale": HEAT_SCALE, "cmin": -1, "cmax": 1, "colorbar": bar},
        height=240 + 60 * len(domains),
        margin={"t": 104},
    ).update_annotations(font_size=13)
