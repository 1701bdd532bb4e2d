"""Which rows: by the part that their documents belong to, and by whether those are set aside for
validation.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrt_lens.data._parts import N_FOLDS, N_PARTS, N_TEST_GROUPS

_STEPS = 10_000


@dataclass(frozen=True)
class RowSelection:
    """Rows of some parts, or a share of their documents."""

    parts: tuple[int, ...] = tuple(range(N_PARTS))
    """See `lrt_lens.data._blocks`: five folds that fit, eight groups that test."""
    validation_share: float = 0.0
    """Documents of these parts that are set aside, decided by their keys as parts are."""
    side: Literal["all", "training", "validation"] = "all"
    """Which side of that split."""

    def __post_init__(self) -> None:
        if not self.parts or any(part not in range(N_PARTS) for part in self.parts):
            raise ValueError(
                f"parts is {self.parts!r}; expected numbers from 0 to {N_PARTS - 1} ({N_FOLDS} folds, then the groups of the test fold)"
            )

    def mask(self, parts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """[row], whether a row is chosen, from its part and its document's key."""
        chosen = np.isin(parts, self.parts)
        if self.side == "all":
            return chosen
        # Digits of the key that the part does not depend on.
        place = documents // np.uint64((N_FOLDS + 1) * N_TEST_GROUPS) % np.uint64(_STEPS)
        aside = place < np.uint64(round(self.validation_share * _STEPS))
        return chosen & (aside if self.side == "validation" else ~aside)
