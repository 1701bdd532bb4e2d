"""Tests of intervals of accuracies and AUROCs: formulas, independent counts, and simulation.

``python -m tests.statistics.test_classification`` prints the coverage that the documentation shows.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from lrt_lens.statistics import Clusters, Interval
from lrt_lens.statistics._classification import (
    ItemScores,
    _hanley_mcneil,
    _influence,
    auroc,
    auroc_difference,
    auroc_interval,
    clusters_of,
    share_interval,
)


def chances_of(scores: np.ndarray) -> np.ndarray:
    """Return probabilities [item, 2] of logits [item]."""
    p = 1 / (1 + np.exp(-scores))
    return np.stack([1 - p, p], 1)


def scores_of(correct: np.ndarray, clusters: Clusters | None = None) -> ItemScores:
    """Return the scores of one arm whose answers are right where ``correct`` is."""
    truth = np.arange(len(correct)) % 2
    return ItemScores.of(
        [chances_of(np.where(correct.astype(bool) == (truth == 1), 1.0, -1.0))],
        truth,
        clusters=clusters,
    )


# ---------------------------------------------------------------------------------------- formulas


def test_the_ends_of_an_accuracy_are_where_its_score_is_the_quantile_of_t() -> None:
    correct = np.r_[np.ones(33), np.zeros(7)]
    interval, t = share_interval(correct), student.ppf(0.975, 39)
    for end in (interval.low, interval.high):
        variance = end * (1 - end) / 40 * 40 / 39  # that of the sample is over n − 1
        assert (33 / 40 - end) ** 2 == pytest.approx(t**2 * variance, rel=1e-9)


def test_with_many_items_the_interval_of_an_accuracy_is_scipys_wilson_interval() -> None:
    correct = np.r_[np.ones(4400), np.zeros(600)]
    found = share_interval(correct)
    other = binomtest(4400, 5000).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=2e-5)


def test_no_error_among_few_items_is_not_certainty() -> None:
    interval = share_interval(np.ones(30))
    t = student.ppf(0.975, 29)
    assert (interval.low, interval.high) == pytest.approx((30 / (30 + t**2), 1.0))
    assert interval.flag == "0 of 30 items wrong"


@pytest.mark.parametrize("n_wrong", [0, 4])
def test_copies_of_items_in_one_group_add_nothing(n_wrong: int) -> None:
    once = np.r_[np.zeros(n_wrong), np.ones(25 - n_wrong)]
    groups = np.repeat(np.arange(25), 3)
    thrice = share_interval(np.repeat(once, 3), Clusters.of(groups.tolist()))
    single = share_interval(once)
    assert (thrice.low, thrice.high) == pytest.approx((single.low, single.high))
    rng = np.random.default_rng(0)
    truth = np.arange(25) % 2
    # Positive items vary more, so that the variance of the data is above Hanley and McNeil's.
    scores = rng.normal(size=25) * np.where(truth == 1, 4.0, 0.5) + truth
    alone = auroc_interval([chances_of(scores)], truth)
    copied = auroc_interval(
        [chances_of(np.repeat(scores, 3))],
        np.repeat(truth, 3),
        clusters=Clusters.of(groups.tolist()),
    )
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=0.02)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_auroc_is_scikit_learns(n_classes: int) -> None:
    generator = np.random.default_rng(0)
    chances = generator.integers(1, 6, (40, n_classes)).astype(float)  # few values: many ties
    chances /= chances.sum(1, keepdims=True)
    truth = np.arange(40) % n_classes
    columns = [1] if n_classes == 2 else range(n_classes)
    expected = np.mean([roc_auc_score(truth == j, chances[:, j]) for j in columns])
    assert auroc(chances, truth) == pytest.approx(expected)
    assert auroc_interval([chances], truth).value == pytest.approx(expected)


def test_the_variance_of_an_auroc_is_delongs() -> None:
    rng = np.random.default_rng(1)
    truth = np.r_[np.ones(14, int), np.zeros(23, int)]
    scores = np.round(rng.normal(size=37) + truth, 1)
    ours, others = scores[truth == 1], scores[truth == 0]
    # ψ(x, y) = 1, ½ or 0 for every pair, averaged over rows and columns
    wins = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in others] for x in ours])
    expected = wins.mean(1).var(ddof=1) / 14 + wins.mean(0).var(ddof=1) / 23
    influence = _influence(chances_of(scores), truth, 37)
    assert Clusters.single(37).variance(influence) == pytest.approx(expected)


def test_the_ends_of_an_auroc_are_where_its_score_is_the_quantile_of_t() -> None:
    rng = np.random.default_rng(2)
    truth = np.r_[np.ones(40, int), np.zeros(40, int)]
    chances = chances_of(rng.normal(size=80) + truth)
    found = auroc_interval([chances], truth)
    variance = Clusters.single(80).variance(_influence(chances, truth, 80))
    inflation = max(variance / _hanley_mcneil(found.value, 40, 40), 1.0)
    t = student.ppf(0.975, 79)
    for end in (found.low, found.high):
        spread = inflation * _hanley_mcneil(end, 40, 40)
        assert (found.value - end) ** 2 == pytest.approx(t**2 * spread, rel=1e-6)


def test_the_errors_of_two_aurocs_are_correlated_as_delong_says() -> None:
    rng = np.random.default_rng(4)
    truth = np.r_[np.ones(14, int), np.zeros(23, int)]
    a = np.round(rng.normal(size=37) + truth, 1)
    b = np.round(a + rng.normal(size=37), 1)
    placed = []
    for scores in (a, b):
        ours, others = scores[truth == 1], scores[truth == 0]
        wins = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in others] for x in ours])
        placed.append((wins.mean(1), wins.mean(0)))
    # Covariances [2, 2] of the placements of both arms, by kind of item
    total = sum(np.cov([one[k] for one in placed]) / len(placed[0][k]) for k in (0, 1))
    r = total[0, 1] / (total[0, 0] * total[1, 1]) ** 0.5
    found = auroc_difference(chances_of(a), chances_of(b), truth)
    first, second = (auroc_interval([chances_of(one)], truth) for one in (a, b))
    assert found.value == pytest.approx(roc_auc_score(truth, a) - roc_auc_score(truth, b))
    down, up = first.value - first.low, second.high - second.value
    low = found.value - (down**2 + up**2 - 2 * r * down * up) ** 0.5
    assert found.low == pytest.approx(low)
    # The paired test has the variance Var(A) + Var(B) − 2 Cov(A, B).
    reach = student.ppf(0.975, 36) * (total[0, 0] + total[1, 1] - 2 * total[0, 1]) ** 0.5
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.1)


def test_a_loss_of_auroc_is_0_for_one_order_and_has_a_width_without_errors() -> None:
    scores, truth = np.arange(40.0), np.arange(40) // 20
    same = auroc_difference(chances_of(scores / 9), chances_of(scores / 7 - 2), truth)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    other = np.r_[np.arange(20)[::-1], np.arange(20, 40)] / 9
    found = auroc_difference(chances_of(scores / 9), chances_of(other), truth)
    assert found.value == 0
    assert found.low < -0.05 < 0.05 < found.high
    assert found.flag == "all items are separated"


def test_a_perfect_auroc_of_few_items_is_not_certainty() -> None:
    truth = np.r_[np.ones(8, int), np.zeros(12, int)]
    found = auroc_interval([chances_of(np.where(truth == 1, 1.0, -1.0) * np.arange(1, 21))], truth)
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.7 < found.low < 0.9
    assert found.flag == "8 items of a class; all items are separated"
    missing = auroc_interval([chances_of(np.arange(5.0))], np.zeros(5, int))
    assert math.isnan(missing.value)


def test_the_share_of_native_ends_where_fiellers_difference_may_be_zero() -> None:
    rng = np.random.default_rng(3)
    native = (rng.random(50) < 0.9).astype(float)
    ours = np.where(rng.random(50) < 0.85, native, 1 - native)
    found = scores_of(ours).share_of(scores_of(native), 0.5)
    assert found.value == pytest.approx((ours.mean() - 0.5) / (native.mean() - 0.5))
    a = np.r_[ours, 1, 1, 0, 0] - 0.5
    b = np.r_[native, 1, 0, 1, 0] - 0.5
    weights = np.r_[np.ones(50), np.full(4, 0.5)]
    t = student.ppf(0.975, 49)

    def gap(ratio: float) -> float:
        difference = a - ratio * b
        mean = np.average(difference, weights=weights)
        variance = 54 / 53 * (weights * (difference - mean) ** 2).sum() / weights.sum() ** 2
        return mean**2 - t**2 * variance

    assert found.low == pytest.approx(brentq(gap, 0.0, found.value), rel=1e-6)
    assert found.high == pytest.approx(brentq(gap, found.value, 3.0), rel=1e-6)


def test_a_share_of_a_native_probe_at_chance_is_undefined() -> None:
    half = np.arange(40) % 4 < 2
    assert math.isnan(scores_of(half).share_of(scores_of(half.copy()), 0.5).value)
    perfect = scores_of(np.ones(40))
    assert perfect.share_of(perfect, 0.5) == Interval(1.0, 1.0, 1.0)
    other = scores_of(np.ones(40)).share_of(perfect, 0.5)
    assert other.value == 1.0
    assert other.low < 0.95 < 1.05 < other.high


def test_draws_are_read_without_their_sign() -> None:
    truth = np.arange(20) % 2
    right = chances_of(np.where(truth == 1, 1.0, -1.0) + 0.0)
    wrong = right[:, ::-1]
    scores = ItemScores.of([right, wrong], truth)
    assert scores.accuracies.tolist() == [1.0, 0.0]
    assert scores.either_sign.tolist() == [1.0, 1.0]


def test_the_spread_of_draws_is_in_the_interval_of_their_mean() -> None:
    rng = np.random.default_rng(4)
    truth = np.arange(400) % 2
    draws = [chances_of((2 * truth - 1) * shift + rng.normal(size=400)) for shift in (0.1, 1.0, 2)]
    scores = ItemScores.of(draws, truth)
    reach = student.ppf(0.975, 2) * scores.accuracies.std(ddof=1) / math.sqrt(3)
    found = scores.accuracy()
    assert found.low <= max(found.value - reach, 0)
    assert found.high >= min(found.value + reach, 1)


def test_few_groups_count_as_fixed_and_few_items_are_flagged() -> None:
    clusters, flag = clusters_of([0, 0, 1, 1, 2, 2], 6)
    assert (clusters.n, flag) == (6, "3 groups count as fixed")
    clusters, flag = clusters_of(["a", "b", "c", "d", "e", "a"], 6)
    assert (clusters.n, flag) == (5, "")
    assert "5 independent items" in share_interval(np.arange(6) % 2 * 1.0, clusters).flag
    assert clusters_of(None, 6)[0].n == 6


# ---------------------------------------------------------------------------------------- coverage

Draw = Callable[[np.random.Generator], tuple[Interval, float]]
"""Function that draws a sample and returns its interval with the true value."""


def accuracy_of(n: int, share: float, size: int = 1, alike: float = 0.3) -> Draw:
    """Return samples of n items in groups of ``size``, whose answers agree by ``alike``."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        groups = np.repeat(np.arange(n // size), size)
        common = rng.normal(size=n // size)[groups] * math.sqrt(alike)
        latent = common + math.sqrt(1 - alike) * rng.normal(size=n)
        clusters = Clusters.of(groups.tolist())
        return share_interval((latent < norm.ppf(share)).astype(float), clusters), share

    return draw


def auroc_of(n: int, area: float, spread: float = 1.0, size: int = 1) -> Draw:
    """Return samples of n items, half of each class; positive scores vary ``spread`` times more.

    With ``size=2``, a positive and a negative item share a group and part of their score.
    """

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        truth = np.arange(n) % 2
        groups = np.arange(n) // size
        shared = 0.0 if size == 1 else rng.normal(size=n // size)[groups]
        noise = rng.normal(size=n) * np.where(truth == 1, spread, 1.0)
        root = math.sqrt(1 + spread**2 + (2 if size == 2 else 0))
        scores = truth * norm.ppf(area) * root + noise + shared
        clusters = Clusters.of(groups.tolist())
        return auroc_interval([chances_of(scores)], truth, clusters=clusters), area

    return draw


def auroc_loss_of(n: int, before: float, after: float, correlation: float = 0.8) -> Draw:
    """Return samples of the loss of AUROC of scores that changed, on the same n items."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        truth = np.arange(n) % 2
        shared, own = rng.normal(size=(2, n))
        noises = shared, correlation * shared + math.sqrt(1 - correlation**2) * own
        arms = [
            chances_of(truth * norm.ppf(area) * math.sqrt(2) + noise)
            for area, noise in zip((before, after), noises, strict=True)
        ]
        return auroc_difference(arms[0], arms[1], truth), before - after

    return draw


def share_of(n: int, ours: float, native: float, size: int = 1) -> Draw:
    """Return samples of the share of native of two arms that find the same items difficult."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        groups = np.repeat(np.arange(n // size), size)
        common = 0.6 * rng.normal(size=n) + (0.5 * rng.normal(size=n)[groups] if size > 1 else 0)
        root = math.sqrt(0.36 + 0.64 + (0.25 if size > 1 else 0))
        clusters = Clusters.of(groups.tolist())
        arms = [
            scores_of(common + 0.8 * rng.normal(size=n) < root * norm.ppf(share), clusters)
            for share in (ours, native)
        ]
        return arms[0].share_of(arms[1], 0.5), (ours - 0.5) / (native - 0.5)

    return draw


CASES: dict[str, Draw] = {
    f"accuracy {share}, {n} texts": accuracy_of(n, share)
    for n in (20, 40, 150)
    for share in (0.7, 0.9, 0.97)
}
CASES |= {
    f"accuracy {share}, {n} texts in pairs": accuracy_of(n, share, size=2, alike=0.6)
    for n in (40, 150)
    for share in (0.7, 0.9)
}
CASES |= {
    f"AUROC {area}, {n} texts": auroc_of(n, area)
    for n in (20, 40, 150)
    for area in (0.7, 0.9, 0.98)
}
CASES |= {
    "AUROC 0.9, 40 texts, unequal variances": auroc_of(40, 0.9, spread=2.5),
    "AUROC 0.9, 80 texts in pairs": auroc_of(80, 0.9, size=2),
}
CASES |= {
    f"loss of AUROC from {before} to {after}, {n} texts": auroc_loss_of(n, before, after)
    for n in (20, 40, 150)
    for before, after in ((0.7, 0.65), (0.9, 0.8), (0.98, 0.97))
}
CASES |= {
    f"share of native, .{a} of .{b}, {n} texts": share_of(n, a / 100, b / 100)
    for n in (40, 150)
    for a, b in ((70, 80), (85, 97), (97, 98))
}
CASES |= {"share of native, .75 of .85, 150 texts in pairs": share_of(150, 0.75, 0.85, size=2)}


def coverage(draw: Draw, n: int, seed: int = 0) -> tuple[float, float, float]:
    """Return the share of defined intervals that hold the truth, flagged ones, and undefined."""
    rng = np.random.default_rng(seed)
    samples = [draw(rng) for _ in range(n)]
    known = [(one, truth) for one, truth in samples if not math.isnan(one.low)]
    held = np.mean([not one.excludes(truth) for one, truth in known])
    flagged = np.mean([bool(one.flag) for one, _ in known])
    return float(held), float(flagged), 1 - len(known) / n


def coverage_table(n: int = 2000) -> pd.DataFrame:
    """Return the coverage of every case."""
    rows = [(name, *coverage(draw, n)) for name, draw in CASES.items()]
    return pd.DataFrame(rows, columns=["interval", "coverage", "flagged", "undefined"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if "40 texts" in name])
def test_intervals_hold_what_they_say(name: str) -> None:
    """An answer is right or wrong, so coverage moves in steps: .93 is the least that is allowed."""
    held, flagged, _ = coverage(CASES[name], 300)
    # Three standard errors of the simulation are .038.
    assert held >= 0.93 - 0.038 or flagged > 0.5


if __name__ == "__main__":
    print(coverage_table().to_string(float_format="%.3f"))  # noqa: T201
