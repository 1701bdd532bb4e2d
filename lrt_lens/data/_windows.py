"""Windows and blocks: consecutive tokens of one document, gathered for harvesting.

A window never extends over two documents. It begins with BOS if the model's policy says so. For
models with different tokenizers the windows are cut at the same characters: see
`lrt_lens.data._blocks`. A block is the windows of one part of the documents, the unit of
harvesting, of products and of shuffled pairs.

    windows = cut_windows(ids, key, model, BlockPlan(context_length=256))
    windows[0].ids, windows[0].rows      # token ids, positions of unmasked tokens
    for batch in block.batches(8192): ...

Limits: the last window of a document is shorter, and is left out below `MINIMUM_ROWS` rows.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from lrt_lens.data._parts import DEFAULT_PARTS, N_PARTS, Parts
from lrt_lens.models._text_reader import SKIP_FIRST, TextReader, special_tokens, unmasked


@dataclass(frozen=True)
class Aligned:
    """Counts of aligned positions and of tokens in some texts; they can be added."""

    n_pairs: int = 0
    """Number of aligned positions."""
    n_source: int = 0
    """Number of tokens of the source's tokenizer."""
    n_target: int = 0
    """Number of tokens of the target's tokenizer."""

    @property
    def share(self) -> tuple[float, float]:
        """Shares of source and of target tokens that are aligned; NaN without tokens."""
        nan = float("nan")
        return self.n_pairs / (self.n_source or nan), self.n_pairs / (self.n_target or nan)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of pairs, source and target tokens, in the order of files."""
        return self.n_pairs, self.n_source, self.n_target

    def __add__(self, other: "Aligned") -> "Aligned":
        return Aligned(
            self.n_pairs + other.n_pairs,
            self.n_source + other.n_source,
            self.n_target + other.n_target,
        )

    def __str__(self) -> str:
        return "{:.1%} of the source's tokens and {:.1%} of the target's".format(*self.share)


def sum_aligned(one: Aligned | None, other: Aligned | None) -> Aligned | None:
    """Return the sum of two counts, of which None counts nothing."""
    if one is None or other is None:
        return one or other
    return one + other


MINIMUM_ROWS = 4
"""Fewest unmasked tokens of a window; with fewer, a forward pass costs more than it gives."""


def refuse_short_windows(context_length: int, skip_first: int = SKIP_FIRST) -> None:
    """Raise ValueError if masked positions would take up more than half of each window."""
    # At least half of each full window is then unmasked.
    shortest = 2 * max(skip_first, SKIP_FIRST)
    if context_length < shortest:
        raise ValueError(
            f"context_length is {context_length}; windows need at least {shortest} tokens, because "
            f"the first {skip_first} of each are masked"
        )


@dataclass(frozen=True)
class BlockPlan:
    """Settings for cutting documents into windows and blocks."""

    context_length: int = 256
    """Largest number of tokens per window, BOS included."""
    skip_first: int = SKIP_FIRST
    """Number of masked positions at the start of every window."""
    n_tokens: int | None = None
    """Number of unmasked tokens after which no further document is read; None reads all."""
    max_document_tokens: int | Literal["auto"] | None = None
    """Largest number of unmasked tokens per document. ``"auto"``: a 200th of ``n_tokens``, at least
    one window, also per group and for all copies of a text, and more only if the documents end
    before ``n_tokens``; None: no limit.
    """
    block_rows: int = 4096
    """Number of unmasked tokens at which a block is full."""
    seed: int = 0
    """Seed of the hash that assigns documents to folds."""
    lag: int = 0
    """Off-by-one control: each source row is paired with the target row this many rows later."""
    parts: Parts = DEFAULT_PARTS
    """Numbers of folds and test groups; they decide the part of each block."""


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document, with the positions of its unmasked tokens."""

    ids: list[int]
    rows: np.ndarray
    """Unmasked positions in ``ids``, ascending."""
    document: int
    """Key of the document, which copies of it share."""
    counterpart: "Window | None" = None
    """Window with the same characters in the target's tokens; None if both read the same ids.

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

    def first(self, n_rows: int) -> "Window":
        """Return the beginning of this window, up to its unmasked token number ``n_rows``."""
        other = self.counterpart
        rows = self.rows[:n_rows]
        return replace(
            self,
            ids=self.ids[: int(rows[-1]) + 1],
            rows=rows,
            counterpart=other and other.first(n_rows),
        )

    @property
    def padded_length(self) -> int:
        """Number of tokens of the longer one of the two windows."""
        return max(len(self.ids), len(self.read_by("target").ids))


@dataclass(frozen=True)
class CutDocument:
    """Windows of one document."""

    key: int
    """Hash that decides the fold: of the normalised text, or of the group."""
    windows: list[Window]
    aligned: Aligned | None = None
    """Counts of aligned positions; None if both models read the same tokens."""
    identity: int = 0
    """Hash of the exact text, for the hash of the corpus."""
    is_capped: bool = False
    """True if it is longer than the cap of tokens per document."""


def cut_windows(
    ids: list[int], key: int, model: TextReader, plan: BlockPlan, target: TextReader | None = None
) -> list[Window]:
    """Return the windows of one document that have at least four unmasked tokens.

    ``target`` is a model of the same tokenizer that reads every text behind another prefix: each
    window then has a counterpart, and its rows are the tokens that neither model masks.
    """
    readers = [model] if target is None else [model, target]
    prefixes = [reader.prefix for reader in readers]
    for prefix in sorted(prefixes, key=len, reverse=True):
        if prefix and ids[: len(prefix)] == prefix:
            ids = ids[len(prefix) :]  # the chat template has already written it
            break
    body_length = plan.context_length - max(map(len, prefixes))
    special = [special_tokens(reader) for reader in readers]
    windows = []
    # Windows do not overlap, and BOS is prepended to each: a state has read only its own window.
    for start in range(0, len(ids), body_length):
        sides = [[*prefix, *ids[start : start + body_length]] for prefix in prefixes]
        rows = [
            unmasked(side, masked, plan.skip_first) - len(prefix)
            for side, masked, prefix in zip(sides, special, prefixes, strict=True)
        ]
        shared = rows[0] if target is None else np.intersect1d(rows[0], rows[1])
        if len(shared) >= MINIMUM_ROWS:
            one, *others = (
                Window(side, shared + len(prefix), key)
                for side, prefix in zip(sides, prefixes, strict=True)
            )
            windows.append(replace(one, counterpart=others[0] if others else None))
    return windows


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
    """Sum of the hashes of those documents' exact texts, modulo 2⁶⁴."""
    n_capped: int = 0
    """Number of those documents that are longer than the cap of tokens per document."""
    aligned: Aligned | None = None
    """Counts of aligned positions in those documents; None if both models read the same tokens."""
    n_parts: int = N_PARTS
    """Number of parts into which the documents are divided."""

    def add(self, window: Window, begins: CutDocument | None = None) -> None:
        """Append a window; ``begins`` is its document if it is the document's first window."""
        self.windows.append(window)
        self.n_rows += len(window.rows)
        if begins is not None:
            self.n_documents += 1
            self.n_capped += begins.is_capped
            # A sum, so that blocks and shards can be added in any order.
            self.digest = (self.digest + begins.identity) % 2**64
            self.aligned = sum_aligned(self.aligned, begins.aligned)

    @property
    def part_documents(self) -> tuple[int, ...]:
        """Number of documents that begin in this block, by part."""
        return tuple(self.n_documents * (part == self.part) for part in range(self.n_parts))

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


