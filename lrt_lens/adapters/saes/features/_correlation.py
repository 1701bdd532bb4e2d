"""Pearson correlations of many column pairs over streamed rows, with intervals over documents.

    correlations = Correlations(n_features, n_groups)
    correlations.add(group, a, b)              # [row, feature] each
    correlations.values()                      # [feature]
    correlations.interval()                    # delete-a-group jackknife over groups of documents

Problem: activations of all features at all positions do not fit into memory. Mechanism: a
correlation needs five float64 sums per feature and group, however many rows are added.

A feature that is active in few documents has nearly all of its products in few groups. Its groups
are therefore weighted by their products, and the degrees of freedom follow
(`lrt_lens.statistics._jackknife`); the interval is taken on Fisher's scale.

Limits: the interval of a feature that fires in a handful of documents is too short:
`effective_groups` tells which. Sums about 0 lose digits if a mean is many times the standard
deviation; activations are near 0 mostly.
"""

import numpy as np
import torch
from torch import Tensor

from lrt_lens.statistics._jackknife import Jackknife, degrees_of_freedom, group_shares, jackknife


class Correlations:
    """Sums n, Σa, Σb, Σa², Σb², Σab for each group of documents."""

    def __init__(self, n_features: int, n_groups: int) -> None:
        self.counts = torch.zeros(n_groups, dtype=torch.float64)
        self.sums = torch.zeros(n_groups, 5, n_features, dtype=torch.float64)

    def add(self, group: int, a: Tensor, b: Tensor) -> None:
        """Add rows of one group; ``a`` and ``b`` are [row, feature]."""
        self.counts[group] += len(a)
        products = (a, b, a * a, b * b, a * b)
        self.sums[group] += torch.stack(
            [product.sum(0, dtype=torch.float64) for product in products]
        ).to(self.sums.device)

    def values(self) -> np.ndarray:
        """Correlations over all rows, [feature]; NaN if either column is constant."""
        return _correlate(self.counts.sum(), self.sums.sum(0))

    def interval(self) -> Jackknife:
        """Jackknife intervals (95%) over groups of documents, arrays [feature].

        A feature whose column is constant without one of the groups gets NaN.
        """
        without_one_group = np.stack(
            [
                _correlate(
                    self.counts.sum() - self.counts[group], self.sums.sum(0) - self.sums[group]
                )
                for group in self._filled
            ]
        )
        sizes = self._sizes()
        return jackknife(self.values(), without_one_group, sizes, scale="correlation")

    def effective_groups(self) -> np.ndarray:
        """Number of groups that the interval rests on, [feature]; at most the number of groups.

        It is the degrees of freedom + 1: groups in which a feature is hardly active do not count.
        NaN if a column is 0 everywhere.
        """
        sizes = self._sizes()
        shares = group_shares(sizes, sizes)
        return np.where(np.isnan(shares).any(0), np.nan, degrees_of_freedom(shares) + 1)

    @property
    def _filled(self) -> list[int]:
        """Groups that hold rows."""
        return [group for group in range(len(self.counts)) if self.counts[group] > 0]

    def _sizes(self) -> np.ndarray:
        """Return the part of each group in the denominator of the correlation, [group, feature]."""
        counts = self.counts[self._filled][:, None]
        a, b, aa, bb, _ = self.sums[self._filled].unbind(1)
        mean_a, mean_b = a.sum(0) / counts.sum(), b.sum(0) / counts.sum()
        # Σ(a − ā)² of the rows of a group, with ā the mean of all rows: Σa² − 2āΣa + n·ā²
        variance_a = (aa - 2 * mean_a * a + counts * mean_a**2).clamp_min(0)
        variance_b = (bb - 2 * mean_b * b + counts * mean_b**2).clamp_min(0)
        return (variance_a * variance_b).sqrt().numpy()


def _correlate(n: Tensor, sums: Tensor) -> np.ndarray:
    a, b, aa, bb, ab = sums
    # n·var(a) = Σa² − (Σa)²/n
    variance_a, variance_b = aa - a * a / n, bb - b * b / n
    # The variance of a constant column is not exactly 0: rounding of Σa² remains.
    varies = (variance_a > 1e-12 * aa) & (variance_b > 1e-12 * bb)
    # r = (Σab − ΣaΣb/n) / √(n·var(a) · n·var(b))
    r = (ab - a * b / n) / (variance_a.clamp_min(0) * variance_b.clamp_min(0)).sqrt()
    return torch.where(varies, r.clamp(-1, 1), torch.nan).numpy()
