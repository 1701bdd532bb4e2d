"""The figure shows every row of the table, and nothing else."""

import math
from typing import Any

import pandas as pd
import plotly.io as pio
import pytest

from lrt_lens.figures import TEMPLATE_NAME, stitch_loss_figure


def _table() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for route, finish in (("A→B", "large"), ("B→A", "small")):
        for number, arm in enumerate(("own", "mean", "zero", "two_way", "stitched", "token")):
            ce = 3.0 + 0.5 * number
            rows.append(
                {
                    "route": route,
                    "arm": arm,
                    "finishes_in": finish,
                    "ce": ce,
                    "ce_low": ce - 0.1,
                    "ce_high": ce + 0.2,
                    "kl": 0.25 * number,
                    "recovered": math.nan if arm == "token" else 0.5,
                    "increase_percent": 10.0 * number,
                }
            )
    return pd.DataFrame(rows)


def test_every_arm_is_a_point_with_its_interval_and_its_rise() -> None:
    figure: Any = stitch_loss_figure(_table())
    assert len([trace for trace in figure.data if trace.mode == "markers"]) == 12
    rises = [trace for trace in figure.data if trace.mode == "text" and trace.y[0] == "two_way"]
    assert [(trace.x[0], trace.text[0].strip()) for trace in rises] == [(4.7, "+30.0%")] * 2
    (trace, _) = [trace for trace in figure.data if trace.name == "two_way"]
    assert list(trace.x) == [4.5]
    assert trace.error_x.array[0] == pytest.approx(0.2)
    assert trace.error_x.arrayminus[0] == pytest.approx(0.1)
    layout = figure.to_plotly_json()["layout"]
    titles = [annotation["text"] for annotation in layout["annotations"]]
    assert titles == ["A→B   (finishes in large)", "B→A   (finishes in small)"]
    assert figure.layout.template == pio.templates[TEMPLATE_NAME]


def test_arms_are_in_one_order_and_lines_mark_own_and_mean() -> None:
    figure: Any = stitch_loss_figure(_table())
    order = list(figure.layout.yaxis.categoryarray)[::-1]
    assert order == [
        "finishing model, own state",
        "stitched",
        "two_way",
        "token identity",
        "mean-ablated",
        "zero-ablated",
    ]
    assert [(shape.xref, shape.x0) for shape in figure.layout.shapes] == [
        ("x", 3.0),
        ("x", 3.5),
        ("x2", 3.0),
        ("x2", 3.5),
    ]


def test_an_undefined_share_is_said_and_a_missing_column_refused() -> None:
    figure: Any = stitch_loss_figure(_table())
    (trace, _) = [trace for trace in figure.data if trace.name == "token"]
    assert "recovered undefined" in trace.hovertemplate
    with pytest.raises(ValueError, match=r"lacks columns \['kl'\]"):
        stitch_loss_figure(_table().drop(columns="kl"))
    with pytest.raises(ValueError, match="no rows"):
        stitch_loss_figure(_table().head(0))
