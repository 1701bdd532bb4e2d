"""Settings of moments from activations that somebody already has.

    settings = ActivationSettings(source_model=small, target_model=large, null="full")
    CrossMoments.from_activations({3: x}, {5: y}, documents=ids, settings=settings)

Each field may also be passed as a keyword.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lrt_lens._numbers import checked_whole
from lrt_lens._settings import Settings
from lrt_lens.data._parts import DEFAULT_PARTS, Parts

TOKEN_COLUMNS = 1024
"""Default largest number of frequent tokens that have a column."""
NULLS = ("full", "sketch", "none")
"""Kinds of sums of shuffled pairs."""


@dataclass(frozen=True)
class ActivationSettings(Settings):
    """Settings of `CrossMoments.from_activations`.

    Raises:
        ValueError: a value is out of its range.
    """

    source_hook: int | str = "source"
    """Layer or hook point of ``x`` if it is a single array."""
    target_hook: int | str = "target"
    """Layer or hook point of ``y`` if it is a single array."""
    pairs: Sequence[tuple[int | str, int | str]] | None = None
    """Hook pairs (source, target). None takes every source hook point with every target's."""
    null: bool | Literal["full", "sketch", "none"] = True
    """Cross-moments of shuffled pairs, as in `HarvestSettings`."""
    moment_dtype: str | torch.dtype = torch.float32
    """Precision of products, float32 or float64; sums are always float64."""
    seed: int = 0
    """Seed of the parts and of the shuffled pairs."""
    parts: Parts = DEFAULT_PARTS
    """Numbers of folds and of groups of the test fold."""
    token_columns: int = TOKEN_COLUMNS
    """Largest number of tokens that have a column each in the baseline of token identity, if it
    has no embedding. Sums take memory in proportion to its square, 109 MB for 1024.
    """
    frequent_tokens: Sequence[int] | None = None
    """Ids of these tokens; None: the most frequent ones in the fitting folds of the first rows.
    Shards that are merged need the same.
    """
    source_model: Any = None
    """Model of ``x``: a `HookedModel`, what `HookedModel.load` takes, or the ``identity`` of one;
    None if unknown.
    """
    target_model: Any = None
    """Model of ``y``; None if unknown."""

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Parts):
            raise ValueError(f"parts is {self.parts!r}; expected Parts(n_folds, n_test_groups)")
        if not isinstance(self.null, bool) and self.null not in NULLS:
            raise ValueError(
                f"null is {self.null!r}; expected True, False, 'full', 'sketch' or 'none'"
            )

        columns = checked_whole("token_columns", self.token_columns, least=1)
        object.__setattr__(self, "token_columns", columns)
