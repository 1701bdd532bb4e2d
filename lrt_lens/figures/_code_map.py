"""A map from codes beside the one from states: held-out R², and what features do under either."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lrt_lens.figures._template import NEUTRAL, TEMPLATE_NAME, ArmStyle, require_columns

_STYLES = {
    "s2l": ArmStyle("from codes (s2l)", "#D55E00"),
    "l2l": ArmStyle("from states (l2l)", "#0072B2", symbol="square"),
    "reconstruction": ArmStyle("from the SAE's reconstruction", "#56B4E9", symbol="square-open"),
    "other": ArmStyle("another feature's row", "#CC79A7", symbol="diamond"),
    "random": ArmStyle("random direction", "#8C8C8C", symbol="circle-open"),
}


def code_map_figure(table: pd.DataFrame, features: pd.DataFrame) -> go.Figure:
    """Returns R² of every map with its interval, and a box of agreements an arm where features were
    compared.

    Args: table: `CodeMapEvaluation.table`: `arm`, `r2`, `r2_low`, `r2_high` and the same of
        `r2_uniform`. features: `CodeMapEvaluation.features`: `feature`, `cosine` and `agreement_…`;
        may be empty.

    Raises:
        ValueError: a column is not in the table.
    """
    require_columns(
        table, "arm", "r2", "r2_low", "r2_high", "r2_uniform", "r2_uniform_low", "r2_uniform_high"
    )
    panels = ["R² on the test fold"] + (
        ["agreement with the source's effect"] if len(features) else []
    )
    figure = make_subplots(cols=len(panels), horizontal_spacing=0.22)
    records = table.to_dict("records")
    labels = [_STYLES[str(record["arm"])].label for record in records]
    for measure, symbol, colour, name in (
        ("r2", "circle", "#D55E00", "R²"),
        ("r2_uniform", "diamond-open", "#0072B2", "mean R² over dimensions"),
    ):
        values = table[measure]
        error = {
            "type": "data",
            "array": table[f"{measure}_high"] - values,
            "arrayminus": values - table[f"{measure}_low"],
            "color": colour,
        }
        marker = {"symbol": symbol, "size": 10, "color": colour}
        figure.add_trace(
            go.Scatter(x=values, y=labels, mode="markers", name=name, marker=marker, error_x=error),
            row=1,
            col=1,
        )
    if len(features):
        for arm in ("s2l", "l2l", "other", "random"):
            style = _STYLES[arm]
            figure.add_trace(_box(features, arm, style), row=1, col=2)
        figure.add_vline(x=0, line={"color": NEUTRAL, "dash": "dot", "width": 1}, row=1, col=2)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" only)
    for column, text in enumerate(panels, start=1):
        figure.update_xaxes(title_text=text, row=1, col=column)
    figure.update_yaxes(autorange="reversed", ticks="")
    title = "From codes or from states: predicting the target"
    subtitle = "95% intervals over groups of test documents; each point on the right is a feature"
    return figure.update_layout(
        template=TEMPLATE_NAME,
        height=420,
        title={"text": title, "subtitle": {"text": subtitle}},
        margin={"t": 80},
    )


def _box(features: pd.DataFrame, arm: str, style: ArmStyle) -> go.Box:
    return go.Box(
        x=features[f"agreement_{arm}"],
        y=[style.label] * len(features),
        orientation="h",
        name=style.label,
        showlegend=False,
        boxpoints="all",
        jitter=0.5,
        pointpos=0,
        marker={"color": style.colour, "size": 5},
        line={"color": style.colour, "width": 1.5},
        customdata=features[["feature", "cosine"]],
        fillcolor=style.fill(),
        hovertemplate="feature %{customdata[0]}: agreement %{x:.2f}, cosine of the two %{customdata[1]:.2f}<extra></extra>",
    )
