"""Batches of paired rows in a new order every epoch, without the whole cache in memory.

Problem: training needs rows in random order, and reading single rows at random from a disk is slow.
Mechanism: an epoch draws an order of the shards and groups consecutive ones until a group holds
``buffer_rows`` selected rows. The rows of a group are permuted and returned in batches; those that
do not fill a batch begin the first batch of the next group. A batch is therefore a uniform sample
of a group, and a group is a uniform sample of the shards. Streams are memory-mapped: one batch is
in memory, and the pages that the system caches.

    reader = ShuffledReader(cache.shards, source_hook, target_hook, RowSelection(), 4096, seed=0)
    for x, y in reader.epoch(0):
        ...

The order depends only on the seed, the epoch and the shards, so a run can resume at any batch
without reading those before it.

Limits: rows of one document are in one shard, and therefore within ``buffer_rows`` rows of an
epoch, if a group is larger than a shard: this is not a perfect shuffle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.moments.cache._shard import Shard

BUFFER_ROWS = 65_536
"""Default number of rows that are mixed with each other."""
_WORDS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class ShuffledReader:
    """Reader of shuffled batches of one hook pair.

    Raises:
        ValueError: ``batch_rows`` or ``buffer_rows`` is not positive.
    """

    shards: Sequence[Shard]
    source_hook: str
    target_hook: str
    selection: RowSelection
    batch_rows: int
    seed: int | None
    """Seed of the order; None reads in stored order."""
    buffer_rows: int = BUFFER_ROWS

    def __post_init__(self) -> None:
        for name in ("batch_rows", "buffer_rows"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected rows above 0")

    def epoch(self, number: int = 0, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches (x, y) in float32, [row, d_source] and [row, d_target].

        All batches have ``batch_rows`` rows except the last. The first ``skip`` batches are not
        read.
        """
        selected = [
            np.flatnonzero(self.selection.mask(shard.table.row_part, shard.table.row_document))
            for shard in self.shards
        ]
        # Whole groups are skipped by their sizes, without reading them.
        rows_to_skip = skip * self.batch_rows
        begun: tuple[Tensor, Tensor] | None = None  # rows of an incomplete batch
        for number_of_group, group in enumerate(
            self._groups([len(rows) for rows in selected], number)
        ):
            n = sum(len(selected[k]) for k in group)
            if rows_to_skip >= n:
                rows_to_skip -= n
                continue
            order = self._order(n, number, number_of_group)[rows_to_skip:]
            rows_to_skip = 0
            pool = self._pool(group, selected)
            # The first rows of this group complete the batch that the last group began.
            if begun is not None:
                n_missing = self.batch_rows - len(begun[0])
                more = pool.rows(order[:n_missing])
                begun = torch.cat([begun[0], more[0]]), torch.cat([begun[1], more[1]])
                order = order[n_missing:]
                if len(begun[0]) < self.batch_rows:
                    continue
                yield begun
                begun = None
            for start in range(0, len(order), self.batch_rows):
                batch = pool.rows(order[start : start + self.batch_rows])
                if len(batch[0]) < self.batch_rows:
                    begun = batch
                else:
                    yield batch
        if begun is not None:
            yield begun

    def _pool(self, group: Sequence[int], selected: Sequence[np.ndarray]) -> "_Pool":
        return _Pool(
            [self.shards[k] for k in group],
            [selected[k] for k in group],
            self.source_hook,
            self.target_hook,
            self.seed is None,
        )

    def _groups(self, counts: Sequence[int], epoch: int) -> Iterator[list[int]]:
        """Yield the numbers of the shards of each group; in stored order each shard is a group."""
        order = (
            np.arange(len(counts))
            if self.seed is None
            else np.random.default_rng([self.seed, epoch]).permutation(len(counts))
        )
        group: list[int] = []
        for k in order.tolist():
            group.append(k)
            if self.seed is None or sum(counts[j] for j in group) >= self.buffer_rows:
                yield group
                group = []
        if group:
            yield group

    def _order(self, n: int, epoch: int, group: int) -> np.ndarray:
        # A generator per group, so that a group can be permuted without those before it.
        return (
            np.arange(n)
            if self.seed is None
            else np.random.default_rng([self.seed, epoch, group]).permutation(n)
        )


class _Pool:
    """Selected rows of a group of shards, under consecutive numbers."""

    def __init__(
        self,
        shards: Sequence[Shard],
        selected: Sequence[np.ndarray],
        source_hook: str,
        target_hook: str,
        in_order: bool,
    ) -> None:
        self.shards = shards
        self.sides = [
            [shard.stream(*name) for shard in shards]
            for name in (("source", source_hook), ("target", target_hook))
        ]
        self.rows_of = np.concatenate(selected)
        self.shard_of = np.repeat(np.arange(len(selected)), [len(rows) for rows in selected])
        # All rows of one file: a slice needs no index and no copy except that to float32.
        self.in_stored_order = (
            in_order and len(selected) == 1 and len(selected[0]) == len(self.sides[0][0])
        )

    def rows(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (x, y) of the rows with these numbers, in float32."""
        for shard in self.shards:
            shard.refuse_changed()
        if self.in_stored_order:
            start, end = int(numbers[0]), int(numbers[-1]) + 1
            x, y = (side[0][start:end].float() for side in self.sides)
            # `float()` does not copy float32, and a batch must not be a view of the file.
            return (x, y) if self.sides[0][0].dtype != torch.float32 else (x.clone(), y.clone())
        x, y = (self._gathered(side, numbers) for side in self.sides)
        return x, y

    def _gathered(self, streams: Sequence[Tensor], numbers: np.ndarray) -> Tensor:
        rows, shards = self.rows_of[numbers], self.shard_of[numbers]
        if len(streams) == 1:
            return _taken(streams[0], rows).float()
        # Each shard is read once; the last line restores the requested order.
        by_shard = np.argsort(shards, kind="stable")
        parts = np.split(
            rows[by_shard], np.cumsum(np.bincount(shards, minlength=len(streams)))[:-1]
        )
        taken = torch.cat(
            [_taken(stream, part) for stream, part in zip(streams, parts, strict=True)]
        )
        return _taken(taken, np.argsort(by_shard, kind="stable")).float()


def _taken(stream: Tensor, rows: np.ndarray) -> Tensor:
    """Return a copy of some rows [row, d], in the precision of the stream."""
    # numpy copies rows of integers twice as fast as torch gathers rows, on few cores. It has no
    # bfloat16, so the rows are read as integers of the same size.
    words = _WORDS[stream.dtype.itemsize]
    return torch.from_numpy(np.take(stream.view(words).numpy(), rows, axis=0)).view(stream.dtype)
