"""Rows on which recipes train: tensors in memory, or a hook pair of an activation cache.

Both are split by documents into the same parts as moments are, so that trained maps and closed
forms have the same test fold.

    rows = RowsInMemory(x, y, documents)
    rows = cache["blocks.3.hook_resid_post", "blocks.5.hook_resid_post"]
    for x, y in rows.batches(settings.training, 4096, seed=0):
        ...
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lrt_lens.errors import HookPointError, NonFiniteError
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._row_keys import document_keys, parts_of
from lrt_lens.moments.cache._activation_cache import ActivationCache
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.moments.cache._shard import byte_sum


@runtime_checkable
class PairedRows(Protocol):
    """Rows on which a recipe trains; `RowsInMemory` and `CachedPair` are the two kinds."""

    @property
    def source_hook(self) -> str:
        """Hook point of the source activations x."""
        ...

    @property
    def target_hook(self) -> str:
        """Hook point of the target activations y."""
        ...

    @property
    def widths(self) -> tuple[int, int]:
        """Widths (d_source, d_target)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the rows, which changes whenever they change; checkpoints store it."""
        ...

    def count(self, selection: RowSelection) -> int:
        """Return the number of rows of a selection."""
        ...

    def batches(
        self,
        selection: RowSelection,
        batch_rows: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of batches (x, y) in float32.

        Args:
            selection: rows to yield.
            batch_rows: rows per batch.
            seed: seed of the order, together with ``epoch``; None yields the stored order.
            epoch: number of the epoch, from 0.
            skip: number of first batches to leave out.
        """
        ...


@dataclass(frozen=True)
class RowsInMemory:
    """Paired activations in memory, with a document for every row.

    Raises:
        ValueError: the numbers of rows differ.
        NonFiniteError: a row has NaN or infinite numbers.
    """

    x: Tensor
    """Source activations [token, d_source]."""
    y: Tensor
    """Target activations [token, d_target]."""
    documents: Sequence[Any] | Tensor | np.ndarray
    """Ids of the documents [token]; all rows of one document are on one side of a split."""
    source_hook: str = "source"
    target_hook: str = "target"
    seed: int = 0
    """Seed of the assignment of documents to parts, as in `CrossMoments.from_activations`."""

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.documents):
            raise ValueError(
                f"rows do not pair: x has {len(self.x)}, y {len(self.y)}, documents "
                f"{len(self.documents)}; give one row of x, one of y and one document id per token"
            )
        for name, rows in (("x", self.x), ("y", self.y)):
            bad = int((~torch.isfinite(rows)).any(1).sum())
            if bad:
                raise NonFiniteError(
                    f"{bad} of {len(rows)} rows of {name} are NaN or infinite; drop them before "
                    "training"
                )

    @property
    def widths(self) -> tuple[int, int]:
        """Widths (d_source, d_target)."""
        return self.x.shape[1], self.y.shape[1]

    @cached_property
    def _keys(self) -> np.ndarray:
        return document_keys(self.documents, self.seed)

    @cached_property
    def _parts(self) -> np.ndarray:
        return parts_of(self._keys)

    @property
    def fingerprint(self) -> str:
        """Hash of all activations and documents."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(self._keys.tobytes(), digest_size=8)
        for rows in (self.x, self.y):
            digest.update(byte_sum(rows.detach().cpu()).encode())
        return digest.hexdigest()

    def count(self, selection: RowSelection) -> int:
        """Return the number of rows of a selection."""
        return int(selection.mask(self._parts, self._keys).sum())

    def batches(
        self,
        selection: RowSelection,
        batch_rows: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of batches (x, y) in float32, in a random order if there is a seed."""
        # Stored order; `skip` whole batches are left out without reading them.
        index = np.flatnonzero(selection.mask(self._parts, self._keys))
        if seed is not None:
            # The order follows from seed and epoch, so that a resumed run sees the same batches.
            index = np.random.default_rng([seed, epoch]).permutation(index)
        for start in range(skip * batch_rows, len(index), batch_rows):
            rows = torch.from_numpy(index[start : start + batch_rows])
            yield (
                self.x[rows.to(self.x.device)].detach().float(),
                self.y[rows.to(self.y.device)].detach().float(),
            )


def paired_rows(rows: Any, hooks: HookPair | None = None) -> PairedRows:
    """Return ``rows`` in the form that a recipe needs.

    Args:
        rows: an `ActivationCache`, a hook pair of one, or ``(x, y, documents)``.
        hooks: hook pair of a cache; needed if it has several.

    Raises:
        HookPointError: the cache has several hook pairs, or not this one.
        ValueError: ``hooks`` without a cache.
        TypeError: ``rows`` is something else.
    """
    if isinstance(rows, ActivationCache):
        if hooks is None and len(rows.pairs) != 1:
            raise HookPointError(
                f"the cache has {len(rows.pairs)} hook pairs; choose one with "
                "hooks=(source_hook, target_hook)"
            )
        return rows[hooks or rows.pairs[0]]
    if hooks is not None:
        raise ValueError(
            f"hooks={hooks!r} is only for an ActivationCache; name the hook points of rows in "
            "memory in RowsInMemory(…, source_hook=…)"
        )
    if isinstance(rows, PairedRows):
        return rows
    if isinstance(rows, tuple | list) and len(rows) == 3:
        return RowsInMemory(*rows)
    raise TypeError(
        f"rows is a {type(rows).__name__}; expected an ActivationCache, cache[source_hook, "
        "target_hook], or (x, y, documents)"
    )
