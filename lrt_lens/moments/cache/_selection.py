"""Selection of rows by the part of their document, and by a split for validation.

    RowSelection(parts=FIT_PARTS, validation_share=0.1, side="training").mask(parts, documents)

Limits: the share is one of documents, so the share of rows differs from it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrt_lens.data._parts import N_FOLDS, N_PARTS, N_TEST_GROUPS

_STEPS = 10_000
"""Number of values among which the validation share is rounded: 0.01 % each."""


@dataclass(frozen=True)
class RowSelection:
    """Rows of some parts, optionally of the training or validation documents only.

    Raises:
        ValueError: there is no part, or a part does not exist.
    """

    parts: tuple[int, ...] = tuple(range(N_PARTS))
    """Parts of the documents (`lrt_lens.data._parts`): five folds, eight test groups."""
    validation_share: float = 0.0
    """Share of the documents in these parts that is for validation, decided by their keys."""
    side: Literal["all", "training", "validation"] = "all"
    """Side of that split to select."""

    def __post_init__(self) -> None:
        if not self.parts or any(part not in range(N_PARTS) for part in self.parts):
            raise ValueError(
                f"parts is {self.parts!r}; expected numbers from 0 to {N_PARTS - 1} "
                f"({N_FOLDS} folds, then the groups of the test fold)"
            )

    def mask(self, parts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Return whether each row is selected, [row], from its part and the key of its document."""
        in_parts = np.isin(parts, self.parts)
        if self.side == "all":
            return in_parts
        # `part_of` uses the key modulo 6 · 8; the digits above that are independent of the part.
        digits = documents // np.uint64((N_FOLDS + 1) * N_TEST_GROUPS) % np.uint64(_STEPS)
        is_validation = digits < np.uint64(round(self.validation_share * _STEPS))
        return in_parts & (is_validation if self.side == "validation" else ~is_validation)
