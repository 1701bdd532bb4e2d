"""Which windows of the documents are taken, so that tokens come from many documents and all folds.

Problem: of a few very long documents (books, articles of an encyclopedia) the first ones would fill
a harvest alone, and the test fold could get half of its tokens. So would the first groups, or
copies of one text, in a table in which they follow each other. Mechanism: documents with one key (a
group, or copies) are a *unit*. Each unit first gives at most a cap of tokens, and each fold at most
its share of ``n_tokens``. What remains waits, and reading goes on. If the documents end before
``n_tokens`` are reached, waiting windows follow in rounds, one window per unit and round, from the
fold that lacks most of its share first. The fold of a document still depends on the document alone.

    budget = TokenBudget(BlockPlan(n_tokens=14_000, max_document_tokens="auto"))
    now = budget.take(document, share=0)         # windows to use at once
    if budget.is_full: ...                       # read no further document
    for waiting in budget.rest(): ...            # when no document is left

Limits: at most ten million tokens wait in memory; the windows that would come last are dropped.
Reading stops if no new unit comes for twice ``n_tokens``, and at least a million tokens.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, CutDocument, Window

_UNITS = 200
"""Fewest units that an automatic cap lets ``n_tokens`` come from."""
_MOST_WAITING = 10_000_000
"""Largest number of tokens that wait, about 80 MB."""
_READ_AHEAD = 2
"""Multiple of ``n_tokens`` after which no document is read for a fold that is not full."""
_PATIENCE = 1_000_000
"""Fewest tokens without a new unit after which no document is read."""
_COUNTED_UNITS = 1_000_000
"""Largest number of units whose tokens are counted one by one; small ones are dropped first."""


@dataclass(frozen=True)
class _Waiting:
    """A window that may be taken later; its numbers are packed."""

    document: CutDocument
    begins: bool
    """True if no other window of the document was taken before."""
    share: int
    ids: np.ndarray
    rows: np.ndarray
    counterpart: "tuple[np.ndarray, np.ndarray] | None"

    @classmethod
    def of(cls, document: CutDocument, window: Window, *, begins: bool, share: int) -> "_Waiting":
        pack = lambda numbers: np.array(numbers, dtype=np.int32)  # noqa: E731
        other = window.counterpart
        return cls(
            replace(document, windows=[]),
            begins,
            share,
            pack(window.ids),
            pack(window.rows),
            other and (pack(other.ids), pack(other.rows)),
        )

    @property
    def window(self) -> Window:
        key = self.document.key
        other = self.counterpart and Window(
            self.counterpart[0].tolist(), self.counterpart[1].astype(np.int64), key
        )
        return Window(self.ids.tolist(), self.rows.astype(np.int64), key, other)


class _Queue:
    """Waiting windows of one share, in rounds."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._rounds: dict[int, deque[_Waiting]] = {}
        self._latest: list[int] = []
        """Negative numbers of the rounds, as a heap."""

    def add(self, number: int, waiting: _Waiting) -> None:
        if number not in self._rounds:
            self._rounds[number] = deque()
            heapq.heappush(self._latest, -number)
        self._rounds[number].append(waiting)
        self.n_tokens += len(waiting.rows)

    def drop_last(self) -> None:
        """Drop the window that would come last."""
        number = -self._latest[0]
        self.n_tokens -= len(self._rounds[number].pop().rows)
        if not self._rounds[number]:
            del self._rounds[number]
            heapq.heappop(self._latest)

    def in_order(self) -> Iterator[_Waiting]:
        """Yield the windows round by round; each is then no longer counted."""
        for number in sorted(self._rounds):
            for waiting in self._rounds[number]:
                self.n_tokens -= len(waiting.rows)
                yield waiting


