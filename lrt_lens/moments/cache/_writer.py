"""Writer of a cache: it takes blocks, and writes shards of a limited size.

Problem: a recording takes hours and may be killed at any time. Mechanism: activations are converted
into one buffer per stream, with the rows of one shard. A full buffer is written under a temporary
name and renamed, and then the manifest that lists it is written. A writer that starts again reads
the complete shards and skips their blocks.

    with CacheWriter(folder, manifest) as writer:
        for block in blocks:
            if not writer.has(block.index, block.fingerprint):
                writer.add(block, windows_in_row_order, x, y)

Limits: a block is never split, so a shard has at least one block, also if ``shard_bytes`` is less.
Opening for writing reads all shards once; damaged ones are dropped with a warning and recorded
again.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from lrt_lens._files import make_folder
from lrt_lens.data._parts import DEFAULT_PARTS, Parts
from lrt_lens.data._windows import Block, Window
from lrt_lens.errors import FileFormatError, MismatchError, NonFiniteError
from lrt_lens.moments._rank_lock import RankLock
from lrt_lens.moments.cache._manifest import (
    DTYPES,
    MANIFEST_NAME,
    Manifest,
    ShardFile,
    ShardRecord,
    read_manifest,
    write_manifest,
)
from lrt_lens.moments.cache._shard import BlockTable, Shard, write_shard

logger = logging.getLogger(__name__)

SHARD_BYTES = 2**28
"""Default size of a shard, 256 MiB."""


class CacheWriter:
    """Adds blocks to a cache; a context manager that writes buffered blocks even after an error."""

    def __init__(
        self, folder: str | Path, manifest: Manifest, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Open an empty folder, or a cache of the same run to continue it.

        Raises:
            MismatchError: the folder holds the cache of another run, or another process writes it.
            ValueError: ``shard_bytes`` is not positive, or the harvest has other numbers of folds
                or test groups than a cache.
        """
        _refuse_other_parts(manifest.provenance.parts)
        if shard_bytes <= 0:
            raise ValueError(f"shard_bytes is {shard_bytes}; expected bytes above 0")
        self.folder, self.shard_bytes = make_folder(Path(folder)), shard_bytes
        # One process writes a cache at a time; it holds the lock of rank 0.
        self._lock = RankLock(self.folder, 0)
        self._lock.acquire(1)
        try:
            self.manifest, self._known = self._begin(manifest)
        except BaseException:
            self._lock.release()
            raise
        # Rows of the next shard by stream [capacity, d], of which the first `_used` are filled, and
        # their blocks with fingerprints and windows.
        self._buffers: dict[str, Tensor] = {}
        self._pending: list[tuple[Block, int, Sequence[Window]]] = []
        self._used = 0
        self._closed = False

    def _begin(self, manifest: Manifest) -> tuple[Manifest, dict[int, int]]:
        """Return the manifest to continue, and the fingerprints of the blocks in its shards."""
        if not (self.folder / MANIFEST_NAME).is_file():
            write_manifest(self.folder, manifest)
            return manifest, {}
        stored = read_manifest(self.folder)
        stored.refuse_other(manifest, self.folder)
        known: dict[int, int] = {}
        complete = []
        for record in stored.shards:
            shard = Shard(self.folder, record, stored)
            try:
                shard.verify()
            except FileFormatError as error:
                logger.warning("%s; its blocks are recorded again", error)
                continue
            known |= dict(
                zip(shard.table.index.tolist(), shard.table.fingerprint.tolist(), strict=True)
            )
            complete.append(record)
        if len(complete) < len(stored.shards):
            # Without any shard the widths of the streams are open again.
            streams = stored.streams if complete else {}
            stored = replace(stored, shards=tuple(complete), streams=streams, n_blocks=None)
        return stored, known

    # --------------------------------------------------------------------------------------- blocks

    def has(self, index: int, fingerprint: int) -> bool:
        """Return whether the block is in a shard or in the buffer.

        Raises:
            MismatchError: the block with this number held other rows before.
        """
        known = self._known.get(index)
        if known is not None and known != fingerprint:
            raise MismatchError(
                f"block {index} holds other rows than when the cache {str(self.folder)!r} was "
                "begun: the documents are not the same, or not in the same order; "
                "give the same ones, or another folder"
            )
        return known is not None

    def add(
        self,
        block: Block,
        order: Sequence[Window],
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        fingerprint: int | None = None,
    ) -> None:
        """Add a block to the buffer, and write a shard first if the block does not fit.

        Args:
            block: number, part and documents.
            order: windows in the order of the rows.
            x: ``{source hook point: [row, d]}``.
            y: ``{target hook point: [row, d]}``.
            fingerprint: hash of the rows; that of the block's tokens if None.

        Raises:
            MismatchError: the cache holds other hook points, or other widths.
            NonFiniteError: an activation is NaN, infinite or too large for the stored precision.
            ValueError: a hook point has another number of rows than the windows.
        """
        rows = {f"source/{hook}": values for hook, values in x.items()} | {
            f"target/{hook}": values for hook, values in y.items()
        }
        self._refuse_unfit(rows, sum(len(window.rows) for window in order))
        n = len(next(iter(rows.values())))
        if self._pending and self._used + n > len(next(iter(self._buffers.values()))):
            self.flush()
        # `copy_` converts to the stored precision, so that a buffer has the size of the shard.
        self._allocate(rows, n)
        for name, values in rows.items():
            self._buffers[name][self._used : self._used + n].copy_(values.detach())
        fingerprint = block.fingerprint if fingerprint is None else fingerprint
        self._pending.append((block, fingerprint, list(order)))
        self._known[block.index] = fingerprint
        self._used += n

    def _refuse_unfit(self, rows: Mapping[str, Tensor], n: int) -> None:
        widths = {name: values.shape[1] for name, values in rows.items()}
        expected = self.manifest.first_streams
        if expected and widths != expected:
            raise MismatchError(
                f"the cache {str(self.folder)!r} holds streams of widths {expected}; this block "
                f"has {widths}: give the same hook points, or another folder"
            )
        for name, values in rows.items():
            if len(values) != n:
                raise ValueError(
                    f"{name!r} has {len(values)} rows, the windows have {n}; "
                    "give one row per unmasked token"
                )
            refuse_unstorable(name, values, self.manifest.dtype)

    def _allocate(self, rows: Mapping[str, Tensor], n: int) -> None:
        if not self.manifest.streams:
            self.manifest = replace(
                self.manifest, streams={name: values.shape[1] for name, values in rows.items()}
            )
        dtype = DTYPES[self.manifest.dtype]
        bytes_per_row = dtype.itemsize * sum(values.shape[1] for values in rows.values())
        # Rows of a shard: as many as fit into shard_bytes, but at least one block.
        capacity = max(n, self.shard_bytes // bytes_per_row)
        if not self._buffers or self._used + n > len(next(iter(self._buffers.values()))):
            self._buffers = {
                name: torch.empty(capacity, values.shape[1], dtype=dtype)
                for name, values in rows.items()
            }

    # --------------------------------------------------------------------------------------- shards

    def flush(self) -> None:
        """Write the buffered blocks as a shard."""
        if not self._pending:
            return
        tensors = {
            name: buffer[: self._used] for name, buffer in self._buffers.items()
        } | BlockTable.of(self._pending).tensors()
        if self.manifest.has_tokens:
            tensors |= _token_tensors([window for _, _, order in self._pending for window in order])
        # The shard before the manifest: a shard that the manifest does not list is not read.
        name = self._next_name()
        n_bytes = write_shard(self.folder / name, tensors)
        file = ShardFile(name, n_bytes, tuple(self._buffers))
        shards = (*self.manifest.shards, ShardRecord((file,), self._used))
        self.manifest = replace(self.manifest, shards=shards, n_blocks=None)
        write_manifest(self.folder, self.manifest)
        self._pending, self._used = [], 0

    def _next_name(self) -> str:
        """Return the first free name of a shard; dropped shards leave gaps."""
        stems = {record.stem for record in self.manifest.shards}
        numbered = (f"shard-{i:05d}" for i in range(len(stems) + 1))
        return f"{next(stem for stem in numbered if stem not in stems)}.safetensors"

    def close(self, *, finished: bool = True) -> None:
        """Write the buffered blocks; ``finished`` records that no block is missing."""
        if self._closed:
            return
        try:
            self.flush()
            # A finished cache stays finished if a later run fails before it adds a block.
            if finished and self.manifest.n_blocks != len(self._known):
                self.manifest = replace(self.manifest, n_blocks=len(self._known))
                write_manifest(self.folder, self.manifest)
        finally:
            self._closed, self._buffers = True, {}
            self._lock.release()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(finished=kind is None)


def refuse_other_dtype(dtype: str) -> None:
    """Raise ValueError if ``dtype`` is not a precision of caches."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {list(DTYPES)}")


def refuse_unstorable(name: str, values: Tensor, dtype: str) -> None:
    """Raise `NonFiniteError` for NaN, infinity and numbers too large for the stored precision."""
    # One sum is NaN or infinite if any of its terms is. In float32, because a float16 sum of
    # finite numbers may overflow and a bfloat16 sum is slow.
    total = values.sum() if values.dtype in (torch.float32, torch.float64) else values.float().sum()
    if not bool(torch.isfinite(total)):
        n = int((~torch.isfinite(values)).any(1).sum())
        # Large finite numbers may overflow a float32 sum: decide by the terms and a float64 sum.
        if n or not math.isfinite(float(values.double().sum())):
            raise NonFiniteError(
                f"{n} of {len(values)} rows of {name!r} are NaN or infinite; "
                "nothing of this block was written: drop the text"
            )
    # float16 ends at 65504; bfloat16 has the range of float32.
    limit = torch.finfo(DTYPES[dtype]).max
    if dtype == "float16" and (largest := float(values.abs().max())) > limit:
        raise NonFiniteError(
            f"{name!r} reaches {largest:.3g}; float16 ends at {limit:.0f}: use dtype='bfloat16'"
        )


def _token_tensors(windows: Sequence[Window]) -> dict[str, Tensor]:
    """Return token ids [token] and window positions of the rows [row] of some windows."""
    return {
        "tokens/id": torch.tensor(
            [token for window in windows for token in window.ids], dtype=torch.int32
        ),
        "rows/position": torch.from_numpy(
            np.concatenate([window.rows for window in windows]).astype(np.int32)
        ),
    }


def _refuse_other_parts(parts: Parts) -> None:
    """Raise ValueError unless the parts are the default ones, which selections of rows name."""
    if parts != DEFAULT_PARTS:
        raise ValueError(
            f"n_folds is {parts.n_folds} and n_test_groups {parts.n_test_groups}; an activation "
            f"cache has {DEFAULT_PARTS.n_folds} folds and {DEFAULT_PARTS.n_test_groups} test "
            "groups: leave both out, or harvest without cache="
        )
