"""Documents cut into blocks: the unit of harvesting, of products and of shuffled pairs.

Documents become windows (`lrt_lens.data._window_cutter`; none holds two documents), and windows of
one *part* gather into a block of about ``block_rows`` unmasked tokens. Parts are the folds: a
document's hash decides whether it helps to fit (one of ``N_FOLDS`` cross-validation folds) or to
test (one of ``N_TEST_GROUPS`` groups of the test fold), whatever its place in the stream.

Blocks are numbered in the order in which they fill, and what they hold depends on the documents and
the plan alone: processes that share a harvest all walk the same stream and each takes some of its
blocks. Products, shifts and shuffled pairs never look beyond one.

    plan = BlockPlan(context_length=256)
    for block in iterate_blocks(documents, model, plan): block.part, block.windows
    for block in iterate_blocks(documents, small, plan, target=large): …          # each window as both read it
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from lrt_lens.data._alignment import nothing_aligns
from lrt_lens.data._documents import Documents
from lrt_lens.data._parts import N_FOLDS, N_PARTS, PART_NAMES, part_of
from lrt_lens.data._window_cutter import Aligned, CutDocument, WindowCutter
from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, Window
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._hooked_model import HookedModel

logger = logging.getLogger(__name__)


@dataclass
class Block:
    """Windows of one part."""

    part: int
    windows: list[Window] = field(default_factory=list)
    n_rows: int = 0
    index: int = 0
    """Its number in the stream."""
    n_documents: int = 0
    """Documents that begin here: each is counted in one block, wherever it ends."""
    digest: int = 0
    """Sum of their keys modulo 2⁶⁴."""
    aligned: Aligned | None = None
    """How much of those documents two tokenizers share; None where both models read the same
    tokens.
    """

    def add(self, window: Window, begins: CutDocument | None = None) -> None:
        """Append a window; ``begins`` is the document of which it is the first."""
        self.windows.append(window)
        self.n_rows += len(window.rows)
        if begins is not None:
            self.n_documents += 1
            self.digest = (self.digest + begins.key) % 2**64
            self.aligned = sum_aligned(self.aligned, begins.aligned)

    @property
    def fingerprint(self) -> int:
        """63 bits of a hash of all its tokens and masks: what a resumed run compares."""
        digest = hashlib.blake2b(f"{self.part}".encode(), digest_size=8)
        for window in self.windows:
            for side in (window, window.counterpart) if window.counterpart else (window,):
                digest.update(np.array(side.ids, dtype=np.int64).tobytes())
                digest.update(side.rows.astype(np.int64).tobytes())
        return int.from_bytes(digest.digest(), "big") >> 1

    def batches(self, batch_tokens: int) -> Iterator[list[Window]]:
        """Windows of similar length together, at most ``batch_tokens`` padded tokens a batch (one
        window at least).
        """
        batch: list[Window] = []
        longest = 0
        # Sorted by the source's tokens alone: a cache, which keeps only these, finds the same
        # order.
        for window in sorted(self.windows, key=lambda w: (-len(w.ids), w.document)):
            longest = max(longest, window.padded_length)
            if batch and longest * (len(batch) + 1) > batch_tokens:
                yield batch
                batch, longest = [], window.padded_length
            batch.append(window)
        if batch:
            yield batch


@dataclass(frozen=True)
class Share:
    """The blocks that one process takes: of every Nth block (its shard), those of its rank."""

    shard: tuple[int, int] = (0, 1)
    """(i, N), i from 0: jobs of their own, whose moments are merged from files."""
    rank: tuple[int, int] = (0, 1)
    """(rank, ranks): processes of one job."""

    def __post_init__(self) -> None:
        for name, (index, count) in (("shard", self.shard), ("rank", self.rank)):
            if not 0 <= index < count:
                raise ValueError(
                    f"{name} is {index} of {count}; expected 0 to {count - 1} of {count}"
                    if count > 0
                    else f"{count} {name}s"
                )

    def in_shard(self, index: int) -> bool:
        """Whether this block belongs to the shard, whichever rank takes it."""
        return index % self.shard[1] == self.shard[0]

    def takes(self, index: int) -> bool:
        """Whether this process takes it."""
        return self.in_shard(index) and index // self.shard[1] % self.rank[1] == self.rank[0]


@dataclass
class Corpus:
    """What was read, filled while blocks are made."""

    n_documents: int = 0
    n_skipped: int = 0
    """Documents too short to offer a row."""
    n_rows: int = 0
    digest: int = 0
    """Sum of the documents' keys modulo 2⁶⁴: the same for any order."""
    aligned: Aligned | None = None
    """Of all documents read, those without a row included; None where both models read the same
    tokens.
    """


def iterate_blocks(
    documents: Documents,
    model: HookedModel,
    plan: BlockPlan,
    corpus: Corpus | None = None,
    target: HookedModel | None = None,
) -> Iterator[Block]:
    """Blocks of one part each, numbered in the order in which they fill; the rest of every part at
    the end.

    With ``target`` windows are cut for both models: at the same characters, where they read
    different tokens.

    Raises `TooFewDocumentsError` where a fold stays empty, naming the folds; `MismatchError` where
    nothing aligns.
    """
    for index, block in enumerate(
        _fill_blocks(
            documents, WindowCutter(plan, model, target), corpus if corpus is not None else Corpus()
        )
    ):
        block.index = index
        yield block


def sum_aligned(one: Aligned | None, other: Aligned | None) -> Aligned | None:
    """Both together; None counts nothing."""
    return one if other is None else other if one is None else one + other


