"""Single rows that hold most of the variance of a hook point.

Problem: one row of 1e6 among ordinary ones (a broken token, an overflow, a sum instead of a mean)
decides every map, score and covariance, and second moments no longer show it. Mechanism: the
longest row of each hook point is recorded with a name while blocks are added, if it is many times
as long as the median of its block (`lrt_lens.moments._centred_rows`); its squared distance is later
compared with the trace of the whole scatter.

    rows = with_heaviest(rows, "source blocks.3.hook_resid_post", block, name)
    heavy_rows(rows, {"source": source, "target": target}, n)

Limits: several rows that hold most of the variance together are not named.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lrt_lens.moments._centred_rows import CentredRows
from lrt_lens.moments._scatter import SideMoments

HEAVY_SHARE = 0.5
"""Share of the variance of a hook point above which one row is named in a warning."""
RowName = Callable[[int], str]
"""Function from the number of a row in its block to a name for people."""
HeaviestRows = dict[str, tuple[float, str]]
"""Squared distance and name of the longest row by ``"ROLE HOOK"``."""


def document_row(
    rows: Tensor, before: int, documents: Sequence[Any] | Tensor | np.ndarray, i: int
) -> str:
    """Return the name of row ``rows[i]`` of a call, after ``before`` rows of earlier calls."""
    document = documents[int(rows[i])]
    # Numbers of numpy and torch are shown as plain ones.
    plain = document.item() if hasattr(document, "item") else document
    return f"row {before + int(rows[i])} (document {plain!r})"


def with_heaviest(rows: HeaviestRows, hook: str, block: CentredRows, name: RowName) -> HeaviestRows:
    """Return the longest rows of all hook points, with those of one more block at ``hook``."""
    longest = block.heaviest()
    if longest is None or (hook in rows and longest[0] <= rows[hook][0]):
        return rows
    square, row = longest
    return rows | {hook: (square, name(row))}


def heavy_rows(
    rows: HeaviestRows, sides: Mapping[str, Mapping[str, SideMoments]], n: Tensor
) -> list[str]:
    """Return one sentence for each hook point of which one row has most of the variance.

    Args:
        rows: longest rows by ``"ROLE HOOK"``.
        sides: moments by hook point, for the roles ``"source"`` and ``"target"``.
        n: number of rows of each part [part].
    """
    sentences = []
    for hook, (square, name) in rows.items():
        role, _, point = hook.partition(" ")
        side = sides[role].get(point)
        if side is None:
            continue
        # tr Sxx over all parts = Σ‖x − c‖² − ‖Σ(x − c)‖²/n
        total = side.total.sum(0)
        about_shift = side.second.diagonal(dim1=1, dim2=2).sum()
        trace = float(about_shift - (total**2).sum() / n.sum())
        if trace > 0 and square > HEAVY_SHARE * trace:
            sentences.append(
                f"{name} has {min(square / trace, 1):.0%} of the variance of the {int(n.sum()):,} "
                f"rows at {role} {point!r} ({square**0.5:.4g} away from the others): maps, scores "
                "and covariances describe mostly this row; check it, and leave it out if it is no "
                "real activation"
            )
    return sentences
