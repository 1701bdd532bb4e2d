import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lrt_lens._repr_html import (
    MAX_ROWS,
    card,
    facts,
    format_value,
    heat_table,
    names_in_tables,
    note,
    table,
)
from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import Calibration, SteeringVector
from lrt_lens.data import ContrastSet
from lrt_lens.stitching import StitchGrid, fit_stitches

EVIL = "<script>alert(1)</script>&\"'"


def cells(html: str) -> list[list[str]]:
    """Return the texts of a table's cells by row, the heading first."""
    rows = re.findall(r"<tr.*?</tr>", html, flags=re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


@pytest.fixture(scope="module")
def grid(pair: Any, passages: list[str]) -> StitchGrid:
    return fit_stitches(pair, passages[:80], n_tokens=2500, context_length=32, progress=False)


@pytest.fixture(scope="module")
def shown(pair: Any, grid: StitchGrid, passages: list[str]) -> dict[str, str]:
    """Return the HTML of the objects on the way from models to a vector."""
    stitch = grid.best(source=1)
    vector = SteeringVector.mean_difference(
        pair.source, ContrastSet(passages[:8], passages[8:16], name="a & b"), at=stitch.source_hook
    )
    probe = LinearProbe.fit(
        pair.source, passages[:20], ["one", "two"] * 10, at=stitch.source_hook, name="a & b"
    )
    things = {
        "pair": pair,
        "moments": grid.moments,
        "grid": grid,
        "stitch": stitch,
        "vector": vector,
        "probe": probe,
    }
    things |= {"moved": stitch.transfer(vector), "moved_probe": stitch.transfer(probe)}
    return {name: thing._repr_html_() for name, thing in things.items()}


def test_an_interval_stands_beside_its_value() -> None:
    frame = pd.DataFrame(
        {
            "arm": ["a"],
            "r": [0.51234],
            "r_sd": [0.1],
            "r_low": [0.4],
            "r_high": [0.6],
            "effect": [2.0],
            "low": [1.0],
            "high": [3.0],
        }
    )
    assert cells(table(frame)) == [
        ["arm", "r", "r_sd", "effect"],
        ["a", "0.512 [0.400, 0.600]", "0.100", "2.00 [1.00, 3.00]"],
    ]


def test_an_interval_of_another_stem_belongs_to_the_column_before_it() -> None:
    frame = pd.DataFrame(
        {"fraction_of_native": [0.5], "fraction_low": [0.4], "fraction_high": [0.6]}
    )
    assert cells(table(frame)) == [["fraction_of_native"], ["0.500 [0.400, 0.600]"]]


def test_a_second_interval_of_one_value_has_a_column_of_its_own() -> None:
    frame = pd.DataFrame(
        {"r": [0.5], "r_low": [0.4], "r_high": [0.6], "r_scale_low": [0.3], "r_scale_high": [0.7]}
    )
    assert cells(table(frame)) == [["r", "r_scale"], ["0.500 [0.400, 0.600]", "[0.300, 0.700]"]]


def test_ends_that_are_unknown_are_not_written() -> None:
    frame = pd.DataFrame({"r": [0.5, np.nan], "low": [np.nan, np.nan], "high": [np.nan, np.nan]})
    assert cells(table(frame))[1:] == [["0.500"], ["n/a"]]


def test_columns_that_hold_nothing_are_left_out() -> None:
    frame = pd.DataFrame(
        {"arm": ["a", "b"], "flag": ["", ""], "none": [np.nan, np.nan], "n": [0, 0]}
    )
    assert cells(table(frame)) == [["arm", "n"], ["a", "0"], ["b", "0"]]


def test_a_named_index_is_shown_and_a_plain_one_is_not() -> None:
    frame = pd.DataFrame({"x": [1]}, index=pd.Index(["row"], name="arm"))
    assert cells(table(frame)) == [["arm", "x"], ["row", "1"]]
    assert cells(table(frame.reset_index(drop=True))) == [["x"], ["1"]]


def test_a_long_table_is_cut_and_says_so() -> None:
    html = table(pd.DataFrame({"x": range(MAX_ROWS + 3)}))
    assert len(cells(html)) == MAX_ROWS + 1
    assert f"{MAX_ROWS} of {MAX_ROWS + 3} rows" in html
    assert "rows" not in table(pd.DataFrame({"x": range(MAX_ROWS)}))


def test_a_table_that_may_not_fit_says_that_it_scrolls() -> None:
    wide = pd.DataFrame({f"a long column {i}": [0.5] for i in range(10)})
    for shown in (table(wide), heat_table(wide)):
        assert "scroll the table sideways" in shown
        assert shown.index("scroll") < shown.index("<table"), "above it, where it is read"
    for narrow in (table(wide.iloc[:, :4]), heat_table(wide.iloc[:, :4]), table(pd.DataFrame())):
        assert "scroll the table" not in narrow
    # Long texts make a table wide too.
    assert "scroll" in table(pd.DataFrame({"flag": ["a reason " * 15]}))


def test_an_empty_table_has_its_heading() -> None:
    assert cells(table(pd.DataFrame({"arm": [], "x": []}))) == [["arm", "x"]]


def test_every_text_is_escaped() -> None:
    frame = pd.DataFrame({EVIL: [EVIL]}, index=pd.Index([EVIL], name=EVIL))
    heat = heat_table(pd.DataFrame({EVIL: [1.0]}, index=[EVIL]), corner=EVIL)
    html = card(EVIL, facts({EVIL: EVIL}), table(frame), heat, note(EVIL))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 11


def test_facts_leave_out_what_is_unknown() -> None:
    assert cells(facts({"a": 1234, "b": None, "c": float("nan"), "d": 0.5})) == [
        ["a", "1,234"],
        ["c", "n/a"],
        ["d", "0.500"],
    ]


def test_a_heat_table_shades_from_the_smallest_to_the_largest() -> None:
    html = heat_table(
        pd.DataFrame([[0.0, 1.0], [0.5, np.nan]], index=["a", "b"], columns=["c", "d"])
    )
    assert cells(html) == [["", "c", "d"], ["a", "0.00", "1.00"], ["b", "0.50", ""]]
    shades = [
        int(share)
        for share in re.findall(r"background:color-mix\(in srgb, currentColor (\d+)%", html)
    ]
    assert shades[0] == 0 < shades[2] < shades[1] <= 40


def test_equal_and_absent_values_have_no_shade() -> None:
    for frame in (pd.DataFrame([[2.0, 2.0]]), pd.DataFrame([[np.nan]])):
        assert "currentColor 0%" in heat_table(frame) or frame.isna().all().all()
        assert "nan" not in heat_table(frame)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.5, "0.500"),
        (0.0, "0"),
        (1e-5, "1e-05"),
        (None, "n/a"),
        (pd.NA, "n/a"),
        (True, "True"),
        ("x", "x"),
        (99999.0, "99999"),
    ],
)
def test_values_are_written_to_three_digits(value: object, text: str) -> None:
    assert format_value(value) == text


