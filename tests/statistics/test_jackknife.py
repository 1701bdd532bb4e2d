"""Tests of the jackknife, against brute force, SciPy and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lrt_lens.statistics import jackknife
from lrt_lens.statistics._intervals import t_quantile
from lrt_lens.statistics._jackknife import few_groups, standard_error
from tests.statistics.explicit_jackknife import explicit_jackknife


def left_out(values: np.ndarray, statistic) -> list:
    return [statistic(np.delete(values, k, axis=0)) for k in range(len(values))]


def test_quantiles_are_those_of_students_distribution() -> None:
    for nu in (1, 2, 3, 4, 5, 7, 12, 31, 200):
        assert t_quantile(nu) == pytest.approx(stats.t.ppf(0.975, nu), rel=1e-9)
    assert t_quantile(4, 0.8) == pytest.approx(stats.t.ppf(0.9, 4), rel=1e-9)


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(0).normal(2, 3, 7)
    low, high, error = jackknife(float(values.mean()), left_out(values, lambda v: float(v.mean())))
    assert error == pytest.approx(stats.sem(values))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 6, values.mean(), stats.sem(values)))


def test_the_error_of_a_statistic_that_is_no_mean_is_a_loop_over_the_formula() -> None:
    values = np.random.default_rng(1).exponential(1.0, 9)
    estimates = left_out(values, lambda v: float(v.std() / v.mean()))
    centre = sum(estimates) / 9
    assert standard_error(estimates) == pytest.approx(
        math.sqrt(8 / 9 * sum((e - centre) ** 2 for e in estimates))
    )


def test_the_interval_lies_about_the_full_estimate_not_about_the_mean_of_the_others() -> None:
    interval = jackknife(10.0, [1.0, 2.0, 3.0])
    assert (interval.low + interval.high) / 2 == pytest.approx(10.0)


def test_arrays_get_an_interval_for_every_entry() -> None:
    values = np.random.default_rng(2).normal(size=(6, 2, 3))
    together = jackknife(values.mean(0), left_out(values, lambda v: v.mean(0)))
    assert together.low.shape == (2, 3)
    alone = jackknife(
        float(values[:, 1, 2].mean()), left_out(values[:, 1, 2], lambda v: float(v.mean()))
    )
    assert [float(part[1, 2]) for part in together] == pytest.approx(list(alone))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(1000):
        values = rng.normal(1.0, 2.0, (5, 40)).mean(1)  # five groups of forty
        low, high, _ = jackknife(float(values.mean()), left_out(values, lambda v: float(v.mean())))
        hits.append(low <= 1.0 <= high)
    assert 0.93 <= np.mean(hits) <= 0.97  # three standard errors about .95


def test_unequal_groups_are_weighted_and_have_fewer_degrees_of_freedom() -> None:
    rng = np.random.default_rng(4)
    sizes = np.array([400, 30, 30, 20, 20])
    values = [rng.normal(size=n) for n in sizes]
    full = float(np.concatenate(values).mean())
    others = [float(np.concatenate(values[:k] + values[k + 1 :]).mean()) for k in range(5)]
    interval = jackknife(full, others, sizes)
    error, reach = explicit_jackknife(full, others, sizes)
    assert interval.standard_error == pytest.approx(error)
    assert (interval.low, interval.high) == pytest.approx((full - reach, full + reach))
    # One group with 80% of the rows: wider than four degrees of freedom would be.
    assert reach > 1.2 * stats.t.ppf(0.975, 4) * error
    plain = jackknife(full, others)
    assert plain == pytest.approx(jackknife(full, others, np.ones(5)))


def test_means_over_unequal_groups_are_covered() -> None:
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(2000):
        sizes = np.maximum(1, rng.multinomial(10, np.full(8, 1 / 8)))
        groups = [rng.normal(1.0, 2.0, 20 * n) for n in sizes]
        sums, counts = np.array([g.sum() for g in groups]), 20 * sizes
        full = sums.sum() / counts.sum()
        others = (sums.sum() - sums) / (counts.sum() - counts)
        low, high, _ = jackknife(float(full), others, counts)
        hits.append(low <= 1.0 <= high)
    assert 0.935 <= np.mean(hits) <= 0.965  # three standard errors about .95


def test_sizes_may_differ_between_entries() -> None:
    rng = np.random.default_rng(6)
    full, others = rng.normal(size=3), rng.normal(size=(5, 3))
    sizes = rng.uniform(1, 9, (5, 3))
    together = jackknife(full, others, sizes)
    for i in range(3):
        alone = jackknife(float(full[i]), others[:, i], sizes[:, i])
        assert [float(part[i]) for part in together] == pytest.approx(list(alone))


def test_an_interval_of_a_correlation_lies_between_minus_one_and_one() -> None:
    others = [0.9, 0.99, 0.95, 0.999, 0.97]
    assert jackknife(0.97, others).high > 1
    interval = jackknife(0.97, others, scale="correlation")
    _, half = explicit_jackknife(np.arctanh(0.97), np.arctanh(others), np.ones(5))
    z = np.arctanh(0.97)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.tanh([z - half, z + half])))
    perfect = jackknife(1.0, [1.0, 1.0, 1.0], scale="correlation")
    assert perfect.low == pytest.approx(1.0, abs=1e-9)
    assert perfect.high <= 1


@pytest.mark.parametrize("sizes", [[1.0, 2.0], [1.0, -1.0, 2.0]])
def test_sizes_that_are_none_are_refused(sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 3 numbers of at least 0, one for each group"):
        jackknife(1.0, [1.0, 2.0, 3.0], sizes)


def test_few_documents_and_uneven_groups_are_said() -> None:
    even = np.array([10, 12, 9, 11, 10])
    assert few_groups(even, [12, 14, 9, 13, 10], folds=5) == ""
    assert few_groups(even) == ""
    assert few_groups(even, [2, 4, 3, 3, 2], folds=5) == "few documents: 14; expected at least 50"
    assert few_groups([900.0, 50.0, 50.0]) == "uneven groups: 90% of the text in one of 3"
    assert few_groups([10.0, 9.0]) == "few groups of documents: 2; expected at least 4"
    assert few_groups([10.0, 9.0, 9.0]) == "few groups of documents: 3; expected at least 4"
    # Three equal ones are not more.
    assert few_groups([10.0, 10.0, 10.0]) == "few groups of documents: 3; expected at least 4"
    assert few_groups([10.0, 9.0, 11.0, 10.0]) == ""
    assert few_groups([10.0, 2.0]) == "uneven groups: 83% of the text in one of 2"
    assert few_groups([10.0]) == "no interval: fewer than two groups of documents"


def test_one_group_or_an_undefined_estimate_gives_no_interval() -> None:
    assert all(math.isnan(number) for number in jackknife(1.0, [1.0]))
    assert all(math.isnan(number) for number in jackknife(1.0, []))
    assert all(math.isnan(number) for number in jackknife(1.0, [1.0, math.nan, 2.0]))
    assert np.isnan(jackknife(np.ones(3), np.ones((1, 3))).low).all()


def test_impossible_quantiles_are_refused() -> None:
    with pytest.raises(ValueError, match="degrees of freedom are 0"):
        t_quantile(0)
    with pytest.raises(ValueError, match="level is 1.5"):
        t_quantile(3, 1.5)
