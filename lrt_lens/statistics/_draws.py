"""Draws of a control: where a new draw falls, and the rank of an effect among the draws.

Problem: the mean of 20 random directions is near 0 because their signs cancel, and its interval
says nothing about a single direction; the range of 5 draws holds .64 of new ones instead of .95.
Mechanism: the *prediction interval* of one more draw, and the *rank* of the effect among the sizes
of the draws:

    mean ± t(.975, n − 1) · s · √(1 + 1/n)
    p = (1 + #{|draw| ≥ |effect|}) / (n + 1)

    prediction_interval(effects)                # Interval: mean of the draws, range of a new one
    rank_test(0.9, effects)                     # RankTest(p=0.0476, floor=0.0476, n=20)

The p-value is two-sided, because a control without meaning may point either way. It is never below
its floor 1/(n + 1): with 20 draws that is .048.

Limits: the prediction interval is exact for normal draws; the p-value holds for any distribution of
draws that are independent of each other.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrt_lens.statistics._intervals import NOTHING, Interval, t_quantile

FEWEST_DRAWS = 20
"""Number of draws below which a prediction interval and a p-value have a flag."""


class RankTest(NamedTuple):
    """Two-sided test of an effect against the draws of a control."""

    p: float
    """Probability that a draw without meaning is at least as large in size; NaN without draws."""
    floor: float
    """Smallest p-value that this number of draws can give, 1/(n + 1)."""
    n: int
    """Number of draws that have an effect."""


def prediction_interval(draws: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean of a control's draws with the interval that a new draw falls into.

    NaN draws are left out, such as a random direction whose effect never reaches the budget. All is
    NaN without draws, and the ends are NaN for a single one.
    """
    known = _known(draws)
    n = len(known)
    if not n:
        return NOTHING
    mean = float(known.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, "1 draw")
    half = t_quantile(n - 1) * float(known.std(ddof=1)) * math.sqrt(1 + 1 / n)
    return Interval(mean, mean - half, mean + half, f"{n} draws" if n < FEWEST_DRAWS else "")


def rank_test(value: float, draws: Sequence[float] | np.ndarray) -> RankTest:
    """Return the two-sided p-value of ``value`` among the sizes of the draws; NaN are left out."""
    known = _known(draws)
    floor = 1 / (len(known) + 1)
    if math.isnan(value) or not len(known):
        return RankTest(math.nan, floor, len(known))
    # (1 + #{|draw| ≥ |value|}) / (n + 1): under the null the value is one of n + 1 like draws.
    larger = int((np.abs(known) >= abs(value)).sum())
    return RankTest((1 + larger) / (len(known) + 1), floor, len(known))


def typical_size(draws: Sequence[float] | np.ndarray) -> float:
    """Return the root mean square of the draws, which does not depend on their signs."""
    known = _known(draws)
    return float(np.sqrt((known**2).mean())) if len(known) else math.nan


def _known(draws: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(draws, dtype=float)
    return values[~np.isnan(values)]
