"""The change of scale and origin that makes scores of one model like those of another.

    change = ScoreChange.matching(source_scores, target_scores)      # scores [row, column]
    change.of(target_scores)                     # mean and deviation of the source's scores

Problem: a threshold learnt on scores of one model is misplaced on scores of another that are all
shifted or stretched, although both order the texts alike. Mechanism: no label is needed to see a
shift. Both models score the same texts, and one affine change per column gives the second model's
scores the mean and the standard deviation of the first's:

    s ← a · s + b,        a = σ_source / σ_target,        b = μ_source − a · μ_target

The order of the scores stays, and with it the AUROC of every column. The scores of the two models
need not be paired: the models may read different tokens of the texts.

Limits: the texts must be mixed in both models alike. On texts of one class the change matches the
means of that class, not the threshold. The threshold has the error of two means of n scores.
"""

from dataclasses import dataclass

import numpy as np

FEWEST_ROWS = 8
"""Number of scores below which a mean and a deviation are too uncertain to move a threshold."""
_TINY = 1e-12
"""Share of the size of the scores below which a deviation is rounding error."""


@dataclass(frozen=True)
class ScoreChange:
    """Affine change of scores, ``scale · s + shift`` in each column."""

    scale: np.ndarray
    """Positive factor a of each column, [column]."""
    shift: np.ndarray
    """Number b that is added to each column, [column]."""

    @classmethod
    def matching(cls, source: np.ndarray, target: np.ndarray) -> "ScoreChange":
        """Return the change that gives the target's scores the source's means and deviations.

        A column whose scores do not vary in one of the models has the scale 1; `constant_columns`
        names such columns.

        Args:
            source: scores of the source on some texts, [row, column].
            target: scores of the target on the same texts, [row, column]; with one row per token
                the numbers of rows may differ.
        """
        varies = ~(constant_columns(source) | constant_columns(target))
        deviation = np.where(varies, target.std(0), 1.0)
        # a = σ_source / σ_target, b = μ_source − a μ_target
        scale = np.where(varies, source.std(0) / deviation, 1.0)
        return cls(scale, source.mean(0) - scale * target.mean(0))

    def of(self, scores: np.ndarray) -> np.ndarray:
        """Return the changed scores, [row, column]."""
        return scores * self.scale + self.shift


def constant_columns(scores: np.ndarray) -> np.ndarray:
    """Return which columns of scores [row, column] do not vary, [column]."""
    # The deviation of equal numbers is not exactly 0 in floating point.
    return scores.std(0) <= _TINY * (np.abs(scores).max(0) + 1e-30)
