"""Two-sided 95% intervals: the class, quantiles, and exact intervals of counts.

    Interval(0.7, 0.6, 0.8)
    clopper_pearson(7, 10)          # Interval(0.7, 95% 0.3475 to 0.9333)

`lrt_lens.statistics._bootstrap` gives intervals of means, ratios and effects over items,
`lrt_lens.statistics._draws` of the draws of a control, `lrt_lens.statistics._jackknife` of scores
from moments, which have no items.
"""

import math
from collections.abc import Sequence
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
    flag: str = ""
    """Doubts about the interval, such as few independent items; empty if there are none."""

    def excludes(self, number: float) -> bool:
        """Return whether ``number`` lies outside the interval."""
        return not self.low <= number <= self.high

    def widened(self, *reaches: float) -> "Interval":
        """Return the interval with the variation that further sources cause.

        ``reaches`` are half-widths t · SE of sources that are independent of what the interval
        contains. They and the distances of both ends from the value add as squares.
        """
        low = self.value - math.hypot(self.value - self.low, *reaches)
        high = self.value + math.hypot(self.high - self.value, *reaches)
        return Interval(self.value, low, high, self.flag)

    def within(self, least: float = 0.0, most: float = 1.0) -> "Interval":
        """Return the interval without the numbers that the estimated quantity cannot have."""
        low, high = (min(max(end, least), most) for end in (self.low, self.high))
        return Interval(self.value, low, high, self.flag)

    def __repr__(self) -> str:
        doubt = f"; {self.flag}" if self.flag else ""
        return f"Interval({self.value:.4g}, 95% {self.low:.4g} to {self.high:.4g}{doubt})"


def joined_flags(flags: Sequence[str]) -> str:
    """Return all doubts of several flags as one flag, each once."""
    doubts = [doubt for flag in flags for doubt in flag.split("; ")]
    return "; ".join(dict.fromkeys(doubt for doubt in doubts if doubt))


NOTHING = Interval(math.nan, math.nan, math.nan)
"""Interval of an undefined estimate: all three numbers are NaN."""


def clopper_pearson(count: int, n: int) -> Interval:
    """Return the share of ``count`` in ``n`` independent trials with its exact interval.

    Source: Clopper and Pearson (1934). The coverage is at least 95%, for most shares more.

    Raises:
        ValueError: not 0 <= count <= n, or n = 0.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(
            f"{count} of {n} is no share; expected a count between 0 and a positive number of"
            " trials"
        )
    return Interval(count / n, *exact_ends(float(count), float(n)))


def exact_ends(count: float, n: float) -> tuple[float, float]:
    """Return the ends of Clopper and Pearson's interval, also for numbers that are not whole."""
    from scipy.stats import beta

    # Quantiles of beta distributions: low = B(α/2; k, n − k + 1), high = B(1 − α/2; k + 1, n − k).
    # Both are undefined at the ends of the range, where the limits are 0 and 1.
    tail = (1 - LEVEL) / 2
    low = 0.0 if count <= 0 else float(beta.ppf(tail, count, n - count + 1))
    high = 1.0 if count >= n else float(beta.ppf(1 - tail, count + 1, n - count))
    return low, high


def resamples(n: int, seed: int, n_draws: int = N_BOOTSTRAP) -> np.ndarray:
    """Return indices [draw, n] of items, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(n_draws, n))


def percentiles(value: float, draws: np.ndarray) -> Interval:
    """Return ``value`` with the 2.5 and 97.5 percentiles of ``draws``."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def expanded_percentiles(value: float, draws: np.ndarray, n: int) -> Interval:
    """Return ``value`` with percentiles of bootstrap draws, widened for ``n`` independent units.

    A bootstrap distribution is too narrow by √((n − 1)/n) and has the tails of a normal
    distribution instead of Student's: percentiles Φ(∓√(n/(n − 1))·t(n − 1)) correct both for a
    mean. Source: Hesterberg (2015), *What Teachers Should Know About the Bootstrap*, section 5.2.
    """
    from scipy.stats import norm

    tail = 100 * float(norm.cdf(-math.sqrt(n / (n - 1)) * t_quantile(n - 1)))
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
