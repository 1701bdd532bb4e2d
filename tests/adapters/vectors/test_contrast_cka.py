"""CKA of contrast differences: a naive double loop, a planted concept, and its null."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lrt_lens.adapters.vectors import contrast_cka
from lrt_lens.adapters.vectors._contrast_cka import CONTRAST_CKA_COLUMNS, _ContrastRows, _row
from lrt_lens.data import ContrastSet
from lrt_lens.figures import similarity_figure
from lrt_lens.models import ModelPair

PLACES = ("house", "garden", "tree", "river", "stone", "bird", "king", "queen", "cat", "girl")
CONTRAST = ContrastSet(
    [f"the happy boy sang in the old {p} and it was good" for p in PLACES],
    [f"the sad boy slept in the old {p} and it was bad" for p in PLACES],
    name="mood",
)


@pytest.fixture(scope="module")
def table(pair: ModelPair) -> pd.DataFrame:
    return contrast_cka(pair, CONTRAST, n_groups=5, n_shuffled=20, read="mean", progress=False)


def measured(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, measure: str, seed: int = 0
) -> dict[str, Any]:
    """Return the row of states [text, d] of two models."""
    sides = [_ContrastRows.of(torch.from_numpy(one), groups).of_measure(measure) for one in (x, y)]
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(groups)) for _ in range(19)]
    return _row(*sides, orders)


@pytest.mark.parametrize("measure", ["cka_differences", "cka_states"])
def test_it_is_the_sum_over_covariances_of_different_groups(measure: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 5)), rng.normal(size=(24, 7))
    y[:, :5] += x
    groups = np.arange(12) % 4
    rows = {
        "cka_differences": (x[:12] - x[12:], y[:12] - y[12:], groups),
        "cka_states": (x, y, np.tile(groups, 2)),
    }[measure]

    def covariance(a: np.ndarray, b: np.ndarray, g: int) -> np.ndarray:
        a, b = a[rows[2] == g], b[rows[2] == g]
        return (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)

    def between(a: np.ndarray, b: np.ndarray) -> float:
        parts = [covariance(a, b, g) for g in range(4)]
        return sum(float((parts[g] * parts[h]).sum()) for g in range(4) for h in range(4) if g != h)

    a, b = rows[:2]
    expected = between(a, b) / math.sqrt(between(a, a) * between(b, b))
    assert measured(x, y, groups, measure)["value"] == pytest.approx(expected, rel=1e-9)


def test_differences_find_a_shared_concept_that_states_do_not_show() -> None:
    rng = np.random.default_rng(1)
    n, topics, concept = 60, rng.normal(size=(60, 8)), rng.normal(size=(60, 2))
    # Both models hold the topic in the same way, and only the first two the concept.
    hold = rng.normal(size=(2, 8, 30)) * 4
    write = rng.normal(size=(3, 2, 30))
    other = rng.normal(size=(n, 2))

    def states(model: int, variation: np.ndarray) -> np.ndarray:
        base = topics @ hold[model % 2]
        change = variation @ write[model]
        return np.concatenate([base + change, base - change]) + rng.normal(size=(2 * n, 30)) * 0.1

    source = states(0, concept)
    groups = np.arange(n) % 10
    same, different = states(1, concept), states(2, other)
    found = {
        (name, measure): measured(source, target, groups, measure)
        for name, target in (("same", same), ("different", different))
        for measure in ("cka_differences", "cka_states")
    }
    assert found["same", "cka_differences"]["low"] > 0.7
    assert found["same", "cka_differences"]["p"] == 1 / 20
    assert found["different", "cka_differences"]["high"] < 0.3
    # States look as similar in both cases.
    assert found["different", "cka_states"]["value"] > 0.5
    gap = found["same", "cka_states"]["value"] - found["different", "cka_states"]["value"]
    assert abs(gap) < 0.35


def test_independent_streams_have_no_similarity_at_any_width() -> None:
    values = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        row = measured(
            rng.normal(size=(80, 200)),
            rng.normal(size=(80, 300)),
            np.arange(40) % 10,
            "cka_differences",
        )
        values.append(row["value"])
    # Biased CKA of 40 rows in 200 dimensions is about 0.85.
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values)) + 0.01


def test_the_interval_holds_the_value_of_many_pairs() -> None:
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(6, 12))

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        own = np.random.default_rng(seed)
        x = own.normal(size=(2 * n, 6)) * np.array([3, 2, 1, 1, 1, 1])
        return x, x @ mix + own.normal(size=(2 * n, 12)) * 6

    truth = measured(*draw(20_00, 10_000), np.arange(2000) % 10, "cka_differences")["value"]
    held = []
    for seed in range(100):
        row = measured(*draw(60, seed), np.arange(60) % 10, "cka_differences")
        held.append(row["low"] <= truth <= row["high"])
    # 95 of 100 are expected; 88 is three standard errors below.
    assert np.mean(held) >= 0.88


def test_the_table_has_two_rows_per_hook_pair(pair: ModelPair, table: pd.DataFrame) -> None:
    assert tuple(table.columns) == CONTRAST_CKA_COLUMNS
    assert len(table) == 2 * pair.source.n_layers * pair.target.n_layers
    assert set(table["n"]) == {len(PLACES)}
    assert (table["p"].dropna() >= 1 / 21).all()
    figure = similarity_figure(table)
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert any("CKA of contrast differences" in title for title in titles)


def test_a_model_is_like_itself(twins: ModelPair) -> None:
    table = contrast_cka(
        twins, CONTRAST, source_hooks=[1], target_hooks=[1], n_groups=5, read="mean", progress=False
    )
    assert table["value"].to_numpy() == pytest.approx(1, abs=1e-9)
    assert table["effect"].to_numpy() == pytest.approx(1, abs=1e-9)


def test_texts_that_are_no_pairs_or_too_few_are_refused(pair: ModelPair) -> None:
    unpaired = ContrastSet(CONTRAST.positive, CONTRAST.negative[:8])
    with pytest.raises(ValueError, match=r"not pairs; differences are those within pairs"):
        contrast_cka(pair, unpaired, progress=False)
    few = ContrastSet(CONTRAST.positive[:4], CONTRAST.negative[:4])
    with pytest.raises(ValueError, match="at least 6 pairs"):
        contrast_cka(pair, few, progress=False)