def test_objects_take_their_colours_from_the_page_and_nothing_from_the_network(
    shown: dict[str, str],
) -> None:
    for name, html in shown.items():
        assert not re.search(
            r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsl|https?:|url\(|<script|<style|<img|class=", html
        ), name
        colours = set(re.findall(r"[;'\"](?:color|background):([^;\"]+)", html))
        assert all(
            colour in ("inherit", "transparent") or "currentColor" in colour for colour in colours
        ), (name, colours)


def test_objects_look_alike(shown: dict[str, str]) -> None:
    titles = {
        name: re.findall(r'font-weight:600">(\w+)</div>', html) for name, html in shown.items()
    }
    assert titles == {
        "pair": ["ModelPair"],
        "moments": ["CrossMoments"],
        "grid": ["StitchGrid"],
        "stitch": ["Stitch"],
        "vector": ["SteeringVector"],
        "probe": ["LinearProbe"],
        "moved": ["SteeringVector"],
        "moved_probe": ["LinearProbe"],
    }


def test_a_pair_shows_its_models(shown: dict[str, str], pair: Any) -> None:
    head, *rows = cells(shown["pair"])
    source = dict(zip(head, rows[0], strict=True))
    assert (source["layers"], source["width"], source["basis"], source["device"]) == (
        "2",
        "16",
        "raw",
        "cpu",
    )
    assert source["vocabulary"] == str(len(pair.source.tokenizer))
    assert dict(zip(head, rows[1], strict=True))["width"] == "24"
    assert "Both models read the same tokens." in shown["pair"]


def test_moments_show_what_they_hold_and_how_large_they_are(
    shown: dict[str, str], grid: StitchGrid
) -> None:
    rows = cells(shown["moments"])
    found, moments = dict(row for row in rows if len(row) == 2), grid.moments
    assert found["tokens"] == f"{moments.n_tokens:,}"
    assert found["documents"] == str(moments.provenance.n_documents)
    assert found["corpus"] == moments.provenance.corpus
    assert f"({moments.n_fit:,} tokens)" in found["folds"]
    assert found["size"].endswith(("KB", "MB"))


def test_the_size_of_moments_is_that_of_their_file(grid: StitchGrid, tmp_path: Any) -> None:
    path = grid.moments.save(tmp_path / "moments.safetensors")
    assert path.stat().st_size == pytest.approx(grid.moments.n_bytes, rel=0.05)


def test_a_grid_shows_its_best_pair_and_every_score(
    shown: dict[str, str], grid: StitchGrid
) -> None:
    best = grid.best()
    assert f"{best.source_hook} → {best.target_hook}" in shown["grid"]
    numbers = {
        row[0]: row[1:] for row in cells(shown["grid"]) if row[0].endswith("post") or "↓" in row[0]
    }
    assert numbers["source ↓ target →"] == ["0.post", "1.post", "2.post"]
    for row in grid.scores.to_dict("records"):
        place = numbers["source ↓ target →"].index(f"{row['target_hook'].split('.')[1]}.post")
        assert numbers[f"{row['source_hook'].split('.')[1]}.post"][place] == f"{row['gain_cv']:.2f}"


def test_a_stitch_shows_both_ways_with_the_null_and_token_identity(
    shown: dict[str, str], grid: StitchGrid
) -> None:
    scores = grid.best(source=1).scores
    head, up, down = [row for row in cells(shown["stitch"]) if len(row) > 2]
    up, down = dict(zip(head, up, strict=True)), dict(zip(head, down, strict=True))
    for name in (
        "alpha",
        "r2",
        "r2_uniform",
        "r2_cv",
        "r2_uniform_cv",
        "r2_null",
        "r2_token",
        "r2_uniform_token",
    ):
        assert up[name] == format_value(scores[name]), name
    for name, column in {
        "r2": "r2_down",
        "r2_uniform": "r2_uniform_down",
        "r2_cv": "r2_down_cv",
        "alpha": "alpha_down",
    }.items():
        assert down[name] == format_value(scores[column]), name


def test_a_reversed_stitch_shows_what_is_known_of_it(grid: StitchGrid) -> None:
    stitch = grid.best(source=1)
    html = stitch.reversed()._repr_html_()
    assert {"r2_null", "r2_uniform_cv"} <= set(re.findall(r"<th[^>]*>(\w+)</th>", html))
    for score in ("r2_null", "r2_null_down"):
        assert format_value(stitch.scores[score]) in html


def test_a_vector_shows_its_size_and_origin(shown: dict[str, str], grid: StitchGrid) -> None:
    found, moved = dict(cells(shown["vector"])), dict(cells(shown["moved"]))
    assert found["name"] == "a &amp; b"
    assert found["method"] == "mean_difference, read last"
    assert found["texts"] == "8 pairs"
    assert re.fullmatch(r"\d+%", found["share of the median residual norm"])
    assert moved["hook point"] == grid.best(source=1).target_hook
    assert (found["dimensions"], moved["dimensions"]) == ("16", "24")


def test_a_probe_shows_its_classes(shown: dict[str, str]) -> None:
    assert dict(cells(shown["probe"]))["classes"] == "one, two"
    assert dict(cells(shown["moved_probe"]))["dimensions"] == "24"


def test_a_calibration_shows_what_it_found_and_what_it_tried() -> None:
    curve = pd.DataFrame({"scale": [0.0, 2.0, 2.3], "damage": [0.0, 0.09, 0.101]})
    html = Calibration(scale=2.3, damage=0.101, budget=0.1, curve=curve)._repr_html_()
    shown = dict(
        row
        for row in cells(html)
        if len(row) == 2
        and row[0] in ("scale", "damage", "steered passes")
        and row != ["scale", "damage"]
    )
    assert shown == {
        "scale": "2.30",
        "damage": "0.101 of 0.1 (nats per token, rise of the loss)",
        "steered passes": "2",
    }


def test_a_fidelity_shows_its_prediction_beside_the_naive_one_and_chance(grid: StitchGrid) -> None:
    found = grid.best().fidelity(torch.ones(grid.best().up.weight.shape[0]), n_random=5)
    head, row = cells(found._repr_html_())
    shown = dict(zip(head, row, strict=True))
    value, low, high, naive = map(format_value, (found.value, found.low, found.high, found.naive))
    assert shown["predicted correlation"] == f"{value} [{low}, {high}]"
    assert shown["naive"] == naive
    mean, low, high = map(format_value, (found.random_mean, found.random_low, found.random_high))
    assert shown["random directions"] == f"{mean} [{low}, {high}]"


def test_two_models_of_one_name_are_told_apart_by_their_role() -> None:
    assert names_in_tables("small", "large") == ("small", "large")
    assert names_in_tables("small", "small") == ("small (source)", "small (target)")
