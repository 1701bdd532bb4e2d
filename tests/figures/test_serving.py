"""The figure of exported vectors shows both differences of every file, zeros too."""

import pandas as pd
import plotly.graph_objects as go
import pytest

from lrt_lens.figures import served_figure
from lrt_lens.figures._serving import FLOOR

TABLE = pd.DataFrame(
    {
        "name": ["llama.cpp", "repeng", "transformers"],
        "difference": [3e-6, 2e-5, 0.0],
        "one_block_away": [0.8, 0.7, 0.9],
    }
)


def test_every_file_has_both_differences_on_an_axis_without_zero() -> None:
    figure = served_figure(TABLE, limit=1e-4)
    assert isinstance(figure, go.Figure)
    at, away = figure.data
    assert list(at.x) == [3e-6, 2e-5, FLOOR]
    assert list(at.customdata) == [3e-6, 2e-5, 0.0]
    assert list(away.x) == [0.8, 0.7, 0.9]
    assert list(at.y) == list(TABLE["name"])
    assert figure.layout.xaxis.type == "log"


def test_the_limit_is_a_line() -> None:
    layout = served_figure(TABLE, limit=1e-4).layout
    assert (layout.shapes[0].x0, layout.shapes[0].x1) == (1e-4, 1e-4)
    # Annotations of a logarithmic axis are placed by the logarithm.
    (label,) = layout.annotations
    assert (label.text, label.x) == ("allowed: 0.0001", -4)


def test_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks columns"):
        served_figure(TABLE.drop(columns="one_block_away"), limit=1e-4)
    with pytest.raises(ValueError, match="no rows"):
        served_figure(TABLE.iloc[:0], limit=1e-4)
