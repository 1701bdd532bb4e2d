"""Windows: consecutive tokens of one document, as one model reads them, or two.

None holds two documents; BOS stands in front by the model's policy. What two models of different
tokenizers read is cut at the same characters: see `lrt_lens.data._window_cutter`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lrt_lens.models._hooked_model import SKIP_FIRST, HookedModel

MINIMUM_ROWS = 4
"""A window that offers fewer unmasked tokens than this costs a forward pass for next to nothing."""


@dataclass(frozen=True)
class BlockPlan:
    """How documents are cut."""

    context_length: int = 256
    """Tokens a window, BOS included."""
    skip_first: int = SKIP_FIRST
    """Masked positions at the start of every window."""
    n_tokens: int | None = None
    """Unmasked tokens after which no further document is taken; None takes all."""
    block_rows: int = 4096
    """Unmasked tokens a block holds before it is handed on."""
    seed: int = 0
    """Decides the folds, with each document's text."""
    lag: int = 0
    """Pairs every position of the source with the target's that many rows later in its window: a
    control of the pairing itself.
    """


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document."""

    ids: list[int]
    rows: np.ndarray
    """Positions that take part, ascending."""
    document: int
    """The document's key."""
    counterpart: "Window | None" = None
    """The same characters in the target's tokens, row k beside row k of this one; None where both
    models read these tokens.
    """

    def read_by(self, role: Literal["source", "target"]) -> "Window":
        """What the model of that role reads."""
        return self if role == "source" or self.counterpart is None else self.counterpart

    def of_document(self, number: int) -> "Window":
        """The same, its document under another number."""
        return replace(
            self,
            document=number,
            counterpart=self.counterpart and replace(self.counterpart, document=number),
        )

    @property
    def padded_length(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.ids), len(self.read_by("target").ids))


def cut_windows(ids: list[int], key: int, model: HookedModel, plan: BlockPlan) -> list[Window]:
    """One document's windows; those with fewer than four unmasked tokens are left out."""
    prefix = [model.tokenizer.bos_token_id] if model.prepend_bos else []
    if prefix and ids[:1] == prefix:
        ids = ids[1:]  # chat templates write the BOS themselves
    body_length = plan.context_length - len(prefix)
    special = special_tokens(model)
    windows = []
    for start in range(0, len(ids), body_length):
        window = [*prefix, *ids[start : start + body_length]]
        rows = unmasked(window, special, plan.skip_first)
        if len(rows) >= MINIMUM_ROWS:
            windows.append(Window(window, rows, key))
    return windows


def special_tokens(model: HookedModel) -> np.ndarray:
    """Their ids, ascending; asked once for many windows, because a tokenizer makes the list anew
    each time.
    """
    return np.array(sorted(model.special_ids))


def unmasked(ids: list[int], special: np.ndarray, skip_first: int) -> np.ndarray:
    """Positions that are neither among the first ones nor special, ascending."""
    keep = ~np.isin(ids, special)
    keep[:skip_first] = False
    return np.flatnonzero(keep)
