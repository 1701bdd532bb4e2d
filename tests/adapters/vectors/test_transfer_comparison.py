"""Rules of transfer compared with each other, where the result is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lrt_lens.adapters.vectors import (
    Intervention,
    NeutralText,
    SteeringVector,
    TransferComparison,
    TransferRule,
    compare_transfers,
    evaluate_steering,
)
from lrt_lens.adapters.vectors._transfer_comparison import unchanged
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.figures import transfer_figure
from lrt_lens.models import ModelPair
from lrt_lens.stitching import StitchGrid, fit_stitches
from tests.adapters.vectors.reference import OneRowPerContinuation
from tests.figures.counts import counts_of

PLACES = ("house", "garden", "tree", "river", "stone", "bird", "king", "boat")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p} and it was good" for p in PLACES],
    [f"the sad dog slept on the {p} and it was bad" for p in PLACES],
    name="mood",
)
ITEMS = ChoiceItems(
    [f"the little boy saw the {p} and he" for p in PLACES] * 2,
    [" sang"] * 8 + [" ran"] * 8,
    [" slept"] * 8 + [" found a stone"] * 8,
    name="mood",
)
SETTINGS: dict[str, Any] = {"damage": 0.02, "progress": False, "n_contrast_groups": 4}


def negative(vector: SteeringVector) -> SteeringVector:
    return replace(vector, direction=-vector.direction)


@pytest.fixture(scope="module")
def twins(load: Any) -> ModelPair:
    """Return a pair of one small random model and itself, so that transferred vectors steer."""
    return ModelPair(load("llama", d=16, layers=3, seed=7), load("llama", d=16, layers=3, seed=7))


@pytest.fixture(scope="module")
def grid(twins: ModelPair, corpus: list[str]) -> StitchGrid:
    return fit_stitches(
        twins,
        corpus,
        source_layers=[1],
        target_layers=[0, 1],
        n_tokens=None,
        context_length=32,
        null="full",
        progress=False,
    )


@pytest.fixture(scope="module")
def vector(twins: ModelPair) -> SteeringVector:
    return SteeringVector.mean_difference(twins.source, CONTRAST, at=1)


@pytest.fixture(scope="module")
def comparison(
    twins: ModelPair, grid: StitchGrid, vector: SteeringVector, corpus: list[str]
) -> TransferComparison:
    rules = {
        "plain": TransferRule(grid[1, 1], vector),
        "again": TransferRule(grid[1, 1], vector),
        "reversed": TransferRule(grid[1, 1], vector, prepare=negative),
    }
    return compare_transfers(twins, rules, ITEMS, neutral=corpus[:12], **SETTINGS)


def rule(comparison: TransferComparison, name: str) -> Any:
    return comparison.summary.set_index("rule").loc[name]


def test_a_rule_has_the_numbers_of_the_transferred_vector_of_an_evaluation(
    twins: ModelPair, grid: StitchGrid, vector: SteeringVector, corpus: list[str]
) -> None:
    evaluation = evaluate_steering(
        twins,
        grid[1, 1],
        vector,
        ITEMS,
        neutral=corpus[:12],
        n_random=0,
        n_permuted=0,
        n_shuffled=0,
        **SETTINGS,
    )
    # An evaluation keeps some items for its choice of a layer.
    _, measured = ITEMS.split(0.25, seed=0)
    rules = {"plain": TransferRule(grid[1, 1], vector)}
    comparison = compare_transfers(twins, rules, measured, neutral=corpus[:12], **SETTINGS)
    expected = evaluation.summary.set_index("arm")
    for name, arm in (("plain", "transferred"), ("native", "native")):
        found = rule(comparison, name)
        for column in ("effect_at_equal_damage", "effect_negated", "effect_mean", "scale"):
            assert found[column] == pytest.approx(expected.loc[arm, column], rel=1e-6)
        # A fraction of an effect that may be 0 is NaN in both tables.
        for column in ("fraction_of_native", "fraction_negated", "low", "negated_high"):
            assert found[column] == pytest.approx(expected.loc[arm, column], rel=1e-2, nan_ok=True)
    assert np.isfinite(rule(comparison, "plain")["fraction_negated"])


def test_the_same_rule_twice_differs_by_nothing(comparison: TransferComparison) -> None:
    row = rule(comparison, "again")
    ends = ["difference_negated", "difference_negated_low", "difference_negated_high"]
    np.testing.assert_allclose(row[ends].astype(float), 0, atol=1e-9)
    assert rule(comparison, "plain")["difference_high"] == 0
    assert np.isnan(rule(comparison, "native")["difference"])


def test_a_difference_is_one_of_fractions_and_lies_in_its_interval(
    comparison: TransferComparison,
) -> None:
    plain = rule(comparison, "plain")
    row = rule(comparison, "reversed")
    for fraction, difference in (
        ("fraction_of_native", "difference"),
        ("fraction_negated", "difference_negated"),
        ("fraction_mean", "difference_mean"),
    ):
        expected = row[fraction] - plain[fraction]
        assert row[difference] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert np.isnan(expected) or (
            row[f"{difference}_low"] < row[difference] < row[f"{difference}_high"]
        )
    assert np.isfinite(row["difference_negated"])


def test_a_prepared_vector_is_the_one_that_is_transferred(comparison: TransferComparison) -> None:
    plain, reversed_ = rule(comparison, "plain"), rule(comparison, "reversed")
    assert reversed_["effect_at_equal_damage"] == pytest.approx(plain["effect_negated"], rel=1e-6)
    # The refits are prepared too: otherwise they would lie on the other side of zero.
    assert reversed_["contrast_error"] < abs(reversed_["effect_at_equal_damage"]) + 1


def test_vectors_at_several_layers_act_together(
    twins: ModelPair, grid: StitchGrid, vector: SteeringVector, corpus: list[str]
) -> None:
    # Without refits and negatives, which take most of the time.
    stitches = [replace(grid[1, layer], refits=()) for layer in (1, 0)]
    rules = {"both": TransferRule(stitches[0], vector, others=(stitches[1],))}
    settings = SETTINGS | {"n_contrast_groups": 0, "both_signs": False}
    comparison = compare_transfers(twins, rules, ITEMS, neutral=corpus[:12], **settings)
    vectors = comparison.vectors["both"]
    assert {one.hook for one in vectors} == {f"blocks.{k}.hook_resid_post" for k in (0, 1)}
    scale = float(rule(comparison, "both")["scale"])
    (name, first), *later = Intervention.of(vectors).hooks(scale).items()
    neutral = NeutralText(twins.target, corpus[:12], name)
    # The scale is interpolated between two that were measured.
    assert neutral.damage(first, dict(later)) == pytest.approx(0.02, rel=0.05)
    reference = OneRowPerContinuation(twins.target, ITEMS, name)
    unsteered, alone = reference.propensity(), reference.propensity(first)
    with twins.target.intervene({**dict(later)}):
        effect = float((reference.propensity(first) - unsteered).mean())
    found = float(rule(comparison, "both")["effect_at_equal_damage"])
    assert effect == pytest.approx(found, rel=0.05)
    assert np.isnan(rule(comparison, "both")["effect_negated"])
    # The vector at the first hook point alone does less.
    assert abs((alone - unsteered).mean() - found) > 2 * abs(effect - found)


def test_unchanged_returns_the_vector(vector: SteeringVector) -> None:
    assert unchanged(vector) is vector


def test_rules_that_cannot_be_measured_are_refused(
    twins: ModelPair, grid: StitchGrid, vector: SteeringVector, corpus: list[str]
) -> None:
    with pytest.raises(ValueError, match="rules is empty; give at least one"):
        compare_transfers(twins, {}, ITEMS, neutral=corpus[:12])
    elsewhere = SteeringVector.mean_difference(twins.source, CONTRAST, at=0)
    with pytest.raises(MismatchError, match="this stitch starts at"):
        compare_transfers(
            twins, {"wrong": TransferRule(grid[1, 1], elsewhere)}, ITEMS, neutral=corpus[:12]
        )
    others = ContrastSet(CONTRAST.negative, CONTRAST.positive, name="other")
    rules = {
        "first": TransferRule(grid[1, 1], vector),
        "second": TransferRule(
            grid[1, 1], SteeringVector.mean_difference(twins.source, others, at=1)
        ),
    }
    with pytest.raises(MismatchError, match="was learnt from other texts"):
        compare_transfers(twins, rules, ITEMS, neutral=corpus[:12])
    direction = SteeringVector(torch.ones(twins.source.d_model), vector.hook)
    with pytest.raises(ValueError, match="does not hold the texts"):
        compare_transfers(
            twins, {"given": TransferRule(grid[1, 1], direction)}, ITEMS, neutral=corpus[:12]
        )


def test_the_figure_shows_the_numbers_of_the_table(comparison: TransferComparison) -> None:
    both = pd.concat([comparison.summary, comparison.summary.assign(concept="other")])
    figure = transfer_figure(both, fraction="mean")
    assert [trace.name for trace in figure.data] == ["mood", "other"]
    expected = comparison.summary
    np.testing.assert_allclose(
        np.array(figure.data[0].x, dtype=float), expected["fraction_mean"], equal_nan=True
    )
    assert list(figure.data[0].y) == list(expected["rule"])
    assert len(comparison.figure().data) == 1
    assert counts_of(comparison.figure()) == f"n = {len(ITEMS)} items, 12 neutral texts"
    assert counts_of(figure) == f"n = {len(ITEMS)} items per concept, 12 neutral texts"
    unknown = expected.drop(columns=["n_items", "n_texts"])
    assert transfer_figure(unknown).layout.title.subtitle.text is None
    with pytest.raises(ValueError, match="lacks columns"):
        transfer_figure(expected.drop(columns=["difference"]))
    assert "as a fraction of native" in comparison._repr_html_()
