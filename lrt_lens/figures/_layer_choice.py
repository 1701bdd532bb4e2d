"""Figure of a choice of layers: a heat map over hook pairs, and how well each layer reads.

Problem: a prediction over hook pairs should be read next to what the source alone says. Mechanism:
a heat map of one column of the table with the chosen pair outlined, and below it the AUROC of
held-out texts per source hook point, with its 95% interval and the level of chance.

    layer_choice_figure(choice.table, value="predicted", chosen=choice.best).show()

Limits: one row per hook pair.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    HEAT_SCALE,
    HIGHLIGHT,
    count_range,
    error_bars,
    hook_order,
    panel,
    require_columns,
    short_hook,
    use_template,
    with_counts,
)

_TITLES = {
    "predicted": "predicted",
    "fidelity": "fidelity, cross-validated",
    "rho_read": "ρ_read, cross-validated",
    "rho_write": "ρ_write, cross-validated",
    "gain_cv": "gain over token identity",
    "agreement": "cosine to the native direction",
    "transferred_auroc": "AUROC of the transferred probe",
    "native_effect": "effect of the native vector (nats)",
}
"""Columns that the heat map can show, with the title of their colour scale."""
_TEXT_LIMIT = 12
"""Largest number of rows or columns at which numbers are legible inside the cells."""


def layer_choice_figure(
    table: pd.DataFrame,
    *,
    value: str = "predicted",
    chosen: tuple[str, str] | None = None,
    rule: str = "",
) -> "go.Figure":
    """Return a heat map of one column over hook pairs, above the reading of each source layer.

    Args:
        table: one row per hook pair: `source_hook`, `target_hook`, ``value``, `auroc`,
            `auroc_low` and `auroc_high`; `n_texts` for the line under the title.
        value: column of the heat map.
        chosen: (source hook point, target hook point) of the pair to outline.
        rule: what the column is, for the subtitle.

    Raises:
        ValueError: a column is not in the table or cannot be shown, or a pair has two rows.
    """
    names = ("source_hook", "target_hook", value, "auroc", "auroc_low", "auroc_high")
    require_columns(table, *names)
    if value not in _TITLES:
        raise ValueError(f"cannot show column {value!r}; choose one of {list(_TITLES)}")
    if table.duplicated(["source_hook", "target_hook"]).any():
        raise ValueError("a hook pair has two rows; keep one row per hook pair")
    wide = table.pivot(index="target_hook", columns="source_hook", values=value).astype(float)
    sources = sorted(wide.columns, key=hook_order)
    targets = sorted(wide.index, key=hook_order)
    wide = wide.loc[targets, sources]
    figure = make_subplots(
        rows=2, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.06
    )
    at = [short_hook(hook) for hook in sources]
    small = max(wide.shape) <= _TEXT_LIMIT
    heat = go.Heatmap(
        z=wide.to_numpy().tolist(),
        x=at,
        y=[short_hook(hook) for hook in targets],
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="<b>%{x} → %{y}</b><br>%{z:.3f}<extra></extra>",
        texttemplate="%{z:.2f}" if small else None,
    )
    figure.add_trace(heat, **panel(1, 1))
    if chosen is not None:
        figure.add_shape(_outline(sources, targets, chosen), **panel(1, 1))
    _add_reading(figure, table, sources, at)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_xaxes(title_text="source hook point", **panel(2, 1))
    figure.update_yaxes(
        type="category", title_text="target hook point", showgrid=False, **panel(1, 1)
    )
    figure.update_layout(
        template=use_template(),
        title={"text": "Choice of layers", "subtitle": {"text": rule}},
        showlegend=False,
        coloraxis={
            "colorscale": HEAT_SCALE,
            "colorbar": {"title": {"text": _TITLES[value], "side": "right"}, "len": 0.7, "y": 0.66},
        },
        height=min(1000, 420 + 26 * len(targets)),
    )
    return with_counts(figure, {"texts": count_range(table, "n_texts")})


def _outline(sources: list[str], targets: list[str], chosen: tuple[str, str]) -> "go.layout.Shape":
    # Categories have the coordinates 0, 1, 2, …, and a cell reaches half a unit to each side.
    column, row = sources.index(chosen[0]), targets.index(chosen[1])
    line = {"color": HIGHLIGHT, "width": 3}
    return go.layout.Shape(
        type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5, line=line
    )


def _add_reading(
    figure: "go.Figure", table: pd.DataFrame, sources: list[str], at: list[str]
) -> None:
    """Add the AUROC of each source hook point with its interval, and the level of chance."""
    reading = table.drop_duplicates("source_hook").set_index("source_hook").loc[sources]
    value, low, high = (
        reading[name].astype(float) for name in ("auroc", "auroc_low", "auroc_high")
    )
    figure.add_scatter(
        x=at,
        y=value.tolist(),
        mode="lines+markers",
        error_y=error_bars(value, low, high),
        **panel(2, 1),
    )
    # An AUROC of one half is chance.
    chance = {"dash": "dot", "width": 1}
    figure.add_scatter(x=at, y=[0.5] * len(at), mode="lines", line=chance, **panel(2, 1))
    figure.update_yaxes(title_text="AUROC on the source", **panel(2, 1))
