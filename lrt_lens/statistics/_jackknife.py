"""Delete-a-group jackknife: 95% intervals of any estimate that was computed again without a group.

Problem: scores from moments have no items, because no token is kept. Mechanism: moments are kept
for groups of documents (by default five folds to fit, eight groups to test), and any estimate θ can
be computed again without one group, as θ_k. With w_k the share of group k in all text, its
residual is what the group adds to the estimate beyond its share, and the residuals give the
variance:

    r_k = (1 − w_k)(θ − θ_k), less w_k · Σ_j (1 − w_j)(θ − θ_j)
    Var θ = Σ_k r_k² / (1 − Σ_k w_k²),        θ ± t(0.975, ν) · √Var θ
    ν = (1 − Σw²)² / (Σw² − 2Σw³ + (Σw²)²)

    jackknife(score(groups), [score(without(groups, k)) for k in groups], sizes=tokens)

For groups of equal size this is the usual (K − 1)/K · Σ(θ_k − θ̄)² with K − 1 degrees of freedom
(Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, eq. 11.5). A hash decides the group
of a document, so groups of few documents are of unequal size. Without ``sizes``, a large group
counts too much, and K − 1 degrees of freedom are too many. ν is that of Satterthwaite (1946) for
groups whose part of the estimate has a variance in proportion to w_k. Busing, Meijer and van der
Leeden (1999) treat unequal groups by pseudo-values.

What the interval holds: the expected score on new text of a map that was fitted on as many
documents as here (cross-validated scores: as many as four of the five folds hold). In simulations
it does so for .93 to .97 of samples of 60 and more documents (`tests/stitching/test_coverage.py`).

Limits: it is exact for means over groups, of first order for smooth functions of moments, and wrong
for functions that are not smooth (a maximum, an argmax). With few groups it is wide. It is not cut
at the ends of a measure's range, except on the scale of correlations. It is too short if a few
documents decide the score (`few_groups` notices it only if their tokens do).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from lrt_lens.statistics._intervals import LEVEL

Numbers = Sequence[float] | Sequence[np.ndarray] | np.ndarray
"""Numbers per group, [group] or [group, ...]."""

_ALMOST_ONE = 1 - 1e-12
"""Largest correlation that is transformed: artanh 1 is infinite."""
_FEW_DEGREES = 2.0
"""Degrees of freedom below which `few_groups` says that the groups are few."""
_FEW_GROUPS, _EVEN = 3, 1.5
"""Largest number of groups that are called few, and largest group, in units of the mean size, with
which groups are called even.
"""
_FEW_DOCUMENTS = 10
"""Documents per fold below which `few_groups` says that they are few."""


class Jackknife(NamedTuple):
    """A two-sided 95% interval: floats, or arrays if the estimate is an array."""

    low: Any
    high: Any
    standard_error: Any


def jackknife(
    full: float | np.ndarray,
    leave_one_out: Numbers,
    sizes: Numbers | None = None,
    *,
    scale: Literal["plain", "correlation"] = "plain",
) -> Jackknife:
    """Return the interval of the estimate ``full``.

    The interval is NaN for fewer than two groups, or if an estimate is NaN.

    Args:
        full: the estimate on all groups, a number or an array.
        leave_one_out: [K] or [K, ...], each without one group.
        sizes: [K], or [K, ...] if they differ between estimates: sizes of the groups in any unit,
            such as tokens, or for a ratio the groups' parts of its denominator. None means equal
            sizes.
        scale: ``"correlation"`` takes the interval on Fisher's scale, artanh θ, so that it lies
            between −1 and 1.

    Raises:
        ValueError: a size is negative, all are 0, or there are not as many sizes as groups.
    """
    values = np.asarray(leave_one_out, dtype=float)
    error = np.asarray(standard_error(values, full, sizes))
    if len(values) < 2:
        low, high = full + error, full + error
    elif scale == "correlation":
        centre, others = fisher(full), fisher(values)
        half = reach(centre, others, sizes)
        low, high = np.tanh(centre - half), np.tanh(centre + half)
    else:
        # The interval is centred on θ and not on θ̄, the mean of the leave-one-out estimates.
        half = reach(full, values, sizes)
        low, high = full - half, full + half
    if values.ndim > 1:
        return Jackknife(np.asarray(low), np.asarray(high), error)
    return Jackknife(float(low), float(high), float(error))


def reach(
    full: float | np.ndarray, leave_one_out: np.ndarray, sizes: Numbers | None = None
) -> np.ndarray:
    """Return half of the width of the interval, ``t(0.975, ν) · √Var θ``, for at least two groups.

    The arguments are those of `jackknife`.
    """
    from scipy.stats import t

    nu = degrees_of_freedom(group_shares(leave_one_out, sizes))
    return np.asarray(t.ppf((1 + LEVEL) / 2, nu) * standard_error(leave_one_out, full, sizes))


def fisher(correlation: float | np.ndarray) -> np.ndarray:
    """Return Fisher's transform artanh of correlations, finite for −1 and 1 too."""
    return np.asarray(np.arctanh(np.clip(correlation, -_ALMOST_ONE, _ALMOST_ONE)))


