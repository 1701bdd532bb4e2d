"""Documents cut into blocks: the unit of harvesting, of products and of shuffled pairs.

Problem: a harvest must give the same folds and the same rows whether one process reads the
documents or many. Mechanism: documents become windows (`lrt_lens.data._window_cutter`), each within
one document. The windows of one *part* are gathered in a block of about ``block_rows`` unmasked
tokens. Parts are the folds: a document's hash decides whether it is for fitting (one of ``N_FOLDS``
cross-validation folds) or for testing (one of ``N_TEST_GROUPS`` groups of the test fold), wherever
it is in the stream. Blocks are numbered in the order in which they fill. Their contents depend only
on the documents and the plan, so processes that share a harvest all read the same stream, and each
takes some of its blocks. Products, shifts and shuffled pairs never reach beyond one block.

    plan = BlockPlan(context_length=256)
    for block in iterate_blocks(documents, model, plan): block.part, block.windows
    for block in iterate_blocks(documents, small, plan, target=large): ...    # for both models

Limits: with few documents a fold can stay empty, which is an error.
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
    """Windows of one part, about ``BlockPlan.block_rows`` unmasked tokens."""

    part: int
    windows: list[Window] = field(default_factory=list)
    n_rows: int = 0
    index: int = 0
    """Number of this block in the stream."""
    n_documents: int = 0
    """Number of documents whose first window is in this block."""
    digest: int = 0
    """Sum of the keys of those documents, modulo 2⁶⁴."""
    aligned: Aligned | None = None
    """Counts of aligned positions in those documents; None if both models read the same tokens."""

    def add(self, window: Window, begins: CutDocument | None = None) -> None:
        """Append a window; ``begins`` is its document if it is the document's first window."""
        self.windows.append(window)
        self.n_rows += len(window.rows)
        if begins is not None:
            self.n_documents += 1
            # A sum, so that blocks and shards can be added in any order.
            self.digest = (self.digest + begins.key) % 2**64
            self.aligned = sum_aligned(self.aligned, begins.aligned)

    @property
    def fingerprint(self) -> int:
        """Hash of all tokens and masks, for a resumed run to compare; 63 bits."""
        digest = hashlib.blake2b(f"{self.part}".encode(), digest_size=8)
        for window in self.windows:
            for side in (window, window.counterpart) if window.counterpart else (window,):
                digest.update(np.array(side.ids, dtype=np.int64).tobytes())
                digest.update(side.rows.astype(np.int64).tobytes())
        # 63 bits, so that it fits into a signed 64-bit integer.
        return int.from_bytes(digest.digest(), "big") >> 1

    def batches(self, batch_tokens: int) -> Iterator[list[Window]]:
        """Yield batches of windows of similar length.

        A batch has at most ``batch_tokens`` tokens, padding included, and at least one window.
        """
        batch: list[Window] = []
        longest = 0
        # Sorted by the source's tokens only. A cache keeps just those and must give the same order.
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
    """Share of the blocks that one process takes: those of its rank, among those of its shard."""

    shard: tuple[int, int] = (0, 1)
    """Shard as (i, N), i from 0; shards are separate jobs, whose moments are merged from files."""
    rank: tuple[int, int] = (0, 1)
    """Rank as (rank, number of ranks); ranks are processes of one job."""

    def __post_init__(self) -> None:
        for name, (index, count) in (("shard", self.shard), ("rank", self.rank)):
            if count < 1:
                raise ValueError(f"{name} is one of {count}; expected at least 1 {name}")
            if not 0 <= index < count:
                raise ValueError(
                    f"{name} is {index} of {count}; expected 0 to {count - 1} of {count}"
                )

    def in_shard(self, index: int) -> bool:
        """Return whether a block belongs to this shard, at any rank."""
        return index % self.shard[1] == self.shard[0]

    def takes(self, index: int) -> bool:
        """Return whether this process takes a block."""
        # Block index = N · j + i is the j-th block of shard i; ranks take its blocks in turn.
        return self.in_shard(index) and index // self.shard[1] % self.rank[1] == self.rank[0]


