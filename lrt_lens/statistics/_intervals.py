"""Intervals shared by all evaluations: bootstrap over items, spread over draws, delete-a-group
jackknife.

All are two-sided 95% and seeded. Arms are compared on the same items, so ratios and differences are
bootstrapped *paired*.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lrt_lens.statistics._jackknife import LEVEL, standard_error

N_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def excludes(self, number: float) -> bool:
        """Whether ``number`` lies outside."""
        return not self.low <= number <= self.high

    def __repr__(self) -> str:
        return f"Interval({self.value:.4g}, 95% {self.low:.4g} to {self.high:.4g})"


NOTHING = Interval(math.nan, math.nan, math.nan)
"""What is reported where an estimate is undefined."""


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Interval:
    """Mean over items with its percentile bootstrap interval; NaN where any item is undefined."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or np.isnan(values).any():
        return NOTHING
    means = values[resamples(len(values), seed)].mean(1)
    return percentiles(float(values.mean()), means)


def bootstrap_ratio(numerator: np.ndarray, denominator: np.ndarray, *, seed: int = 0) -> Interval:
    """Ratio of two means over the same items, paired; undefined where the denominator's own
    interval includes 0.
    """
    numerator, denominator = (
        np.asarray(numerator, dtype=float),
        np.asarray(denominator, dtype=float),
    )
    if (
        np.isnan(numerator).any()
        or not len(denominator)
        or not bootstrap_mean(denominator, seed=seed).excludes(0.0)
    ):
        return NOTHING
    index = resamples(len(numerator), seed)
    ratios = numerator[index].mean(1) / denominator[index].mean(1)
    return percentiles(float(numerator.mean() / denominator.mean()), ratios)


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float], values: np.ndarray, *, seed: int = 0
) -> Interval:
    """Any function of the columns of ``values`` ([..., item]) with its percentile bootstrap;
    columns are drawn, so rows stay paired.
    """
    draws = np.array([statistic(values[..., index]) for index in resamples(values.shape[-1], seed)])
    return percentiles(float(statistic(values)), draws)


def spread(draws: Sequence[float]) -> Interval:
    """Mean over draws of a control with the range that 95% of draws fall into."""
    values = np.asarray(draws, dtype=float)
    values = values[~np.isnan(values)]
    return percentiles(float(values.mean()), values) if len(values) else NOTHING


def clopper_pearson(count: int, n: int) -> Interval:
    """A share of ``count`` in ``n`` independent trials with its exact interval (Clopper and Pearson
    1934), wide rather than short.

    The ends are quantiles of beta distributions: low ``B(α/2; k, n−k+1)``, high ``B(1−α/2; k+1,
    n−k)``. ValueError unless 0 <= count <= n, n > 0.
    """
    from scipy.stats import beta

    if not 0 <= count <= n or n == 0:
        raise ValueError(
            f"{count} of {n} is no share; expected a count between 0 and a positive number of trials"
        )
    tail = (1 - LEVEL) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, n - count + 1))
    high = 1.0 if count == n else float(beta.ppf(1 - tail, count + 1, n - count))
    return Interval(count / n, low, high)


def jackknife_error(leave_one_out: Sequence[float]) -> float:
    """Standard error by the delete-a-group jackknife: √((K−1)/K·Σ(θ_k − θ̄)²)."""
    return float(standard_error(leave_one_out))


def resamples(n: int, seed: int, n_draws: int = N_BOOTSTRAP) -> np.ndarray:
    """[draw, n] indices of items, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(n_draws, n))


def percentiles(value: float, draws: np.ndarray) -> Interval:
    """A value with the ends between which 95% of draws of it lie."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