BLOCKS_PER_SHARE = 2**32
"""Distance of the block numbers of two shares of the files: share s begins with s · 2³²."""


@dataclass(frozen=True)
class Share:
    """Share of the work that one process takes: that of its rank, among that of its shard.

    The work is numbered: the blocks of one stream, or shares of the files, each with its own stream
    (`lrt_lens.data._file_shares`).
    """

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
        """Return whether a block, or a share of the files, belongs to this shard, at any rank."""
        return index % self.shard[1] == self.shard[0]

    def takes(self, index: int) -> bool:
        """Return whether this process takes a block, or a share of the files."""
        # Block index = N · j + i is the j-th block of shard i; ranks take its blocks in turn.
        return self.in_shard(index) and index // self.shard[1] % self.rank[1] == self.rank[0]


def shuffled_rows(block: Block, order: list[Window], seed: int) -> np.ndarray:
    """Return a permutation of a block's rows that pairs each with a row of another document.

    ``order`` lists the windows in the order of the rows. Every row is used once on either side, so
    the null has the marginal moments of the true pairs, and only ``xy`` differs. A row is paired
    with a row at the same position of its window. If a position occurs in too few documents, its
    rows are paired with rows of other documents at other positions.
    """
    documents = np.repeat(
        np.array([w.document for w in order], dtype=np.uint64), [len(w.rows) for w in order]
    )
    return pair_documents(documents, np.concatenate([w.rows for w in order]), block.part, seed)


def pair_documents(keys: np.ndarray, positions: np.ndarray, part: int, seed: int) -> np.ndarray:
    """Return a permutation of the rows of a block as `shuffled_rows` does.

    Args:
        keys: key of the document of each row [row].
        positions: position of each row in its window [row].
        part: part of the documents; of several parts any one.
        seed: seed of the permutation.
    """
    _, documents = np.unique(keys, return_inverse=True)
    rng = np.random.default_rng([seed, part, len(positions), int(keys[0] % 2**32)])
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
    # numpy's roll does the same in several times as long, because it takes any axes.
    pairing[group[:-largest]], pairing[group[-largest:]] = group[largest:], group[:largest]
    return True
