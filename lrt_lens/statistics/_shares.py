"""Shares of trials that come in clusters, such as several continuations of one prompt.

Problem: continuations of one prompt resemble each other, and an interval that counts all of them as
independent holds .61 to .94 instead of .95. Mechanism: the exact interval of Clopper and Pearson,
with the number of independent trials that have the variance between clusters:

    n* = p(1 − p) / Var(p) · (t(n − 1) / t(G − 1))²,    at most n,   Var(p) over the G clusters

    clustered_share([4, 0, 1, 3], 4)       # 8 of 16 continuations of 4 prompts

Source: Korn and Graubard (1998), *Survey Methodology* 24, 193-201.

Limits: if all trials agree, the variance is unknown. Each cluster then counts as one trial.
"""

from collections.abc import Sequence

import numpy as np

from lrt_lens.statistics._bootstrap import few_units
from lrt_lens.statistics._intervals import Interval, exact_ends, t_quantile


def clustered_share(counts: Sequence[int] | np.ndarray, size: int) -> Interval:
    """Return the share of successes with an interval that holds for new clusters.

    Args:
        counts: number of successes of each cluster, [cluster].
        size: number of trials of every cluster.

    Raises:
        ValueError: no cluster, a size below 1, or a count outside 0 to ``size``.
    """
    counts = np.asarray(counts, dtype=float)
    n_clusters = len(counts)
    if not n_clusters or size < 1 or counts.min() < 0 or counts.max() > size:
        raise ValueError(
            f"{n_clusters} clusters of {size} trials with the counts {counts.tolist()[:8]}; "
            "expected at least one cluster, and counts between 0 and the number of trials"
        )
    n = n_clusters * size
    share = float(counts.sum() / n)
    effective = float(n)
    if n_clusters < n and n_clusters > 1:
        effective = _effective(counts, size, share)
    elif n_clusters == 1:
        effective = 1.0
    low, high = exact_ends(share * effective, effective)
    return Interval(share, low, high, few_units(n_clusters, "prompts"))


def _effective(counts: np.ndarray, size: int, share: float) -> float:
    """Return the number of independent trials that have the variance between clusters."""
    n_clusters = len(counts)
    n = n_clusters * size
    if share in (0.0, 1.0):
        return float(n_clusters)
    # Var(p) = G/(G − 1) · Σ (count − p · size)² / n²
    variance = n_clusters / (n_clusters - 1) * ((counts - share * size) ** 2).sum() / n**2
    # The variance has G − 1 degrees of freedom instead of n − 1.
    widened = (t_quantile(n - 1) / t_quantile(n_clusters - 1)) ** 2
    # Clusters that agree by chance have more than n trials' worth of information, or 1/0.
    return min(float(n), share * (1 - share) / variance * widened) if variance > 0 else float(n)
