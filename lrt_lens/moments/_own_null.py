"""Shuffled pairs of rows that a user brings, in blocks of rows of many documents.

Problem: rows of a user have no windows and blocks, and may come in many calls; but a row of the
null needs a partner of another document, at the same position if there is one. Mechanism:
`OpenNull` counts the rows of each document, so that the position of a row is its rank within its
document unless it is given, and gathers the rows of all fitting folds, and those of the test fold,
in blocks. Rows that fill several blocks are dealt to them in runs of neighbouring positions, so
that every block has rows of all documents. Fewer rows wait for the next call, or for the end.

    ranks, new_documents = open_null.count(keys, parts)
    for block in open_null.add(keys, ranks, take, plan): block.x, block.y, block.pairing
    for block in open_null.close(): ...

Limits: a document that has more than half of a block is paired with itself in part, which a
warning says. The counts take about 100 bytes per document.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lrt_lens.data._parts import Parts
from lrt_lens.data._windows import pair_documents
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._row_keys import parts_of

BothSides = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Rows [row, d] by hook point, of source and target."""
TakesRows = Callable[[np.ndarray], BothSides]
"""Function from indices of rows to these rows."""
_RUN = 16
"""Rows of neighbouring positions that are dealt to a block together."""
_SAME_DOCUMENT = 0.05
"""Share of null rows with a partner of the same document above which a warning is logged."""


@dataclass(frozen=True)
class NullBlock:
    """Rows of one block of the null, with the partner of each."""

    is_test: bool
    """True for rows of the test fold."""
    x: dict[str, Tensor]
    """Source rows by hook point."""
    y: dict[str, Tensor]
    """Target rows by hook point."""
    pairing: Tensor
    """Row of ``y`` that is paired with each row of ``x`` [row]."""


@dataclass(frozen=True)
class NullPlan:
    """Settings of the blocks of the null."""

    parts: Parts
    pairs: Sequence[HookPair]
    """Hook pairs that have a null."""
    block_rows: int
    """Rows that fill a block."""
    seed: int


