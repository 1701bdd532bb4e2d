"""Text for measuring features: windows of held-out documents, streamed in batches of one group of
documents each.

    for batch in iterate_batches(pair, stitch, documents, plan): batch.tokens, batch.counted,
    batch.following, batch.group

Groups are those of the harvest's test fold (the text decides), so that intervals over groups mean
the same here as everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrt_lens.data._documents import Documents, document_key, iterate_documents
from lrt_lens.data._parts import N_FOLDS, N_TEST_GROUPS, part_of
from lrt_lens.data._windows import BlockPlan, Window, cut_windows
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.typing import TokenMask, Tokens

_NUMBERS_AT_ONCE = 2**24
"""Positions × features (or vocabulary, where logits are needed) of a batch at most: 64 megabytes in
float32.
"""
_BATCH_WINDOWS = 64


@dataclass(frozen=True)
class ReadingPlan:
    """How much text is read, and which."""

    n_tokens: int
    """Counted positions after which no further document is read."""
    context_length: int
    """Tokens a window, BOS included."""
    test_fold_only: bool
    """Only documents that had no part in the fit."""
    width: int
    """Numbers that a position takes: features, or the vocabulary."""


@dataclass(frozen=True)
class TokenBatch:
    """Windows of one group of documents."""

    tokens: Tokens
    counted: TokenMask
    """Unmasked positions that have a next token."""
    following: Tensor
    """Ids of the next tokens at counted positions, flat."""
    lengths: Tensor
    """Tokens of each window."""
    group: int

    @classmethod
    def of(cls, windows: list[Window], group: int, model: HookedModel) -> "TokenBatch":
        """Windows as tensors, padded on the right."""
        tokens = model.pad([window.ids for window in windows])
        counted = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, window in enumerate(windows):
            counted[row, torch.from_numpy(window.rows[window.rows < len(window.ids) - 1])] = True
        lengths = torch.tensor([len(window.ids) for window in windows])
        return cls(tokens, counted, tokens.roll(-1, dims=1)[counted], lengths, group)


def iterate_batches(
    pair: ModelPair, stitch: Stitch, documents: Documents, plan: ReadingPlan
) -> Iterator[TokenBatch]:
    """Batches until enough positions count; `TooFewDocumentsError` where no document can be read."""
    cut = BlockPlan(
        context_length=min(plan.context_length, pair.context_length), skip_first=stitch.skip_first
    )
    at_once = max(1, min(_BATCH_WINDOWS, _NUMBERS_AT_ONCE // (cut.context_length * plan.width)))
    waiting: list[list[Window]] = [[] for _ in range(N_TEST_GROUPS)]
    n_read, n_taken, n_counted = 0, 0, 0
    for text in iterate_documents(documents, pair.source.tokenizer):
        if n_counted >= plan.n_tokens:
            break
        n_read += 1
        key = document_key(text, stitch.provenance.seed)
        if plan.test_fold_only and part_of(key) < N_FOLDS:
            continue
        group = key // (N_FOLDS + 1) % N_TEST_GROUPS
        windows = cut_windows(pair.source.encode_bodies([text])[0], key, pair.source, cut)
        n_taken += bool(windows)
        n_counted += sum(int((window.rows < len(window.ids) - 1).sum()) for window in windows)
        waiting[group] += windows
        while len(waiting[group]) >= at_once:
            yield TokenBatch.of(waiting[group][:at_once], group, pair.source)
            del waiting[group][:at_once]
    if n_counted == 0:
        which = (
            " (a sixth is in the test fold); folds='all' reads the others too, if they had no part in the fit"
            if plan.test_fold_only
            else ""
        )
        raise TooFewDocumentsError(
            f"none of {n_read} document(s) offers a position to measure features at{which}: give more or longer text"
        )
    for group, windows in enumerate(waiting):
        for start in range(0, len(windows), at_once):
            yield TokenBatch.of(windows[start : start + at_once], group, pair.source)