@dataclass
class Corpus:
    """Counts of the documents read; they grow while blocks are made."""

    n_documents: int = 0
    n_skipped: int = 0
    """Number of documents that are too short to give a row."""
    n_rows: int = 0
    digest: int = 0
    """Sum of the documents' keys modulo 2⁶⁴; it does not depend on their order."""
    aligned: Aligned | None = None
    """Counts of aligned positions in all documents, those without a row included.

    None if both models read the same tokens.
    """


def iterate_blocks(
    documents: Documents,
    model: HookedModel,
    plan: BlockPlan,
    corpus: Corpus | None = None,
    target: HookedModel | None = None,
) -> Iterator[Block]:
    """Yield blocks of one part each, numbered in the order in which they fill.

    The blocks that are not full come at the end. With ``target``, windows are cut for both models;
    at the same characters if their tokenizers differ. ``corpus`` receives the counts.

    Raises:
        MismatchError: the tokenizers differ and no position is aligned.
        TooFewDocumentsError: a fold stays empty; the message names it.
    """
    cutter = WindowCutter(plan, model, target)
    blocks = _fill_blocks(documents, cutter, Corpus() if corpus is None else corpus)
    for index, block in enumerate(blocks):
        block.index = index
        yield block


def sum_aligned(one: Aligned | None, other: Aligned | None) -> Aligned | None:
    """Return the sum of two counts, of which None counts nothing."""
    if one is None or other is None:
        return one or other
    return one + other


def _fill_blocks(documents: Documents, cutter: WindowCutter, corpus: Corpus) -> Iterator[Block]:
    open_blocks = {part: Block(part) for part in range(N_PARTS)}
    filled: set[int] = set()
    for document in _cut_documents(documents, cutter, corpus):
        part = part_of(document.key)
        filled.add(part)
        for number, window in enumerate(document.windows):
            block = open_blocks[part]
            block.add(window, begins=document if number == 0 else None)
            if block.n_rows >= cutter.plan.block_rows:
                open_blocks[part] = Block(part)
                yield block
    _check_parts(filled, corpus, cutter.plan)
    yield from (block for block in open_blocks.values() if block.windows)


def _cut_documents(
    documents: Documents, cutter: WindowCutter, corpus: Corpus
) -> Iterator[CutDocument]:
    """Yield the documents that give a row, until they have ``plan.n_tokens`` rows."""
    texts, n_tokens = cutter.texts(documents), cutter.plan.n_tokens
    # Tokenizers are much faster on 64 texts at once than on one.
    while chunk := list(islice(texts, 64)):
        for document in cutter.cut(chunk):
            if n_tokens is not None and corpus.n_rows >= n_tokens:
                return
            corpus.aligned = sum_aligned(corpus.aligned, document.aligned)
            if not document.windows:
                corpus.n_skipped += 1
                continue
            # A document is read to its end, so n_rows can exceed n_tokens by one document.
            corpus.n_documents += 1
            corpus.n_rows += sum(len(window.rows) for window in document.windows)
            corpus.digest = (corpus.digest + document.key) % 2**64
            yield document


def _check_parts(filled: set[int], corpus: Corpus, plan: BlockPlan) -> None:
    if corpus.n_skipped:
        logger.warning(
            "%d of %d documents were too short to have an unmasked token",
            corpus.n_skipped,
            corpus.n_skipped + corpus.n_documents,
        )
    if corpus.aligned is not None and corpus.aligned.n_pairs == 0:
        raise nothing_aligns(corpus.n_skipped, corpus.aligned.n_source, corpus.aligned.n_target)
    if corpus.n_documents == 0:
        raise _no_rows(corpus, plan)
    # Every fold needs documents; the test fold needs them in at least one of its groups.
    empty = [PART_NAMES[k] for k in range(N_FOLDS) if k not in filled]
    if not any(part >= N_FOLDS for part in filled):
        empty.append("test")
    if empty:
        raise _empty_folds(empty, corpus, plan)


