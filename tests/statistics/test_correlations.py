"""Tests of correlations over items, against NumPy and SciPy."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from lrt_lens.statistics import bootstrap_rank_correlation
from lrt_lens.statistics._correlations import bootstrap_correlation, correlations


def test_correlations_are_those_of_scipy_at_every_scale() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 20)) + 5, rng.normal(size=(3, 20)) - 7
    np.testing.assert_allclose(
        correlations(a, b),
        [pearsonr(x, y).statistic for x, y in zip(a, b, strict=True)],
        atol=1e-12,
    )


def test_nothing_correlates_with_a_constant() -> None:
    a = np.random.default_rng(1).normal(size=(1, 9))
    assert np.isnan(correlations(a, np.full((1, 9), 0.1))).all()
    assert np.isnan(correlations(np.zeros((1, 9)), a)).all()
    assert math.isnan(bootstrap_correlation(a, np.zeros((1, 9))).value)


def test_the_bootstrap_is_that_of_fisher_for_normal_items() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(size=400)
    a, b = (shared + rng.normal(size=400) for _ in range(2))
    found = bootstrap_correlation(a[None], b[None])
    assert found.value == pytest.approx(np.corrcoef(a, b)[0, 1])
    low, high = np.tanh(np.arctanh(found.value) + np.array([-1.96, 1.96]) / math.sqrt(397))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


def test_the_mean_over_scales_draws_the_same_items_at_all() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=30)
    b = a + rng.normal(size=30)
    once, twice = (
        bootstrap_correlation(a[None], b[None]),
        bootstrap_correlation(np.stack([a, a]), np.stack([b, b])),
    )
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))


def test_rank_correlation_is_scipys_with_ties_and_draws_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=40).round(1)
    b = (a + rng.normal(size=40)).round(1)
    found, undefined = bootstrap_rank_correlation(a, b, seed=5, n_draws=200)
    draws = [
        spearmanr(a[index], b[index]).statistic
        for index in np.random.default_rng(5).integers(0, 40, size=(200, 40))
    ]
    assert found.value == pytest.approx(spearmanr(a, b).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    assert undefined == 0
