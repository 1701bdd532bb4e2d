"""Figures of similarities and spectra show all numbers of their tables and nothing else."""

import math
from typing import Any

import pandas as pd
import pytest

from lrt_lens.figures import TEMPLATE_NAME, similarity_figure, similarity_lines_figure
from lrt_lens.figures._similarity import spectrum_figure
from lrt_lens.models import short_hook

SOURCES = ["hook_embed", "blocks.2.hook_resid_post", "blocks.10.hook_resid_post"]
TARGETS = ["blocks.2.hook_resid_post", "blocks.11.hook_resid_mid"]


def _table(*measures: str, null: bool = True) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for k, measure in enumerate(measures):
        for i, source in reversed(list(enumerate(SOURCES))):
            for j, target in enumerate(TARGETS):
                value = 0.1 * k + 0.2 * i + 0.05 * j
                effect = value - 0.02 if null else math.nan
                interval = {
                    "low": value - 0.01,
                    "high": value + 0.03,
                    "effect_low": effect - 0.02,
                    "effect_high": effect + 0.04,
                }
                rows.append(
                    {
                        "source_hook": source,
                        "target_hook": target,
                        "measure": measure,
                        "value": value,
                        "effect": effect,
                        "null": 0.02 if null else math.nan,
                        "held_out": value - 0.1,
                        "n": 1000,
                        **interval,
                    }
                )
    return pd.DataFrame(rows)


def _cell(table: pd.DataFrame, measure: str, source: str, target: str, column: str) -> float:
    chosen = table[
        (table.measure == measure) & (table.source_hook == source) & (table.target_hook == target)
    ]
    return chosen[column].item()


def test_every_measure_has_its_values_beside_its_effects_in_the_order_of_the_forward_pass() -> None:
    table = (
        _table("cka", "svcca").sample(frac=1, random_state=0).sort_values("measure", kind="stable")
    )
    figure = similarity_figure(table)
    assert len(figure.data) == 4
    panels = [(measure, column) for measure in ("cka", "svcca") for column in ("value", "effect")]
    for trace, (measure, column) in zip(figure.data, panels, strict=True):
        assert list(trace.y) == [short_hook(s) for s in SOURCES]
        assert list(trace.x) == [short_hook(t) for t in TARGETS]
        expected = [[_cell(table, measure, s, t, column) for t in TARGETS] for s in SOURCES]
        assert [list(row) for row in trace.z] == expected
        assert trace.coloraxis == "coloraxis"
    headings = [annotation.text for annotation in figure.layout.annotations]
    assert headings[0].startswith("CKA, debiased<br>value")
    assert headings[3].startswith("SVCCA (mean)<br>effect")
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert figure.layout.template == similarity_figure(table).layout.template
    assert TEMPLATE_NAME == "lrt_lens"


def test_the_hover_text_has_interval_null_and_held_out() -> None:
    table = _table("cka")
    trace = similarity_figure(table).data[0]
    for i, name in enumerate(
        ("value", "low", "high", "null", "effect", "effect_low", "effect_high", "held_out", "n")
    ):
        assert f"{name}: %{{customdata[{i}]" in trace.hovertemplate
        assert trace.customdata[2][1][i] == _cell(table, "cka", SOURCES[2], TARGETS[1], name)


def test_without_any_null_there_are_values_only() -> None:
    figure = similarity_figure(_table("cka", "cca", null=False))
    assert len(figure.data) == 2
    assert all("value" in annotation.text for annotation in figure.layout.annotations)


def test_a_measure_without_a_null_beside_one_with_it_says_so() -> None:
    figure = similarity_figure(pd.concat([_table("cka"), _table("cca", null=False)]))
    assert len(figure.data) == 4
    (note,) = [
        annotation
        for annotation in figure.layout.annotations
        if annotation.text.startswith("no null")
    ]
    assert note.yref == f"{figure.data[3].yaxis} domain"


def test_a_pair_that_was_not_measured_is_a_gap() -> None:
    table = _table("cka").drop(index=0)  # the last source with the first target
    trace = similarity_figure(table).data[0]
    assert math.isnan(trace.z[2][0])
    assert not math.isnan(trace.z[2][1])


def test_lines_run_over_the_targets_layers_with_their_intervals() -> None:
    table = _table("cka", "svcca")
    figure = similarity_lines_figure(table, measure="svcca", column="effect")
    assert [trace.name for trace in figure.data] == [short_hook(s) for s in SOURCES]
    for trace, source in zip(figure.data, SOURCES, strict=True):
        assert list(trace.x) == [short_hook(t) for t in TARGETS]
        assert list(trace.y) == [_cell(table, "svcca", source, t, "effect") for t in TARGETS]
        assert list(trace.error_y.array) == pytest.approx([0.04, 0.04])
        assert list(trace.error_y.arrayminus) == pytest.approx([0.02, 0.02])
    assert len({(trace.line.color, trace.marker.symbol) for trace in figure.data}) == len(SOURCES)


def test_held_out_lines_have_no_interval_and_say_what_they_are() -> None:
    figure = similarity_lines_figure(_table("svcca"), column="held_out")
    assert all(trace.error_y.array is None for trace in figure.data)
    assert "test fold" in figure.layout.title.subtitle.text


def test_tables_that_cannot_be_shown_are_refused() -> None:
    table = _table("cka")
    with pytest.raises(ValueError, match=r"lacks columns \['effect'\]"):
        similarity_figure(table.drop(columns="effect"))
    with pytest.raises(ValueError, match="no rows"):
        similarity_figure(table.iloc[:0])
    with pytest.raises(ValueError, match="two rows of one measure"):
        similarity_figure(pd.concat([table, table]))
    with pytest.raises(ValueError, match=r"no measure 'svcca'; it has \['cka'\]"):
        similarity_lines_figure(table)
    with pytest.raises(ValueError, match="no rows"):
        spectrum_figure(pd.DataFrame({"index": [], "singular_value": [], "share": []}))


def test_a_spectrum_is_a_line_on_logarithmic_axes() -> None:
    table = pd.DataFrame({"index": [1, 2], "singular_value": [4.0, 1.0], "share": [1.0, 0.25]})
    figure = spectrum_figure(table)
    assert [(list(trace.x), list(trace.y)) for trace in figure.data] == [([1, 2], [4.0, 1.0])]
    assert list(figure.data[0].customdata) == [1.0, 0.25]
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
