"""Tests of the jackknife, against brute force, SciPy and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lrt_lens.statistics import jackknife
from lrt_lens.statistics._intervals import t_quantile
from lrt_lens.statistics._jackknife import standard_error


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
