"""Text on which features are measured: windows of documents, in batches of one document group each.

    for batch in iterate_batches(pair, stitch, documents, plan):
        batch.tokens, batch.counted, batch.following, batch.group

Problem: intervals over groups of documents must mean the same for features as elsewhere. Mechanism:
groups are those of the harvest's test fold, and the text of a document decides its group.

Limits: windows that do not fill a batch are read at the end, in smaller batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrt_lens.data._blocks import WindowCutter
from lrt_lens.data._documents import Document, Documents
from lrt_lens.data._parts import N_FOLDS, N_TEST_GROUPS
from lrt_lens.data._spreading import TokenBudget
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._held_out import fold_filter
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.typing import TokenMask, Tokens

_NUMBERS_AT_ONCE = 2**24
"""Largest number of positions × features (or × vocabulary) of a batch: 64 MiB in float32."""
_BATCH_WINDOWS = 64
"""Largest number of windows of a batch."""


@dataclass(frozen=True)
class ReadingPlan:
    """Amount of text that is read, and the documents it may come from."""

    n_tokens: int
    """Number of counted positions after which no further document is read."""
    context_length: int
    """Number of tokens per window, BOS included."""
    test_fold_only: bool
    """True if only documents of the test fold are read, which had no part in the fit."""
    width: int
    """Number of values stored per position: features, or the vocabulary if logits are needed."""


@dataclass(frozen=True)
class TokenBatch:
    """Windows of one group of documents."""

    tokens: Tokens
    """Token ids, [window, position]."""
    counted: TokenMask
    """True at unmasked positions that have a next token."""
    following: Tensor
    """Ids of the next tokens at counted positions, [counted position]."""
    lengths: Tensor
    """Number of tokens of each window."""
    group: int
    """Group of documents that all windows belong to."""
    documents: list[int]
    """Number of the document of each window."""

    @classmethod
    def of(cls, windows: list[Window], group: int, model: HookedModel) -> "TokenBatch":
        """Batch of windows, padded on the right."""
        tokens = model.pad([window.ids for window in windows])
        counted = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, window in enumerate(windows):
            # The last token of a window has no next token.
            counted[row, torch.from_numpy(window.rows[window.rows < len(window.ids) - 1])] = True
        lengths = torch.tensor([len(window.ids) for window in windows])
        # roll puts token t + 1 at position t; the position that wraps around never counts.
        following = tokens.roll(-1, dims=1)[counted]
        documents = [window.document for window in windows]
        return cls(tokens, counted, following, lengths, group, documents)


def iterate_batches(
    pair: ModelPair, stitch: Stitch, documents: Documents, plan: ReadingPlan
) -> Iterator[TokenBatch]:
    """Batches of windows until ``plan.n_tokens`` positions count.

    Raises:
        TooFewDocumentsError: no document offers a counted position.
    """
    cut = BlockPlan(
        context_length=min(plan.context_length, pair.context_length),
        skip_first=stitch.skip_first,
        n_tokens=plan.n_tokens,
        max_document_tokens="auto",
        seed=stitch.provenance.seed,
    )
    is_read = fold_filter(documents, stitch.provenance, "test" if plan.test_fold_only else "all")
    at_once = max(1, min(_BATCH_WINDOWS, _NUMBERS_AT_ONCE // (cut.context_length * plan.width)))
    # Sums are stored per group of documents, so a batch holds windows of one group only.
    waiting: list[list[Window]] = [[] for _ in range(N_TEST_GROUPS)]
    reader, n_counted = _Reader(WindowCutter(cut, pair.source), is_read), 0
    numbers: dict[int, int] = {}
    for key, window in reader.windows(documents):
        # The group formula of the harvest: the key modulo N_FOLDS + 1 has chosen the part.
        group = key // (N_FOLDS + 1) % N_TEST_GROUPS
        n_counted += int((window.rows < len(window.ids) - 1).sum())
        waiting[group].append(window.of_document(numbers.setdefault(key, len(numbers))))
        if len(waiting[group]) >= at_once:
            yield TokenBatch.of(waiting[group], group, pair.source)
            waiting[group] = []
    if n_counted == 0:
        raise TooFewDocumentsError(_no_position(reader.n_read, plan))
    # The last windows of each group do not fill a batch.
    for group, windows in enumerate(waiting):
        for start in range(0, len(windows), at_once):
            yield TokenBatch.of(windows[start : start + at_once], group, pair.source)


@dataclass
class _Reader:
    """Windows of the documents that are read, and the number of documents seen."""

    cutter: WindowCutter
    is_read: Callable[[Document], bool]
    n_read: int = 0

    def windows(self, documents: Documents) -> Iterator[tuple[int, Window]]:
        """Yield (key of the document, window) until the tokens of the plan are reached."""
        budget = TokenBudget(self.cutter.plan)
        for document in self.cutter.read(documents):
            if budget.is_full:
                break
            self.n_read += 1
            if self.is_read(document):
                [cut] = self.cutter.cut([document])
                yield from ((cut.key, window) for window in budget.take(cut, share=0))
        yield from ((cut.key, window) for cut, window, _ in budget.rest())


def _no_position(n_read: int, plan: ReadingPlan) -> str:
    remedy = "give more or longer text"
    if plan.test_fold_only:
        remedy += ", or pass folds='all' if the text had no part in the fit of the stitch"
    fold = " of the test fold, a sixth of all documents," if plan.test_fold_only else ""
    return (
        f"none of {n_read} document(s) offers a position{fold} at which features can be measured; "
        f"{remedy}"
    )
