"""Figures show the numbers of their tables, all of them, and nothing else."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from lrt_lens.figures import TEMPLATE_NAME, arm_style, summary_figure
from lrt_lens.figures._steering import (
    calibration_figure,
    effect_damage_figure,
    grid_figure,
    steering_figure,
)
from lrt_lens.figures._template import ARM_STYLES, NEUTRAL, hook_order, ordered_arms, with_counts
from lrt_lens.models import short_hook
from lrt_lens.stitching._pair_table import heat_of_pairs
from tests.figures.counts import counts_of

CONCEPT = "sycophancy"
SOURCES = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.10.hook_resid_post"]
TARGETS = ["blocks.2.hook_resid_post", "blocks.11.hook_resid_mid"]


def _scores() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for i, source in enumerate(reversed(SOURCES)):
        for j, target in enumerate(reversed(TARGETS)):
            value = 0.1 * i + 0.25 * j
            columns = {
                "r2": value,
                "r2_uniform": value - 0.05,
                "r2_cv": value - 0.01,
                "cka": value + 0.3,
                "cosine": value,
            }
            controls = {"r2_null": -0.01 * i, "r2_token": 0.2 + 0.01 * j}
            rows.append(
                {
                    "source_hook": source,
                    "target_hook": target,
                    "n_tokens": 1000,
                    "alpha": 1e-3,
                    **columns,
                    **controls,
                }
            )
    return pd.DataFrame(rows)


def _steering_rows(arm: str, slope: float, draw: float = math.nan) -> list[dict[str, Any]]:
    rows = []
    for scale in (2.0, 0.0, 1.0):  # out of order on purpose
        propensity = -0.5 + slope * scale
        interval = {"propensity_low": propensity - 0.1, "propensity_high": propensity + 0.2}
        rows.append(
            {
                "concept": CONCEPT,
                "arm": arm,
                "scale": scale,
                "propensity": propensity,
                "damage": 0.4 * scale,
                "draw": draw,
                **interval,
            }
        )
    return rows


def _steering(n_draws: int = 20) -> pd.DataFrame:
    unsteered = {
        "scale": 0.0,
        "propensity": -0.5,
        "propensity_low": -0.6,
        "propensity_high": -0.4,
        "damage": 0.0,
    }
    rows = [{"concept": CONCEPT, "arm": "none", **unsteered}]
    rows += (
        _steering_rows("transferred", 0.7)
        + _steering_rows("native", 1.0)
        + _steering_rows("shuffled", 0.1)
    )
    for draw in range(n_draws):
        rows += _steering_rows("random", 0.01 * draw, draw=draw)
    return pd.DataFrame([*rows, {**rows[1], "concept": "another", "propensity": 99.0}])


def _summary() -> pd.DataFrame:
    def row(concept: str, arm: str, effect: float, flag: str = "") -> dict[str, Any]:
        fraction = {"fraction_of_native": effect / 2, "fraction_low": 0.1, "fraction_high": 0.9}
        interval = {"low": effect - 0.25, "high": effect + 0.5}
        return {
            "concept": concept,
            "arm": arm,
            "effect_at_equal_damage": effect,
            "scale": 1.5,
            "flag": flag,
            **interval,
            **fraction,
        }

    rows = [
        row(CONCEPT, "native", 2.0),
        row(CONCEPT, "transferred", 1.25),
        row(CONCEPT, "random", math.nan, "scales do not bracket the budget"),
    ]
    return pd.DataFrame([*rows, row("another", "native", 0.5), row("another", "transferred", 0.25)])


def _trace(figure: go.Figure, name: str) -> Any:
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


def _layout(figure: go.Figure) -> dict[str, Any]:
    return figure.to_plotly_json()["layout"]


def test_hook_names_are_short_on_axes_and_follow_the_forward_pass() -> None:
    assert [short_hook(name) for name in SOURCES] == ["embed", "0.pre", "10.post"]
    assert short_hook("blocks.3.hook_mlp_out") == "3.mlp_out"
    names = [
        "blocks.10.hook_resid_pre",
        "blocks.2.hook_resid_post",
        "blocks.2.hook_resid_mid",
        "hook_embed",
    ]
    assert sorted(names, key=hook_order) == names[::-1]


def test_arms_differ_in_more_than_colour() -> None:
    looks = {(style.dash, style.symbol) for style in ARM_STYLES.values()}
    assert len(looks) == len(ARM_STYLES) == len({style.colour for style in ARM_STYLES.values()})
    assert arm_style("my own arm").label == "my own arm"
    assert ordered_arms(["mine", "none", "native", "transferred", "native"]) == [
        "transferred",
        "native",
        "none",
        "mine",
    ]


def test_the_template_is_registered_but_not_made_the_default() -> None:
    assert TEMPLATE_NAME in pio.templates
    assert pio.templates.default != TEMPLATE_NAME


def test_every_figure_uses_the_template_and_names_the_units() -> None:
    steering = _steering()
    curve = pd.DataFrame({"scale": [0.0, 1.0], "damage": [0.0, 0.2]})
    figures = [
        steering_figure(steering, concept=CONCEPT),
        effect_damage_figure(steering, concept=CONCEPT, budget=0.1),
        summary_figure(_summary(), concept=CONCEPT),
        calibration_figure(curve, budget=0.1, chosen=0.5),
    ]
    for figure in figures:
        titles = str([axis.title.text for axis in [*figure.select_xaxes(), *figure.select_yaxes()]])
        assert "nats" in titles
        assert (
            _layout(figure)["template"]["layout"]
            == pio.templates[TEMPLATE_NAME].to_plotly_json()["layout"]
        )


def test_grid_cells_are_the_values_of_the_table() -> None:
    scores = _scores()
    fit, null = grid_figure(scores, value="r2_uniform").data
    assert list(fit.y) == ["embed", "0.pre", "10.post"]
    assert list(fit.x) == ["2.post", "11.mid"]
    for row, source in enumerate(SOURCES):
        for column, target in enumerate(TARGETS):
            cell = scores[(scores.source_hook == source) & (scores.target_hook == target)].iloc[0]
            assert fit.z[row][column] == cell.r2_uniform
            assert null.z[row][column] == cell.r2_null
            assert list(fit.customdata[row][column]) == [
                cell.r2,
                cell.r2_uniform,
                cell.r2_null,
                cell.r2_token,
                1000,
                1e-3,
            ]


def test_a_grid_opens_on_gain_where_it_is_known_and_reads_like_the_table() -> None:
    scores = _scores().assign(gain_cv=0.3)
    figure = grid_figure(scores)
    assert set(np.ravel(figure.data[0].z)) == {0.3}
    assert "gain over token identity" in _layout(figure)["annotations"][0]["text"]
    assert set(np.ravel(grid_figure(_scores()).data[0].z)) == set(_scores()["r2"])
    # Rows and columns are those of the table that a notebook shows, from top to bottom.
    table = heat_of_pairs(scores, "gain_cv")
    names = re.findall(r"<th[^>]*>([^<]+)</th>", table)
    assert names == ["source ↓ target →", *figure.data[0].x, *figure.data[0].y]
    axes = _layout(figure)
    assert axes["yaxis"]["autorange"] == "reversed"
    assert (axes["xaxis"]["title"]["text"], axes["yaxis"]["title"]["text"]) == (
        "target hook point",
        "source hook point",
    )


def test_the_title_of_a_grid_says_how_many_tokens_fitted_it() -> None:
    assert counts_of(grid_figure(_scores())) == "n = 1,000 fitting tokens"
    surveyed = _scores().assign(n_tokens=[20_000] * 3 + [84_000] * 3)
    assert counts_of(grid_figure(surveyed)) == "n = 20,000–84,000 fitting tokens"
    unknown = _scores().drop(columns="n_tokens")
    assert "n =" not in counts_of(grid_figure(unknown))


def test_counts_stand_under_a_title_and_unknown_ones_are_left_out() -> None:
    titled = {"title": {"text": "Title", "subtitle": {"text": "below"}}, "height": 300}
    figure = go.Figure(layout=titled)
    with_counts(figure, {"items": 1200, "texts": None, "tokens": (5, 5), "rows": 0})
    assert figure.layout.title.text == "Title"
    assert figure.layout.title.subtitle.text == "n = 1,200 items, 5 tokens<br>below"
    # The line has a height of its own, so that the panels keep theirs.
    assert figure.layout.height == 300 + figure.layout.margin.t - 64
    alone = with_counts(go.Figure(layout_title="Title"), {"items": 3})
    assert alone.layout.title.subtitle.text == "n = 3 items"
    single = with_counts(
        go.Figure(layout_title="Title"), {"draws of rows": 1, "hook pairs": (1, 1)}
    )
    assert single.layout.title.subtitle.text == "n = 1 draw of rows, 1 hook pair"
    assert with_counts(go.Figure(layout_title="Title"), {"items": 0}).layout.margin.t is None


def test_arms_differ_in_print_without_colour() -> None:
    # Every grey has a contrast of at least 2 with white paper (WCAG), so that no arm disappears,
    # and the two that are compared most differ in grey. All others differ in dash and marker.
    contrasts = {name: 1.05 / (luminance(one.colour) + 0.05) for name, one in ARM_STYLES.items()}
    assert min(contrasts.values()) > 2, contrasts
    ratio = contrasts["native"] / contrasts["transferred"]
    assert max(ratio, 1 / ratio) > 1.3
    assert 1.05 / (luminance(NEUTRAL) + 0.05) > 4.5, "text"


def luminance(colour: str) -> float:
    """Return the relative luminance of a hex colour, 0 to 1 (WCAG 2.1)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_the_null_shares_the_colour_scale_and_is_explained() -> None:
    figure = grid_figure(_scores())
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    layout = _layout(figure)
    assert "another document" in layout["title"]["subtitle"]["text"]
    assert "null" in layout["annotations"][1]["text"]
    assert layout["coloraxis"]["cmin"] == 0
    assert layout["coloraxis"]["cmax"] == pytest.approx(0.5)  # .45 is the highest r2


