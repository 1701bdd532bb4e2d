"""In a terminal every result is short: at most 40 lines of at most 100 characters."""

from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd
import pytest

from lrt_lens._short_repr import WIDTH, ShortRepr
from lrt_lens.adapters.probes import ProbeEvaluation
from lrt_lens.adapters.saes import SparseProbeEvaluation
from lrt_lens.stitching import StitchGrid
from tests.figures import test_result_figures as small

RESULTS: dict[str, Any] = {
    name: getattr(small, name)
    for name in (
        *("steering", "transfers", "ablation", "clamping", "code_map", "concept_transfer"),
        *("interpolation", "geometry", "family", "matches", "propensity", "saes", "page"),
        *("initialisation", "scaling", "training", "label_savings", "layer_choice"),
        *("diagnostics", "stitch_loss", "comparison", "calibration"),
    )
} | {
    "probes": lambda: small.probes(ProbeEvaluation),
    "sparse probes": lambda: small.probes(SparseProbeEvaluation),
}


@dataclass(frozen=True, repr=False)
class Example(ShortRepr):
    name: str
    table: pd.DataFrame
    summary: pd.DataFrame
    share: float = 0.5
    flag: str = ""


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_of_hundreds_of_rows_is_short(name: str) -> None:
    result = RESULTS[name]()
    # As many rows and columns as results of real runs have.
    large = {
        one.name: enlarged(value)
        for one in fields(result)
        if isinstance(value := getattr(result, one.name), pd.DataFrame) and len(value)
    }
    text = repr(replace(result, **large))
    lines = text.split("\n")
    assert text.startswith(type(result).__name__)
    assert len(lines) <= 40
    # One line of prose may wrap.
    assert max(map(len, lines)) <= (WIDTH if len(lines) > 1 else 2 * WIDTH)


def enlarged(table: pd.DataFrame) -> pd.DataFrame:
    more = {f"a further column {i}": "a text of a flag, as long as flags are, " * 3 for i in (1, 2)}
    return pd.concat([table] * (1 + 500 // len(table)), ignore_index=True).assign(**more)


def test_a_grid_of_many_pairs_is_short(grid: StitchGrid) -> None:
    text = repr(grid)
    assert text.startswith("StitchGrid(")
    assert ".scores: 4 rows × 23 columns" in text
    assert max(map(len, text.split("\n"))) <= WIDTH


def test_the_text_has_the_plain_fields_and_the_beginning_of_the_main_table() -> None:
    table = pd.DataFrame({"arm": ["native", "random"] * 10, "value": 0.123456})
    text = repr(Example("mood", pd.DataFrame({"x": range(600)}), table))
    assert text.split("\n")[:5] == [
        "Example(name='mood', share=0.5)",
        "  .table: 600 rows × 1 columns",
        "  .summary: 20 rows × 2 columns",
        "  .summary (12 of 20 rows):",
        "     arm  value",
    ]
    assert "native  0.123" in text


def test_columns_that_do_not_fit_are_counted() -> None:
    wide = pd.DataFrame({f"column {i}": ["x" * 30] for i in range(9)})
    text = repr(Example("mood", pd.DataFrame(), wide))
    assert ".summary (3 of 9 columns):" in text
    assert "column 2" in text
    assert "column 3" not in text


def test_a_result_without_rows_has_its_sizes_alone() -> None:
    empty = Example("a name that is longer than forty characters in all", *[pd.DataFrame()] * 2)
    first, *rest = repr(empty).split("\n")
    assert first.startswith("Example(name='a name that is longer than forty chara…")
    assert rest == ["  .table: 0 rows × 0 columns", "  .summary: 0 rows × 0 columns"]
