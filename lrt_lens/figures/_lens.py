"""Figure of a transferred lens: how many of the five likeliest tokens it shares with the target.

    lens_figure(result.table)

Problem: every lens prints plausible tokens. Mechanism: one panel per reference, one row per arm,
from the target's own lens to the controls.

Limits: shows ``top5`` only; the table has the likeliest token and the divergence.
"""

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    ARM_STYLES,
    ArmStyle,
    arm_style,
    categories,
    count_range,
    error_bars,
    panel,
    require_columns,
    require_rows,
    rows_where,
    use_template,
    with_counts,
)

_STYLES = {
    "target lens": ARM_STYLES["native"],
    "source lens": ARM_STYLES["native_best"],
    "transferred": ARM_STYLES["transferred"],
    "token identity": ArmStyle("token identity", "#009E73", symbol="triangle-up"),
    "shuffled": ARM_STYLES["shuffled"],
}
"""Style of each arm, in the order of the figure."""
_COLUMNS = ("arm", "reference", "top5", "top5_low", "top5_high")


def lens_figure(table: pd.DataFrame) -> "go.Figure":
    """Return the top-5 agreement of each arm with its interval, one panel per reference.

    Args:
        table: `LensEvaluation.table`: `arm`, `reference`, `top5`, `top5_low`, `top5_high`, and
            `n_tokens` and `n_documents` for the line under the title.

    Raises:
        ValueError: a column is not in the table, or it has no rows.
    """
    require_columns(table, *_COLUMNS)
    require_rows(table)
    references = list(dict.fromkeys(str(name) for name in table["reference"]))
    arms = [arm for arm in _STYLES if arm in table["arm"].tolist()]
    height = 180 + len(references) * (50 + 26 * len(arms))
    figure = make_subplots(
        rows=len(references),
        shared_xaxes=True,
        vertical_spacing=50 / height if len(references) > 1 else 0,
        subplot_titles=[f"agreement with the {name}" for name in references],
    )
    for number, reference in enumerate(references, start=1):
        for record in rows_where(table, "reference", reference).to_dict("records"):
            style = _STYLES.get(str(record["arm"])) or arm_style(str(record["arm"]))
            bounds = [record[name] for name in _COLUMNS[2:]]
            figure.add_trace(
                go.Scatter(
                    x=[record["top5"]],
                    y=[record["arm"]],
                    mode="markers",
                    marker=style.marker,
                    error_x=error_bars(*bounds, color=style.colour, thickness=2),
                    hovertemplate="%{y}: %{x:.3f}<extra></extra>",
                ),
                **panel(number, 1),
            )
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure.update_yaxes(categories(arms))
    figure.update_layout(
        template=use_template(),
        title={"text": "What a transferred lens reads"},
        height=height,
        showlegend=False,
        margin={"t": 110},
    )
    shared = "share of the five likeliest tokens"
    figure.update_xaxes(title_text=shared, **panel(len(references), 1))
    counts = {unit: count_range(table, f"n_{unit}") for unit in ("tokens", "documents")}
    return with_counts(figure, counts)
