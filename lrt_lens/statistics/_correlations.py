"""Pearson's correlation over items at every scale, Spearman's of two rows, and their bootstraps."""

import math
import warnings

import numpy as np
from scipy.stats import rankdata

from lrt_lens.statistics._intervals import N_BOOTSTRAP, NOTHING, Interval, percentiles, resamples

_TINY = 1e-9
"""A spread over items, relative to the values, below which nothing varies but rounding."""


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r over the last axis; NaN where either side is the same for all items (nothing
    correlates with a constant).
    """
    size = [np.abs(x).max(-1) for x in (a, b)]
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    norms = [np.sqrt((x**2).mean(-1)) for x in (a, b)]
    flat = (norms[0] <= _TINY * size[0]) | (norms[1] <= _TINY * size[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flat, math.nan, (a * b).mean(-1) / (norms[0] * norms[1]))


def bootstrap_correlation(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Interval:
    """Mean over scales of the correlation over items with its percentile bootstrap over items.

    ``a`` and ``b`` are [scale, item]; the same items are drawn at all scales. Undefined where the
    correlation is at any scale.
    """
    value = float(correlations(a, b).mean())
    if math.isnan(value):
        return NOTHING
    index = resamples(a.shape[1], seed)
    with warnings.catch_warnings():
        # A draw that repeats one item has no correlation; such draws are left out.
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.mean(
            [correlations(x[index], y[index]) for x, y in zip(a, b, strict=True)], axis=0
        )
        low, high = np.nanpercentile(means, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def bootstrap_rank_correlation(
    a: np.ndarray, b: np.ndarray, *, seed: int = 0, n_draws: int = N_BOOTSTRAP
) -> tuple[Interval, float]:
    """(Spearman's correlation over items with its percentile bootstrap, share of resamples that
    have none).

    ``a`` and ``b`` are [item]; equal values share their ranks. A resample in which either side is
    the same for all items has no correlation and is left out of the percentiles; `NOTHING` where
    the items themselves have none.
    """
    value = float(_rank_correlations(a, b))
    index = resamples(len(a), seed, n_draws)
    draws = _rank_correlations(a[index], b[index])
    known = draws[~np.isnan(draws)]
    return NOTHING if math.isnan(value) else percentiles(value, known), 1 - len(known) / n_draws


def _rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return correlations(rankdata(a, axis=-1), rankdata(b, axis=-1))
