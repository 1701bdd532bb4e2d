"""Affine changes of scores: known changes are undone, constant columns only shifted."""

import numpy as np

from lrt_lens.statistics import ScoreChange


def test_a_known_affine_change_is_undone() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 20.0, 0.1] + [0.0, 4.0, -9.0]
    changed = scores * [3.0, 0.01, 500.0] + [7.0, -1e3, 1e-3]
    change = ScoreChange.matching(scores, changed)
    np.testing.assert_allclose(change.of(changed), scores, rtol=0, atol=1e-10)


def test_means_and_deviations_are_matched_without_pairs() -> None:
    generator = np.random.default_rng(1)
    # The models may read different numbers of tokens.
    source, target = generator.normal(2, 3, (40, 1)), generator.exponential(5, (70, 1))
    matched = ScoreChange.matching(source, target).of(target)
    np.testing.assert_allclose(matched.mean(0), source.mean(0))
    np.testing.assert_allclose(matched.std(0), source.std(0))
    assert (np.argsort(matched[:, 0]) == np.argsort(target[:, 0])).all()


def test_a_column_without_spread_is_only_shifted() -> None:
    source = np.stack([np.arange(10.0), np.arange(10.0)], 1)
    target = np.stack([np.full(10, 0.1) * 3, np.arange(10.0) * 2], 1)
    change = ScoreChange.matching(source, target)
    np.testing.assert_allclose(change.scale, [1.0, 0.5])
    np.testing.assert_allclose(change.of(target).mean(0), source.mean(0))
