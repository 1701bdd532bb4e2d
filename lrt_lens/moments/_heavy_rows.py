"""Single rows that hold most of the variance of a hook point.

Problem: one row of 1e6 among ordinary ones (a broken token, an overflow, a sum instead of a mean)
decides every map, score and covariance, and second moments no longer show it. Mechanism: the
longest row of each hook point is recorded with a name while blocks are added, if it is many times
as long as the median of its block (`lrt_lens.moments._centred_rows`); its squared distance is later
compared with the trace of the whole scatter.

    rows = with_heaviest(rows, "source blocks.3.hook_resid_post", block.heaviest(), name)
    heavy_rows(rows, trace_of, n)

Limits: several rows that hold most of the variance together are not named.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

HEAVY_SHARE = 0.5
"""Share of the variance of a hook point above which one row is named in a warning."""
RowName = Callable[[int], str]
"""Function from the number of a row in its block to a name for people."""
TraceOf = Callable[[str, str], float | None]
"""Function from (role, hook point) to the trace of a scatter."""
HeaviestRows = dict[str, tuple[float, str]]
"""Squared distance and name of the longest row by ``"ROLE HOOK"``."""


def document_row(rows: Tensor | np.ndarray, before: int, documents: Any, i: int) -> str:
    """Return the name of row ``rows[i]`` of a call, after ``before`` rows of earlier calls."""
    document = documents[int(rows[i])]
    # Numbers of numpy and torch are shown as plain ones.
    plain = document.item() if hasattr(document, "item") else document
    return f"row {before + int(rows[i])} (document {plain!r})"


def with_heaviest(
    rows: HeaviestRows, hook: str, longest: tuple[float, int] | None, name: RowName
) -> HeaviestRows:
    """Return the longest rows of all hook points, with that of one more block at ``hook``.

    ``longest`` is (squared distance, row); None if no row of the block is heavy.
    """
    if longest is None or (hook in rows and longest[0] <= rows[hook][0]):
        return rows
    square, row = longest
    return rows | {hook: (square, name(row))}


def heavy_rows(rows: HeaviestRows, trace_of: TraceOf, n: Tensor) -> list[str]:
    """Return one sentence for each hook point of which one row has most of the variance.

    Args:
        rows: longest rows by ``"ROLE HOOK"``.
        trace_of: function from (role, hook point) to the trace of the scatter of all rows; None if
            there are no moments of the hook point.
        n: number of rows of each part [part].
    """
    sentences = []
    for hook, (square, name) in rows.items():
        role, _, point = hook.partition(" ")
        trace = trace_of(role, point)
        if trace is not None and trace > 0 and square > HEAVY_SHARE * trace:
            sentences.append(
                f"{name} has {min(square / trace, 1):.0%} of the variance of the {int(n.sum()):,} "
                f"rows at {role} {point!r} ({square**0.5:.4g} away from the others): maps, scores "
                "and covariances describe mostly this row; check it, and leave it out if it is no "
                "real activation"
            )
    return sentences


def trace_about_mean(total: Tensor, squares: Tensor, n: Tensor) -> float:
    """Return tr Sxx over all parts, of sums about a shift.

    Args:
        total: Σ(x − c) [part, d].
        squares: Σ(x − c)² [part, d].
        n: number of rows of each part [part].
    """
    # tr Sxx = Σ‖x − c‖² − ‖Σ(x − c)‖²/n
    return float(squares.sum() - (total.sum(0) ** 2).sum() / n.sum())
