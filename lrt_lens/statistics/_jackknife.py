"""The delete-a-group jackknife: intervals from estimates that leave out one group of documents.

Problem: tokens of one document are not independent, so a formula over tokens gives intervals that
are too short; and this package keeps no tokens, only moments. Mechanism: moments are kept for
groups of documents (five folds for fitting, eight groups for testing). Any estimate θ can be
computed again without one group, from the same moments:

    Var θ = (K − 1)/K · Σ_k (θ_k − θ̄)²,        θ ± t(0.975, K − 1) · √Var θ

    interval = jackknife(score(groups), [score(without(groups, k)) for k in groups])
    interval.low, interval.high, interval.standard_error

Source: Efron and Tibshirani (1993), *An Introduction to the Bootstrap*, eq. 11.5, with groups
instead of observations.

Limits: exact for means over groups of equal size; of first order for smooth functions of moments;
wrong for functions that are not smooth (a maximum, an argmax). With K groups the interval has K − 1
degrees of freedom and is wide for that reason. It is not cut at the ends of a measure's range.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

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
