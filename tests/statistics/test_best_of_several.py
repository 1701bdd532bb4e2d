"""Differences from a best candidate that the same data picked."""

import numpy as np
import pytest
from scipy import stats

from lrt_lens.statistics._best_of_several import behind_best, critical_value


def scored(parts: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means of ``parts`` [group, candidate], over all groups and without each group."""
    total = (shares[:, None] * parts).sum(0)
    return total, (total - shares[:, None] * parts) / (1 - shares[:, None])


def share_called_worse(
    noise: np.ndarray, shares: np.ndarray, truth: np.ndarray | float = 0.0
) -> float:
    """Return the share of choices [choice, group, candidate] that call any candidate worse."""
    calls = [(behind_best(*scored(parts + truth, shares), shares).low > 0).any() for parts in noise]
    return float(np.mean(calls))


FIVE = np.full(5, 0.2)


def test_two_candidates_have_the_interval_of_students_t() -> None:
    parts = np.random.default_rng(0).normal(size=(5, 2))
    behind = behind_best(*scored(parts, FIVE))
    best = int(behind.difference.argmin())
    difference = parts[:, best] - parts[:, 1 - best]
    reach = stats.sem(difference) * critical_value(2, tuple(FIVE))
    assert behind.low[1 - best] == pytest.approx(difference.mean() - reach)
    assert behind.high[1 - best] == pytest.approx(difference.mean() + reach)
    # The best of two was picked, so the test is two-sided.
    assert critical_value(2, tuple(FIVE)) == pytest.approx(stats.t.ppf(0.975, 4), rel=0.03)
    assert behind.difference[best] == behind.low[best] == behind.high[best] == 0


@pytest.mark.parametrize("n", [2, 5, 12, 30])
def test_equally_good_candidates_are_called_worse_in_five_percent_of_choices(n: int) -> None:
    rng = np.random.default_rng(n)
    # Errors that all candidates share do not count.
    noise = rng.normal(size=(1500, 5, n)) + 5 * rng.normal(size=(1500, 5, 1))
    assert share_called_worse(noise, FIVE) == pytest.approx(0.05, abs=0.018)


@pytest.mark.parametrize("n", [5, 30])
def test_folds_of_unequal_size_have_their_own_critical_value(n: int) -> None:
    shares = np.array([0.35, 0.25, 0.2, 0.12, 0.08])
    noise = np.random.default_rng(1).normal(size=(1500, 5, n)) / np.sqrt(shares)[:, None]
    assert critical_value(n, tuple(shares)) > critical_value(n, tuple(FIVE))
    assert share_called_worse(noise, shares) == pytest.approx(0.05, abs=0.018)


def neighbours(rng: np.random.Generator, n: int) -> np.ndarray:
    noise = rng.normal(size=(1500, 5, n))
    for i in range(1, n):
        noise[..., i] = 0.9 * noise[..., i - 1] + np.sqrt(1 - 0.81) * noise[..., i]
    return noise


def unequal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(1500, 5, n)) * np.exp(0.7 * rng.normal(size=(1500, 1, n)))


def a_third_is_noisy(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(1500, 5, n)) * np.where(np.arange(n) < n // 3, 1, 0.1)


def heavy_tails(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(3, size=(1500, 5, n))


@pytest.mark.parametrize("noise", [neighbours, unequal, a_third_is_noisy, heavy_tails])
@pytest.mark.parametrize("n", [5, 12, 30])
def test_correlated_and_unequally_noisy_candidates_are_called_worse_no_more_often(
    noise: object, n: int
) -> None:
    assert callable(noise)
    assert share_called_worse(noise(np.random.default_rng(2), n), FIVE) <= 0.065


def test_all_intervals_hold_together_if_candidates_differ() -> None:
    rng, truth = np.random.default_rng(3), np.linspace(0, -6, 12)
    held = []
    for parts in rng.normal(size=(1000, 5, 12)):
        behind = behind_best(*scored(parts + truth, FIVE))
        best = int(behind.difference.argmin())
        differences = truth[best] - truth
        held.append(((behind.low <= differences) & (differences <= behind.high)).all())
    assert np.mean(held) >= 0.935


def test_a_candidate_that_is_far_behind_is_called_worse() -> None:
    parts = np.random.default_rng(4).normal(size=(5, 12))
    parts[:, 7] -= 20
    behind = behind_best(*scored(parts, FIVE))
    assert np.flatnonzero(behind.low > 0).tolist() == [7]


def test_candidates_without_a_score_are_left_out() -> None:
    parts = np.random.default_rng(5).normal(size=(5, 4))
    values, without = scored(parts, FIVE)
    expected = behind_best(values[:3], without[:, :3])
    values[3] = np.nan
    behind = behind_best(values, without)
    for one, other in zip(behind, expected, strict=True):
        np.testing.assert_allclose(one[:3], other)
        assert np.isnan(one[3])
    assert np.isnan(behind_best([np.nan], np.ones((5, 1))).low).all()
    alone = behind_best([0.3], np.full((5, 1), 0.3))
    assert [float(part[0]) for part in alone] == [0, 0, 0]
