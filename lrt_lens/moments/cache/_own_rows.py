"""Activations from any library in a cache: blocks of one part each, as in a harvest.

    pair = ("source", "target")
    writer = begin_own_rows(folder, "bfloat16", 0, pair, shard_bytes=2**28)
    add_own_rows(writer, pair, x, y, documents)
    writer.close()

Limits: there are no tokens and no window positions, so no null and no further recording.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.data._windows import Block, Window
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._provenance import Provenance, package_versions
from lrt_lens.moments._row_keys import document_keys, parts_of
from lrt_lens.moments.cache._manifest import Manifest
from lrt_lens.moments.cache._shard import byte_sum
from lrt_lens.moments.cache._writer import CacheWriter, refuse_other_dtype

_BLOCK_ROWS = 4096


class OwnRowsWriter(CacheWriter):
    """A writer that numbers its blocks itself, in the order in which they are added."""

    n_offered = 0
    """Blocks that this process has passed to the writer, including those that were in the cache."""


def begin_own_rows(
    folder: Path, dtype: str, seed: int, hook_pair: HookPair, shard_bytes: int
) -> OwnRowsWriter:
    """Return a writer for the rows of one hook pair."""
    refuse_other_dtype(dtype)
    provenance = Provenance(seed=seed, versions=package_versions())
    manifest = Manifest(provenance, dtype, streams={}, pairs=(hook_pair,), has_tokens=False)
    return OwnRowsWriter(folder, manifest, shard_bytes=shard_bytes)


def add_own_rows(
    writer: CacheWriter,
    hook_pair: HookPair,
    x: Tensor,
    y: Tensor,
    documents: Sequence[Any] | Tensor | np.ndarray,
) -> None:
    """Add rows, part by part; blocks that the cache already holds are skipped.

    Args:
        writer: writer from `begin_own_rows`.
        hook_pair: names of the two hook points.
        x: [row, d_source].
        y: [row, d_target].
        documents: an id of the document of each row.

    Raises:
        TypeError: the writer is of a cache that a harvest made.
        ValueError: there are no rows, or the arguments differ in length.
    """
    if not isinstance(writer, OwnRowsWriter):
        raise TypeError(
            "rows can be added only to a cache made by ActivationCache.create, "
            f"not with {type(writer).__name__}"
        )
    if not len(x) == len(y) == len(documents):
        raise ValueError(
            f"rows do not pair: x has {len(x)}, y {len(y)}, documents {len(documents)}; "
            "give one row of x, one of y and one document id per token"
        )
    if not len(x):
        raise ValueError("x and y have no rows; expected one row per token")
    keys = document_keys(documents, writer.manifest.provenance.seed)
    parts = parts_of(keys)
    for part in np.unique(parts).tolist():
        rows_of_part = np.flatnonzero(parts == part)
        for start in range(0, len(rows_of_part), _BLOCK_ROWS):
            rows = rows_of_part[start : start + _BLOCK_ROWS]
            index = torch.from_numpy(rows)
            _add_block(
                writer, hook_pair, part, keys[rows], x[index.to(x.device)], y[index.to(y.device)]
            )


def _add_block(
    writer: OwnRowsWriter, hook_pair: HookPair, part: int, keys: np.ndarray, x: Tensor, y: Tensor
) -> None:
    # Consecutive rows of one document make one window.
    bounds = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
    windows = [
        Window([], np.arange(end - start), int(keys[start])) for start, end in pairwise(bounds)
    ]
    # A hash of the rows takes the place of the hash of tokens. 63 bits, because safetensors and
    # torch have signed integers only.
    digest = hashlib.blake2b(keys.tobytes(), digest_size=8, key=str(part).encode())
    for rows in (x, y):
        digest.update(byte_sum(rows.detach().cpu()).encode())
    fingerprint = int.from_bytes(digest.digest(), "big") >> 1
    index = writer.n_offered
    if not writer.has(index, fingerprint):
        block = Block(part=part, windows=windows, n_rows=len(keys), index=index)
        writer.add(block, windows, {hook_pair[0]: x}, {hook_pair[1]: y}, fingerprint)
    writer.n_offered = index + 1
