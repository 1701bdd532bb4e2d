"""Which hook pair or family of maps is best, and which others are shown to be worse.

Problem: the highest of many scores may be the highest by chance. Mechanism: the score of a hook
pair pools the held-out errors of five folds of documents, and leaving out one fold at a time
(delete-a-group jackknife) gives its interval. All hook pairs share their folds, so the interval of
the *difference* of two hook pairs is much narrower. The differences from the best hook pair have
simultaneous intervals, which know that the best was picked by the same data
(`lrt_lens.statistics._best_of_several`).

    grid.choices(source=3)           # one row per candidate, best first
    grid.compare(solvers).choices()  # the same for families of maps on one hook pair

Limits: five folds see differences that are several times their own error. A candidate that is not
``really_worse`` is not shown to be as good.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lrt_lens.models._hook_points import HookPair
from lrt_lens.statistics._best_of_several import behind_best
from lrt_lens.statistics._jackknife import jackknife
from lrt_lens.stitching.solvers._solver import FoldErrors, PairFolds


def choices(folds: Mapping[HookPair, PairFolds], candidates: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the candidate hook pairs, best first, with 95% jackknife intervals.

    Args:
        folds: held-out errors of each hook pair by fold.
        candidates: rows of ``grid.scores``.
        by: the cross-validated column to choose by.

    Returns:
        One row per hook pair: ``source_hook``, ``target_hook``, the columns of `behind_columns`,
        ``r2_null`` and ``r2_token``.
    """
    ordered = candidates.sort_values(by, ascending=False).reset_index(drop=True)
    pairs = zip(ordered["source_hook"].astype(str), ordered["target_hook"].astype(str), strict=True)
    columns = behind_columns(ordered[by].tolist(), [folds[pair] for pair in pairs], by)
    parts = [ordered[["source_hook", "target_hook"]], columns, ordered[["r2_null", "r2_token"]]]
    return pd.concat(parts, axis=1)


def behind_columns(scores: Sequence[float], folds: Sequence[PairFolds], by: str) -> pd.DataFrame:
    """Return intervals of the scores of candidates, and of their differences from the best.

    ``low`` and ``high`` are intervals of one score each. ``behind_low`` and ``behind_high`` hold
    together for all candidates of this table and account for the choice: of tables whose
    candidates are all equally good, at most 5% call any of them ``really_worse``. A choice among
    fewer candidates has narrower intervals.

    Args:
        scores: [candidate], best first; NaN at the end.
        folds: [candidate], held-out errors of the candidates on the same folds.
        by: name of the score.

    Returns:
        One row per candidate: ``score``, ``low``, ``high``, ``behind`` (difference from the best),
        ``behind_low``, ``behind_high`` and ``really_worse`` (``behind_low`` is above 0).
    """
    left_out = [leave_one_out(one, by) for one in folds]
    sizes = [fold_sizes(one, by) for one in folds]
    intervals = [jackknife(*candidate) for candidate in zip(scores, left_out, sizes, strict=True)]
    # Targets have different variances, so folds have slightly different sizes for them; all
    # differences are taken with those of the best.
    behind = behind_best(np.array(scores), np.transpose(left_out), sizes[0])
    return pd.DataFrame(
        {
            "score": scores,
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
            "behind": behind.difference,
            "behind_low": behind.low,
            "behind_high": behind.high,
            "really_worse": behind.low > 0,
        }
    )


def count_not_worse(table: pd.DataFrame) -> int:
    """Return how many candidates of a table of `choices`, besides the best, may be as good."""
    # NaN, for a candidate without a score, is not counted.
    return len(table.query("behind_low <= 0")) - 1


def gain_over_token(score: float, token: float | None) -> float:
    """Return, of the variance that tokens cannot explain, the fraction that a map explains.

    Args:
        score: R² of the map.
        token: R² of the same target predicted from token identity; None if it is unknown.

    Returns:
        ``(score − token) / (1 − token)``; NaN if tokens explain everything, or it is unknown what
        they explain.
    """
    return math.nan if token is None or token >= 1 else (score - token) / (1 - token)


def leave_one_out(folds: PairFolds, by: str) -> list[float]:
    """Return the score ``by`` of a hook pair with each fold left out of the pool, [fold]."""
    errors, column = _errors(folds, by)
    if by == "gain_cv":
        return [_gain_without(errors, folds.token, k) for k in range(len(errors.errors))]
    return [errors.r2_without(k, column) for k in range(len(errors.errors))]


def fold_sizes(folds: PairFolds, by: str) -> list[float]:
    """Return the sizes of the folds in the score ``by``: parts of its denominator, [fold]."""
    errors, column = _errors(folds, by)
    return errors.variances[:, column].tolist()


def _errors(folds: PairFolds, by: str) -> tuple[FoldErrors, int]:
    """Return the errors that a column reads, and the column of their sums."""
    # Column names: r2_cv, r2_uniform_cv, gain_cv, r2_down_cv, r2_uniform_down_cv.
    return (folds.down if "_down_" in by else folds.up), int("uniform" in by or by == "gain_cv")


def _gain_without(errors: FoldErrors, token: FoldErrors | None, k: int) -> float:
    """Return ``gain_cv`` with fold ``k`` left out of both pools."""
    return gain_over_token(errors.r2_without(k, 1), token and token.r2_without(k, 1))
