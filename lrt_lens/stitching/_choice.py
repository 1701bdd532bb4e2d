"""Is the best layer really better than the next? Cross-validated scores with intervals, and the
runners-up beside them.

The score of a pair pools the held-out errors of five folds. Leaving one fold out of the pool at a
time (delete-a-group jackknife) gives an interval for each score, and, because all pairs share their
folds, a much narrower one for the *difference* of two pairs.
"""

from typing import TYPE_CHECKING

import pandas as pd

from lrt_lens.statistics._jackknife import jackknife
from lrt_lens.stitching.solvers._solver import FoldErrors

if TYPE_CHECKING:
    from lrt_lens.stitching._grid import PairFolds, StitchGrid


def choices(grid: "StitchGrid", table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Pairs, best first, with 95% intervals.

    Columns: ``source_hook``, ``target_hook``, ``score``, ``low``, ``high``, ``behind`` (difference
    to the best), ``behind_low``, ``behind_high``, ``really_worse`` (that interval excludes 0), and
    ``r2_null`` and ``r2_token`` beside them.
    """
    ordered = table.sort_values(by, ascending=False).to_dict("records")
    pairs = [(str(row["source_hook"]), str(row["target_hook"])) for row in ordered]
    leader, best = _leave_one_out(grid.folds[pairs[0]], by), ordered[0][by]
    rows = []
    for pair, row in zip(pairs, ordered, strict=True):
        left_out = _leave_one_out(grid.folds[pair], by)
        interval = jackknife(row[by], left_out)
        difference = jackknife(
            best - row[by], [a - b for a, b in zip(leader, left_out, strict=True)]
        )
        rows.append(
            {
                "source_hook": pair[0],
                "target_hook": pair[1],
                "score": row[by],
                "low": interval.low,
                "high": interval.high,
                "behind": best - row[by],
                "behind_low": difference.low,
                "behind_high": difference.high,
                "really_worse": difference.low > 0,
                "r2_null": row["r2_null"],
                "r2_token": row["r2_token"],
            }
        )
    return pd.DataFrame(rows)


def _leave_one_out(folds: "PairFolds", by: str) -> list[float]:
    """The score with each fold left out of the pool."""
    down = "_down_" in by
    errors = folds.down if down else folds.up
    if by == "gain_cv":
        token = folds.token
        return [_gain_without(errors, token, k) for k in range(len(errors.errors))]
    column = 1 if "uniform" in by else 0
    return [errors.r2_without(k, column) for k in range(len(errors.errors))]


def _gain_without(errors: FoldErrors, token: FoldErrors | None, k: int) -> float:
    baseline = token.r2_without(k, 1) if token else 0.0
    return (errors.r2_without(k, 1) - baseline) / (1 - baseline)
