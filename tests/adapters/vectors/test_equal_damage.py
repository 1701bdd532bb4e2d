"""Tests of effects at equal damage, against loops over resamples and against simulation."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.vectors._arms import shuffled_arms
from lrt_lens.adapters.vectors._equal_damage import ITEMS, TEXTS, Curve, item_clusters
from lrt_lens.data import ChoiceItems
from lrt_lens.statistics import Clusters
from lrt_lens.statistics._bootstrap import Resamples

BUDGET = 0.1
MULTIPLES = np.array([0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.4])


def curve(cost: np.ndarray, n_tokens: np.ndarray, start: np.ndarray, slope: np.ndarray) -> Curve:
    """Return a curve at multiples of the scale that has the budget on these texts.

    Damage is budget · cost · s² on each text, and propensity is start + slope · s of each item.
    """
    scales = MULTIPLES * math.sqrt(n_tokens.sum() / (cost * n_tokens).sum())
    rises = BUDGET * scales[:, None] ** 2 * cost * n_tokens
    return Curve(scales, rises, n_tokens, start + scales[:, None] * slope)


def sampled(rng: np.random.Generator, n_items: int, n_texts: int) -> list[np.ndarray]:
    """Return cost, n_tokens, start and slope of a sample; cost and slope are 1 on average."""
    cost, n_tokens = rng.gamma(2.0, 0.5, n_texts), rng.integers(30, 90, n_texts)
    return [cost, n_tokens, rng.normal(size=n_items), 1 + rng.normal(size=n_items)]


def resamples(n_items: int, n_texts: int, seed: int, n_draws: int = 400) -> Resamples:
    sources = {ITEMS: Clusters.single(n_items), TEXTS: Clusters.single(n_texts)}
    return Resamples(sources, seed=seed, n_draws=n_draws)


def naive_effect(one: Curve, items: np.ndarray, texts: np.ndarray) -> float:
    """Return the effect at the budget of repeated items and texts, written out."""
    again = Curve(one.scales, one.rises[:, texts], one.n_tokens[texts], one.propensity[:, items])
    return float(again.effect_at(BUDGET).mean())


def test_every_resample_is_the_estimate_of_its_items_and_texts() -> None:
    one = curve(*sampled(np.random.default_rng(0), 12, 9))
    drawn = resamples(12, 9, seed=1, n_draws=50)
    effect = one.effect(BUDGET, drawn)
    assert effect.values[0] == pytest.approx(float(one.effect_at(BUDGET).mean()))
    for row in range(51):
        items = np.repeat(np.arange(12), drawn.weights[ITEMS][row].astype(int))
        texts = np.repeat(np.arange(9), drawn.weights[TEXTS][row].astype(int))
        expected = naive_effect(one, items, texts)
        # Beyond the largest scale a resample continues the last piece, which `effect_at` does not.
        if not math.isnan(expected):
            assert effect.values[row] == pytest.approx(expected)


def test_influences_are_the_derivatives_with_respect_to_weights() -> None:
    one, step = curve(*sampled(np.random.default_rng(2), 6, 5)), 1e-6
    base = resamples(6, 5, seed=0, n_draws=0)
    effect = one.effect(BUDGET, base)
    for source, n in ((ITEMS, 6), (TEXTS, 5)):
        for unit in range(n):
            moved = resamples(6, 5, seed=0, n_draws=0)
            moved.weights[source][0, unit] += step
            slope = (one.effect(BUDGET, moved).values[0] - effect.values[0]) / step
            assert effect.influence[source][0, unit] == pytest.approx(slope, abs=1e-4)


def test_an_effect_that_is_not_bracketed_has_no_interval() -> None:
    one = curve(*sampled(np.random.default_rng(3), 8, 8))
    drawn = resamples(8, 8, seed=0)
    assert math.isnan(one.effect(100.0, drawn).interval(drawn).value)


@pytest.mark.parametrize(("n_items", "n_texts"), [(45, 8), (45, 20), (20, 40)])
def test_intervals_hold_the_effect_and_its_fraction_of_native(n_items: int, n_texts: int) -> None:
    """Sample items and texts anew; both vectors are measured on the same ones."""
    rng, hits, only_items, flagged = np.random.default_rng(4), np.zeros(2), 0, 0
    n_times = 200
    for i in range(n_times):
        cost, n_tokens, start, slope = sampled(rng, n_items, n_texts)
        native = curve(cost, n_tokens, start, slope)
        ours = curve(
            cost * rng.gamma(8.0, 1 / 8, n_texts),
            n_tokens,
            start,
            0.6 * slope + 0.3 * rng.normal(size=n_items),
        )
        drawn = resamples(n_items, n_texts, seed=i)
        a, b = (one.effect(BUDGET, drawn) for one in (ours, native))
        ratio = a.ratio(b, drawn)
        hits += [not b.interval(drawn).excludes(1.0), not ratio.excludes(0.6)]
        flagged += bool(ratio.flag)
        fixed = native.effect_at(BUDGET)
        only_items += abs(fixed.mean() - 1) <= 2 * fixed.std(ddof=1) / math.sqrt(n_items)
    # One standard error of the simulation is .015. Few texts hold less, and the interval says so.
    margin = 0.1 if flagged == n_times else 0.045
    assert (np.abs(hits / n_times - 0.95) <= margin).all(), hits / n_times
    # With the neutral texts taken as fixed, the same interval holds less.
    assert only_items / n_times < hits[0] / n_times


def test_items_that_share_a_word_or_a_prompt_are_one_cluster() -> None:
    words = [f" word{k}" for k in range(20)]
    items = ChoiceItems(
        [prompt for _ in words for prompt in ("It is", "They are", "We were")],
        [word for word in words for _ in range(3)],
        [f"{word}less" for word in words for _ in range(3)],
    )
    clusters = item_clusters(items)
    assert clusters.n == 20
    assert len(clusters.factors) == 1
    # Two answers that every item shares say nothing about other answers: items are independent.
    answers = ChoiceItems([f"question {k}" for k in range(12)], [" (A"] * 12, [" (B"] * 12)
    assert item_clusters(answers).n == 12


def test_the_caller_can_say_which_items_belong_together() -> None:
    items = ChoiceItems(
        [f"p{k}" for k in range(12)],
        [f" a{k}" for k in range(12)],
        [f" b{k}" for k in range(12)],
        clusters=[k // 2 for k in range(12)],
    )
    assert item_clusters(items).n == 6
    first, second = items.split(0.5, seed=1)
    assert len(first.clusters or ()) == len(second.clusters or ()) == 6
    with pytest.raises(ValueError, match="clusters has 3 labels for 12 items"):
        ChoiceItems(items.prompts, items.positive, items.negative, clusters=[1, 2, 3])


def test_draws_of_shuffled_maps_have_the_covariance_of_vectors_through_shuffled_pairs() -> None:
    """Compare v·W of many real derangements of rows with the draws, in the target's covariance."""
    torch.manual_seed(0)
    n, d = 3000, 4
    x = torch.randn(n, 3, dtype=torch.float64)
    y = torch.randn(n, d, dtype=torch.float64) * torch.tensor([5.0, 2.0, 1.0, 0.5])
    y[:, 1] += x[:, 0]
    x, y = x - x.mean(0), y - y.mean(0)
    v = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    weights = x @ torch.linalg.solve(x.T @ x, v)
    images = torch.stack([weights @ y[torch.randperm(n)] for _ in range(2000)])
    expected = y.T @ y / n * float((weights**2).sum())
    found = images.T @ images / len(images)
    torch.testing.assert_close(found, expected, rtol=0.15, atol=0.02 * float(expected.trace()))