def _no_rows(corpus: Corpus, plan: BlockPlan) -> TooFewDocumentsError:
    if corpus.aligned is not None:
        return TooFewDocumentsError(
            f"no document has an aligned pair of tokens: {corpus.n_skipped} have"
            f" {corpus.aligned.n_pairs} aligned positions in all, which are {corpus.aligned}."
            f" The first {plan.skip_first} positions and special or unknown tokens are masked,"
            f" and a window needs {MINIMUM_ROWS} others:"
            " give longer texts, in the language of both tokenizers"
        )
    return TooFewDocumentsError(
        f"no document has an unmasked token: {corpus.n_skipped} were empty or too short (the first"
        f" {plan.skip_first} positions and special tokens are masked); give longer texts"
    )


def _empty_folds(empty: list[str], corpus: Corpus, plan: BlockPlan) -> TooFewDocumentsError:
    message = f"fold(s) {', '.join(empty)} hold no document: "
    masked = ""
    if corpus.n_skipped:
        masked = (
            f" ({corpus.n_skipped} more have no token after the first {plan.skip_first} and the"
            " special ones)"
        )
    if plan.n_tokens is not None and corpus.n_rows >= plan.n_tokens:
        return TooFewDocumentsError(
            f"{message}n_tokens={plan.n_tokens} was reached after {corpus.n_documents}"
            f" document(s){masked}; raise n_tokens"
        )
    return TooFewDocumentsError(
        f"{message}{corpus.n_documents} document(s) for {N_FOLDS} folds and a test fold{masked};"
        " give at least 100 documents (one long text can be split into paragraphs)"
    )


def shuffled_rows(block: Block, order: list[Window], seed: int) -> np.ndarray:
    """Return a permutation of a block's rows that pairs each with a row of another document.

    ``order`` lists the windows in the order of the rows. Every row is used once on either side, so
    the null has the marginal moments of the true pairs, and only ``xy`` differs. A row is paired
    with a row at the same position of its window. If a position occurs in too few documents, its
    rows are paired with rows of other documents at other positions.
    """
    _, document = np.unique(
        np.array([w.document for w in order], dtype=np.uint64), return_inverse=True
    )
    documents = np.repeat(document, [len(w.rows) for w in order])
    positions = np.concatenate([w.rows for w in order])
    rng = np.random.default_rng([seed, block.part, len(positions), int(order[0].document % 2**32)])
    # Documents in random order; rows of equal position are sorted by it.
    rank = rng.permutation(documents.max() + 1)[documents]
    pairing = np.arange(len(positions))
    by_position = np.lexsort((rank, positions))
    bounds = np.flatnonzero(np.diff(positions[by_position])) + 1
    paired: list[np.ndarray] = []
    unpaired: list[np.ndarray] = []
    for group in np.split(by_position, bounds):
        (paired if _rotate(group, rank, pairing) else unpaired).append(group)
    # Rows without a partner at their own position are paired among each other. If one document has
    # most of them, the rows of the last paired position are added until it does not.
    while unpaired:
        pool = np.concatenate(unpaired)
        pool = pool[np.argsort(rank[pool], kind="stable")]
        if _rotate(pool, rank, pairing):
            break
        if not paired:
            # One document has more than half of the block, so some of its rows are paired with
            # rows of the same document.
            pairing[pool] = np.roll(pool, -(len(pool) // 2))
            break
        unpaired.append(paired.pop())
    return pairing


def _rotate(group: np.ndarray, rank: np.ndarray, pairing: np.ndarray) -> bool:
    """Pair rows, sorted by document, with those of other documents; False if that is impossible.

    It is impossible if one document has more than half of the rows.
    """
    # Rotating by the size of the largest document moves every row past its own document.
    largest = int(np.bincount(rank[group]).max())
    if 2 * largest > len(group):
        return False
    pairing[group] = np.roll(group, -largest)
    return True
