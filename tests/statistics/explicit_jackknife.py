"""The delete-a-group jackknife, written with matrices and loops."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def explicit_jackknife(
    full: float, left_out: Sequence[float] | np.ndarray, sizes: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """Return (standard error, half of the width of the 95% interval)."""
    w = np.asarray(sizes, dtype=float) / np.sum(sizes)
    # Group parts e have covariance diag(w)·σ²; residuals are e − w·Σe, so their covariance is A·σ².
    centring = np.eye(len(w)) - np.outer(w, np.ones(len(w)))
    a = centring @ np.diag(w) @ centring.T
    parts = [(1 - share) * (full - one) for share, one in zip(w, left_out, strict=True)]
    residual = centring @ np.array(parts)
    error = np.sqrt(sum(r**2 for r in residual) / np.trace(a))
    nu = max(1.0, np.trace(a) ** 2 / np.trace(a @ a))
    return float(error), float(stats.t.ppf(0.975, nu) * error)
