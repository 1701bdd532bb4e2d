"""Recording of one model at a time on the same tokens.

Problem: two models may not fit into memory together. Mechanism: the first model reads documents and
writes tokens and activations (`record_documents`); the other one reads the stored tokens later and
adds its activations to each shard (`record_again`).

Limits: both models must read the same tokens; two tokenizers need one harvest of both models.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lrt_lens._progress import tqdm
from lrt_lens._settings import Settings
from lrt_lens.data._blocks import iterate_blocks, running_ahead
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.data._windows import BlockPlan, refuse_short_windows
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models._hook_points import Layers, resolve_layers
from lrt_lens.models._hooked_model import HookedModel, ModelIdentity
from lrt_lens.moments._block_rows import (
    block_order,
    block_rows,
    model_fields,
    provenance_of,
    window_length,
)
from lrt_lens.moments._harvest_settings import checked_cap, checked_n_tokens
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._rank_lock import RankLock
from lrt_lens.moments.cache._manifest import (
    DTYPES,
    MANIFEST_NAME,
    ROLES,
    Manifest,
    ShardFile,
    ShardRecord,
    read_manifest,
    write_manifest,
)
from lrt_lens.moments.cache._shard import Shard, write_shard
from lrt_lens.moments.cache._writer import (
    SHARD_BYTES,
    CacheWriter,
    refuse_other_dtype,
    refuse_unstorable,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordSettings(Settings):
    """Settings of a recording of one model.

    Raises:
        ValueError: a value is out of its range.
    """

    n_tokens: int | None = 200_000
    """Unmasked tokens after which no further document is read; None reads all documents."""
    max_document_tokens: int | Literal["auto"] | None = "auto"
    """Largest number of unmasked tokens per document, as in `HarvestSettings`."""
    text_field: str | None = None
    """Column of the texts in files and tables, as in `HarvestSettings`."""
    group: Any = None
    """Documents that share a fold, as in `HarvestSettings`."""
    context_length: int = 256
    """Tokens per window, BOS included; cut to the length that the model can read."""
    dtype: str = "bfloat16"
    """Precision of the stored activations: ``"bfloat16"``, ``"float16"`` or ``"float32"``."""
    seed: int = 0
    """Seed of the parts."""
    batch_tokens: int = 4096
    """Padded tokens per forward pass."""
    shard_bytes: int = SHARD_BYTES
    """Size of a shard, in bytes; a shard holds at least one block."""

    def __post_init__(self) -> None:
        refuse_other_dtype(self.dtype)
        object.__setattr__(self, "n_tokens", checked_n_tokens(self.n_tokens))
        refuse_short_windows(self.context_length)
        cap = checked_cap(self.max_document_tokens)
        object.__setattr__(self, "max_document_tokens", cap)


def record_documents(
    folder: Path,
    model: HookedModel,
    documents: Documents,
    *,
    hooks: Layers,
    role: str,
    settings: RecordSettings,
    progress: bool,
) -> None:
    """Write a cache of one model; see `ActivationCache.from_model`."""
    refuse_other_role(role)
    names = resolve_layers(hooks, model)
    source = DocumentSource.of(documents, settings.text_field, settings.group)
    plan = BlockPlan(
        context_length=window_length(settings.context_length, model),
        n_tokens=settings.n_tokens,
        max_document_tokens=settings.max_document_tokens,
        seed=settings.seed,
    )
    manifest = Manifest(
        _provenance(folder, model, role, plan, group=source.group),
        settings.dtype,
        streams={},
        block_rows=plan.block_rows,
    )
    bar = tqdm(
        total=settings.n_tokens,
        desc=f"record {role}",
        unit="tok",
        unit_scale=True,
        disable=not progress,
        leave=False,
    )
    with (
        CacheWriter(folder, manifest, shard_bytes=settings.shard_bytes) as writer,
        bar,
        running_ahead(iterate_blocks(source, model, plan)) as blocks,
    ):
        for block in blocks:
            # A call that resumes skips the blocks of complete shards.
            if not writer.has(block.index, block.fingerprint):
                rows = block_rows(model, names, block, settings.batch_tokens)
                writer.add(
                    block,
                    block_order(block, settings.batch_tokens),
                    *((rows, {}) if role == "source" else ({}, rows)),
                )
            bar.update(block.n_rows)


def record_again(
    folder: Path,
    manifest: Manifest,
    model: HookedModel,
    hooks: Layers,
    *,
    role: str,
    batch_tokens: int,
    progress: bool,
) -> Manifest:
    """Add the activations of a model to each shard and return the new manifest.

    A call that resumes continues with the shards that lack the hook points. See
    `ActivationCache.record`.
    """
    refuse_other_role(role)
    names = resolve_layers(hooks, model)
    manifest = _with_model(manifest, model, role, folder)
    present = [name for name in names if f"{role}/{name}" in manifest.first_streams]
    if present:
        raise ValueError(
            f"{present} of the {role} are in the cache {str(folder)!r} already; "
            "record other hook points"
        )
    manifest = replace(
        manifest, streams=manifest.streams | {f"{role}/{name}": model.d_model for name in names}
    )
    # The lock of a writer: no other process may write this cache at the same time.
    lock = RankLock(folder, 0)
    lock.acquire(1)
    bar = tqdm(
        total=manifest.n_rows,
        desc=f"record {role}",
        unit="tok",
        unit_scale=True,
        disable=not progress,
        leave=False,
    )
    try:
        with bar:
            for k, record in enumerate(manifest.shards):
                missing = [name for name in names if f"{role}/{name}" not in record.streams]
                if missing:
                    extended = _record_shard(
                        folder, record, manifest, model, missing, role, batch_tokens
                    )
                    manifest = manifest.with_shard(k, extended)
                    # After each shard, so that an interrupted call loses one shard at most.
                    write_manifest(folder, manifest)
                bar.update(record.n_rows)
    finally:
        lock.release()
    return manifest


def refuse_other_role(role: str) -> None:
    """Raise ValueError unless ``role`` is ``"source"`` or ``"target"``."""
    if role not in ROLES:
        raise ValueError(f"role is {role!r}; expected 'source' or 'target'")


def _record_shard(
    folder: Path,
    record: ShardRecord,
    manifest: Manifest,
    model: HookedModel,
    hooks: Sequence[str],
    role: str,
    batch_tokens: int,
) -> ShardRecord:
    """Run the model on the tokens of a shard and write one more file for it."""
    dtype, shard = manifest.dtype, Shard(folder, record, manifest)
    # Activations of tokens that were changed would be recorded as those of the others.
    shard.verify()
    # The table is read first: it has as many rows as the manifest says.
    n_rows = len(shard.table.row_part)
    streams = {
        f"{role}/{name}": torch.empty(n_rows, model.d_model, dtype=DTYPES[dtype]) for name in hooks
    }
    for block, rows, order in shard.blocks(tokens=True):
        rows_by_hook = block_rows(model, hooks, block, batch_tokens)
        # The new rows must be in the stored order, or x and y of different tokens are paired.
        if [w.ids for w in block_order(block, batch_tokens)] != [w.ids for w in order]:
            raise FileFormatError(
                f"block {block.index} of {record.stem!r} is not in the order in which windows "
                "run through a model; record the cache again in another folder"
            )
        for name, values in rows_by_hook.items():
            refuse_unstorable(f"{role}/{name}", values, dtype)
            streams[f"{role}/{name}"][rows].copy_(values)
    name = f"{record.stem}.{len(record.files)}.safetensors"
    return replace(
        record,
        files=(*record.files, ShardFile(name, write_shard(folder / name, streams), tuple(streams))),
    )


def _with_model(manifest: Manifest, model: HookedModel, role: str, folder: Path) -> Manifest:
    """Return the manifest with this model in it, after checking that it reads the same tokens."""
    if not manifest.has_tokens:
        raise ValueError(
            f"the cache {str(folder)!r} holds rows that were added without tokens; "
            "a model can be recorded on tokens only"
        )
    provenance = manifest.provenance
    recorded = getattr(provenance, role)
    if recorded is not None:
        recorded.refuse_other(model.identity, f"the {role} model for the cache {str(folder)!r}")
    # If two tokenizers were aligned, the cache holds the tokens of the source.
    reader = provenance.source or provenance.target
    if reader is not None:
        _refuse_other_tokens(reader, model, folder)
    if provenance.context_length is not None and model.context_length < provenance.context_length:
        raise MismatchError(
            f"{model.name!r} reads {model.context_length} tokens at once and the cache "
            f"{str(folder)!r} has windows of {provenance.context_length}; "
            f"record the cache with context_length={model.context_length}"
        )
    return replace(manifest, provenance=replace(provenance, **model_fields(model, role)))


def _refuse_other_tokens(reader: ModelIdentity, model: HookedModel, folder: Path) -> None:
    """Raise MismatchError unless ``model`` reads texts as the same tokens as ``reader``."""
    for field in ("tokenizer_hash", "prepend_bos", "prefix"):
        theirs, ours = getattr(model.identity, field), getattr(reader, field)
        # Files from before this field do not tell the prefix.
        if theirs != ours and not (field == "prefix" and None in (theirs, ours)):
            raise MismatchError(
                f"{model.name!r} has {field} {theirs!r}; the tokens of the cache {str(folder)!r} "
                f"are those of {reader.name!r} with {ours!r}: harvest both models at once "
                "(harvest(pair, documents, cache=folder) aligns two tokenizers), or record a "
                "model that reads these tokens"
            )


def _provenance(
    folder: Path, model: HookedModel, role: str, plan: BlockPlan, *, group: Any
) -> Provenance:
    provenance = provenance_of(plan, {role: model}, group=group)
    if (folder / MANIFEST_NAME).is_file():
        # The other model may have been recorded before this call resumed; keep its fields.
        stored, other = read_manifest(folder).provenance, "target" if role == "source" else "source"
        fields = {name: getattr(stored, name) for name in (other, f"{other}_dtype")}
        provenance = replace(provenance, **fields)
    return provenance
