"""Pearson's and Spearman's correlation over items, with bootstrap intervals.

    interval = bootstrap_correlation(effects[None], predictions[None])      # [scale, item] each
    interval, n_undefined = bootstrap_rank_correlation(effects, predictions)

Limits: with fewer than about ten items, percentile intervals are too short.
"""

import math
import warnings

import numpy as np
from scipy.stats import rankdata

from lrt_lens.statistics._intervals import N_BOOTSTRAP, NOTHING, Interval, percentiles, resamples

_TINY = 1e-9
"""Spread over items, relative to the largest value, up to which values count as equal."""


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson's r over the last axis; NaN if all items of either side are equal."""
    size = [np.abs(x).max(-1) for x in (a, b)]
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    norms = [np.sqrt((x**2).mean(-1)) for x in (a, b)]
    # The mean of equal floats can differ from them by rounding, so the spread of a constant is
    # compared with its size instead of with 0.
    constant = (norms[0] <= _TINY * size[0]) | (norms[1] <= _TINY * size[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        # r = mean(ab) / (√mean(a²) · √mean(b²)) for centred a and b
        return np.where(constant, math.nan, (a * b).mean(-1) / (norms[0] * norms[1]))


def bootstrap_correlation(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Interval:
    """Return the mean over scales of Pearson's r over items, with its bootstrap interval.

    ``a`` and ``b`` are [scale, item]; a resample draws the same items at all scales. The result is
    NaN if the correlation is undefined at any scale.
    """
    value = float(correlations(a, b).mean())
    if math.isnan(value):
        return NOTHING
    # x[index] is [draw, item] for each scale x: the same items at all scales.
    index = resamples(a.shape[1], seed)
    with warnings.catch_warnings():
        # A resample that repeats a single item has no correlation; `nanpercentile` leaves it out.
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.mean(
            [correlations(x[index], y[index]) for x, y in zip(a, b, strict=True)], axis=0
        )
        low, high = np.nanpercentile(means, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def bootstrap_rank_correlation(
    a: np.ndarray, b: np.ndarray, *, seed: int = 0, n_draws: int = N_BOOTSTRAP
) -> tuple[Interval, float]:
    """Return (Spearman's ρ over items with its bootstrap interval, share of undefined resamples).

    ``a`` and ``b`` are [item]; equal values get their mean rank. A resample in which all items of
    either side are equal has no correlation: the percentiles leave it out, and the share counts it.
    The interval is NaN if the items themselves have no correlation.
    """
    value = float(_rank_correlations(a, b))
    index = resamples(len(a), seed, n_draws)
    draws = _rank_correlations(a[index], b[index])
    known = draws[~np.isnan(draws)]
    return NOTHING if math.isnan(value) else percentiles(value, known), 1 - len(known) / n_draws


def _rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Spearman's ρ is Pearson's r of the ranks.
    return correlations(rankdata(a, axis=-1), rankdata(b, axis=-1))