@dataclass
class _WaitingRows:
    """Rows of one half that do not fill a block yet."""

    x: dict[str, Tensor] = field(default_factory=dict)
    y: dict[str, Tensor] = field(default_factory=dict)
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class OpenNull:
    """Documents of the rows that were added so far, and rows that wait for their null."""

    rows_of: dict[int, int] = field(default_factory=dict)
    """Number of rows of each document so far, by its key."""
    n_null: int = 0
    """Rows of the null that were paired."""
    n_same: int = 0
    """Rows among them whose partner is of the same document."""
    plan: NullPlan | None = None
    """Settings of the blocks; None before the first row."""
    _halves: tuple[_WaitingRows, _WaitingRows] = field(
        default_factory=lambda: (_WaitingRows(), _WaitingRows())
    )

    def count(self, row_keys: np.ndarray, parts: Parts) -> tuple[np.ndarray, tuple[int, ...]]:
        """Count rows, and return their ranks [row] and the number of new documents [part].

        Ranks are among all rows of a document so far. ``row_keys`` [row] are keys of documents.
        """
        keys, inverse, sizes = np.unique(row_keys, return_inverse=True, return_counts=True)
        before = np.array([self.rows_of.get(key, 0) for key in keys.tolist()], dtype=np.int64)
        is_new = np.bincount(parts_of(keys, parts)[before == 0], minlength=parts.n_parts)
        new = tuple(is_new.tolist())
        self.rows_of.update(zip(keys.tolist(), (before + sizes).tolist(), strict=True))
        # Rank = place among all rows sorted by document − place of the first row of the document
        order = np.argsort(inverse, kind="stable")
        begins = np.cumsum(sizes) - sizes
        ranks = np.empty(len(row_keys), dtype=np.int64)
        ranks[order] = np.arange(len(row_keys)) - begins[inverse[order]]
        return ranks + before[inverse], new

    def add(
        self, row_keys: np.ndarray, positions: np.ndarray, take: TakesRows, plan: NullPlan
    ) -> Iterator[NullBlock]:
        """Yield full blocks of the null, and keep the rows that do not fill one.

        Args:
            row_keys: key of the document of each row [row].
            positions: position of each row in its window [row].
            take: function from indices to rows by hook point, of source and target.
            plan: settings of the blocks.
        """
        self.plan = plan
        is_fit = np.isin(parts_of(row_keys, plan.parts), plan.parts.fit)
        for half, mask in enumerate((is_fit, ~is_fit)):
            index = np.flatnonzero(mask)
            waiting = self._halves[half]
            keys = np.concatenate([waiting.keys, row_keys[index]])
            where = np.concatenate([waiting.positions, positions[index]])
            n_blocks, n_waiting = len(keys) // plan.block_rows, len(waiting.keys)
            if not n_blocks:
                if len(index):
                    x, y = _joined(waiting, np.arange(n_waiting), take(index))
                    self._replace(half, _WaitingRows(x, y, keys, where))
                continue
            self._replace(half, _WaitingRows())
            for block in _dealt(where, n_blocks, [plan.seed, half, int(keys[0] % 2**32)]):
                old, new = block[block < n_waiting], block[block >= n_waiting] - n_waiting
                x, y = _joined(waiting, old, take(index[new]))
                yield self._paired(half, _WaitingRows(x, y, keys[block], where[block]), plan)

    @property
    def is_waiting(self) -> bool:
        """True if rows wait for their shuffled pairs."""
        return any(len(half.keys) for half in self._halves)

    def close(self) -> Iterator[NullBlock]:
        """Yield the blocks of the rows that wait."""
        for half, waiting in enumerate(self._halves):
            if self.plan is not None and len(waiting.keys):
                self._replace(half, _WaitingRows())
                yield self._paired(half, waiting, self.plan)

    def warning(self) -> str | None:
        """Return a sentence if many rows of the null have a partner of their own document."""
        if self.n_same <= _SAME_DOCUMENT * self.n_null:
            return None
        return (
            f"{self.n_same / self.n_null:.0%} of the shuffled pairs are of one document, because "
            "it has more than half of the rows that were paired together: the null is too high; "
            "give more documents, or rows of more documents per call"
        )

    def _replace(self, half: int, waiting: _WaitingRows) -> None:
        fit, test = self._halves
        self._halves = (fit, waiting) if half else (waiting, test)

    def _paired(self, half: int, rows: _WaitingRows, plan: NullPlan) -> NullBlock:
        part = int(parts_of(rows.keys[:1], plan.parts)[0])
        pairing = pair_documents(rows.keys, rows.positions, part, plan.seed)
        self.n_null += len(pairing)
        self.n_same += int((rows.keys[pairing] == rows.keys).sum())
        return NullBlock(bool(half), rows.x, rows.y, torch.from_numpy(pairing))


def _joined(waiting: _WaitingRows, index: np.ndarray, new: BothSides) -> BothSides:
    """Return some rows that wait and new rows together, by hook point."""
    if not len(index):
        return new
    x, y = (
        {
            hook: torch.cat([old[hook].to(rows.device)[torch.from_numpy(index)], rows])
            for hook, rows in side.items()
        }
        for old, side in ((waiting.x, new[0]), (waiting.y, new[1]))
    )
    return x, y


def _dealt(positions: np.ndarray, n_blocks: int, seed: list[int]) -> Iterator[np.ndarray]:
    """Yield the rows of each block, ascending.

    Rows are sorted by position and dealt in runs of 16, so that each block has rows of all
    documents and several rows at a position, of documents drawn at random.
    """
    if n_blocks == 1:
        yield np.arange(len(positions))
        return
    drawn = np.random.default_rng(seed).permutation(len(positions))
    order = drawn[np.argsort(positions[drawn], kind="stable")]
    block = np.arange(len(order)) // _RUN % n_blocks
    for number in range(n_blocks):
        yield np.sort(order[block == number])
