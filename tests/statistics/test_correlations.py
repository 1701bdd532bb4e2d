"""Tests of correlations over items, against NumPy and SciPy."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from lrt_lens.statistics import Clusters, bootstrap_rank_correlation
from lrt_lens.statistics._bootstrap import Resamples
from lrt_lens.statistics._correlations import bootstrap_correlation, correlations
from lrt_lens.statistics._intervals import expanded_percentiles


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
    resamples = Resamples({"items": Clusters.single(40)}, seed=5, n_draws=200)
    draws = [
        spearmanr(np.repeat(a, counts), np.repeat(b, counts)).statistic
        for counts in resamples.weights["items"][1:].astype(int)
    ]
    assert found.value == pytest.approx(spearmanr(a, b).statistic)
    expected = expanded_percentiles(found.value, np.array(draws), 40)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert undefined == 0


def test_many_items_are_worked_on_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(size=(1, 50))
    whole = bootstrap_correlation(a, a + rng.normal(size=50))
    monkeypatch.setattr("lrt_lens.statistics._correlations._AT_ONCE", 50 * 7)
    rng = np.random.default_rng(4)
    a = rng.normal(size=(1, 50))
    assert bootstrap_correlation(a, a + rng.normal(size=50)) == whole


def test_few_items_and_no_variation_are_flagged() -> None:
    rng = np.random.default_rng(5)
    few, _ = bootstrap_rank_correlation(rng.normal(size=6), rng.normal(size=6))
    assert few.flag == "6 independent items"
    line = np.arange(20.0)
    perfect, _ = bootstrap_rank_correlation(line, np.exp(line))
    assert (perfect.low, perfect.value, perfect.high) == pytest.approx((1, 1, 1))
    assert "no variation" in perfect.flag
    two = bootstrap_correlation(np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]]))
    assert math.isnan(two.low)


POPULATIONS = {
    "normal": lambda rng, n: rng.normal(size=(3, n)),
    "exponential": lambda rng, n: rng.exponential(size=(3, n)) - 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(POPULATIONS))
@pytest.mark.parametrize("n", [8, 60])
def test_pearsons_r_is_held(kind: str, n: int) -> None:
    """Simulate r = .6; plain percentiles hold .87 to .92 of 8 items."""
    rng, hits, reps = np.random.default_rng(6), 0, 300
    for i in range(reps):
        shared, own, _ = POPULATIONS[kind](rng, n)
        interval = bootstrap_correlation(shared[None], (0.6 * shared + 0.8 * own)[None], seed=i)
        hits += not interval.excludes(0.6)
        assert ("independent" in interval.flag) == (n < 10)
    # Three standard errors of the simulation are .038; skewed items are held less.
    assert (0.91 if kind == "normal" else 0.88) <= hits / reps <= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 60])
def test_spearmans_rho_is_held(n: int) -> None:
    rng, hits, reps = np.random.default_rng(7), 0, 150
    truth = 6 / math.pi * math.asin(0.6 / 2)
    for i in range(reps):
        a, noise = rng.normal(size=(2, n))
        interval, _ = bootstrap_rank_correlation(a, 0.6 * a + 0.8 * noise, seed=i)
        hits += not interval.excludes(truth)
    # Three standard errors of the simulation are .053.
    assert 0.89 <= hits / reps <= 1


@pytest.mark.slow
def test_items_that_share_a_prompt_are_held_as_clusters() -> None:
    """Simulate 20 prompts of 3 items; item by item the interval holds about .8."""
    rng, reps = np.random.default_rng(8), 300
    prompts = np.repeat(np.arange(20), 3)
    clusters, hits, alone = Clusters.of(prompts.tolist()), 0, 0
    for i in range(reps):
        x, y = rng.normal(size=(2, 20))
        y = 0.6 * x + 0.8 * y
        a, b = (one[prompts] + 0.3 * rng.normal(size=60) for one in (x, y))
        truth = 0.6 / 1.09
        hits += not bootstrap_correlation(a[None], b[None], clusters=clusters, seed=i).excludes(
            truth
        )
        alone += not bootstrap_correlation(a[None], b[None], seed=i).excludes(truth)
    assert 0.91 <= hits / reps <= 0.99
    assert alone / reps < 0.87
