"""The largest eigenvalue that a covariance has by chance, when its columns share nothing.

Problem: the first principal component of pure noise has more variance than any of its columns, and
the more columns for so many rows, the more. An eigenvalue means that columns vary *together* only
if it is larger. Mechanism: for n normal rows of independent columns with variances v_1 … v_d, the
largest eigenvalue of XᵀX/n is distributed like ``μ + σ·T``, with T of Tracy and Widom (order 1) and

    (1/n) Σ_j (v_j c / (1 − v_j c))² = 1,   0 < c < 1 / max v
    μ  = (1/c) · (1 + (1/n) Σ_j v_j c / (1 − v_j c))
    σ³ = (1/c³) · (1 + (1/n) Σ_j (v_j c / (1 − v_j c))³) / n²

    noise_limit(variances, n)        # an eigenvalue that 5 % of noises exceed

`independent_rows` finds n: tokens of one document resemble each other, so that a covariance varies
more between groups of documents than so many independent rows would.

Source: El Karoui (2007), "Tracy–Widom limit for the largest eigenvalue of a large class of complex
sample covariance matrices", theorem 1; for real rows, Lee and Schnelli (2016). Comparing
eigenvalues with those of independent columns is Horn's (1965) parallel analysis.

Limits: asymptotic in n and d; the simulated share of noises above the limit is .01 to .03 for d
from 50 to 100 and n from 60 to 5,000, the smaller the more the variances differ.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

_TRACY_WIDOM_95 = 0.9793
"""95% quantile of the Tracy–Widom distribution of order 1 (Bejan 2005, table 1)."""


def noise_limit(variances: np.ndarray, n: float | int) -> float:
    """Return the 95% quantile of the largest eigenvalue of a covariance of independent columns.

    Args:
        variances: variance of each column [d]; columns of variance 0 are left out.
        n: number of independent rows.

    Returns:
        The eigenvalue, in the unit of the variances; 0 if no column varies.
    """
    from scipy.optimize import brentq

    varying = np.asarray(variances, dtype=float)
    varying = varying[varying > 0]
    if not len(varying):
        return 0.0
    # In units of the largest variance, so that the root lies between 0 and 1.
    largest = float(varying.max())
    v = varying / largest

    def excess(c: float) -> float:
        return float(np.sum((v * c / (1 - v * c)) ** 2)) / n - 1

    c: Any = brentq(excess, 0.0, 1 - 1e-12, xtol=1e-15)
    odds = v * c / (1 - v * c)
    edge = (1 + odds.sum() / n) / c
    spread = ((1 + (odds**3).sum() / n) / n**2) ** (1 / 3) / c
    return largest * float(edge + _TRACY_WIDOM_95 * spread)


def independent_rows(covariances: Sequence[np.ndarray], sizes: Sequence[float | int]) -> float:
    """Return how many independent rows would give a covariance that varies as much between groups.

    For independent normal rows the correlation of two unrelated columns has the variance 1/n_k in a
    group of n_k rows. The mean over all pairs of columns of ``n_k (r_k − r̄)²``, with K/(K−1), says
    by which factor the variance is larger; it is never taken to be below 1.

    Args:
        covariances: one [d, d] per group of documents, at least two.
        sizes: number of rows of each group.
    """
    weights = np.asarray(sizes, dtype=float)
    total = float(weights.sum())
    mean = np.tensordot(weights, np.asarray(covariances), axes=1) / total
    variances = np.diag(mean)
    kept = variances > 0
    d = int(kept.sum())
    if d < 2 or len(covariances) < 2:
        return total
    scale = 1 / np.sqrt(variances[kept])
    factor = 0.0
    for weight, covariance in zip(weights, covariances, strict=True):
        off = (covariance - mean)[np.ix_(kept, kept)] * scale * scale[:, None]
        np.fill_diagonal(off, 0.0)
        # E w_k (r_k − r̄)² = 1 − w_k / Σw for independent rows
        factor += weight * float((off**2).sum()) / (d * (d - 1))
    return total / max(1.0, float(factor) / (len(covariances) - 1))
