"""Tests of the studentised bootstrap, against formulas, loops and simulation."""

import math

import numpy as np
import pytest

from lrt_lens.statistics import Clusters, bootstrap_mean, bootstrap_ratio
from lrt_lens.statistics._bootstrap import FEWEST_CLUSTERS, Estimate, Resamples

Populations = {
    "normal": (lambda rng, n: rng.normal(0, 1, n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(1, n), 1.0),
}


@pytest.mark.parametrize("kind", list(Populations))
def test_the_mean_of_twenty_units_is_held_as_often_as_the_interval_says(kind: str) -> None:
    draw, truth = Populations[kind]
    rng = np.random.default_rng(0)
    hits = [not bootstrap_mean(draw(rng, 20), seed=i).excludes(truth) for i in range(400)]
    # Percentiles hold .93 and .90 here. One standard error of the simulation is .011.
    assert 0.92 <= np.mean(hits) <= 0.98


def test_few_units_are_flagged_and_one_has_no_interval() -> None:
    assert bootstrap_mean([1.0, 2.0, 4.0, 3.0]).flag == "4 independent items"
    assert not bootstrap_mean(np.random.default_rng(0).normal(size=30)).flag
    one = bootstrap_mean([3.0])
    assert one.value == 3.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_an_item_that_rules_the_interval_is_flagged() -> None:
    values = np.ones(40)
    values[3] = 50.0
    assert "rules" in bootstrap_mean(values).flag


def test_equal_units_give_an_interval_without_width_that_says_so() -> None:
    interval = bootstrap_mean(np.full(12, 0.7))
    assert (interval.low, interval.high) == (interval.value, interval.value)
    assert "no variation" in interval.flag


def test_the_standard_error_of_clusters_is_that_of_their_sums() -> None:
    rng = np.random.default_rng(1)
    values, words = rng.normal(size=60), np.repeat(np.arange(20), 3)
    clusters = Clusters.of(words.tolist())
    influence = (values - values.mean()) / 60
    sums = [influence[words == word].sum() for word in range(20)]
    assert clusters.variance(influence) == pytest.approx(20 / 19 * sum(s**2 for s in sums))
    assert clusters.n == 20


def test_two_factors_are_clustered_both_ways() -> None:
    rng = np.random.default_rng(2)
    words, prompts = np.repeat(np.arange(8), 6), np.tile(np.arange(6), 8)
    influence = rng.normal(size=48)
    clusters = Clusters.of(words.tolist(), prompts.tolist())
    by_word = 8 / 7 * sum(influence[words == k].sum() ** 2 for k in range(8))
    by_prompt = 6 / 5 * sum(influence[prompts == k].sum() ** 2 for k in range(6))
    by_item = 48 / 47 * (influence**2).sum()
    assert clusters.variance(influence) == pytest.approx(
        max(by_word + by_prompt - by_item, by_word, by_prompt)
    )


def test_a_factor_of_few_labels_counts_as_fixed() -> None:
    words = np.repeat(np.arange(20), FEWEST_CLUSTERS - 1)
    prompts = np.tile(np.arange(FEWEST_CLUSTERS - 1), 20)
    both, words_alone = Clusters.of(words.tolist(), prompts.tolist()), Clusters.of(words.tolist())
    assert len(both.factors) == 1
    assert (both.drawn == words_alone.drawn).all()
    assert Clusters.of(["A", "B"] * 5).n == 10


@pytest.mark.parametrize("noise", [1.0, 0.3])
def test_items_that_share_a_word_are_held_as_clusters(noise: float) -> None:
    """Simulate 20 words in each of 3 prompts, words drawn anew; item by item it holds about .8."""
    rng, hits, alone = np.random.default_rng(3), 0, 0
    words, prompts = np.repeat(np.arange(20), 3), np.tile(np.arange(3), 20)
    clusters = Clusters.of(words.tolist(), prompts.tolist())
    for i in range(300):
        effects = rng.normal(size=20)[:, None] + noise * rng.normal(size=(20, 3))
        hits += not bootstrap_mean(effects.ravel(), clusters=clusters, seed=i).excludes(0.0)
        alone += not bootstrap_mean(effects.ravel(), seed=i).excludes(0.0)
    assert 0.91 <= hits / 300 <= 0.985
    assert alone / 300 < 0.89


def test_a_ratio_of_means_is_held() -> None:
    rng, hits = np.random.default_rng(4), 0
    for i in range(300):
        shared = rng.normal(size=30)
        a, b = 1.4 + shared + 0.4 * rng.normal(size=30), 2 + shared + 0.3 * rng.normal(size=30)
        hits += not bootstrap_ratio(a, b, seed=i).excludes(0.7)
    assert 0.91 <= hits / 300 <= 0.985


def test_a_denominator_that_is_positive_by_nature_is_not_asked() -> None:
    losses, tokens = np.array([3.0, 900.0, 40.0]), np.array([1.0, 300.0, 13.0])
    assert math.isnan(bootstrap_ratio(losses, tokens).value)
    ratio = bootstrap_ratio(losses, tokens, positive=True)
    assert ratio.value == pytest.approx(943 / 314)
    assert ratio.flag == "3 independent items"
    assert math.isfinite(ratio.low)
    assert math.isfinite(ratio.high)


def test_influences_are_the_derivatives_with_respect_to_weights() -> None:
    """Compare the influence of a ratio of estimates with finite differences."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(2, 1, 10), rng.normal(3, 1, 10)

    def of(values: np.ndarray, weights: np.ndarray) -> Estimate:
        mean = float((weights * values).sum() / weights.sum())
        return Estimate(np.array([mean]), {"items": ((values - mean) / weights.sum())[None]})

    def joined(weights: np.ndarray) -> Estimate:
        return (of(a, weights) - of(b, weights) * 0.5) / of(b, weights)

    weights, step = np.ones(10), 1e-5
    for unit in range(10):
        more = weights.copy()
        more[unit] += step
        slope = (joined(more).values[0] - joined(weights).values[0]) / step
        assert joined(weights).influence["items"][0, unit] == pytest.approx(slope, abs=1e-4)


def test_an_estimate_with_two_sources_holds_both() -> None:
    """Simulate the difference of two independent means of few units."""
    rng, hits = np.random.default_rng(6), 0
    for i in range(300):
        x, y = rng.normal(size=12), rng.exponential(size=15)
        sources = {"x": Clusters.single(12), "y": Clusters.single(15)}
        resamples = Resamples(sources, seed=i, n_draws=600)

        def mean(name: str, values: np.ndarray, resamples: Resamples = resamples) -> Estimate:
            weights = resamples.weights[name]
            means = weights @ values / weights.sum(1)
            return Estimate(means, {name: (values - means[:, None]) / weights.sum(1)[:, None]})

        difference = mean("x", x) - mean("y", y)
        hits += not difference.interval(resamples).excludes(-1.0)
        assert set(difference.errors(resamples)) == {"x", "y"}
    assert 0.91 <= hits / 300 <= 0.985


def test_resamples_of_many_units_are_drawn_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(7).normal(size=300)
    whole = bootstrap_mean(values)
    monkeypatch.setattr("lrt_lens.statistics._bootstrap._AT_ONCE", 300 * 64)
    parts = bootstrap_mean(values)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.02)
