"""Rows of a refit: states of the same tokens in one or two models, with their folds.

    rows = RefitRows(target, source, folds)
    rows.target, rows.source, rows.folds      # [row, d_target], [row, d_source], [row]

Problem: the steps of a refit need states and folds, wherever they were read. Mechanism: three
tensors of equal length.

Limits: all rows are in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrt_lens.data._parts import N_FOLDS
from lrt_lens.errors import NonFiniteError, TooFewDocumentsError


@dataclass(frozen=True)
class RefitRows:
    """Rows of the fitting folds; row i of the source and of the target is the same position."""

    target: Tensor
    """States of the target in float32, [row, d_target]."""
    source: Tensor | None
    """States of the source in float32, [row, d_source]; None without a source."""
    folds: Tensor
    """Number of the fitting fold of each row, [row]."""

    @classmethod
    def joined(cls, kept: Mapping[str, list[Tensor]], folds: list[Tensor]) -> "RefitRows":
        """Rows of all blocks; raises if they fill fewer than two folds or are not finite."""
        filled = {int(fold[0]) for fold in folds if len(fold)}
        if len(filled) < 2:
            raise TooFewDocumentsError(
                f"the documents have rows in {len(filled)} of {N_FOLDS} fitting folds; expected "
                "at least two, to choose the penalty (documents of the test fold are not read): "
                "give more text"
            )
        states = {role: torch.cat(rows) for role, rows in kept.items()}
        for role, rows in states.items():
            if not bool(torch.isfinite(rows).all()):
                raise NonFiniteError(
                    f"{int((~torch.isfinite(rows)).any(1).sum())} of {len(rows)} states of the "
                    f"{role} hold NaN or infinity; expected finite states: load the model with "
                    "dtype='float32'"
                )
        return cls(states["target"], states.get("source"), torch.cat(folds))