def test_shuffled_draws_begin_with_the_maps_own_derangement(stitch_and_vector: Any) -> None:
    stitch, vector = stitch_and_vector
    arms = list(shuffled_arms(stitch, vector, {"norm": "match"}, 400, seed=0))
    assert [arm.draw for arm in arms] == list(range(400))
    through = stitch.transfer(vector, through=stitch.null.up)
    torch.testing.assert_close(arms[0].vector.direction, through.direction)
    directions = torch.stack([arm.vector.direction for arm in arms[1:]]).double()
    torch.testing.assert_close(
        directions.norm(dim=1), torch.full((399,), through.norm, dtype=torch.float64)
    )
    # The share of each draw along the leading direction is far above that of isotropic draws.
    covariance = stitch.target_statistics.covariance.double()
    leading = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    share = ((directions @ leading) ** 2 / directions.norm(dim=1) ** 2).mean()
    assert share > 2 / len(covariance)


@pytest.fixture(scope="module")
def stitch_and_vector(pair: Any, passages: list[str]) -> Any:
    grid = lrt.fit_stitches(
        pair,
        passages,
        source_layers=[1],
        target_layers=[1],
        n_tokens=None,
        context_length=32,
        null="full",
        progress=False,
    )
    stitch = grid.best(source=1)
    contrast = lrt.ContrastSet(passages[:6], passages[6:12])
    return stitch, lrt.SteeringVector.mean_difference(pair.source, contrast, at=1)
