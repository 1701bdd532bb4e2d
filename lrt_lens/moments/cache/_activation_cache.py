"""Activations of two models on the same tokens, on disk.

Problem: maps that are not linear, and scores per token, cannot be computed from second moments.
Mechanism: a folder holds the tokens once and one tensor per hook point, in safetensors shards, with
a ``manifest.json``. Activations are bfloat16 unless another precision is requested.

    harvest(pair, documents, cache="cache")              # writes moments and cache in one pass
    cache = ActivationCache.open("cache", pair=pair)     # refuses the cache of other models
    for x, y in cache.rows("blocks.3.hook_resid_post", "blocks.5.hook_resid_post", shuffle=0):
        ...
    cache.moments().fit()            # equal to the harvest up to the rounding of the rows

Activations from another library are added with `create` and `add`. Two models that do not fit into
memory together are recorded one after the other on the same tokens:

    cache = ActivationCache.from_model("cache", small, documents, hooks=[3])
    cache.record(large, [5], role="target")

A call that was interrupted continues after the last complete shard when it is repeated; see
`lrt_lens.moments.cache._writer`.

Limits: one process at a time writes a cache; bfloat16 has three significant digits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, facts
from lrt_lens._settings import resolve, takes
from lrt_lens.data._documents import Documents
from lrt_lens.data._windows import shuffled_rows
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.models._belonging import identity_of
from lrt_lens.models._hook_points import (
    EMBED,
    SOURCE,
    TARGET,
    HookPair,
    Layers,
    hooks_of,
    same_place,
)
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import torch_dtype
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments.cache._manifest import ROLES, Manifest, broken_file, read_manifest
from lrt_lens.moments.cache._own_rows import add_own_rows, begin_own_rows
from lrt_lens.moments.cache._reading import BUFFER_ROWS, ShuffledReader
from lrt_lens.moments.cache._recording import RecordSettings, record_again, record_documents
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.moments.cache._shard import Shard, cut_short
from lrt_lens.moments.cache._writer import SHARD_BYTES, CacheWriter


class ActivationCache:
    """Activations on disk; made by `open`, `create` or `from_model`, or by `harvest`."""

    def __init__(self, folder: Path, manifest: Manifest, writer: CacheWriter | None = None) -> None:
        self.folder, self._manifest, self._writer = folder, manifest, writer
        # (file, tensor) names whose bytes were compared; shared by all shards, also by those that
        # are opened again.
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
        """Return a cache that is open for reading.

        Args:
            folder: folder of the cache.
            pair: both models, compared with those that were recorded; or one of the following.
            source: source model alone.
            target: target model alone.

        Raises:
            FileFormatError: the folder is not a cache, or a shard is missing or truncated.
            MismatchError: a model, its tokenizer, BOS policy or basis is not the recorded one.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        # This compares sizes only; the bytes of a tensor are compared when it is first read.
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
        """Return a cache to which `add` writes activations from any library.

        If the folder already holds a cache, the same rows must be added again from the beginning;
        those that it holds are skipped.

        Args:
            folder: folder of the cache.
            source_hook: name of the source hook point.
            target_hook: name of the target hook point.
            dtype: precision of the stored activations.
            seed: seed of the parts, as for `CrossMoments.from_activations`.
            shard_bytes: size of a shard, in bytes.
        """
        writer = begin_own_rows(Path(folder), dtype, seed, (source_hook, target_hook), shard_bytes)
        return cls(Path(folder), writer.manifest, writer)

    @classmethod
    @takes(RecordSettings)
    def from_model(
        cls,
        folder: str | Path,
        model: HookedModel,
        documents: Documents,
        *,
        hooks: Layers = "all",
        role: str = "source",
        settings: RecordSettings | None = None,
        progress: bool = True,
        **options: Any,
    ) -> "ActivationCache":
        """Return a cache of the activations of one model; `record` adds those of the other.

        Args:
            folder: folder of the cache.
            model: model that reads the documents.
            documents: texts, chats, a file or a dataset, as for `harvest`.
            hooks: hook points of the model.
            role: ``"source"`` or ``"target"``.
            settings: a `RecordSettings`, whose fields are described there.
            progress: show a progress bar.
            **options: fields of `RecordSettings` as keywords; they replace those of ``settings``.
        """
        record_documents(
            Path(folder),
            model,
            documents,
            hooks=hooks,
            role=role,
            settings=resolve(RecordSettings, settings, options),
            progress=progress,
        )
        return cls.open(folder)

    def check(self, source: HookedModel | None = None, target: HookedModel | None = None) -> None:
        """Raise `MismatchError` if a model differs from the one that was recorded."""
        for role, model in zip(ROLES, (source, target), strict=True):
            recorded = getattr(self.manifest.provenance, role)
            identity = identity_of(role, model)
            if identity is None:
                continue
            if recorded is None:
                raise MismatchError(
                    f"the cache {str(self.folder)!r} holds no {role} model; "
                    f"record({identity.name!r}, …, role={role!r}) adds one"
                )
            recorded.refuse_other(identity, f"the {role} model for the cache {str(self.folder)!r}")

    # -------------------------------------------------------------------------------------- writing

    def add(self, x: Tensor, y: Tensor, *, documents: Sequence[Any] | Tensor | np.ndarray) -> None:
        """Add activations from any library, row by row paired.

        The rows of a document may come in several calls. Rows are buffered until they fill a shard;
        `close`, the end of a ``with`` block and reading write them too.

        Args:
            x: [token, d_source].
            y: [token, d_target].
            documents: an id of the document of each row.

        Raises:
            ValueError: the cache is open for reading, or the arguments differ in length.
            NonFiniteError: an activation is NaN, infinite or too large for the stored precision.
        """
        if self._writer is None:
            raise ValueError(
                f"the cache {str(self.folder)!r} is open for reading; "
                "ActivationCache.create(folder, …) opens one for adding rows"
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
        """Run a model on the cached tokens and add its activations at ``hooks``.

        Raises:
            MismatchError: the model reads other tokens than the cache holds, or differs from the
                one that was recorded for this role.
            HookPointError: the model does not have a requested layer.
            ValueError: the cache holds no tokens, because its rows were added with `add`.
        """
        self._manifest = record_again(
            self.folder,
            self.manifest,
            model,
            hooks,
            role=role,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        # Open shards do not know the new files.
        self._shards.clear()

    def close(self) -> None:
        """Write buffered rows and end writing; the cache can still be read."""
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
        """Contents of the cache; buffered rows are written first."""
        if self._writer is not None:
            self._writer.flush()
            self._manifest = self._writer.manifest
        return self._manifest

    @property
    def source_hooks(self) -> tuple[str, ...]:
        """Source hook points that every shard holds."""
        return self.manifest.hooks("source")

    @property
    def target_hooks(self) -> tuple[str, ...]:
        """Target hook points that every shard holds."""
        return self.manifest.hooks("target")

    @property
    def pairs(self) -> tuple[HookPair, ...]:
        """Hook pairs that were harvested; if none, each source with each target hook point."""
        return self.pairs_of(self.manifest)

    @staticmethod
    def pairs_of(manifest: Manifest) -> tuple[HookPair, ...]:
        """Return the hook pairs of a manifest; see `pairs`."""
        if manifest.pairs:
            return manifest.pairs
        sources = manifest.hooks("source")
        # The embedding stands for token identity; alone, it is an ordinary source hook point.
        sources = tuple(hook for hook in sources if hook != EMBED) or sources
        return tuple((s, t) for s in sources for t in manifest.hooks("target"))

    @property
    def is_finished(self) -> bool:
        """True if all documents were recorded."""
        return self.manifest.n_blocks is not None

    @property
    def n_bytes(self) -> int:
        """Size on disk, in bytes."""
        return sum(file.n_bytes for record in self.manifest.shards for file in record.files)

    @property
    def shards(self) -> list[Shard]:
        """Shards in the order in which they were written."""
        records = self.manifest.shards
        for record in records:
            # A later recording adds files to a shard, which must then be opened again.
            if record.stem not in self._shards or self._shards[record.stem].record != record:
                self._shards[record.stem] = Shard(
                    self.folder, record, self.manifest, self._verified
                )
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
        """Yield batches (x, y) in float32, [row, d_source] and [row, d_target].

        Args:
            source_hook: source hook point.
            target_hook: target hook point.
            parts: parts of the documents (`lrt_lens.data._documents`); None reads all.
            batch_rows: rows per batch; the last batch of an epoch may be smaller.
            shuffle: seed of the order, which differs between epochs; None reads in stored order.
            epochs: number of passes through the rows.
            buffer_rows: rows that are mixed with each other. Shards are grouped in random order
                until a group holds this many rows, and rows are permuted within each group; a
                group is never smaller than a shard. See `lrt_lens.moments.cache._reading`.

        Raises:
            HookPointError: the cache does not hold a hook point.
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
        """Return the reader that `rows` uses, for some rows of one hook pair."""
        source_hook = self.stored_name("source", source_hook)
        target_hook = self.stored_name("target", target_hook)
        return ShuffledReader(
            self.shards, source_hook, target_hook, selection, batch_rows, seed, buffer_rows
        )

    def stored_name(self, role: str, hook: str) -> str:
        """Return the name under which the cache holds a hook point.

        The output of a layer and the input of the next are one point in the stream.

        Raises:
            HookPointError: the cache does not hold it; the message lists what it holds.
        """
        hooks = self.manifest.hooks(role)
        for name in (hook, *(other for other in hooks if same_place(other, hook))):
            if name in hooks:
                return name
        raise HookPointError(
            f"hook point {hook!r} is not among the {role} streams of the cache "
            f"{str(self.folder)!r}; use one of {list(hooks)}, or record that hook point"
        )

    def moments(
        self,
        pairs: Sequence[HookPair] | None = None,
        *,
        moment_dtype: str | torch.dtype = "float32",
        null: str = "none",
        progress: bool = False,
    ) -> CrossMoments:
        """Return the moments of the cached rows: those of the harvest up to the rounding of rows.

        Args:
            pairs: hook pairs; `pairs` of the cache if None.
            moment_dtype: precision of products.
            null: shuffled pairs, ``"full"``, ``"sketch"`` or ``"none"``.
            progress: show a progress bar.

        Raises:
            ValueError: a null is requested and the cache holds no tokens.
            HookPointError: the cache does not hold a hook point.
        """
        moments = self._empty_moments(pairs, torch_dtype(moment_dtype), null)
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
                for n_rows in _add_shard(moments, shard, has_tokens=self.manifest.has_tokens):
                    bar.update(n_rows)
        moments.warn_of_heavy_rows()
        return moments

    def _empty_moments(
        self, pairs: Sequence[HookPair] | None, moment_dtype: torch.dtype, null: str
    ) -> CrossMoments:
        manifest = self.manifest
        if null != "none" and not manifest.has_tokens:
            raise ValueError(
                f"null={null!r} needs window positions, and rows that were added with add() have "
                "none; use null='none'"
            )
        stored = (
            self.pairs
            if pairs is None
            else tuple(
                (self.stored_name("source", s), self.stored_name("target", t)) for s, t in pairs
            )
        )
        if not stored:
            raise HookPointError(
                f"the cache {str(self.folder)!r} has no pair of streams: "
                f"source {self.source_hooks}, target {self.target_hooks}; "
                "record hook points of both models"
            )
        # As in a harvest: the source's embedding stands for token identity.
        token_hook = EMBED if EMBED in self.source_hooks else None
        # Documents are counted again while the blocks are added.
        provenance = replace(
            manifest.provenance, n_documents=0, corpus="", n_capped=0, part_documents=None
        )
        return CrossMoments(stored, token_hook, moment_dtype, null, provenance)

    def __getitem__(self, hook_pair: HookPair) -> "CachedPair":
        """Return the rows of one hook pair, as the training recipes take them."""
        return CachedPair(
            self, self.stored_name("source", hook_pair[0]), self.stored_name("target", hook_pair[1])
        )

    def __len__(self) -> int:
        return self.manifest.n_rows

    def __repr__(self) -> str:
        manifest = self.manifest
        state = "" if self.is_finished else ", unfinished"
        return (
            f"ActivationCache({len(self):,} rows, {len(self.source_hooks)} source and "
            f"{len(self.target_hooks)} target hook points, {manifest.dtype}, "
            f"{len(manifest.shards)} shards, {human_bytes(self.n_bytes)}{state})"
        )

    def _repr_html_(self) -> str:
        manifest = self.manifest
        contents = {
            "folder": str(self.folder),
            "rows": len(self),
            "source hook points": len(self.source_hooks),
            "target hook points": len(self.target_hooks),
            "precision": manifest.dtype,
            "shards": len(manifest.shards),
            "size": human_bytes(self.n_bytes),
            "state": "finished" if self.is_finished else "unfinished",
        }
        return card("ActivationCache", facts(contents))


@dataclass(frozen=True)
class CachedPair:
    """Rows of one hook pair of a cache."""

    cache: ActivationCache
    source_hook: str
    target_hook: str

    @property
    def widths(self) -> tuple[int, int]:
        """Widths (d_source, d_target)."""
        streams = self.cache.manifest.streams
        return streams[f"source/{self.source_hook}"], streams[f"target/{self.target_hook}"]

    @property
    def fingerprint(self) -> str:
        """Hash of the blocks, the precision and the models; changes whenever the rows change."""
        # A sum of the blocks' fingerprints, because the order of the shards does not matter.
        manifest = self.cache.manifest
        blocks = (
            sum(int(shard.table.fingerprint.astype(np.uint64).sum()) for shard in self.cache.shards)
            % 2**64
        )
        models = [
            model.config_hash if (model := getattr(manifest.provenance, role)) else ""
            for role in ROLES
        ]
        content = f"{blocks:016x} {manifest.n_rows} {manifest.dtype} {len(manifest.shards)}"
        return f"{content} {' '.join(models)}".strip()

    def count(self, selection: RowSelection) -> int:
        """Return the number of selected rows."""
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
        """Yield the batches (x, y) of one epoch; see `ShuffledReader.epoch`."""
        return self.cache.reader(
            self.source_hook, self.target_hook, selection, batch_rows, seed
        ).epoch(epoch, skip)


def _add_shard(moments: CrossMoments, shard: Shard, *, has_tokens: bool) -> Iterator[int]:
    """Add the blocks of a shard to the moments, and yield the number of rows of each."""
    # The streams of all requested hook points are opened once; slices of them read from the file.
    has_null = moments.null != "none"
    x, y = (
        {hook: shard.stream(role, hook) for hook in hooks_of(moments.kept_pairs, side)}
        for role, side in (("source", SOURCE), ("target", TARGET))
    )
    for block, rows, order in shard.blocks(tokens=has_null):
        pairing = (
            torch.from_numpy(shuffled_rows(block, order, moments.provenance.seed))
            if has_null
            else None
        )
        name = lambda row, index=block.index: f"row {row} of block {index}"  # noqa: E731
        shard.refuse_changed()
        moments.add_block(
            block.part, _float_rows(x, rows), _float_rows(y, rows), pairing, name=name
        )
        # Rows that were added without tokens have no text, so there is no hash of a corpus.
        moments.provenance = moments.provenance.with_documents(
            block.n_documents,
            block.digest if has_tokens else None,
            n_capped=block.n_capped,
            part_documents=block.part_documents if has_tokens else None,
        )
        yield block.n_rows


def _float_rows(streams: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Return a slice of each memory-mapped stream, in float32."""
    return {hook: stream[rows].float() for hook, stream in streams.items()}
