"""R² of any pair of functions between two streams, from rows, batch by batch.

R² is defined as in scikit-learn. Only sums are held in memory:

    scores = score_functions(up, down, cache, expected=("blocks.3.hook_resid_post", ...))
    scores.r2, scores.r2_uniform
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrt_lens.errors import MismatchError, TooFewDocumentsError
from lrt_lens.models._hook_points import HookPair, same_place
from lrt_lens.moments._cross_moments import TEST_PARTS
from lrt_lens.moments._scatter import r2_of
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.stitching.recipes._rows import paired_rows

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class RowScores:
    """R² of both directions on held-out rows."""

    r2: float
    """Explained share of the target's variance, ``variance_weighted`` R² of scikit-learn."""
    r2_uniform: float
    """Mean R² over target dimensions (``uniform_average``), without those that do not vary."""
    r2_down: float
    """Explained share of the source's variance by the map down."""
    r2_uniform_down: float
    """Mean R² over source dimensions of the map down."""
    n_rows: int
    """Number of rows."""


def score_functions(
    up: Callable[[Tensor], Tensor],
    down: Callable[[Tensor], Tensor],
    rows: Any,
    expected: HookPair,
    hooks: HookPair | None = None,
) -> RowScores:
    """Return scores of ``up`` and ``down`` on rows.

    Args:
        up: function [row, d_source] → [row, d_target].
        down: function [row, d_target] → [row, d_source].
        rows: ``(x, y)``, of which all rows count; or rows of a recipe (a cache, a hook pair of one,
            ``(x, y, documents)``), of which the test fold counts.
        expected: hook pair of the functions.
        hooks: hook pair of a cache with several.

    Raises:
        MismatchError: the rows are of other hook points than ``expected``.
        TooFewDocumentsError: the test fold has no row.
    """
    if isinstance(rows, tuple | list) and len(rows) == 2:
        batches: Iterable[tuple[Tensor, Tensor]] = zip(
            rows[0].split(_BATCH_ROWS), rows[1].split(_BATCH_ROWS), strict=True
        )
    else:
        row_pairs = paired_rows(rows, hooks)
        for role, ours, theirs in (
            ("source", expected[0], row_pairs.source_hook),
            ("target", expected[1], row_pairs.target_hook),
        ):
            if not same_place(ours, theirs):
                raise MismatchError(
                    f"trained at the {role} hook point {ours!r}, but the rows are of {theirs!r}; "
                    "give rows of the same hook point"
                )
        batches = row_pairs.batches(RowSelection(parts=TEST_PARTS), _BATCH_ROWS)
    # Sums over batches give the R² of all rows; a mean of the batches' R² would not.
    errors_up, errors_down = _Errors(), _Errors()
    for x, y in batches:
        errors_up.add(y, up(x))
        errors_down.add(x, down(y))
    if not errors_up.n:
        raise TooFewDocumentsError(
            "no row to score on: no document of these rows belongs to the test fold; give more "
            "documents, or (x, y)"
        )
    (r2, r2_uniform), (r2_down, r2_uniform_down) = errors_up.scores(), errors_down.scores()
    return RowScores(
        r2=r2,
        r2_uniform=r2_uniform,
        r2_down=r2_down,
        r2_uniform_down=r2_uniform_down,
        n_rows=errors_up.n,
    )


class _Errors:
    """Sums of squares over batches, in float64 and about the mean of the first batch."""

    def __init__(self) -> None:
        self.n = 0
        self.error = self.total = self.square = self.shift = torch.zeros(0, dtype=torch.float64)

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Add a batch of rows [row, d]."""
        truth, predicted = truth.detach().double().cpu(), predicted.detach().double().cpu()
        if not self.n:
            self.shift = truth.mean(0)
            self.error, self.total, self.square = (torch.zeros_like(self.shift) for _ in range(3))
        centred = truth - self.shift
        self.n += len(truth)
        self.error = self.error + (truth - predicted).square().sum(0)
        self.total = self.total + centred.sum(0)
        self.square = self.square + centred.square().sum(0)

    def scores(self) -> tuple[float, float]:
        """Return (R², mean R² over dimensions)."""
        # Σ(y − ȳ)² = Σ(y − c)² − (Σ(y − c))²/n; c close to ȳ keeps the difference precise.
        r2, r2_uniform, _ = r2_of(self.error, self.square - self.total.square() / self.n)
        return r2, r2_uniform