def _fill_blocks(documents: Documents, cutter: WindowCutter, corpus: Corpus) -> Iterator[Block]:
    open_blocks = {part: Block(part) for part in range(N_PARTS)}
    filled: set[int] = set()
    for document in _cut_documents(documents, cutter, corpus):
        part = part_of(document.key)
        filled.add(part)
        for place, window in enumerate(document.windows):
            block = open_blocks[part]
            block.add(window, begins=None if place else document)
            if block.n_rows >= cutter.plan.block_rows:
                open_blocks[part] = Block(part)
                yield block
    _check_parts(filled, corpus, cutter.plan)
    yield from (block for block in open_blocks.values() if block.windows)


def _cut_documents(
    documents: Documents, cutter: WindowCutter, corpus: Corpus
) -> Iterator[CutDocument]:
    """Documents that offer a row, until the plan has enough."""
    texts, n_tokens = cutter.texts(documents), cutter.plan.n_tokens
    while chunk := list(islice(texts, 64)):
        for document in cutter.cut(chunk):
            if n_tokens is not None and corpus.n_rows >= n_tokens:
                return
            corpus.aligned = sum_aligned(corpus.aligned, document.aligned)
            if not document.windows:
                corpus.n_skipped += 1
                continue
            corpus.n_documents += 1
            corpus.n_rows += sum(len(window.rows) for window in document.windows)
            corpus.digest = (corpus.digest + document.key) % 2**64
            yield document


def _check_parts(filled: set[int], corpus: Corpus, plan: BlockPlan) -> None:
    if corpus.n_skipped:
        logger.warning(
            "%d of %d documents were too short to offer a token",
            corpus.n_skipped,
            corpus.n_skipped + corpus.n_documents,
        )
    if corpus.aligned is not None and corpus.aligned.n_pairs == 0:
        raise nothing_aligns(corpus.n_skipped, corpus.aligned.n_source, corpus.aligned.n_target)
    if corpus.n_documents == 0 and corpus.aligned is not None:
        raise TooFewDocumentsError(
            f"no document offers a pair of tokens: {corpus.n_skipped} have {corpus.aligned.n_pairs} aligned positions in all, which are "
            f"{corpus.aligned}; the first {plan.skip_first} and special or unknown tokens are masked, and a window needs {MINIMUM_ROWS} others: "
            "give longer texts, in the language of both tokenizers"
        )
    if corpus.n_documents == 0:
        raise TooFewDocumentsError(
            f"no document offers a token: {corpus.n_skipped} were empty or too short (the first {plan.skip_first} positions and special tokens "
            "are masked); give longer texts"
        )
    empty = [PART_NAMES[k] for k in range(N_FOLDS) if k not in filled]
    if not any(part >= N_FOLDS for part in filled):
        empty.append("test")
    masked = (
        f" ({corpus.n_skipped} more offer no token behind the first {plan.skip_first} and the special ones)"
        if corpus.n_skipped
        else ""
    )
    if empty and plan.n_tokens is not None and corpus.n_rows >= plan.n_tokens:
        raise TooFewDocumentsError(
            f"fold(s) {', '.join(empty)} hold no document: n_tokens={plan.n_tokens} was reached after {corpus.n_documents} document(s){masked}; raise n_tokens"
        )
    if empty:
        raise TooFewDocumentsError(
            f"fold(s) {', '.join(empty)} hold no document: {corpus.n_documents} document(s) for {N_FOLDS} folds and a test fold{masked}; "
            "give at least 100 documents (one long text can be split into paragraphs)"
        )


def shuffled_rows(block: Block, order: list[Window], seed: int) -> np.ndarray:
    """A permutation of a block's rows that pairs each with a row of another document at the same
    window position.

    ``order`` lists the windows in the order of the rows. Every row is used once on either side, so
    the null shares all marginal moments with the truth and only ``xy`` differs. Where a position
    occurs in too few documents its rows are paired with rows of other documents at other positions
    (with rows of the last positions that have partners, where they have none among themselves).
    """
    _, document = np.unique(
        np.array([w.document for w in order], dtype=np.uint64), return_inverse=True
    )
    documents = np.repeat(document, [len(w.rows) for w in order])
    positions = np.concatenate([w.rows for w in order])
    rng = np.random.default_rng([seed, block.part, len(positions), int(order[0].document % 2**32)])
    rank = rng.permutation(documents.max() + 1)[documents]
    pairing = np.arange(len(positions))
    by_position = np.lexsort((rank, positions))
    bounds = np.flatnonzero(np.diff(positions[by_position])) + 1
    paired: list[np.ndarray] = []
    left_over: list[np.ndarray] = []
    for group in np.split(by_position, bounds):
        (paired if _rotate(group, rank, pairing) else left_over).append(group)
    while left_over:
        rest = np.concatenate(left_over)
        rest = rest[np.argsort(rank[rest], kind="stable")]
        if _rotate(rest, rank, pairing):
            break
        if not paired:
            # One document holds more than half of the block: some of its rows have to meet each
            # other.
            pairing[rest] = np.roll(rest, -(len(rest) // 2))
            break
        left_over.append(paired.pop())
    return pairing


def _rotate(group: np.ndarray, rank: np.ndarray, pairing: np.ndarray) -> bool:
    """Rotate rows sorted by document past their largest document; False where one document holds
    more than half of them.
    """
    largest = int(np.bincount(rank[group]).max())
    if 2 * largest > len(group):
        return False
    pairing[group] = np.roll(group, -largest)
    return True