def jackknife_error(leave_one_out: Sequence[float]) -> float:
    """Return the standard error over groups of equal size: √((K−1)/K·Σ(θ_k − θ̄)²)."""
    return float(standard_error(leave_one_out))


def standard_error(
    leave_one_out: Numbers, full: float | np.ndarray = 0.0, sizes: Numbers | None = None
) -> float | np.ndarray:
    """Return the jackknife's standard error over the first axis; NaN for fewer than two groups.

    ``full``, the estimate on all groups, matters only for groups of unequal ``sizes``.
    """
    values = np.asarray(leave_one_out, dtype=float)
    if len(values) < 2:
        return np.full(values.shape[1:], math.nan) if values.ndim > 1 else math.nan
    shares = group_shares(values, sizes)
    # Var θ = Σ_k r_k² / (1 − Σ_k w_k²). For group parts of variance w_k·σ² the expectation of
    # Σ_k r_k² is (1 − Σ_k w_k²)·σ².
    spread = 1 - (shares**2).sum(0)
    # With all text in one group nothing is known of the spread.
    spread = np.where(spread > 0, spread, math.nan)
    error = np.sqrt((residuals(full, values, shares) ** 2).sum(0) / spread)
    return error if values.ndim > 1 else float(error)


def residuals(
    full: float | np.ndarray, leave_one_out: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Return what each group adds to the estimate beyond its share, [group, ...]; they sum to 0.

    Args:
        full: the estimate on all groups.
        leave_one_out: [group, ...], estimates without one group.
        shares: [group, ...], shares of the groups, from `group_shares`.
    """
    # A mean θ = Σ w_k·m_k has θ − θ_k = w_k(m_k − θ)/(1 − w_k), so that (1 − w_k)(θ − θ_k) is
    # w_k(m_k − θ). These sum to 0 for means only, and the mean is removed for other functions.
    parts = (1 - shares) * (full - leave_one_out)
    return parts - shares * parts.sum(0)


def group_shares(leave_one_out: np.ndarray, sizes: Numbers | None) -> np.ndarray:
    """Return the shares of the groups, which sum to 1 over the first axis.

    Args:
        leave_one_out: [group, ...], one entry per group.
        sizes: [group] or [group, ...]; None means equal sizes.

    Returns:
        [group, ...], with as many axes as ``leave_one_out``. NaN where all sizes are 0.

    Raises:
        ValueError: a size is negative, or there are not as many sizes as groups.
    """
    n, extra = len(leave_one_out), leave_one_out.ndim - 1
    size = np.ones(n) if sizes is None else np.asarray(sizes, dtype=float)
    if size.shape[:1] != (n,) or size.ndim not in (1, 1 + extra) or (size < 0).any():
        raise ValueError(
            f"sizes of groups have shape {size.shape} and begin with {size.ravel()[:8].tolist()}; "
            f"expected {n} numbers of at least 0, one for each group that was left out"
        )
    size = size.reshape(n, *[1] * extra) if size.ndim == 1 else size
    total = size.sum(0)
    return size / np.where(total > 0, total, math.nan)


def degrees_of_freedom(shares: np.ndarray) -> np.ndarray:
    """Return Satterthwaite's degrees of freedom of groups with these ``shares``; at least 1.

    They are K − 1 for K groups of equal size.
    """
    # Σ_k r_k² is a quadratic form with the matrix A = diag(w) − wwᵀ:  ν = (tr A)² / tr A²
    second, third = (shares**2).sum(0), (shares**3).sum(0)
    spread = second - 2 * third + second**2
    # All text in one group has no spread at all.
    return np.asarray(np.maximum(1.0, (1 - second) ** 2 / np.where(spread > 0, spread, np.inf)))


def few_groups(
    sizes: Sequence[float] | np.ndarray, documents: Sequence[int] | None = None, *, folds: int = 1
) -> str:
    """Return why an interval over these groups may be too short; empty if no reason is known.

    Args:
        sizes: [group], tokens of the groups that hold text.
        documents: documents of the groups; None if they are not known.
        folds: number of folds that the groups belong to; each should have ten documents.
    """
    size = np.asarray(sizes, dtype=float)
    if len(size) < 2:
        return "no interval: fewer than two groups of documents"
    if documents is not None and sum(documents) < folds * _FEW_DOCUMENTS:
        return f"few documents: {sum(documents)}; expected at least {folds * _FEW_DOCUMENTS}"
    # Two groups and three are too few however even they are: three equal ones have exactly two
    # degrees of freedom, and the slightest difference takes some away.
    degrees = degrees_of_freedom(group_shares(size, size))
    if len(size) <= _FEW_GROUPS or degrees < _FEW_DEGREES:
        if len(size) <= _FEW_GROUPS and size.max() * len(size) <= _EVEN * size.sum():
            return f"few groups of documents: {len(size)}; expected at least {_FEW_GROUPS + 1}"
        return f"uneven groups: {size.max() / size.sum():.0%} of the text in one of {len(size)}"
    return ""
