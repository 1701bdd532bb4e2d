"""Documents cut into blocks: the unit of harvesting, of products and of shuffled pairs.

Documents become windows (none holds two documents; BOS in front by the model's policy), and windows of one *part* gather into a
block of about ``block_rows`` unmasked tokens. Parts are the folds: a document's hash decides whether it helps to fit (one of
``N_FOLDS`` cross-validation folds) or to test (one of ``N_TEST_GROUPS`` groups of the test fold), whatever its place in the stream.

Blocks are numbered in the order in which they fill, and what they hold depends on the documents and the plan alone: processes that share a
harvest all walk the same stream and each takes some of its blocks. Products, shifts and shuffled pairs never look beyond one.

    plan = BlockPlan(context_length=256)
    for block in iterate_blocks(documents, model, plan): block.part, block.windows
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from lrt_lens.data.documents import Documents, document_key, iterate_documents
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models.hooked_model import SKIP_FIRST, HookedModel

logger = logging.getLogger(__name__)

N_FOLDS = 5
"""Cross-validation folds."""
N_TEST_GROUPS = 8
"""Groups of documents inside the test fold, for intervals."""
N_PARTS = N_FOLDS + N_TEST_GROUPS
PART_NAMES = tuple([f"fold{k}" for k in range(N_FOLDS)] + [f"test{g}" for g in range(N_TEST_GROUPS)])

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


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document."""

    ids: list[int]
    rows: np.ndarray
    """Positions that take part, ascending."""
    document: int
    """The document's key."""


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

    def add(self, window: Window, *, begins: bool = False) -> None:
        """Append a window; ``begins`` where it is its document's first."""
        self.windows.append(window)
        self.n_rows += len(window.rows)
        if begins:
            self.n_documents += 1
            self.digest = (self.digest + window.document) % 2**64

    @property
    def fingerprint(self) -> int:
        """63 bits of a hash of all its tokens and masks: what a resumed run compares."""
        digest = hashlib.blake2b(f"{self.part}".encode(), digest_size=8)
        for window in self.windows:
            digest.update(np.array(window.ids, dtype=np.int64).tobytes())
            digest.update(window.rows.astype(np.int64).tobytes())
        return int.from_bytes(digest.digest(), "big") >> 1

    def batches(self, batch_tokens: int) -> Iterator[list[Window]]:
        """Windows of similar length together, at most ``batch_tokens`` padded tokens a batch (one window at least)."""
        batch: list[Window] = []
        for window in sorted(self.windows, key=lambda w: (-len(w.ids), w.document)):
            if batch and len(batch[0].ids) * (len(batch) + 1) > batch_tokens:
                yield batch
                batch = []
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
                raise ValueError(f"{name} is {index} of {count}; expected 0 to {count - 1} of {count}" if count > 0 else f"{count} {name}s")

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


def part_of(key: int) -> int:
    """The part a document belongs to: a sixth of the documents test, the others fit."""
    place, group = key % (N_FOLDS + 1), (key // (N_FOLDS + 1)) % N_TEST_GROUPS
    return place if place < N_FOLDS else N_FOLDS + group


def iterate_blocks(documents: Documents, model: HookedModel, plan: BlockPlan, corpus: Corpus | None = None) -> Iterator[Block]:
    """Blocks of one part each, numbered in the order in which they fill; the rest of every part at the end.

    Raises `TooFewDocumentsError` where a fold stays empty, naming the folds.
    """
    for index, block in enumerate(_fill_blocks(documents, model, plan, corpus if corpus is not None else Corpus())):
        block.index = index
        yield block


def _fill_blocks(documents: Documents, model: HookedModel, plan: BlockPlan, corpus: Corpus) -> Iterator[Block]:
    open_blocks = {part: Block(part) for part in range(N_PARTS)}
    filled: set[int] = set()
    for key, windows in _documents_as_windows(documents, model, plan, corpus):
        part = part_of(key)
        filled.add(part)
        for place, window in enumerate(windows):
            block = open_blocks[part]
            block.add(window, begins=place == 0)
            if block.n_rows >= plan.block_rows:
                open_blocks[part] = Block(part)
                yield block
    _check_parts(filled, corpus, plan)
    yield from (block for block in open_blocks.values() if block.windows)


def _documents_as_windows(documents: Documents, model: HookedModel, plan: BlockPlan, corpus: Corpus) -> Iterator[tuple[int, list[Window]]]:
    texts = iterate_documents(documents, model.tokenizer)
    while chunk := list(islice(texts, 64)):
        for text, ids in zip(chunk, model.encode_bodies(chunk), strict=True):
            if plan.n_tokens is not None and corpus.n_rows >= plan.n_tokens:
                return
            key = document_key(text, plan.seed)
            windows = cut_windows(ids, key, model, plan)
            if not windows:
                corpus.n_skipped += 1
                continue
            corpus.n_documents += 1
            corpus.n_rows += sum(len(window.rows) for window in windows)
            corpus.digest = (corpus.digest + key) % 2**64
            yield key, windows


def cut_windows(ids: list[int], key: int, model: HookedModel, plan: BlockPlan) -> list[Window]:
    """One document's windows; those with fewer than four unmasked tokens are left out."""
    prefix = [model.tokenizer.bos_token_id] if model.prepend_bos else []
    if prefix and ids[:1] == prefix:
        ids = ids[1:]  # chat templates write the BOS themselves
    body_length = plan.context_length - len(prefix)
    special = np.array(sorted(model.special_ids))
    windows = []
    for start in range(0, len(ids), body_length):
        window = [*prefix, *ids[start : start + body_length]]
        keep = ~np.isin(window, special)
        keep[: plan.skip_first] = False
        rows = np.flatnonzero(keep)
        if len(rows) >= MINIMUM_ROWS:
            windows.append(Window(window, rows, key))
    return windows


def _check_parts(filled: set[int], corpus: Corpus, plan: BlockPlan) -> None:
    if corpus.n_skipped:
        logger.warning("%d of %d documents were too short to offer a token", corpus.n_skipped, corpus.n_skipped + corpus.n_documents)
    if corpus.n_documents == 0:
        raise TooFewDocumentsError(
            f"no document offers a token: {corpus.n_skipped} were empty or too short (the first {plan.skip_first} positions and special tokens "
            "are masked); give longer texts"
        )
    empty = [PART_NAMES[k] for k in range(N_FOLDS) if k not in filled]
    if not any(part >= N_FOLDS for part in filled):
        empty.append("test")
    masked = (
        f" ({corpus.n_skipped} more offer no token behind the first {plan.skip_first} and the special ones)" if corpus.n_skipped else ""
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
    """A permutation of a block's rows that pairs each with a row of another document at the same window position.

    ``order`` lists the windows in the order of the rows. Every row is used once on either side, so the null shares all marginal
    moments with the truth and only ``xy`` differs. Where a position occurs in too few documents its rows are paired with rows of
    other documents at other positions (with rows of the last positions that have partners, where they have none among themselves).
    """
    _, document = np.unique(np.array([w.document for w in order], dtype=np.uint64), return_inverse=True)
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
            # One document holds more than half of the block: some of its rows have to meet each other.
            pairing[rest] = np.roll(rest, -(len(rest) // 2))
            break
        left_over.append(paired.pop())
    return pairing


def _rotate(group: np.ndarray, rank: np.ndarray, pairing: np.ndarray) -> bool:
    """Rotate rows sorted by document past their largest document; False where one document holds more than half of them."""
    largest = int(np.bincount(rank[group]).max())
    if 2 * largest > len(group):
        return False
    pairing[group] = np.roll(group, -largest)
    return True
