"""Figures of a report say n if results.json knows it, and are drawn from older files too."""

from typing import Any

import pytest

from lrt_lens.adapters.probes import ProbeEvaluation
from lrt_lens.cli._sections import sections_of
from lrt_lens.report._html import Plot
from lrt_lens.report._results import plain_json
from tests.figures.counts import counts_of
from tests.figures.test_result_figures import (
    SCORES,
    calibration,
    probes,
    saes,
    steering,
    stitch_loss,
)

COUNTS = ("n_items", "n_texts", "n_tokens", "n_documents", "n_test")
"""Columns and fields that say how many were measured."""
STEERED = "n = 48 items, 16 neutral texts"


def contents() -> dict[str, dict[str, Any]]:
    """Return the results of each command whose report has figures."""
    steered, probed, loss = steering(), probes(ProbeEvaluation), stitch_loss()
    curve, strength = calibration().curve, {"scale": 1.5, "budget": 0.1, "n_texts": 16, "flag": ""}
    return {
        "fit": {"stitch": SCORES, "grid": [SCORES]},
        "calibrate": {"calibration": strength, "calibration_curve": curve},
        "vector": {
            "arguments": {"damage": 0.1},
            "steering": steered.table,
            "steering_summary": steered.summary,
        },
        "probe": {"chance": 0.5, "n_test": 100, "probes": probed.table},
        "sae": {"sae": saes().table},
        "stitch": {"stitched_loss_arms": loss.table},
    }


def lines_under_titles(content: dict[str, Any]) -> list[str]:
    blocks = [block for section in sections_of(content) for block in section.body]
    return [counts_of(block.figure) for block in blocks if isinstance(block, Plot)]


def without_counts(value: Any) -> Any:
    """Return the content of a file of a version that did not count."""
    if isinstance(value, dict):
        return {key: without_counts(one) for key, one in value.items() if key not in COUNTS}
    return [without_counts(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fit", ["n = 1,000 fitting tokens"]),
        ("calibrate", ["n = 16 neutral texts"]),
        ("vector", [STEERED] * 3),
        ("probe", ["n = 100 test texts"]),
        ("sae", ["n = 20,000 tokens, 80 documents"]),
        ("stitch", ["n = 20,000 tokens, 80 documents"]),
    ],
)
def test_figures_of_a_report_say_n_if_the_file_knows_it(name: str, expected: list[str]) -> None:
    content = plain_json(contents()[name])
    assert lines_under_titles(content) == expected
    older = lines_under_titles(without_counts(content))
    assert len(older) == len(expected)
    assert not any("n =" in line for line in older)


def test_each_concept_has_its_own_counts() -> None:
    content = contents()["vector"]
    for name in ("steering", "steering_summary"):
        other = content[name].assign(concept="sentiment")
        other = other.assign(n_items=60) if "n_items" in other else other
        content[name] = [*plain_json(content[name]), *plain_json(other)]
    expected = [STEERED] * 3 + ["n = 60 items, 16 neutral texts"] * 3
    assert lines_under_titles(plain_json(content)) == expected
