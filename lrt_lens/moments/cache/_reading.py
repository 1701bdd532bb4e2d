"""Batches of paired rows in a new order every epoch, without holding the cache.

An epoch draws an order of the shards and takes consecutive ones together until they hold
``buffer_rows`` chosen rows; the rows of such a group are permuted and handed out in batches, and
what is left over begins the first batch of the next group. So a batch is a uniform sample of a
group, groups are uniform samples of shards, and rows of one document (which lie in one shard) fall
into one group, a stretch of ``buffer_rows`` rows of the epoch: with a shard or more a group that is
no perfect shuffle, but the documents of a batch come from thousands of rows apart. Streams are
memory-mapped: what is in memory is one batch, and whatever pages the system keeps.

The order depends on the seed, the epoch and the shards alone, so any batch can be found again
without reading those before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.moments.cache._shard import Shard

BUFFER_ROWS = 65_536
_WORDS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class ShuffledReader:
    """Batches of one pair of hook points."""

    shards: Sequence[Shard]
    source_hook: str
    target_hook: str
    selection: RowSelection
    batch_rows: int
    seed: int | None
    """None: the stored order."""
    buffer_rows: int = BUFFER_ROWS

    def __post_init__(self) -> None:
        for name in ("batch_rows", "buffer_rows"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected rows above 0")

    def epoch(self, number: int = 0, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) in float32, [row, d] each, ``batch_rows`` a batch but for the last; the first
        ``skip`` batches are passed over unread.
        """
        chosen = [
            np.flatnonzero(self.selection.mask(shard.table.row_part, shard.table.row_document))
            for shard in self.shards
        ]
        to_skip = skip * self.batch_rows
        rest: tuple[Tensor, Tensor] | None = None
        for place, group in enumerate(self._groups([len(rows) for rows in chosen], number)):
            n = sum(len(chosen[k]) for k in group)
            if to_skip >= n:
                to_skip -= n
                continue
            order = self._order(n, number, place)[to_skip:]
            to_skip = 0
            pool = _Pool(
                [self.shards[k] for k in group],
                [chosen[k] for k in group],
                self.source_hook,
                self.target_hook,
                self.seed is None,
            )
            if rest is not None:
                missing = self.batch_rows - len(rest[0])
                more = pool.rows(order[:missing])
                rest = torch.cat([rest[0], more[0]]), torch.cat([rest[1], more[1]])
                order = order[missing:]
                if len(rest[0]) < self.batch_rows:
                    continue
                yield rest
                rest = None
            for start in range(0, len(order), self.batch_rows):
                batch = pool.rows(order[start : start + self.batch_rows])
                if len(batch[0]) < self.batch_rows:
                    rest = batch
                else:
                    yield batch
        if rest is not None:
            yield rest

    def _groups(self, counts: Sequence[int], epoch: int) -> Iterator[list[int]]:
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
        return (
            np.arange(n)
            if self.seed is None
            else np.random.default_rng([self.seed, epoch, group]).permutation(n)
        )


class _Pool:
    """The chosen rows of a group of shards, numbered through."""

    def __init__(
        self,
        shards: Sequence[Shard],
        chosen: Sequence[np.ndarray],
        source_hook: str,
        target_hook: str,
        in_order: bool,
    ) -> None:
        self.sides = [
            [shard.stream(*name) for shard in shards]
            for name in (("source", source_hook), ("target", target_hook))
        ]
        self.rows_of = np.concatenate(chosen)
        self.shard_of = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
        # A run of all rows of a file: no copy but the one to float32.
        self.in_stored_order = (
            in_order and len(chosen) == 1 and len(chosen[0]) == len(self.sides[0][0])
        )

    def rows(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """(x, y) of some rows, in float32."""
        if self.in_stored_order:
            start, end = int(numbers[0]), int(numbers[-1]) + 1
            x, y = (side[0][start:end].float() for side in self.sides)
            # A float32 cache: what is handed out must not be the file.
            return (x, y) if self.sides[0][0].dtype != torch.float32 else (x.clone(), y.clone())
        x, y = (self._gathered(side, numbers) for side in self.sides)
        return x, y

    def _gathered(self, streams: Sequence[Tensor], numbers: np.ndarray) -> Tensor:
        rows, shards = self.rows_of[numbers], self.shard_of[numbers]
        if len(streams) == 1:
            return _taken(streams[0], rows).float()
        by_shard = np.argsort(shards, kind="stable")
        parts = np.split(
            rows[by_shard], np.cumsum(np.bincount(shards, minlength=len(streams)))[:-1]
        )
        taken = torch.cat(
            [_taken(stream, part) for stream, part in zip(streams, parts, strict=True)]
        )
        return _taken(taken, np.argsort(by_shard, kind="stable")).float()


def _taken(stream: Tensor, rows: np.ndarray) -> Tensor:
    """[row, d], a copy in the stream's precision. By numpy, which takes rows of bytes twice as fast
    as torch gathers them on few cores.
    """
    words = _WORDS[stream.dtype.itemsize]
    return torch.from_numpy(np.take(stream.view(words).numpy(), rows, axis=0)).view(stream.dtype)
