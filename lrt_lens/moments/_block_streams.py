"""Blocks that a process reads in a harvest: of one stream of all documents, or of its own files.

Problem: ranks and shards of one harvest must take each block once, whether all of them read the
whole stream or each reads its own files. Mechanism: a harvest takes its blocks from a
`BlockStream`, which knows the blocks of this process and numbers the *units* of work of all
processes: the blocks of `WholeStream`, or the shares of the files of `FileStreams`. Block k of
share s has the number s · 2³² + k.

    files = SharedFiles.of(FileShares.of(documents, 16), plan, source, target)
    stream = FileStreams(files, Share(rank=(3, 8)), is_done=checkpoint.is_complete)
    for block in stream.read(): stream.takes(block)

Limits: a share of the files that is not finished is tokenized again when a run resumes.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from lrt_lens.data._blocks import iterate_blocks
from lrt_lens.data._file_shares import FileShares
from lrt_lens.data._windows import BLOCKS_PER_SHARE, Block, BlockPlan, Share
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._text_reader import TextReader


@dataclass(frozen=True)
class EndOfShare:
    """End of a share of the files, after its last block."""

    share: int
    n_blocks: int


@runtime_checkable
class BlockStream(Protocol):
    """Blocks that one process reads."""

    @property
    def n_tokens(self) -> int | None:
        """Number of unmasked tokens of all blocks that are read; None if it is not known."""
        ...

    @property
    def n_units(self) -> int:
        """Number of units of work of all processes, in blocks or shares of the files."""
        ...

    @property
    def digest(self) -> str:
        """Hash that is equal for all shards of one run, once the blocks are read."""
        ...

    def read(self) -> Iterator[Block | EndOfShare]:
        """Yield the blocks, and the ends of shares; a complete share may be left out."""
        ...

    def takes(self, block: Block) -> bool:
        """Return whether a block is one of this process."""
        ...


@dataclass
class WholeStream:
    """Stream of all documents, which every process reads and of which it takes some blocks."""

    blocks: Iterator[Block]
    n_tokens: int | None
    share: Share
    n_units: int = 0
    """Number of blocks so far."""
    _hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=8))

    def read(self) -> Iterator[Block | EndOfShare]:
        """Yield all blocks, those of other processes too."""
        for block in self.blocks:
            # All shards hash the whole stream.
            self._hash.update(block.fingerprint.to_bytes(8, "big"))
            self.n_units += 1
            yield block

    def takes(self, block: Block) -> bool:
        """Return whether a block is one of this process."""
        return self.share.takes(block.index)

    @property
    def digest(self) -> str:
        """Hash of the fingerprints of all blocks, in their order."""
        return self._hash.hexdigest()


@dataclass(frozen=True)
class SharedFiles:
    """Documents in shares by their files, and how their blocks are cut."""

    shares: FileShares
    plan: BlockPlan
    source: TextReader
    target: TextReader
    first: Block
    """First block of the first share; its mean is the shift of all processes."""

    @classmethod
    def of(
        cls, shares: FileShares, plan: BlockPlan, source: TextReader, target: TextReader
    ) -> "SharedFiles":
        """Return the shares with their first block, which is read.

        Raises:
            FileFormatError: a file of the first share is damaged.
            TooFewDocumentsError: the first share has no row.
        """
        first = next(_share_blocks(shares, 0, plan, source, target), None)
        if first is None:
            raise TooFewDocumentsError(
                f"share 0 of {shares.count} of the files has no document with an unmasked token; "
                "give files with longer texts, or fewer shares"
            )
        return cls(shares, plan, source, target, first)

    @property
    def arguments(self) -> dict[str, Any]:
        """JSON values that are equal for all processes that see the same files."""
        return {"files": self.shares.manifest, "first_block": f"{self.first.fingerprint:016x}"}

    def blocks(self, share: int) -> Iterator[Block]:
        """Yield the blocks of a share, with the numbers that they have among all shares.

        Raises:
            FileFormatError: a file is damaged, or has changed since this process began.
        """
        yield from _share_blocks(self.shares, share, self.plan, self.source, self.target)
        # What was cut while it was read is not seen before the end.
        self.shares.refuse_changed(share)


def _share_blocks(
    shares: FileShares, share: int, plan: BlockPlan, source: TextReader, target: TextReader
) -> Iterator[Block]:
    documents, plan = shares.documents(share), shares.plan(plan, share)
    for block in iterate_blocks(documents, source, plan, target=target, is_part=True):
        block.index += share * BLOCKS_PER_SHARE
        yield block


class FileStreams:
    """Streams of the shares of the files that one process reads.

    Raises:
        ValueError: there are fewer shares than processes.
    """

    def __init__(
        self, files: SharedFiles, share: Share, is_done: Callable[[int], bool] = lambda _: False
    ) -> None:
        self.files, self.n_units = files, files.shares.count
        n_shards, n_ranks = share.shard[1], share.rank[1]
        if self.n_units < n_shards * n_ranks:
            n = n_shards * n_ranks
            raise ValueError(
                f"file_shares is {self.n_units}, and {n} processes share the harvest ({n_shards} "
                f"shard(s) of {n_ranks} rank(s)); expected at least one share per process: give "
                f"{n} or a multiple of it, or fewer processes"
            )
        self._own = [number for number in range(self.n_units) if share.takes(number)]
        self._is_done = is_done

    @property
    def n_tokens(self) -> int | None:
        """Number of unmasked tokens in the plans of the own shares; None if all are read."""
        plans = [self.files.shares.plan(self.files.plan, number) for number in self._own]
        numbers = [plan.n_tokens for plan in plans if plan.n_tokens is not None]
        return sum(numbers) if numbers else None

    @property
    def digest(self) -> str:
        """Hash of the names and sizes of the files and of their first block."""
        content = f"{self.files.shares.digest} {self.files.first.fingerprint}"
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def read(self) -> Iterator[Block | EndOfShare]:
        """Yield the first block of all shares, and then those of the own shares, with their ends.

        Shares that are done are not read again.
        """
        # The first block decides the shift of every process; it is added by the owner of share 0.
        yield self.files.first
        for share in self._own:
            if self._is_done(share):
                continue
            n_blocks = 0
            for block in self.files.blocks(share):
                n_blocks += 1
                yield block
            yield EndOfShare(share, n_blocks)

    def takes(self, block: Block) -> bool:
        """Return whether a block is one of this process."""
        return block is not self.files.first
