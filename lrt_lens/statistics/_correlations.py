"""Pearson's and Spearman's correlation over items, with bootstrap intervals.

Problem: percentiles of the bootstrap hold .85 to .92 for 8 to 30 items, and items that share a word
or a prompt are not independent. Mechanism: clusters of items are resampled, and the percentiles are
widened for their number (`expanded_percentiles`), with one cluster less for Pearson's r, whose
slope costs a degree of freedom.

    interval = bootstrap_correlation(effects[None], predictions[None])      # [scale, item] each
    interval, n_undefined = bootstrap_rank_correlation(effects, predictions)

Limits: with skewed or heavy-tailed items Pearson's r holds .92 to .96, and Spearman's ρ more than
.97 with fewer than 30 items (`docs/results/intervals.md`). An interval of few items says so in its
flag.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from lrt_lens.statistics._bootstrap import NO_VARIATION, Clusters, Resamples, few_units
from lrt_lens.statistics._intervals import N_BOOTSTRAP, NOTHING, Interval, expanded_percentiles

_TINY = 1e-9
"""Spread over items, relative to the largest value, up to which values count as equal."""
_AT_ONCE = 2**22
"""Largest number of weights (resample × item) that are worked on together."""


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


def bootstrap_correlation(
    a: np.ndarray, b: np.ndarray, *, clusters: Clusters | None = None, seed: int = 0
) -> Interval:
    """Return the mean over scales of Pearson's r over items, with its bootstrap interval.

    ``a`` and ``b`` are [scale, item]; a resample draws the same items at all scales. The result is
    NaN if the correlation is undefined at any scale.

    Args:
        a: one side, [scale, item].
        b: the other side, [scale, item].
        clusters: which items are independent; all of them by default.
        seed: seed of the resamples.
    """
    value = float(correlations(a, b).mean())

    def mean_over_scales(weights: np.ndarray) -> np.ndarray:
        pairs = zip(a, b, strict=True)
        return np.mean([_weighted(x, y, weights) for x, y in pairs], axis=0)

    clusters = clusters or Clusters.single(a.shape[1])
    draws = _draws(mean_over_scales, clusters, seed, N_BOOTSTRAP)
    return _interval(value, draws, clusters.n, clusters.n - 1)


def bootstrap_rank_correlation(
    a: np.ndarray,
    b: np.ndarray,
    *,
    clusters: Clusters | None = None,
    seed: int = 0,
    n_draws: int = N_BOOTSTRAP,
) -> tuple[Interval, float]:
    """Return (Spearman's ρ over items with its bootstrap interval, share of undefined resamples).

    ``a`` and ``b`` are [item]; equal values get their mean rank. A resample in which all items of
    either side are equal has no correlation: the percentiles leave it out, and the share counts it.
    The interval is NaN if the items themselves have no correlation.

    Args:
        a: one side, [item].
        b: the other side, [item].
        clusters: which items are independent; all of them by default.
        seed: seed of the resamples.
        n_draws: number of resamples.
    """
    # Spearman's ρ is Pearson's r of the ranks; a NaN has no rank and makes all ranks NaN.
    value = float(correlations(rankdata(a), rankdata(b)))

    def of(weights: np.ndarray) -> np.ndarray:
        return _weighted(_ranks(a, weights), _ranks(b, weights), weights)

    clusters = clusters or Clusters.single(len(a))
    draws = np.full(n_draws, math.nan) if math.isnan(value) else _draws(of, clusters, seed, n_draws)
    return _interval(value, draws, clusters.n, clusters.n), float(np.isnan(draws).mean())


def _draws(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: Clusters, seed: int, n_draws: int
) -> np.ndarray:
    """Return a statistic of weights [draw, item] in each resample, [draw]."""
    # Row 0 is the sample itself.
    weights = Resamples({"items": clusters}, seed=seed, n_draws=n_draws).weights["items"][1:]
    step = max(1, _AT_ONCE // weights.shape[1])
    parts = [statistic(weights[i : i + step]) for i in range(0, n_draws, step)]
    return np.concatenate(parts)


def _interval(value: float, draws: np.ndarray, n: int, n_for_width: int) -> Interval:
    """Return the interval of a correlation over ``n`` clusters, with what is doubtful about it."""
    known = draws[~np.isnan(draws)]
    if math.isnan(value):
        return NOTHING
    if not len(known) or n_for_width < 2:
        return Interval(value, math.nan, math.nan, f"{n} independent items")
    interval = expanded_percentiles(value, known, n_for_width)
    # Without variation all draws are the correlation itself, up to rounding.
    if interval.high - interval.low <= _TINY:
        return Interval(value, value, value, NO_VARIATION)
    return Interval(value, interval.low, interval.high, few_units(n))


def _weighted(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's r under each row of weights, [draw]; NaN if a side is constant.

    ``a`` and ``b`` are [item], or [draw, item] if they differ by draw.
    """
    share = weights / weights.sum(1, keepdims=True)
    centred, norms, constant = [], [], np.zeros(len(weights), dtype=bool)
    for x in (a, b):
        x = x - (share * x).sum(1, keepdims=True)
        norm = np.sqrt((share * x**2).sum(1))
        constant |= norm <= _TINY * np.abs(x).max(-1)
        centred.append(x)
        norms.append(norm)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (share * centred[0] * centred[1]).sum(1) / (norms[0] * norms[1])
    return np.where(constant, math.nan, r)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean rank of each item in each resample, [draw, item].

    An item of weight w counts as w equal items. Ranks of items that were not drawn mean nothing.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    # Items of one value share the ranks c + 1 … c + w, with c smaller items: c + (w + 1)/2
    ranks = sizes.cumsum(1) - (sizes - 1) / 2
    return ranks[:, group]
