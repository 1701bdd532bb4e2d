"""Delete-a-group jackknife: 95% intervals of any estimate that was computed again without a group.

Problem: scores from moments have no items, because no token is kept. Mechanism: moments are kept
for groups of documents (five folds for fitting, eight groups for testing), and any estimate θ can
be computed again without one group:

    Var θ = (K − 1)/K · Σ_k (θ_k − θ̄)²,        θ ± t(0.975, K − 1) · √Var θ

    jackknife(score(groups), [score(without(groups, k)) for k in groups])

Source: Efron and Tibshirani (1993), *An Introduction to the Bootstrap*, eq. 11.5, with groups
instead of observations.

Limits: it is exact for means over groups of equal size, of first order for smooth functions of
moments, and wrong for functions that are not smooth (a maximum, an argmax). With K groups it has
K − 1 degrees of freedom and is wide for that reason. It is not cut at the ends of a measure's
range.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lrt_lens.statistics._intervals import t_quantile


def jackknife_error(leave_one_out: Sequence[float]) -> float:
    """Return the standard error by the delete-a-group jackknife: √((K−1)/K·Σ(θ_k − θ̄)²)."""
    return float(standard_error(leave_one_out))


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