class TokenBudget:
    """Tokens that each unit and each fold may give; it counts those that were taken."""

    def __init__(self, plan: BlockPlan, shares: Sequence[Fraction] = (Fraction(1),)) -> None:
        """Begin an empty budget; ``shares`` are the shares of the folds in ``plan.n_tokens``."""
        self.n_tokens, self.shares = plan.n_tokens, [float(share) for share in shares]
        # The product is rounded once, as a division by the number of equal shares is.
        self.quotas = [
            float("inf") if plan.n_tokens is None else float(plan.n_tokens * share)
            for share in shares
        ]
        """Unmasked tokens at which each share is full."""
        given = plan.max_document_tokens
        self._strict = given if isinstance(given, int) else None
        """Largest number of tokens per document, as given; no document ever gives more."""
        is_automatic = given == "auto" and plan.n_tokens is not None
        self._soft = -(-plan.n_tokens // _UNITS) if is_automatic and plan.n_tokens else None
        """Number of tokens after which the other windows of a unit wait."""
        self._enough_units = plan.parts.enough_documents
        """Units among which hardly any fold is empty."""
        self.rows = [0] * len(shares)
        """Unmasked tokens taken so far, by share."""
        self.n_read = 0
        """Unmasked tokens of the documents read so far."""
        self.n_units = 0
        """Number of units so far."""
        self._queues = [_Queue() for _ in shares]
        self._offered: dict[int, int] = {}
        """Tokens that each unit has offered at once, by key."""
        self._n_waiting: dict[int, int] = {}
        """Windows of each unit that have waited, by key."""
        self._n_seen, self._n_since_new_unit = 0, 0

    @property
    def is_full(self) -> bool:
        """True if no further document should be read."""
        if self.n_tokens is None:
            return False
        enough = self._n_seen >= _READ_AHEAD * self.n_tokens and self.n_units >= self._enough_units
        full = all(rows >= quota for rows, quota in zip(self.rows, self.quotas, strict=True))
        return full or enough or self.is_without_new_units

    @property
    def is_without_new_units(self) -> bool:
        """True if all documents belong to known units for so long that reading should stop."""
        # A share that gets no document (few groups) must not make a stream run for ever.
        patience = max(_READ_AHEAD * (self.n_tokens or 0), _PATIENCE)
        return self.n_tokens is not None and self._n_since_new_unit >= patience

    def is_capped(self, document: CutDocument) -> bool:
        """Return whether a document is longer than the cap."""
        size = sum(len(window.rows) for window in document.windows)
        if self._strict is not None:
            return size > self._strict
        # A window is never split for an automatic cap.
        return self._soft is not None and len(_until(document.windows, self._soft)) < len(
            document.windows
        )

    def take(self, document: CutDocument, share: int) -> list[Window]:
        """Return the windows of a document that are used now; others may wait."""
        windows = document.windows
        if self._strict is not None:
            windows = first_rows(windows, self._strict)
        self._count_unit(document)
        offered = windows
        if self._soft is not None:
            offered = _until(windows, self._soft - self._offered[document.key])
        size = sum(len(window.rows) for window in offered)
        self._offered[document.key] += size
        self._n_seen += size if self._soft is not None else int(min(size, self.quotas[share]))
        now = _until(offered, self.quotas[share] - self.rows[share])
        self.rows[share] += sum(len(window.rows) for window in now)
        for number, window in enumerate(windows[len(now) :]):
            begins = not now and number == 0
            self._wait(_Waiting.of(document, window, begins=begins, share=share))
        return now

    def rest(self) -> Iterator[tuple[CutDocument, Window, bool]]:
        """Yield (document, window, whether it is the document's first), until n_tokens are reached.

        One window per unit and round, from the share that has the least of its tokens first.
        """
        waiting_in = [queue.in_order() for queue in self._queues]
        while self.n_tokens is not None and sum(self.rows) < self.n_tokens:
            shares = [share for share, queue in enumerate(self._queues) if queue.n_tokens]
            if not shares:
                return
            share = min(shares, key=lambda one: self.rows[one] / self.shares[one])
            waiting = next(waiting_in[share])
            self.rows[share] += len(waiting.rows)
            yield waiting.document, waiting.window, waiting.begins

    def _count_unit(self, document: CutDocument) -> None:
        size = sum(len(window.rows) for window in document.windows)
        self.n_read += size
        self._n_since_new_unit += size
        if document.key not in self._offered:
            if len(self._offered) >= _COUNTED_UNITS:
                largest = heapq.nlargest(
                    _COUNTED_UNITS // 2, self._offered, key=self._offered.__getitem__
                )
                self._offered = {key: self._offered[key] for key in largest}
                self._n_waiting = {key: self._n_waiting.get(key, 0) for key in largest}
            self._offered[document.key] = 0
            self.n_units += 1
            self._n_since_new_unit = 0

    def _wait(self, waiting: _Waiting) -> None:
        key = waiting.document.key
        number = self._n_waiting.get(key, 0)
        self._n_waiting[key] = number + 1
        self._queues[waiting.share].add(number, waiting)
        while sum(queue.n_tokens for queue in self._queues) > min(
            self.n_tokens or 0, _MOST_WAITING
        ):
            waiting_by_share = zip(self._queues, self.shares, strict=True)
            max(waiting_by_share, key=lambda one: one[0].n_tokens / one[1])[0].drop_last()


def _until(windows: list[Window], n_rows: float | int) -> list[Window]:
    """Return the first windows, as many as are needed for ``n_rows`` unmasked tokens."""
    taken, size = 0, 0
    while taken < len(windows) and size < n_rows:
        size += len(windows[taken].rows)
        taken += 1
    return windows[:taken]


def first_rows(windows: list[Window], n_rows: int) -> list[Window]:
    """Return the first windows with at most ``n_rows`` unmasked tokens; the last may be cut."""
    taken: list[Window] = []
    for window in windows:
        n_left = n_rows - sum(len(one.rows) for one in taken)
        if n_left < min(MINIMUM_ROWS, len(window.rows)):
            break
        taken.append(window if len(window.rows) <= n_left else window.first(n_left))
    return taken
