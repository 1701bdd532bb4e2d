"""Figure 5 of LRT from a table: the boxes drawn, and the tables refused."""

import pandas as pd
import pytest

from lrt_lens.figures._propensity import PANELS, propensity_figure, short_task


def table() -> pd.DataFrame:
    rows = [
        {
            "task": task,
            "arm": arm,
            "scale": scale,
            "r": 0.1 * i,
            "r_change": 0.2,
            "mse": 0.3,
            "mse_share": 0.4,
        }
        for task in ("one", "two")
        for arm in ("native", "transferred", "none")
        for i, scale in enumerate((-1.0, 1.0))
    ]
    return pd.DataFrame(rows)


def test_a_box_an_arm_and_panel_holds_every_scale_of_every_task() -> None:
    figure = propensity_figure(table())
    assert len(figure.data) == 2 * len(PANELS)
    [first] = [
        trace for trace in figure.data if trace.legendgroup == "transferred" and trace.showlegend
    ]
    assert list(first.x) == [0.0, 0.1, 0.0, 0.1]
    assert list(first.y) == ["one", "one", "two", "two"]
    assert len(propensity_figure(table(), arms=["native"]).data) == len(PANELS)


def test_long_names_are_broken_over_lines() -> None:
    assert short_task("a-b") == "a b"
    assert max(map(len, short_task("-".join(["word"] * 20)).split("<br>"))) <= 34


def test_a_missing_column_and_nothing_to_draw_are_refused() -> None:
    with pytest.raises(ValueError, match="lacks columns"):
        propensity_figure(table().drop(columns="mse"))
    with pytest.raises(ValueError, match="no arm to draw"):
        propensity_figure(table(), arms=["other"])
