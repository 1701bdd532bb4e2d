"""Cross-validated scores of hook pairs with intervals: is the best pair better than the next?

Problem: the highest of many scores may be the highest by chance. Mechanism: the score of a hook
pair pools the held-out errors of five folds. Leaving out one fold at a time (delete-a-group
jackknife) gives an interval for each score. All hook pairs share their folds, so the interval of
the *difference* of two hook pairs is much narrower.

    grid.choices(source=3)      # columns behind, behind_low, behind_high, really_worse

Limits: the intervals are not corrected for the number of hook pairs.
"""

import math
from collections.abc import Mapping

import pandas as pd

from lrt_lens.moments._hook_pairs import HookPair
from lrt_lens.statistics._jackknife import jackknife
from lrt_lens.stitching.solvers._solver import FoldErrors, PairFolds


def gain_over_token(score: float, token: float) -> float:
    """Return, of the variance that tokens cannot explain, the fraction that a map explains.

    Args:
        score: R² of the map.
        token: R² of the same target predicted from the source's embedding.

    Returns:
        ``(score − token) / (1 − token)``; NaN if tokens explain everything.
    """
    return (score - token) / (1 - token) if token < 1 else math.nan


def choices(folds: Mapping[HookPair, PairFolds], candidates: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the candidate hook pairs, best first, with 95% jackknife intervals.

    Args:
        folds: held-out errors of each hook pair by fold.
        candidates: rows of ``grid.scores``.
        by: the cross-validated column to choose by.

    Returns:
        One row per hook pair: ``source_hook``, ``target_hook``, ``score``, ``low``, ``high``,
        ``behind`` (difference from the best), ``behind_low``, ``behind_high``, ``really_worse``
        (that interval excludes 0), ``r2_null`` and ``r2_token``.
    """
    ordered = candidates.sort_values(by, ascending=False).to_dict("records")
    pairs = [(str(row["source_hook"]), str(row["target_hook"])) for row in ordered]
    best, best_left_out = ordered[0][by], _leave_one_out(folds[pairs[0]], by)
    rows = []
    for pair, row in zip(pairs, ordered, strict=True):
        left_out = _leave_one_out(folds[pair], by)
        interval = jackknife(row[by], left_out)
        # All hook pairs share their folds, so the difference is taken fold by fold.
        difference = jackknife(
            best - row[by], [a - b for a, b in zip(best_left_out, left_out, strict=True)]
        )
        rows.append(
            {name: row[name] for name in ("source_hook", "target_hook")}
            | {"score": row[by], "low": interval.low, "high": interval.high}
            | {"behind": best - row[by], "behind_low": difference.low}
            | {"behind_high": difference.high, "really_worse": difference.low > 0}
            | {name: row[name] for name in ("r2_null", "r2_token")}
        )
    return pd.DataFrame(rows)


def _leave_one_out(folds: PairFolds, by: str) -> list[float]:
    """Return the score ``by`` with each fold left out of the pool."""
    # Column names: r2_cv, r2_uniform_cv, gain_cv, r2_down_cv, r2_uniform_down_cv.
    errors = folds.down if "_down_" in by else folds.up
    if by == "gain_cv":
        return [_gain_without(errors, folds.token, k) for k in range(len(errors.errors))]
    column = 1 if "uniform" in by else 0
    return [errors.r2_without(k, column) for k in range(len(errors.errors))]


def _gain_without(errors: FoldErrors, token: FoldErrors | None, k: int) -> float:
    """Return ``gain_cv`` with fold ``k`` left out of both pools."""
    baseline = token.r2_without(k, 1) if token else 0.0
    return gain_over_token(errors.r2_without(k, 1), baseline)
