"""The delete-a-group jackknife: an interval from what a number becomes without each group of
documents in turn.

Problem: tokens of one document are not independent, so no formula over tokens gives an honest
interval; and nothing here keeps tokens anyway. Mechanism: moments are kept for groups of documents
(five folds that fit, eight groups that test), so any number θ can be computed again without one
group, at no cost in data:

    Var θ = (K − 1)/K · Σ_k (θ_k − θ̄)²,        θ ± t(0.975, K − 1) · √Var θ

    interval = jackknife(score(groups), [score(without(groups, k)) for k in groups])
    interval.low, interval.high, interval.standard_error

Source: Efron and Tibshirani (1993), *An Introduction to the Bootstrap*, eq. 11.5, with groups in
the place of observations.

Limits: exact for means over groups of equal size; first order for smooth functions of moments;
wrong for what is not smooth (a maximum, an argmax). With K groups the interval has K − 1 degrees of
freedom and is wide for that reason. It is not clipped to a measure's range.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
"""Share of repetitions in which an interval holds the truth."""


class Jackknife(NamedTuple):
    """A two-sided 95% interval: floats, or arrays where the estimate is an array."""

    low: Any
    high: Any
    standard_error: Any


def jackknife(
    full: float | np.ndarray, leave_one_out: Sequence[float] | Sequence[np.ndarray] | np.ndarray
) -> Jackknife:
    """The interval of ``full`` from the K estimates that leave one group out each, [K] or [K, ...].

    NaN where fewer than two groups are given or an estimate is undefined.
    """
    values = np.asarray(leave_one_out, dtype=float)
    error = np.asarray(standard_error(values))
    reach = t_quantile(len(values) - 1) * error if len(values) > 1 else error
    low, high = np.asarray(full - reach), np.asarray(full + reach)
    return (
        Jackknife(low, high, error)
        if values.ndim > 1
        else Jackknife(float(low), float(high), float(error))
    )


def standard_error(
    leave_one_out: Sequence[float] | Sequence[np.ndarray] | np.ndarray,
) -> float | np.ndarray:
    """√((K − 1)/K · Σ(θ_k − θ̄)²) over the first axis; NaN where fewer than two groups are given."""
    values = np.asarray(leave_one_out, dtype=float)
    k = len(values)
    if k < 2:
        return np.full(values.shape[1:], math.nan) if values.ndim > 1 else math.nan
    error = np.sqrt((k - 1) / k * ((values - values.mean(0)) ** 2).sum(0))
    return error if values.ndim > 1 else float(error)


@lru_cache
def t_quantile(degrees_of_freedom: int, level: float = LEVEL) -> float:
    """The number that |t| stays below with probability ``level``; Student's t with a whole number
    of degrees of freedom.
    """
    if degrees_of_freedom < 1 or not 0 < level < 1:
        raise ValueError(
            f"degrees of freedom are {degrees_of_freedom}, level {level}; expected at least 1, and a level between 0 and 1"
        )
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees_of_freedom) < level else (low, middle)
    return math.sqrt(degrees_of_freedom) * math.tan((low + high) / 2)


def _within(angle: float, nu: int) -> float:
    """P(|t| < √ν tan θ) = ∫₀^θ cos^{ν−1} / ∫₀^{π/2} cos^{ν−1}: the density's own substitution t =
    √ν tan θ.
    """
    part, whole = (angle, math.pi / 2) if nu % 2 else (math.sin(angle), 1.0)
    for power in range(2 if nu % 2 else 3, nu, 2):  # ∫cosᵖ = cosᵖ⁻¹ sin / p + (p − 1)/p ∫cosᵖ⁻²
        part = math.cos(angle) ** (power - 1) * math.sin(angle) / power + (power - 1) / power * part
        whole *= (power - 1) / power
    return part / whole
