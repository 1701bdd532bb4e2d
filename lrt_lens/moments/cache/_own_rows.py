"""Rows of one's own into a cache: blocks of one part each, as a harvest makes them, without tokens."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.data._blocks import Block
from lrt_lens.data._documents import document_key
from lrt_lens.data._parts import part_of
from lrt_lens.data._windows import Window
from lrt_lens.moments._hook_pairs import HookPair
from lrt_lens.moments._provenance import Provenance, package_versions
from lrt_lens.moments.cache._manifest import Manifest
from lrt_lens.moments.cache._shard import byte_sum
from lrt_lens.moments.cache._writer import DTYPES, CacheWriter

_BLOCK_ROWS = 4096


class OwnRowsWriter(CacheWriter):
    """A writer that numbers its blocks itself."""

    n_offered = 0
    """Blocks that were given in this process, those of the cache that were given again among them.
    """


def begin_own_rows(
    folder: Path, dtype: str, seed: int, pair: HookPair, shard_bytes: int
) -> OwnRowsWriter:
    """A writer for rows of one pair of streams."""
    refuse_other_dtype(dtype)
    provenance = Provenance(seed=seed, versions=package_versions())
    manifest = Manifest(provenance, dtype, streams={}, pairs=(pair,), has_tokens=False)
    return OwnRowsWriter(folder, manifest, shard_bytes=shard_bytes)


def refuse_other_dtype(dtype: str) -> None:
    """ValueError for a precision that caches do not have."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {list(DTYPES)}")


def add_own_rows(
    writer: CacheWriter,
    pair: HookPair,
    x: Tensor,
    y: Tensor,
    documents: Sequence[Any] | Tensor | np.ndarray,
) -> None:
    """Add rows, part by part; those that the cache holds already are passed over."""
    if not isinstance(writer, OwnRowsWriter):
        raise TypeError(
            f"rows of one's own need a cache made by ActivationCache.create, not {type(writer).__name__}"
        )
    if not len(x) == len(y) == len(documents):
        raise ValueError(
            f"rows do not pair: x has {len(x)}, y {len(y)}, documents {len(documents)}"
        )
    if not len(x):
        raise ValueError("no rows given; x and y need a row per token")
    keys = document_keys(documents, writer.manifest.provenance.seed)
    parts = parts_of(keys)
    for part in np.unique(parts).tolist():
        chosen = np.flatnonzero(parts == part)
        for start in range(0, len(chosen), _BLOCK_ROWS):
            rows = chosen[start : start + _BLOCK_ROWS]
            index = torch.from_numpy(rows)
            _add_block(writer, pair, part, keys[rows], x[index.to(x.device)], y[index.to(y.device)])


def document_keys(documents: Sequence[Any] | Tensor | np.ndarray, seed: int) -> np.ndarray:
    """[row], uint64: the key of every row's document, as `CrossMoments.from_activations` makes it
    from ids.
    """
    ids = (
        list(documents.tolist()) if isinstance(documents, Tensor | np.ndarray) else list(documents)
    )
    key_by_id = {identifier: document_key(str(identifier), seed) for identifier in set(ids)}
    return np.array([key_by_id[identifier] for identifier in ids], dtype=np.uint64)


def parts_of(keys: np.ndarray) -> np.ndarray:
    """[row]: the part of every row."""
    distinct, which = np.unique(keys, return_inverse=True)
    return np.array([part_of(int(key)) for key in distinct])[which]


def _add_block(
    writer: OwnRowsWriter, pair: HookPair, part: int, keys: np.ndarray, x: Tensor, y: Tensor
) -> None:
    bounds = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
    # One window for every run of rows of one document.
    windows = [
        Window([], np.arange(end - start), int(keys[start])) for start, end in pairwise(bounds)
    ]
    digest = hashlib.blake2b(keys.tobytes(), digest_size=8, key=str(part).encode())
    for rows in (x, y):
        digest.update(byte_sum(rows.detach().cpu()).encode())
    fingerprint = int.from_bytes(digest.digest(), "big") >> 1
    index = writer.n_offered
    if not writer.has(index, fingerprint):
        block = Block(part=part, windows=windows, n_rows=len(keys), index=index)
        writer.add(block, windows, {pair[0]: x}, {pair[1]: y}, fingerprint)
    writer.n_offered = index + 1
