"""Two-sided 95% intervals of all evaluations: bootstrap, range of draws, exact, and jackknife.

Problem: every number of an evaluation needs an interval, and arms are compared on the same items;
and scores from moments have no items, because no token is kept. Mechanism: the percentile bootstrap
draws items with replacement, from a fixed seed. Ratios and other statistics of several columns draw
the same items for each of them, so they stay *paired*. Moments are kept for groups of documents
(five folds for fitting, eight groups for testing), and any estimate θ can be computed again without
one group, which gives the delete-a-group jackknife:

    Var θ = (K − 1)/K · Σ_k (θ_k − θ̄)²,        θ ± t(0.975, K − 1) · √Var θ

    bootstrap_mean([0.2, 0.4, 0.1])            # Interval(0.2333, 95% 0.1 to 0.4)
    bootstrap_ratio(transferred, native)       # NaN if the mean of `native` may be 0
    jackknife(score(groups), [score(without(groups, k)) for k in groups])

Source of the jackknife: Efron and Tibshirani (1993), *An Introduction to the Bootstrap*, eq. 11.5,
with groups instead of observations.

Limits: percentile intervals are too short for a handful of items. The jackknife is exact for means
over groups of equal size, of first order for smooth functions of moments, and wrong for functions
that are not smooth (a maximum, an argmax). With K groups it has K − 1 degrees of freedom and is
wide for that reason. It is not cut at the ends of a measure's range.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

N_BOOTSTRAP = 2000
"""Number of resamples per interval."""


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


def jackknife_error(leave_one_out: Sequence[float]) -> float:
    """Return the standard error by the delete-a-group jackknife: √((K−1)/K·Σ(θ_k − θ̄)²)."""
    return float(standard_error(leave_one_out))


def resamples(n: int, seed: int, n_draws: int = N_BOOTSTRAP) -> np.ndarray:
    """Return indices [draw, n] of items, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(n_draws, n))


def percentiles(value: float, draws: np.ndarray) -> Interval:
    """Return ``value`` with the 2.5 and 97.5 percentiles of ``draws``."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


LEVEL = 0.95
"""Coverage: the share of repetitions in which an interval contains the true value."""


class Jackknife(NamedTuple):
    """A two-sided 95% interval: floats, or arrays if the estimate is an array."""

    low: Any
    high: Any
    standard_error: Any


def jackknife(
    full: float | np.ndarray, leave_one_out: Sequence[float] | Sequence[np.ndarray] | np.ndarray
) -> Jackknife:
    """Return the interval of the estimate ``full``.

    ``leave_one_out`` has K estimates, [K] or [K, ...], each without one group. The interval is NaN
    for fewer than two groups, or if an estimate is NaN.
    """
    values = np.asarray(leave_one_out, dtype=float)
    error = np.asarray(standard_error(values))
    # θ ± t(0.975, K − 1) · SE. It is centred on θ and not on θ̄, the mean of the leave-one-out
    # estimates.
    reach = t_quantile(len(values) - 1) * error if len(values) > 1 else error
    low, high = np.asarray(full - reach), np.asarray(full + reach)
    if values.ndim > 1:
        return Jackknife(low, high, error)
    return Jackknife(float(low), float(high), float(error))


def standard_error(
    leave_one_out: Sequence[float] | Sequence[np.ndarray] | np.ndarray,
) -> float | np.ndarray:
    """Return the jackknife's standard error over the first axis; NaN for fewer than two groups."""
    values = np.asarray(leave_one_out, dtype=float)
    k = len(values)
    if k < 2:
        return np.full(values.shape[1:], math.nan) if values.ndim > 1 else math.nan
    # SE = √((K − 1)/K · Σ_k (θ_k − θ̄)²)
    error = np.sqrt((k - 1) / k * ((values - values.mean(0)) ** 2).sum(0))
    return error if values.ndim > 1 else float(error)


@lru_cache
def t_quantile(degrees_of_freedom: int, level: float = LEVEL) -> float:
    """Return the number q with P(|t| < q) = ``level``, for Student's t.

    Raises:
        ValueError: fewer than 1 degree of freedom, or a level outside 0 to 1.
    """
    if degrees_of_freedom < 1 or not 0 < level < 1:
        raise ValueError(
            f"degrees of freedom are {degrees_of_freedom} and level is {level};"
            " expected at least 1, and a level between 0 and 1"
        )
    # Bisection over θ, where t = √ν · tan θ. 60 halvings of [0, π/2] reach float64's precision.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _probability_within(middle, degrees_of_freedom) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees_of_freedom) * math.tan((low + high) / 2)


def _probability_within(angle: float, nu: int) -> float:
    """Return P(|t| < √ν · tan θ) for ν degrees of freedom.

    Substituting t = √ν · tan θ in Student's density gives ∫₀^θ cos^{ν−1} / ∫₀^{π/2} cos^{ν−1}.
    """
    # Both integrals by the recursion ∫cosᵖ = cosᵖ⁻¹·sin / p + (p − 1)/p · ∫cosᵖ⁻², from p = 0 for
    # odd ν (∫1 = θ) and from p = 1 for even ν (∫cos = sin θ). At π/2 its first term is 0.
    part, whole = (angle, math.pi / 2) if nu % 2 else (math.sin(angle), 1.0)
    for power in range(2 if nu % 2 else 3, nu, 2):
        part = math.cos(angle) ** (power - 1) * math.sin(angle) / power + (power - 1) / power * part
        whole *= (power - 1) / power
    return part / whole
