"""Tests of prediction intervals and ranks of draws, against simulation and counting."""

import math

import numpy as np
import pytest
from scipy import stats

from lrt_lens.statistics import prediction_interval, rank_test
from lrt_lens.statistics._draws import typical_size


@pytest.mark.parametrize("n", [5, 20])
def test_a_new_draw_falls_into_the_prediction_interval(n: int) -> None:
    rng = np.random.default_rng(0)
    hits = [not prediction_interval(rng.normal(size=n)).excludes(rng.normal()) for _ in range(2000)]
    # The range of 95 % of the draws holds .87 of new ones with 20 draws and .64 with 5.
    assert 0.935 <= np.mean(hits) <= 0.965


def test_the_prediction_interval_is_the_textbooks() -> None:
    draws = np.random.default_rng(1).normal(2, 3, 20)
    interval = prediction_interval(draws)
    half = stats.t.ppf(0.975, 19) * draws.std(ddof=1) * math.sqrt(1 + 1 / 20)
    assert (interval.low, interval.high) == pytest.approx(
        (draws.mean() - half, draws.mean() + half)
    )
    assert interval.flag == ""
    assert prediction_interval(draws[:5]).flag == "5 draws"


def test_draws_without_an_effect_are_left_out() -> None:
    known = prediction_interval([1.0, 2.0, 3.0, math.nan])
    assert known == prediction_interval([1.0, 2.0, 3.0])
    assert known.value == 2.0
    assert math.isnan(prediction_interval([math.nan]).value)
    assert math.isnan(prediction_interval([1.0]).low)


def test_the_rank_counts_the_effect_itself_and_both_signs() -> None:
    draws = [0.1, -0.9, 0.3, 0.5, math.nan]
    assert rank_test(0.4, draws) == (3 / 5, 1 / 5, 4)
    assert rank_test(-2.0, draws) == (1 / 5, 1 / 5, 4)
    assert math.isnan(rank_test(math.nan, draws).p)
    assert math.isnan(rank_test(1.0, []).p)


def test_the_rank_rejects_draws_like_the_others_as_rarely_as_it_says() -> None:
    rng = np.random.default_rng(2)
    p = np.array([rank_test(rng.standard_t(2), rng.standard_t(2, size=39)).p for _ in range(2000)])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_the_typical_size_does_not_depend_on_signs() -> None:
    assert typical_size([3.0, -4.0, math.nan]) == pytest.approx(math.sqrt(12.5))