def test_the_menus_switch_each_panel_to_another_column() -> None:
    figure = grid_figure(_scores(), value="cka")
    left, right = _layout(figure)["updatemenus"]
    assert [button["label"] for button in left["buttons"]] == [
        "r2",
        "r2_uniform",
        "r2_cv",
        "cka",
        "cosine",
        "r2_null",
        "r2_token",
    ]
    assert left["buttons"][left["active"]]["label"] == "cka"
    assert [button["label"] for button in right["buttons"]] == ["r2_null", "r2_token"]
    data, _, panel = right["buttons"][1]["args"]
    assert panel == [1]
    # r2_token differs between the two targets only.
    assert data["z"][0] == [[pytest.approx(0.21), 0.2]] * 3
    data, heading, panel = left["buttons"][0]["args"]
    assert panel == [0]
    assert data["z"][0] == [list(row) for row in grid_figure(_scores(), value="r2").data[0].z]
    assert heading["coloraxis.cmax"] == pytest.approx(0.5)


def test_the_chosen_pair_is_outlined_in_both_panels() -> None:
    shapes = _layout(grid_figure(_scores(), chosen=(SOURCES[2], TARGETS[0])))["shapes"]
    assert [(shape["x0"], shape["x1"], shape["y0"], shape["y1"]) for shape in shapes] == [
        (-0.5, 0.5, 1.5, 2.5)
    ] * 2
    assert {shape["xref"] for shape in shapes} == {"x", "x2"}


