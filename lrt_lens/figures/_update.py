"""Figure of an update: the number of every arm per artefact, beside that of the old revision.

    update_figure(report.summary, report.table).show()

Problem: whether an artefact survived is a comparison with the old revision, and whether a repair
worked one with the frozen artefact and with one learnt again. Mechanism: one row per artefact, one
marker per arm, and the old revision as a bar; one panel per measure.

Limits: artefacts without measurements are left out.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    ArmStyle,
    categories,
    count_range,
    error_bars,
    panel,
    require_columns,
    require_rows,
    rows_where,
    short_hook,
    use_template,
    with_counts,
)

_STYLES = {
    "old": ArmStyle("old revision", "#5E5E5E", symbol="line-ns-open"),
    "frozen": ArmStyle("frozen", "#9A8C00", symbol="star-triangle-up"),
    "mean_shift": ArmStyle("mean shift", "#E69F00", symbol="cross"),
    "procrustes": ArmStyle("Procrustes", "#56B4E9", symbol="square-open"),
    "repaired": ArmStyle("repaired", ARM_STYLES["transferred"].colour),
    "distilled": ArmStyle("distilled", "#882255", symbol="hexagon"),
    "relearnt": ArmStyle("relearnt", ARM_STYLES["native"].colour, symbol="square"),
    "shuffled": ARM_STYLES["shuffled"],
    "random": ARM_STYLES["random"],
}
"""Style of each arm, in the order of the legend."""
_TITLES = {"auroc": "AUROC", "effect": "effect at equal damage (nats)", "fvu": "FVU"}
"""Title of the axis of each measure."""


def update_figure(
    summary: pd.DataFrame, table: pd.DataFrame, *, n_tokens: int | None = None
) -> "go.Figure":
    """Return one panel per measure with every arm of every artefact.

    Args:
        summary: `UpdateReport.summary`, whose `hook`, `measure` and `n` are those of each artefact.
        table: `UpdateReport.table`: `artefact`, `arm`, `measure`, `value`, `low`, `high`.
        n_tokens: number of tokens on which the maps were fitted, printed under the title.

    Raises:
        ValueError: a column is missing, or nothing was measured.
    """
    require_columns(summary, "artefact", "hook", "measure")
    require_rows(table)
    require_columns(table, "artefact", "arm", "measure", "value", "low", "high")
    measures = [name for name in _TITLES if name in set(summary["measure"].to_list())]
    names = {
        measure: rows_where(summary, "measure", measure)["artefact"].to_list()
        for measure in measures
    }
    sizes = [len(names[measure]) + 1 for measure in measures]
    figure = make_subplots(
        rows=len(measures),
        row_heights=[size / sum(sizes) for size in sizes],
        vertical_spacing=min(0.12, 0.5 / len(measures)),
    )
    labels = _labels(summary)
    shown: set[str] = set()
    for row, measure in enumerate(measures, start=1):
        rows = rows_where(table, "measure", measure)
        for arm, style in _STYLES.items():
            part = rows_where(rows, "arm", arm)
            if part.empty:
                continue
            bars = error_bars(part["value"], part["low"], part["high"], color=style.colour)
            figure.add_trace(
                go.Scatter(
                    x=part["value"],
                    y=[labels[str(name)] for name in part["artefact"]],
                    error_x=bars | {"thickness": 1},
                    mode="markers",
                    marker=style.marker,
                    name=style.label,
                    legendgroup=arm,
                    showlegend=arm not in shown,
                    hovertemplate=f"{style.label}: %{{x:.3g}}<extra></extra>",
                ),
                **panel(row, 1),
            )
            shown.add(arm)
        figure.update_yaxes(
            categories([labels[str(name)] for name in names[measure]]), **panel(row, 1)
        )
        figure.update_xaxes(title_text=_TITLES[measure], **panel(row, 1))
    measured = rows_where(summary, "measure", *measures)
    counts = {"texts or items": count_range(measured, "n"), "fitting tokens": n_tokens}
    # Height of the panels, and of what is above and below them
    panels = 34 * sum(sizes) + 60 * len(measures)
    height = 280 + panels
    figure.update_layout(
        template=use_template(),
        title={"text": "Artefacts after the update", "subtitle": {"text": "95% intervals"}},
        height=height,
        margin={"t": 84},
        legend={"y": -90 / panels},  # in units of the panels: 90 pixels below them
    )
    return with_counts(figure, counts)


def _labels(summary: pd.DataFrame) -> dict[str, str]:
    """Return the label of each artefact: its name, with a hook point in it in its short form."""
    return {
        str(name): str(name).replace(str(hook), short_hook(str(hook)))
        for name, hook in zip(summary["artefact"], summary["hook"], strict=True)
    }
