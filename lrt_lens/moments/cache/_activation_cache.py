"""Activations of two models on the same tokens, on disk: for maps that are no function of second
moments.

A folder of safetensors shards and a ``manifest.json``: tokens once, one tensor for each hook point,
bfloat16 unless asked otherwise.

    harvest(pair, documents, cache="cache")                         # beside the moments
    cache = ActivationCache.open("cache", pair=pair)                # refuses the cache of other models
    for x, y in cache.rows("blocks.3.hook_resid_post", "blocks.5.hook_resid_post", shuffle=0): ...
    cache.moments().fit()                                           # the same maps as from the harvest, up to the rounding of the rows

Rows of one's own go in with `create` and `add`. Two models that do not fit into memory together go
one after the other over the same tokens:

    cache = ActivationCache.from_model("cache", small, documents, hooks=[3])
    cache.record(large, [5], role="target")

Writing is resumable (see `lrt_lens.moments.cache._writer`): the same call goes on after the last
whole shard.

Limits: one process writes a cache at a time; bfloat16 keeps three significant digits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._repr_html import card, facts
from lrt_lens.data._blocks import shuffled_rows
from lrt_lens.data._documents import Documents
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.models._hook_points import EMBED, Layers, same_place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import torch_dtype
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._cross_moments import CrossMoments, Pair
from lrt_lens.moments.cache._manifest import ROLES, Manifest, broken_file, read_manifest
from lrt_lens.moments.cache._reading import BUFFER_ROWS, ShuffledReader
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.moments.cache._shard import Shard, cut_short
from lrt_lens.moments.cache._writer import SHARD_BYTES, CacheWriter


class ActivationCache:
    """See the module docstring. Attributes: ``folder``, ``manifest``."""

    def __init__(self, folder: Path, manifest: Manifest, writer: CacheWriter | None = None) -> None:
        self.folder, self._manifest, self._writer = folder, manifest, writer
        self._verified: set[tuple[str, str]] = set()
        self._shards: dict[str, Shard] = {}

    # -------------------------------------------------------------------------------------- opening

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        pair: ModelPair | None = None,
        source: HookedModel | None = None,
        target: HookedModel | None = None,
    ) -> "ActivationCache":
        """A cache for reading.

        Args:
            folder: where it was written.
            pair: both models, compared with those that were recorded; or ``source`` and ``target``
                alone.
            source: the source model.
            target: the target model.

        Raises:
            FileFormatError: where the folder is no cache, or a shard is missing or cut short.
            MismatchError: where a model (or its tokenizer, BOS policy or basis) is another one.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if problem := broken_file(folder, manifest):
            raise FileFormatError(cut_short(problem))
        cache = cls(folder, manifest)
        cache.check(pair.source if pair else source, pair.target if pair else target)
        return cache

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        source_hook: str = "source",
        target_hook: str = "target",
        dtype: str = "bfloat16",
        seed: int = 0,
        shard_bytes: int = SHARD_BYTES,
    ) -> "ActivationCache":
        """A cache for rows of one's own, to be filled with `add`; where the folder holds one
        already, the same rows again go on where it ended.

        ``seed`` decides the parts with the documents' ids, as in `CrossMoments.from_activations`.
        """
        from lrt_lens.moments.cache._own_rows import begin_own_rows

        writer = begin_own_rows(Path(folder), dtype, seed, (source_hook, target_hook), shard_bytes)
        return cls(Path(folder), writer.manifest, writer)

    @classmethod
    def from_model(
        cls,
        folder: str | Path,
        model: HookedModel,
        documents: Documents,
        *,
        hooks: Layers = "all",
        role: str = "source",
        n_tokens: int | None = 200_000,
        context_length: int = 256,
        dtype: str = "bfloat16",
        seed: int = 0,
        batch_tokens: int = 4096,
        shard_bytes: int = SHARD_BYTES,
        progress: bool = True,
    ) -> "ActivationCache":
        """A cache of one model's activations on documents; `record` adds the other model's.
        Arguments as in `harvest`.
        """
        from lrt_lens.moments.cache._recording import record_documents

        record_documents(
            Path(folder),
            model,
            documents,
            hooks=hooks,
            role=role,
            n_tokens=n_tokens,
            context_length=context_length,
            dtype=dtype,
            seed=seed,
            batch_tokens=batch_tokens,
            shard_bytes=shard_bytes,
            progress=progress,
        )
        return cls.open(folder)

    def check(self, source: HookedModel | None = None, target: HookedModel | None = None) -> None:
        """Raise `MismatchError` where a model is not the one that was recorded."""
        for role, model in zip(ROLES, (source, target), strict=True):
            recorded = getattr(self.manifest.provenance, role)
            if model is None:
                continue
            if recorded is None:
                raise MismatchError(
                    f"the cache {str(self.folder)!r} holds no {role} model; record({model.name!r}, …, role={role!r}) adds one"
                )
            recorded.refuse_other(
                model.identity, f"the {role} model for the cache {str(self.folder)!r}"
            )

    # -------------------------------------------------------------------------------------- writing

    def add(self, x: Tensor, y: Tensor, *, documents: Sequence[Any] | Tensor | np.ndarray) -> None:
        """Add rows of one's own: ``x`` [token, d_source] and ``y`` [token, d_target], ``documents``
        an id for every row.

        A document's rows may come in several calls. Rows wait for a whole shard: `close`, the end
        of a ``with`` block, or reading writes them.
        """
        from lrt_lens.moments.cache._own_rows import add_own_rows

        if self._writer is None:
            raise ValueError(
                f"the cache {str(self.folder)!r} is open for reading; ActivationCache.create(folder, …) opens one for adding rows"
            )
        add_own_rows(self._writer, self.pairs_of(self._writer.manifest)[0], x, y, documents)

    def record(
        self,
        model: HookedModel,
        hooks: Layers = "all",
        *,
        role: str = "target",
        batch_tokens: int = 4096,
        progress: bool = True,
    ) -> None:
        """Run a model over the cached tokens and add its activations at ``hooks``: the same windows,
        the same rows.

        Raises:
            MismatchError: where the model reads other tokens than the cache holds, or is not the
                one recorded for this role before.
            HookPointError: for a layer that it does not have.
            ValueError: for a cache of rows of one's own, which has no tokens.
        """
        from lrt_lens.moments.cache._recording import record_again

        self._manifest = record_again(
            self.folder,
            self.manifest,
            model,
            hooks,
            role=role,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        self._shards.clear()

    def close(self) -> None:
        """Write what waits and end writing; reading goes on."""
        if self._writer is not None:
            self._writer.close()
            self._manifest, self._writer = self._writer.manifest, None

    def __enter__(self) -> "ActivationCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close(finished=kind is None)
            self._manifest, self._writer = self._writer.manifest, None

    # -------------------------------------------------------------------------------------- reading

    @property
    def manifest(self) -> Manifest:
        """What it holds; rows that wait are written first."""
        if self._writer is not None:
            self._writer.flush()
            self._manifest = self._writer.manifest
        return self._manifest

    @property
    def source_hooks(self) -> tuple[str, ...]:
        """Hook points of the source."""
        return self.manifest.hooks("source")

    @property
    def target_hooks(self) -> tuple[str, ...]:
        """Hook points of the target."""
        return self.manifest.hooks("target")

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Pairs of hook points: those that were harvested, else every source hook point with every
        target hook point.
        """
        return self.pairs_of(self.manifest)

    @staticmethod
    def pairs_of(manifest: Manifest) -> tuple[Pair, ...]:
        """`pairs` of a manifest."""
        if manifest.pairs:
            return manifest.pairs
        sources = manifest.hooks("source")
        sources = tuple(hook for hook in sources if hook != EMBED) or sources
        return tuple((s, t) for s in sources for t in manifest.hooks("target"))

    @property
    def is_finished(self) -> bool:
        """Whether its recording came to its end."""
        return self.manifest.n_blocks is not None

    @property
    def n_bytes(self) -> int:
        """Size on disk, in bytes."""
        return sum(file.n_bytes for record in self.manifest.shards for file in record.files)

    @property
    def shards(self) -> list[Shard]:
        """In the order in which they were written."""
        records = self.manifest.shards
        for record in records:
            if record.stem not in self._shards or self._shards[record.stem].record != record:
                self._shards[record.stem] = Shard(self.folder, record, self._verified)
        return [self._shards[record.stem] for record in records]

    def rows(
        self,
        source_hook: str,
        target_hook: str,
        *,
        parts: Sequence[int] | None = None,
        batch_rows: int = 4096,
        shuffle: int | None = 0,
        epochs: int = 1,
        buffer_rows: int = BUFFER_ROWS,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (x, y) of rows in float32, [row, d_source] and [row, d_target], in a new order every
        epoch.

        Args:
            source_hook: hook point of the source; `HookPointError` where the cache does not hold
                it.
            target_hook: the same of the target.
            parts: which parts of the documents (`lrt_lens.data._blocks`): all without it.
            batch_rows: rows a batch; the last of an epoch has what is left.
            shuffle: seed of the order; None reads in stored order.
            epochs: how often.
            buffer_rows: rows that are mixed with each other: shards, in shuffled order, are put
                together until they hold so many, and rows are permuted within such a group
                (`lrt_lens.moments.cache._reading`). A group is never less than a shard.
        """
        selection = RowSelection() if parts is None else RowSelection(parts=tuple(parts))
        reader = self.reader(source_hook, target_hook, selection, batch_rows, shuffle, buffer_rows)
        return (batch for epoch in range(epochs) for batch in reader.epoch(epoch))

    def reader(
        self,
        source_hook: str,
        target_hook: str,
        selection: RowSelection,
        batch_rows: int,
        seed: int | None,
        buffer_rows: int = BUFFER_ROWS,
    ) -> ShuffledReader:
        """What `rows` reads with."""
        source_hook, target_hook = (
            self.stored_name("source", source_hook),
            self.stored_name("target", target_hook),
        )
        return ShuffledReader(
            self.shards, source_hook, target_hook, selection, batch_rows, seed, buffer_rows
        )

    def stored_name(self, role: str, hook: str) -> str:
        """The name under which the cache holds a place in the stream; `HookPointError` lists what
        there is.
        """
        hooks = self.manifest.hooks(role)
        for name in (hook, *(other for other in hooks if same_place(other, hook))):
            if name in hooks:
                return name
        raise HookPointError(
            f"hook point {hook!r} is not among the {role} streams of the cache {str(self.folder)!r}; it has {list(hooks)}"
        )

    def moments(
        self,
        pairs: Sequence[Pair] | None = None,
        *,
        moment_dtype: str | torch.dtype = "float32",
        null: str = "none",
        progress: bool = False,
    ) -> CrossMoments:
        """Moments of the cached rows: the harvest's, up to the rounding of the rows to the cache's
        precision.

        ``null``: shuffled pairs, ``"full"`` or ``"sketch"``, as in `harvest`; they need tokens.
        """
        manifest = self.manifest
        if null != "none" and not manifest.has_tokens:
            raise ValueError(
                f"null={null!r} needs window positions, and rows of one's own have none; use null='none'"
            )
        chosen = (
            self.pairs
            if pairs is None
            else tuple(
                (self.stored_name("source", s), self.stored_name("target", t)) for s, t in pairs
            )
        )
        if not chosen:
            raise HookPointError(
                f"the cache {str(self.folder)!r} has no pair of streams: source {self.source_hooks}, target {self.target_hooks}"
            )
        token_hook = EMBED if EMBED in self.source_hooks else None
        moments = CrossMoments(
            chosen,
            token_hook,
            torch_dtype(moment_dtype),
            null,
            replace(manifest.provenance, n_documents=0, corpus=""),
        )
        bar = tqdm(
            total=len(self),
            desc="moments",
            unit="tok",
            unit_scale=True,
            disable=not progress,
            leave=False,
        )
        with bar:
            for shard in self.shards:
                x, y = (
                    {hook: shard.stream(role, hook) for hook in hooks}
                    for role, hooks in _sides(moments)
                )
                for block, rows, order in shard.blocks(tokens=null != "none"):
                    pairing = (
                        torch.from_numpy(shuffled_rows(block, order, manifest.provenance.seed))
                        if null != "none"
                        else None
                    )
                    moments.add_block(
                        block.part, _float_rows(x, rows), _float_rows(y, rows), pairing
                    )
                    moments.provenance = moments.provenance.with_documents(
                        block.n_documents, block.digest if manifest.has_tokens else None
                    )
                    bar.update(block.n_rows)
        return moments

    def __getitem__(self, pair: Pair) -> "CachedPair":
        """The rows of one pair of hook points, as the recipes take them."""
        return CachedPair(
            self, self.stored_name("source", pair[0]), self.stored_name("target", pair[1])
        )

    def __len__(self) -> int:
        return self.manifest.n_rows

    def __repr__(self) -> str:
        manifest = self.manifest
        state = "" if self.is_finished else ", unfinished"
        return (
            f"ActivationCache({len(self):,} rows, {len(self.source_hooks)} source and {len(self.target_hooks)} target hook points, "
            f"{manifest.dtype}, {len(manifest.shards)} shards, {human_bytes(self.n_bytes)}{state})"
        )

    def _repr_html_(self) -> str:
        manifest = self.manifest
        found = {
            "folder": str(self.folder),
            "rows": len(self),
            "source hook points": len(self.source_hooks),
            "target hook points": len(self.target_hooks),
            "precision": manifest.dtype,
            "shards": len(manifest.shards),
            "size": human_bytes(self.n_bytes),
            "state": "finished" if self.is_finished else "unfinished",
        }
        return card("ActivationCache", facts(found))


@dataclass(frozen=True)
class CachedPair:
    """The rows of one pair of hook points of a cache."""

    cache: ActivationCache
    source_hook: str
    target_hook: str

    @property
    def widths(self) -> tuple[int, int]:
        """(d_source, d_target)."""
        streams = self.cache.manifest.streams
        return streams[f"source/{self.source_hook}"], streams[f"target/{self.target_hook}"]

    @property
    def fingerprint(self) -> str:
        """Another for other rows."""
        manifest = self.cache.manifest
        blocks = (
            sum(int(shard.table.fingerprint.astype(np.uint64).sum()) for shard in self.cache.shards)
            % 2**64
        )
        models = [
            model.config_hash if (model := getattr(manifest.provenance, role)) else ""
            for role in ROLES
        ]
        return f"{blocks:016x} {manifest.n_rows} {manifest.dtype} {len(manifest.shards)} {' '.join(models)}".strip()

    def count(self, selection: RowSelection) -> int:
        """Rows that are chosen."""
        return sum(
            int(selection.mask(shard.table.row_part, shard.table.row_document).sum())
            for shard in self.cache.shards
        )

    def batches(
        self,
        selection: RowSelection,
        batch_rows: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch; see `ShuffledReader`."""
        return self.cache.reader(
            self.source_hook, self.target_hook, selection, batch_rows, seed
        ).epoch(epoch, skip)


def _sides(moments: CrossMoments) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
    sources, targets = (
        list(dict.fromkeys(pair[side] for pair in moments.kept_pairs)) for side in (0, 1)
    )
    return ("source", sources), ("target", targets)


def _float_rows(streams: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {hook: stream[rows].float() for hook, stream in streams.items()}
