"""Windows: consecutive tokens of one document, for one model or for both models of a pair.

A window never extends over two documents. It begins with BOS if the model's policy says so. For
models with different tokenizers the windows are cut at the same characters: see
`lrt_lens.data._window_cutter`.

    windows = cut_windows(ids, key, model, BlockPlan(context_length=256))
    windows[0].ids, windows[0].rows      # token ids, positions of unmasked tokens

Limits: the last window of a document is shorter, and is left out below `MINIMUM_ROWS` rows.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lrt_lens.data._aligned import Aligned
from lrt_lens.models._text_reader import SKIP_FIRST, TextReader

MINIMUM_ROWS = 4
"""Fewest unmasked tokens of a window; with fewer, a forward pass costs more than it gives."""


@dataclass(frozen=True)
class BlockPlan:
    """Settings for cutting documents into windows and blocks."""

    context_length: int = 256
    """Largest number of tokens per window, BOS included."""
    skip_first: int = SKIP_FIRST
    """Number of masked positions at the start of every window."""
    n_tokens: int | None = None
    """Number of unmasked tokens after which no further document is read; None reads all."""
    block_rows: int = 4096
    """Number of unmasked tokens at which a block is full."""
    seed: int = 0
    """Seed of the hash that assigns documents to folds."""
    lag: int = 0
    """Off-by-one control: each source row is paired with the target row this many rows later."""


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document, with the positions of its unmasked tokens."""

    ids: list[int]
    rows: np.ndarray
    """Unmasked positions in ``ids``, ascending."""
    document: int
    """Key of the document."""
    counterpart: "Window | None" = None
    """Window with the same characters in the target's tokens; None if the tokens are the same.

    Its row k is paired with row k of this window.
    """

    def read_by(self, role: Literal["source", "target"]) -> "Window":
        """Return the window in the tokens of the model in that role."""
        return self if role == "source" or self.counterpart is None else self.counterpart

    def of_document(self, number: int) -> "Window":
        """Return this window with another key for its document."""
        return replace(
            self,
            document=number,
            counterpart=self.counterpart and replace(self.counterpart, document=number),
        )

    @property
    def padded_length(self) -> int:
        """Number of tokens of the longer one of the two windows."""
        return max(len(self.ids), len(self.read_by("target").ids))


@dataclass(frozen=True)
class CutDocument:
    """Windows of one document."""

    key: int
    """Hash of the document's text, which decides its fold."""
    windows: list[Window]
    aligned: Aligned | None = None
    """Counts of aligned positions; None if both models read the same tokens."""


def cut_windows(ids: list[int], key: int, model: TextReader, plan: BlockPlan) -> list[Window]:
    """Return the windows of one document that have at least four unmasked tokens."""
    prefix = [model.tokenizer.bos_token_id] if model.prepend_bos else []
    if prefix and ids[:1] == prefix:
        ids = ids[1:]  # the chat template has already written BOS
    body_length = plan.context_length - len(prefix)
    special = special_tokens(model)
    windows = []
    # Windows do not overlap, and BOS is prepended to each: a state has read only its own window.
    for start in range(0, len(ids), body_length):
        window = [*prefix, *ids[start : start + body_length]]
        rows = unmasked(window, special, plan.skip_first)
        if len(rows) >= MINIMUM_ROWS:
            windows.append(Window(window, rows, key))
    return windows


def special_tokens(model: TextReader) -> np.ndarray:
    """Return the ids of a model's special tokens, ascending.

    Callers ask once for many windows, because a tokenizer builds the list at every call.
    """
    return np.array(sorted(model.special_ids))


def unmasked(ids: list[int], special: np.ndarray, skip_first: int) -> np.ndarray:
    """Return the positions after the first ``skip_first`` whose tokens are not special."""
    keep = ~np.isin(ids, special)
    keep[:skip_first] = False
    return np.flatnonzero(keep)
