"""Which windows of the documents are taken, so that tokens come from many documents and all folds.

Problem: of a few very long documents (books, articles of an encyclopedia) the first ones would fill
a harvest alone, and the test fold could get half of its tokens. Mechanism: each document first
gives at most a cap of tokens, and each fold at most its share of ``n_tokens``. What remains waits.
If the documents end before ``n_tokens`` are reached, waiting windows follow in rounds, one window
per document and round, from the fold with the fewest tokens first. The fold of a document still
depends on the document alone.

    budget = TokenBudget(BlockPlan(n_tokens=14_000, max_document_tokens="auto"))
    now = budget.take(document, share=0)         # windows to use at once
    if budget.is_full: ...                       # read no further document
    for waiting in budget.rest(): ...            # when no document is left

Limits: at most ten million tokens wait in memory; the windows that would come last are dropped.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, CutDocument, Window

_DOCUMENTS = 200
"""Fewest documents that an automatic cap lets ``n_tokens`` come from."""
_MOST_WAITING = 10_000_000
"""Largest number of tokens that wait, about 80 MB."""
_READ_AHEAD = 2
"""Multiple of ``n_tokens`` after which no document is read for a fold that is not full."""
_ENOUGH_DOCUMENTS = 100
"""Documents among which hardly any fold is empty: 6 · (5/6)¹⁰⁰ = 7e-8."""


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


class TokenBudget:
    """Tokens that each document and each fold may give; it counts those that were taken."""

    def __init__(self, plan: BlockPlan, n_shares: int = 1) -> None:
        """Begin an empty budget; ``n_shares`` folds share ``plan.n_tokens`` equally."""
        self.n_tokens = plan.n_tokens
        given = plan.max_document_tokens
        self._strict = given if isinstance(given, int) else None
        """Largest number of tokens per document, as given; no document ever gives more."""
        is_automatic = given == "auto" and plan.n_tokens is not None
        self._soft = -(-plan.n_tokens // _DOCUMENTS) if is_automatic and plan.n_tokens else None
        """Number of tokens after which the other windows of a document wait."""
        self.rows = [0] * n_shares
        """Unmasked tokens taken so far, by share."""
        self._waiting: list[list[deque[_Waiting]]] = [[] for _ in range(n_shares)]
        """Waiting windows [share][round]."""
        self._n_waiting = [0] * n_shares
        self._n_seen, self._n_documents = 0, 0

    @property
    def quota(self) -> float:
        """Unmasked tokens at which a share is full."""
        return float("inf") if self.n_tokens is None else self.n_tokens / len(self.rows)

    @property
    def is_full(self) -> bool:
        """True if no further document should be read."""
        if self.n_tokens is None:
            return False
        # A share that gets no document (few groups) must not make a stream run for ever.
        enough = self._n_seen >= _READ_AHEAD * self.n_tokens
        return min(self.rows) >= self.quota or (enough and self._n_documents >= _ENOUGH_DOCUMENTS)

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
        offered = windows if self._soft is None else _until(windows, self._soft)
        size = sum(len(window.rows) for window in offered)
        self._n_seen += size if self._soft is not None else int(min(size, self.quota))
        self._n_documents += 1
        now = _until(offered, self.quota - self.rows[share])
        self.rows[share] += sum(len(window.rows) for window in now)
        for number, window in enumerate(windows[len(now) :]):
            begins = not now and number == 0
            self._wait(number, _Waiting.of(document, window, begins=begins, share=share))
        return now

    def rest(self) -> Iterator[tuple[CutDocument, Window, bool]]:
        """Yield (document, window, whether it is the document's first), until n_tokens are reached.

        One window per document and round, from the share with the fewest tokens first.
        """
        while self.n_tokens is not None and sum(self.rows) < self.n_tokens:
            shares = [share for share, n in enumerate(self._n_waiting) if n]
            if not shares:
                return
            share = min(shares, key=self.rows.__getitem__)
            rounds = self._waiting[share]
            while not rounds[0]:
                rounds.pop(0)
            waiting = rounds[0].popleft()
            self._n_waiting[share] -= len(waiting.rows)
            self.rows[share] += len(waiting.rows)
            yield waiting.document, waiting.window, waiting.begins

    def _wait(self, number: int, waiting: _Waiting) -> None:
        rounds = self._waiting[waiting.share]
        while len(rounds) <= number:
            rounds.append(deque())
        rounds[number].append(waiting)
        self._n_waiting[waiting.share] += len(waiting.rows)
        while sum(self._n_waiting) > min(self.n_tokens or 0, _MOST_WAITING):
            fullest = max(range(len(self._n_waiting)), key=self._n_waiting.__getitem__)
            last = self._waiting[fullest]
            while not last[-1]:
                last.pop()
            # The window that would come last.
            self._n_waiting[fullest] -= len(last[-1].pop().rows)


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