def test_a_grid_without_controls_has_one_panel() -> None:
    scores = _scores().assign(r2_null=math.nan).drop(columns="r2_token")
    figure = grid_figure(scores)
    assert len(figure.data) == 1
    assert len(_layout(figure)["updatemenus"]) == 1


def test_only_small_grids_write_numbers_into_cells() -> None:
    rows = [
        {"source_hook": f"blocks.{i}.hook_resid_post", "target_hook": "hook_embed", "r2": 0.5}
        for i in range(13)
    ]
    assert grid_figure(pd.DataFrame(rows)).data[0].texttemplate is None
    assert grid_figure(pd.DataFrame(rows[:12])).data[0].texttemplate is not None


def test_a_missing_pair_is_a_hole_not_a_zero() -> None:
    scores = _scores()
    z = (
        grid_figure(
            scores[~((scores.source_hook == SOURCES[0]) & (scores.target_hook == TARGETS[0]))]
        )
        .data[0]
        .z
    )
    assert math.isnan(z[0][0])
    assert not math.isnan(z[1][0])


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda scores: scores, {"value": "r2_down"}, "lacks columns"),
        (lambda scores: scores.assign(r2=math.nan), {}, "columns with values here are"),
        (
            lambda scores: scores,
            {"chosen": ("blocks.9.hook_resid_post", TARGETS[0])},
            "is not in the table",
        ),
        (lambda scores: pd.concat([scores, scores]), {}, "12 rows for 6 hook pairs"),
    ],
)
def test_a_grid_that_cannot_be_shown_is_refused_with_the_reason(
    change: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid_figure(change(_scores()), **arguments)


def test_an_arms_line_and_band_are_the_tables_numbers_in_the_order_of_scale() -> None:
    figure = steering_figure(_steering(), concept=CONCEPT)
    line, band = _trace(figure, "transferred"), _trace(figure, "transferred, interval")
    assert list(line.x) == [0, 1, 2]
    assert list(line.y) == pytest.approx([-0.5, 0.2, 0.9])
    assert list(band.x) == [0, 1, 2, 2, 1, 0]
    assert list(band.y) == pytest.approx([-0.3, 0.4, 1.1, 0.8, 0.1, -0.6])
    assert line.line.color == ARM_STYLES["transferred"].colour
    assert 99.0 not in [y for trace in figure.data for y in trace.y]  # the other concept stays out


def test_no_steering_is_a_level_across_the_figure() -> None:
    figure = steering_figure(_steering(), concept=CONCEPT)
    level = _trace(figure, "no steering")
    assert (list(level.x), list(level.y)) == ([0.0], [-0.5])
    assert level.error_y.array[0] == pytest.approx(0.1)
    (shape,) = _layout(figure)["shapes"]
    assert (shape["y0"], shape["y1"]) == (-0.5, -0.5)


@pytest.mark.parametrize(
    "draw_figure",
    [
        lambda t: steering_figure(t, concept=CONCEPT),
        lambda t: effect_damage_figure(t, concept=CONCEPT, budget=0.1),
    ],
)
def test_random_draws_do_not_flood_the_legend(draw_figure: Any) -> None:
    figure = draw_figure(_steering(n_draws=20))
    random = [trace for trace in figure.data if trace.legendgroup == "random"]
    assert [trace.name for trace in random] == ["random (20 draws)"]
    assert len([trace for trace in figure.data if trace.showlegend is not False]) <= 5
    assert list(random[0].y).count(None) == 20  # a gap after each draw: no line joins two draws
    assert len(random[0].y) == 20 * (3 + 1) == len(random[0].x) == len(random[0].customdata)


def test_random_without_draws_is_an_arm_like_the_others() -> None:
    table = pd.DataFrame(_steering_rows("none", 0.0) + _steering_rows("random", 0.1)).drop(
        columns="draw"
    )
    assert list(_trace(steering_figure(table, concept=CONCEPT), "random").x) == [0, 1, 2]


def test_effects_are_differences_to_no_steering_at_the_tables_damage() -> None:
    figure = effect_damage_figure(_steering(), concept=CONCEPT, budget=0.25)
    line = _trace(figure, "native")
    assert list(line.x) == pytest.approx([0, 0.4, 0.8])
    assert list(line.y) == pytest.approx([0, 1, 2])
    budget = [shape for shape in _layout(figure)["shapes"] if shape["x0"] == shape["x1"]]
    assert [(shape["x0"], shape["line"]["dash"]) for shape in budget] == [(0.25, "dash")]


def test_damage_far_beyond_the_budget_is_a_button_away() -> None:
    near = _layout(effect_damage_figure(_steering(), concept=CONCEPT, budget=0.1))
    assert near["xaxis"]["range"][1] == pytest.approx(0.5)
    assert [button["label"] for button in near["updatemenus"][0]["buttons"]] == [
        "near the budget",
        "all",
    ]
    whole = _layout(effect_damage_figure(_steering(), concept=CONCEPT, budget=0.2))
    assert "updatemenus" not in whole
    assert "range" not in whole["xaxis"]


def test_effects_without_an_unsteered_row_are_refused() -> None:
    table = _steering()
    with pytest.raises(ValueError, match="no row with arm 'none'"):
        effect_damage_figure(table[table.arm != "none"], concept=CONCEPT, budget=0.1)


def test_an_unknown_concept_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no concept 'honesty'; it has"):
        steering_figure(_steering(), concept="honesty")
    with pytest.raises(ValueError, match="no concept 'honesty'"):
        summary_figure(_summary(), concept="honesty")


def test_summary_points_and_intervals_are_the_tables() -> None:
    figure = summary_figure(_summary(), concept=CONCEPT)
    point = _trace(figure, "transferred")
    assert (list(point.x), list(point.y)) == ([1.25], ["transferred"])
    assert (list(point.error_x.array), list(point.error_x.arrayminus)) == ([0.5], [0.25])
    assert point.marker.color == ARM_STYLES["transferred"].colour
    assert "fraction of native: 0.62 [0.10, 0.90]" in point.text[0]
    assert [shape["x0"] for shape in _layout(figure)["shapes"]] == [0]


def test_an_effect_that_was_not_measured_is_said_in_its_place() -> None:
    figure = summary_figure(_summary(), concept=CONCEPT)
    note = _trace(figure, "not measured")
    assert list(note.y) == ["random"]
    assert note.text[0].replace("<br>", " ") == "scales do not bracket the budget"
    assert not [trace for trace in figure.data if trace.name == "random"]
    unexplained = summary_figure(_summary().assign(flag=math.nan), concept=CONCEPT)
    assert _trace(unexplained, "not measured").text[0] == "not measured"


def test_each_concept_has_a_facet_with_its_own_zero_line() -> None:
    figure = summary_figure(_summary())
    layout = _layout(figure)
    assert [annotation["text"] for annotation in layout["annotations"]] == [CONCEPT, "another"]
    assert len(layout["shapes"]) == 2
    assert {trace.yaxis for trace in figure.data} == {"y", "y2"}


def test_an_empty_summary_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        summary_figure(_summary().iloc[:0])


def test_calibration_marks_budget_and_chosen_scale() -> None:
    curve = pd.DataFrame({"scale": [2.0, 0.0, 1.0], "damage": [0.3, 0.0, 0.1]})
    figure = calibration_figure(curve, budget=0.15, chosen=1.25)
    assert (list(figure.data[0].x), list(figure.data[0].y)) == ([0, 1, 2], [0, 0.1, 0.3])
    horizontal, vertical = _layout(figure)["shapes"]
    assert (horizontal["y0"], horizontal["y1"]) == (0.15, 0.15)
    assert (vertical["x0"], vertical["x1"]) == (1.25, 1.25)


@pytest.mark.parametrize("chosen", [None, math.nan])
def test_calibration_without_a_scale_says_so(chosen: float | None) -> None:
    figure = calibration_figure(
        pd.DataFrame({"scale": [0.0], "damage": [0.0]}), budget=0.1, chosen=chosen
    )
    assert len(_layout(figure)["shapes"]) == 1
    assert "no scale chosen" in _layout(figure)["title"]["subtitle"]["text"]


def test_calibration_shows_its_flag_below_the_title() -> None:
    curve = pd.DataFrame({"scale": [0.0, 1.0], "damage": [0.0, 0.1]})
    flag = "the damage crosses the budget more than once: at scale 3 it is <.05 again"
    text = _layout(calibration_figure(curve, budget=0.1, chosen=1.0, flag=flag))["title"]
    assert "crosses the budget more than once" in text["subtitle"]["text"]
    # A flag is text, not HTML.
    assert "&lt;.05" in text["subtitle"]["text"]


def test_figures_leave_the_callers_table_alone() -> None:
    table, scores, summary = _steering(), _scores(), _summary()
    copies = [frame.copy(deep=True) for frame in (table, scores, summary)]
    steering_figure(table, concept=CONCEPT)
    effect_damage_figure(table, concept=CONCEPT, budget=0.1)
    grid_figure(scores)
    summary_figure(summary)
    for frame, copy in zip((table, scores, summary), copies, strict=True):
        pd.testing.assert_frame_equal(frame, copy)
