"""Scores with their values without one group of documents each, so that scores can be subtracted.

    a, b = GroupScore(0.8, [0.79, 0.81]), GroupScore(0.7, [0.71, 0.69])
    (a - b).interval(sizes=[500, 600])        # Interval of the paired difference

Problem: two maps are scored on the same held-out text, and their scores go up and down together;
the interval of a difference is far shorter than those of the scores. Mechanism: the delete-a-group
jackknife (`lrt_lens.statistics._jackknife`) of the differences.

Limits: both scores must be of the same groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrt_lens.statistics._intervals import Interval
from lrt_lens.statistics._jackknife import few_groups, jackknife


@dataclass(frozen=True)
class GroupScore:
    """A score on all groups, and on all groups but one."""

    value: float
    """Score on all groups."""
    others: np.ndarray
    """Scores without each group [group]; empty if there are fewer than two."""

    def __sub__(self, other: "GroupScore") -> "GroupScore":
        return GroupScore(self.value - other.value, self.others - other.others)

    def over(self, token: "GroupScore") -> "GroupScore":
        """Return (s − t)/(1 − t) for this score s and that of token identity t."""
        gain = (self.others - token.others) / (1 - token.others)
        return GroupScore((self.value - token.value) / (1 - token.value), gain)

    def interval(self, sizes: Sequence[float]) -> Interval:
        """Return the score with its 95% interval; ``sizes`` are the tokens of the groups."""
        if len(self.others) < 2:
            return Interval(self.value, np.nan, np.nan, few_groups(list(sizes)[:1]))
        low, high, _ = jackknife(self.value, self.others, sizes)
        return Interval(self.value, float(low), float(high), few_groups(list(sizes)))
