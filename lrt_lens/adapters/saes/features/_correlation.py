"""Pearson correlations of many pairs of columns over a stream of rows, with intervals over groups
of documents.

    found = Correlations(n_features, n_groups)
    found.add(group, a, b)                     # [row, feature] each
    found.values()                             # [feature]
    found.interval()                           # delete-a-group jackknife

Memory: five sums a feature and group, whatever the number of rows. Sums are float64.
"""

import numpy as np
import torch
from torch import Tensor

from lrt_lens.statistics._jackknife import Jackknife, jackknife


class Correlations:
    """Sums of n, Σa, Σb, Σa², Σb², Σab by group of documents."""

    def __init__(self, n_features: int, n_groups: int) -> None:
        self.counts = torch.zeros(n_groups, dtype=torch.float64)
        self.sums = torch.zeros(n_groups, 5, n_features, dtype=torch.float64)

    def add(self, group: int, a: Tensor, b: Tensor) -> None:
        """Rows of one group, [row, feature] each."""
        self.counts[group] += len(a)
        products = (a, b, a * a, b * b, a * b)
        self.sums[group] += torch.stack(
            [product.sum(0, dtype=torch.float64) for product in products]
        ).to(self.sums.device)

    def values(self) -> np.ndarray:
        """[feature]: the correlation over all rows; NaN where either column does not vary."""
        return _correlate(self.counts.sum(), self.sums.sum(0))

    def interval(self) -> Jackknife:
        """95% over groups of documents, an array each; NaN where a feature does not vary without
        one of the groups.
        """
        full = [group for group in range(len(self.counts)) if self.counts[group] > 0]
        rest = [
            _correlate(self.counts.sum() - self.counts[group], self.sums.sum(0) - self.sums[group])
            for group in full
        ]
        return jackknife(self.values(), np.stack(rest))


def _correlate(n: Tensor, sums: Tensor) -> np.ndarray:
    a, b, aa, bb, ab = sums
    variance_a, variance_b = aa - a * a / n, bb - b * b / n
    # What is left of a constant column is rounding of its sum of squares.
    varies = (variance_a > 1e-12 * aa) & (variance_b > 1e-12 * bb)
    found = (ab - a * b / n) / (variance_a.clamp_min(0) * variance_b.clamp_min(0)).sqrt()
    return torch.where(varies, found.clamp(-1, 1), torch.nan).numpy()
