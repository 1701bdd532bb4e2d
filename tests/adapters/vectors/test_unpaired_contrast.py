"""Contrast lists of unequal length: vectors, controls, intervals, and what needs pairs."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

import lrt_lens as lrt
from lrt_lens.adapters.labels import combine_vector, evaluate_vector_labels
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.adapters.vectors._contrast_states import ContrastStates, states_without_groups
from lrt_lens.data import ContrastSet
from lrt_lens.models import ModelPair
from lrt_lens.models._reading import read_activations
from lrt_lens.statistics._jackknife import jackknife_error
from lrt_lens.stitching import Stitch
from tests.adapters.vectors.test_entry_points import ITEMS
from tests.figures.counts import counts_of

PLACES = ("house", "garden", "tree", "river", "stone")
SIZES = ("big", "little")
POSITIVE = [f"the happy {size} cat sang in the {place}" for place in PLACES for size in SIZES]
NEGATIVE = [f"the sad dog slept on the {place} and it was bad" for place in PLACES]
CONTRAST = ContrastSet([*POSITIVE, *POSITIVE[:2]], [*NEGATIVE, *reversed(NEGATIVE)][:8], "mood")
SHORT = ["the", "a"]


def sides(model: Any, contrast: ContrastSet, at: int = 1) -> list[np.ndarray]:
    return [
        read_activations(model, texts, at).double().numpy()
        for texts in (contrast.positive, contrast.negative)
    ]


def states(n_positive: int, n_negative: int, seed: int = 0, d: int = 3) -> ContrastStates:
    """States of two classes that have unequal spreads."""
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(1, 1, (n_positive, d)), rng.normal(0, 2, (n_negative, d))
    texts = [
        [f"{name} {i}" for i in range(n)] for name, n in (("a", n_positive), ("b", n_negative))
    ]
    fields = {"contrast_set": ContrastSet(*texts, paired=False), "median_norm": 1.0}
    rows = (torch.from_numpy(positive), torch.from_numpy(negative))
    return ContrastStates(*rows, fields | {"name": "mood", "hook": "here"}, paired=False)


# ----------------------------------------------------------------------------------------- learning


def test_the_mean_difference_is_the_difference_of_two_means(pair: ModelPair) -> None:
    positive, negative = sides(pair.source, CONTRAST)
    assert len(positive) != len(negative)
    vector = SteeringVector.mean_difference(pair.source, CONTRAST, at=1)
    expected = positive.mean(0) - negative.mean(0)
    np.testing.assert_allclose(vector.direction.numpy(), expected, atol=1e-6)
    assert "12 positive and 8 negative texts" in vector._repr_html_()


def test_lda_is_the_formula_with_both_sides_weighted_by_their_number(pair: ModelPair) -> None:
    rows = sides(pair.source, CONTRAST)
    gap = rows[0].mean(0) - rows[1].mean(0)
    weights = [len(side) / sum(map(len, rows)) for side in rows]

    def shrunk(side: np.ndarray) -> np.ndarray:
        # scikit-learn shrinks the correlations, not the covariances.
        scale = side.std(0)
        return ledoit_wolf((side - side.mean(0)) / scale)[0] * np.outer(scale, scale)

    covariance = sum(w * shrunk(side) for w, side in zip(weights, rows, strict=True))
    expected = np.linalg.solve(covariance, gap)
    found = SteeringVector.lda(pair.source, CONTRAST, at=1).direction.double().numpy()
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine == pytest.approx(1, abs=1e-5)
    assert found @ gap == pytest.approx(found @ found, rel=1e-4), "the length is the gap along it"


def test_lists_of_one_length_have_the_same_vector_whether_they_are_pairs_or_not(
    pair: ModelPair,
) -> None:
    texts = (POSITIVE[:5], NEGATIVE)
    for learn in (SteeringVector.mean_difference, SteeringVector.lda):
        paired, unpaired = (
            learn(pair.source, ContrastSet(*texts, paired=is_paired), at=1).direction
            for is_paired in (True, False)
        )
        torch.testing.assert_close(paired, unpaired, atol=1e-6, rtol=1e-5)


def test_a_text_that_is_too_short_is_left_out_alone(pair: ModelPair) -> None:
    with_short = ContrastSet([*CONTRAST.positive, SHORT[0]], [SHORT[1], *CONTRAST.negative])
    vector = SteeringVector.mean_difference(pair.source, with_short, at=1)
    expected = SteeringVector.mean_difference(pair.source, CONTRAST, at=1)
    assert torch.equal(vector.direction, expected.direction)
    assert vector.n_dropped == 2
    only_short = ContrastSet(SHORT, [*NEGATIVE, "the"])
    with pytest.raises(ValueError, match="0 positive and 5 negative texts of .* can be read"):
        SteeringVector.mean_difference(pair.source, only_short, at=1)


def test_a_negated_vector_is_learnt_again_from_exchanged_sides(pair: ModelPair) -> None:
    vector = -SteeringVector.mean_difference(pair.source, CONTRAST, at=1)
    assert vector.contrast_set is not None
    again = vector.relearnt(pair.source, vector.contrast_set, at=1)
    torch.testing.assert_close(again.direction, vector.direction)


# --------------------------------------------------------------------------- controls and intervals


def test_states_of_permuted_labels_are_those_of_the_permuted_texts(pair: ModelPair) -> None:
    vector = SteeringVector.mean_difference(pair.source, CONTRAST, at=1)
    own = vector.states(pair.source, CONTRAST, at=1)
    for contrast in (CONTRAST, ContrastSet(POSITIVE[:5], NEGATIVE)):
        own = vector.states(pair.source, contrast, at=1)
        permuted = own.permuted(3)
        read = vector.states(pair.source, contrast.permuted(3), at=1)
        torch.testing.assert_close(permuted.positive, read.positive)
        torch.testing.assert_close(permuted.negative, read.negative)
        assert permuted.fields["contrast"] == contrast.permuted(3).digest


def test_groups_leave_out_texts_of_both_sides_and_every_text_once() -> None:
    own = states(21, 9)
    parts = list(own.leaving_out(4))
    assert {part.sizes for part in parts} <= {(15, 6), (16, 6), (16, 7), (15, 7)}
    for side in ("positive", "negative"):
        kept = torch.cat([getattr(part, side)[:, 0] for part in parts])
        # Every text is left out of one of four parts.
        counts = torch.unique(kept, return_counts=True)[1]
        assert counts.tolist() == [3] * len(getattr(own, side))


def test_models_that_can_read_other_texts_have_no_groups_in_common() -> None:
    assert len(list(states_without_groups(states(12, 9), states(12, 9, seed=1), 4))) == 4
    assert not list(states_without_groups(states(12, 9), states(12, 10), 4))
    assert not list(states_without_groups(states(12, 7), states(12, 7), 4)), "groups of one text"


def test_the_jackknife_finds_the_standard_error_of_a_difference_of_two_means() -> None:
    n_positive, n_negative, n_groups = 40, 24, 8
    squares = []
    for seed in range(400):
        own = states(n_positive, n_negative, seed, d=1)
        values = [
            float(part.direction("mean_difference")) for part in own.leaving_out(n_groups, seed)
        ]
        squares.append(jackknife_error(values) ** 2)
    # Var(x̄₊ − x̄₋) = σ₊²/n₊ + σ₋²/n₋
    expected = 1 / n_positive + 4 / n_negative
    # A mean of 400 variances of 7 degrees of freedom has a relative error of √(2/7/400) = 2.7%.
    assert np.mean(squares) == pytest.approx(expected, rel=0.1)


def test_evaluate_steering_takes_unequal_lists(twins: ModelPair, stitch: Stitch) -> None:
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=stitch.source_hook)
    result = lrt.evaluate_steering(
        *(twins, stitch, vector, ITEMS),
        neutral=[*POSITIVE, *NEGATIVE],
        n_random=2,
        n_permuted=2,
        n_shuffled=2,
        n_contrast_groups=4,
        progress=False,
    )
    summary = result.summary.set_index("arm")
    assert {"native", "transferred", "permuted"} <= set(summary.index)
    assert "contrast pairs" in str(summary.loc["transferred"].to_dict())
    counts = f"n = {result.n_items} items, {result.n_texts} neutral texts"
    for kind in ("summary", "curves", "damage"):
        assert counts_of(result.figure(kind)) == counts
    assert 0 < result.n_items < len(ITEMS)
    assert 0 < result.n_texts <= 15


@pytest.mark.parametrize("method", ["mean_difference", "lda"])
def test_layers_are_chosen_by_unequal_lists(method: str) -> None:
    from lrt_lens.adapters.layers._reading import contrast_learner, read_hook

    own = states(21, 9)
    learner = contrast_learner(own, method, 3, seed=0)
    rows = torch.cat([own.positive, own.negative]).numpy()
    reading = read_hook(rows, learner)
    assert sorted(np.concatenate([held for _, held in learner.folds])) == list(range(30))
    for train, held in learner.folds:
        assert set(learner.truth[held]) == {0, 1}
        assert not set(train) & set(held)
    v = own.direction(method).double()
    torch.testing.assert_close(reading.direction[0], v / (v @ v))
    # The logit is 0 half-way between both means.
    middle = (own.positive.mean(0) + own.negative.mean(0)).numpy() / 2
    assert reading.classifier.logits(middle[None]).item() == pytest.approx(0, abs=1e-12)
    assert len(set(learner.groups.tolist())) == 30, "texts that are not paired are independent"


# ---------------------------------------------------------------------------- what is done in pairs


def test_what_needs_pairs_says_so(twins: ModelPair, stitch: Stitch) -> None:
    pair = twins
    vector = SteeringVector.mean_difference(pair.target, CONTRAST, at=stitch.target_hook)
    calls: dict[str, Any] = {
        "differences within pairs": lambda: SteeringVector.principal_component(
            pair.source, CONTRAST, at=1
        ),
        "a concept map holds out both texts": lambda: lrt.ConceptMap.fit(
            pair, [CONTRAST], source_hook=1, target_hook=1
        ),
        "the spread of the differences": lambda: combine_vector(
            pair.target, vector, CONTRAST, statistics=stitch.target_statistics
        ),
        "labelled pairs are drawn": lambda: evaluate_vector_labels(pair, stitch, CONTRAST),
    }
    for reason, call in calls.items():
        with pytest.raises(
            ValueError, match=f"12 positive and 8 negative .* not pairs; .*{reason}"
        ):
            call()
