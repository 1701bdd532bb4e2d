"""Two-sided 95% intervals over items: bootstrap, range of draws, and exact.

Problem: every number of an evaluation needs an interval, and arms are compared on the same items.
Mechanism: the percentile bootstrap draws items with replacement, from a fixed seed. Ratios and
other statistics of several columns draw the same items for each of them, so they stay *paired*.

    bootstrap_mean([0.2, 0.4, 0.1])            # Interval(0.2333, 95% 0.1 to 0.4)
    bootstrap_ratio(transferred, native)       # NaN if the mean of `native` may be 0

Scores from moments have no items; `lrt_lens.statistics._jackknife` gives their intervals.

Limits: percentile intervals are too short for a handful of items.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

N_BOOTSTRAP = 2000
"""Number of resamples per interval."""
LEVEL = 0.95
"""Coverage: the share of repetitions in which an interval contains the true value."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided 95% interval."""

    value: float
    low: float
    high: float

    def excludes(self, number: float) -> bool:
        """Return whether ``number`` lies outside the interval."""
        return not self.low <= number <= self.high

    def __repr__(self) -> str:
        return f"Interval({self.value:.4g}, 95% {self.low:.4g} to {self.high:.4g})"


NOTHING = Interval(math.nan, math.nan, math.nan)
"""Interval of an undefined estimate: all three numbers are NaN."""


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Interval:
    """Return the mean over items with its bootstrap interval.

    NaN if there are no items, or if one is NaN.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or np.isnan(values).any():
        return NOTHING
    means = values[resamples(len(values), seed)].mean(1)
    return percentiles(float(values.mean()), means)


def bootstrap_ratio(numerator: np.ndarray, denominator: np.ndarray, *, seed: int = 0) -> Interval:
    """Return the ratio of two means over the same items with its paired bootstrap interval.

    NaN if the interval of the denominator's mean includes 0, if there are no items, or if one is
    NaN.
    """
    numerator = np.asarray(numerator, dtype=float)
    denominator = np.asarray(denominator, dtype=float)
    if (
        np.isnan(numerator).any()
        or not len(denominator)
        or not bootstrap_mean(denominator, seed=seed).excludes(0.0)
    ):
        return NOTHING
    # One index for both: resample b of the ratio is mean(numerator[b]) / mean(denominator[b]). The
    # denominator's interval excludes 0, so few of its resamples have the other sign.
    index = resamples(len(numerator), seed)
    ratios = numerator[index].mean(1) / denominator[index].mean(1)
    return percentiles(float(numerator.mean() / denominator.mean()), ratios)


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float], values: np.ndarray, *, seed: int = 0
) -> Interval:
    """Return a statistic of the items in ``values`` [..., item] with its bootstrap interval.

    The items are drawn along the last axis, so the rows stay paired. A resample for which the
    statistic is undefined (NaN) is left out; the interval is NaN if no resample is left.
    """
    value = float(statistic(values))
    draws = np.array([statistic(values[..., index]) for index in resamples(values.shape[-1], seed)])
    defined = draws[~np.isnan(draws)]
    return percentiles(value, defined) if len(defined) else Interval(value, math.nan, math.nan)


def spread(draws: Sequence[float]) -> Interval:
    """Return the mean of a control's draws with the range that holds 95% of them; NaN is left out.

    The result is NaN if no draw is left.
    """
    values = np.asarray(draws, dtype=float)
    # A draw can be undefined, such as a random direction whose effect never reaches the budget.
    values = values[~np.isnan(values)]
    return percentiles(float(values.mean()), values) if len(values) else NOTHING


def clopper_pearson(count: int, n: int) -> Interval:
    """Return the share of ``count`` in ``n`` independent trials with its exact interval.

    Source: Clopper and Pearson (1934). The coverage is at least 95%, for most shares more.

    Raises:
        ValueError: not 0 <= count <= n, or n = 0.
    """
    from scipy.stats import beta

    if not 0 <= count <= n or n == 0:
        raise ValueError(
            f"{count} of {n} is no share; expected a count between 0 and a positive number of"
            " trials"
        )
    # Quantiles of beta distributions: low = B(α/2; k, n − k + 1), high = B(1 − α/2; k + 1, n − k).
    # Both are undefined at the ends of the range, where the limits are 0 and 1.
    tail = (1 - LEVEL) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, n - count + 1))
    high = 1.0 if count == n else float(beta.ppf(1 - tail, count + 1, n - count))
    return Interval(count / n, low, high)


def resamples(n: int, seed: int, n_draws: int = N_BOOTSTRAP) -> np.ndarray:
    """Return indices [draw, n] of items, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(n_draws, n))


def percentiles(value: float, draws: np.ndarray) -> Interval:
    """Return ``value`` with the 2.5 and 97.5 percentiles of ``draws``."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


@lru_cache
def t_quantile(degrees_of_freedom: int, level: float = LEVEL) -> float:
    """Return the number q with P(|t| < q) = ``level``, for Student's t.

    Raises:
        ValueError: fewer than 1 degree of freedom, or a level outside 0 to 1.
    """
    from scipy.stats import t

    if degrees_of_freedom < 1 or not 0 < level < 1:
        raise ValueError(
            f"degrees of freedom are {degrees_of_freedom} and level is {level};"
            " expected at least 1, and a level between 0 and 1"
        )
    return float(t.ppf((1 + level) / 2, degrees_of_freedom))
