"""Figures of concept maps show the rows of their tables, and nothing else."""

import math
from typing import Any

import pandas as pd
import plotly.io as pio
import pytest

from lrt_lens.figures import TEMPLATE_NAME
from lrt_lens.figures._concept_map import (
    beta_figure,
    concept_summary_figure,
    interpolation_figure,
    weak_to_strong_figure,
)


def curve() -> pd.DataFrame:
    rows = [
        {
            "concept": concept,
            "arm": arm,
            "n": n,
            "n_over_d": n / 16,
            "cosine": value,
            "low": value - 0.1,
            "high": value + 0.2,
            "norm_ratio": 1.0,
        }
        for concept in ("mood", "colour")
        for arm, value in (("noise_source", 0.9), ("own", 1.0), ("something", 0.2))
        for n in (40, 8)
    ]
    return pd.DataFrame(rows)


def table() -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"arm": "none", "beta": 0.0, "probability": 50.0},
        {"arm": "source", "beta": 0.0, "probability": 40.0},
    ]
    rows += [
        {"arm": arm, "beta": beta, "probability": 50 + 10 * beta}
        for arm in ("native", "source", "other")
        for beta in (-1.0, 1.0)
    ]
    rows += [
        {"arm": "random_matched", "draw": draw, "beta": beta, "probability": 44.0 + 4 * draw}
        for draw in (0, 1)
        for beta in (-1.0, 1.0, 3.3 + draw)
    ]
    return pd.DataFrame(
        [
            {
                "concept": "mood",
                "draw": None,
                "probability_low": row["probability"] - 1,
                "probability_high": row["probability"] + 2,
            }
            | row
            for row in rows
        ]
    )


def test_the_curve_has_a_line_an_arm_in_a_panel_a_concept() -> None:
    figure: Any = interpolation_figure(curve())
    assert [trace.name for trace in figure.data] == [
        "own concept, same texts",
        "own concept, random source",
        "something",
    ] * 2
    assert list(figure.data[0].x) == [0.5, 2.5]
    assert list(figure.data[1].y) == [0.9, 0.9]
    assert list(figure.data[1].error_y.array) == pytest.approx([0.2, 0.2])
    assert list(figure.data[1].error_y.arrayminus) == pytest.approx([0.1, 0.1])
    assert sum(trace.showlegend for trace in figure.data) == 3
    assert {shape.x0 for shape in figure.layout.shapes} >= {1}
    assert figure.layout.template == pio.templates[TEMPLATE_NAME]


def test_lines_over_beta_pass_through_the_unsteered_model_of_their_own() -> None:
    figure: Any = beta_figure(table())
    lines = {trace.name: dict(zip(trace.x, trace.y, strict=True)) for trace in figure.data}
    assert lines["native (Self)"] == {-1.0: 40.0, 0.0: 50.0, 1.0: 60.0}
    assert lines["small model, its own vector"][0.0] == 40.0
    assert lines["random T, native length"] == {-1.0: 46.0, 0.0: 50.0, 1.0: 46.0}
    assert "no steering" not in lines


def test_weak_to_strong_shows_its_arms_only() -> None:
    figure: Any = weak_to_strong_figure(table())
    assert {trace.legendgroup for trace in figure.data} == {"source", "native", "random_matched"}


def test_the_summary_marks_what_was_not_bracketed() -> None:
    rows = [
        {
            "concept": "mood",
            "arm": arm,
            "cosine": 1.0,
            "effect_at_equal_damage": value,
            "low": value - 0.5,
            "high": value + 0.25,
            "flag": flag,
        }
        for arm, value, flag in (
            ("native", 1.0, ""),
            ("random", math.nan, "damage not bracketed in 2 of 2"),
        )
    ]
    figure: Any = concept_summary_figure(pd.DataFrame(rows))
    point, text = figure.data
    assert (point.x[0], point.error_x.array[0], point.error_x.arrayminus[0]) == (1.0, 0.25, 0.5)
    assert text.text[0] == "damage not bracketed in 2 of 2"
    with pytest.raises(ValueError, match="lacks columns"):
        concept_summary_figure(pd.DataFrame(rows), equal_damage=False)


def test_tables_without_columns_rows_or_arms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks columns \['cosine'\]"):
        interpolation_figure(curve().drop(columns="cosine"))
    with pytest.raises(ValueError, match="the table has no rows"):
        interpolation_figure(curve()[:0])
    with pytest.raises(ValueError, match="no arm to draw; the table holds"):
        beta_figure(table(), ("stitch",))
