"""One pass over two models: documents in, `CrossMoments` out.

    moments = harvest(pair, documents, source_layers="all", target_layers="all", n_tokens=200_000)
    moments = harvest(pair, documents, checkpoint="run-7")              # killed and called again, it goes on where it was
    moments = harvest(pair, documents, shard=(3, 8))                    # every eighth block; `merge_shards` adds all eight

Blocks of windows (`lrt_lens.data._blocks`) run through both models; unmasked rows go into the
moments, and are forgotten. Memory does not grow with the number of tokens. Neither model runs past
its deepest wanted hook point, and neither unembeds. Blocks are cut in a thread while the models
compute. What decides the numbers is a `HarvestRun`, settled before anything is read and compared on
resuming.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens.data._ahead import running_ahead
from lrt_lens.data._blocks import Block, Share, iterate_blocks, shuffled_rows
from lrt_lens.data._documents import Documents
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.errors import NonFiniteError
from lrt_lens.models._hook_points import EMBED, Layers, joint_parts
from lrt_lens.models._hooked_model import SKIP_FIRST
from lrt_lens.models._loading import torch_dtype
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._block_rows import block_order, block_rows, provenance_of, window_length
from lrt_lens.moments._checkpoint import Checkpoint
from lrt_lens.moments._cross_moments import CrossMoments, Pair
from lrt_lens.moments._plan import (
    available_memory,
    choose_pairs,
    moment_bytes,
    null_kind,
    refuse_more_than_there_is,
)
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments.cache._manifest import Manifest
from lrt_lens.moments.cache._writer import CacheWriter

Null = bool | Literal["full", "sketch", "none"]
Streams = Mapping[str, Tensor]
"""Activations by hook point, [row, d]."""
OnBlock = Callable[[Block, list[Window], Streams, Streams], None]
"""Called with every block before it goes into the moments: the block, its windows in the order of
the rows, x and y.
"""


def harvest(
    pair: ModelPair,
    documents: Documents,
    *,
    source_layers: Layers = "all",
    target_layers: Layers = "all",
    n_tokens: int | None = 200_000,
    context_length: int = 256,
    seed: int = 0,
    null: Null = True,
    skip_first: int = SKIP_FIRST,
    lag: int = 0,
    batch_tokens: int = 4096,
    block_rows: int = 4096,
    moment_dtype: str | torch.dtype = "float32",
    joint: bool = False,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 120.0,
    on_block: OnBlock | None = None,
    cache: str | Path | None = None,
    cache_dtype: str = "bfloat16",
    progress: bool = True,
) -> CrossMoments:
    """Moments of the chosen layer pairs, and of token identity with every target layer.

    Args:
        pair: both models.
        documents: see `lrt_lens.data._documents`.
        source_layers: hook points of the source; ``"all"`` is every ``hook_resid_post``.
        target_layers: the same of the target; ``"proportional"`` pairs equal relative depths.
        n_tokens: unmasked tokens after which no further document is taken; None takes all.
        context_length: tokens a window, cut to what both models can read.
        seed: decides the folds and the shuffled pairs.
        null: shuffled pairs: True keeps them whole for small grids and sketched for large ones;
            ``"full"``, ``"sketch"``, ``"none"``.
        skip_first: masked positions at the start of each window.
        lag: pairs each position of the source with the target's so many rows later: a control,
            which shows what is lost when positions do not belong together.
        batch_tokens: padded tokens a forward pass.
        block_rows: unmasked tokens a block, the unit of products, shuffled pairs, checkpoints and
            of what ranks and shards share.
        moment_dtype: precision of products, ``"float32"`` or ``"float64"``; sums are always
            float64.
        joint: all source layers side by side as one hook point, for `ManyToOne`.
        shard: (i, N), i from 0: only every Nth block, for separate jobs whose moments
            `merge_shards` adds.
        checkpoint: folder for checkpoints. Where it holds any of a run with the same arguments and
            documents, that run goes on; what is there stays until `remove_checkpoints`.
        checkpoint_every: seconds between two checkpoints; more where writing one would take over 5%
            of the time.
        on_block: called with every block of this process.
        cache: folder for an `ActivationCache` of the same rows; where it holds some of them from an
            earlier run, that is gone on with.
        cache_dtype: precision of the rows in it.
        progress: show a bar.

    Raises:
        HookPointError: for a layer that a model does not have.
        TooFewDocumentsError: where a fold stays empty.
        MismatchError: where the models' tokenizers differ and nothing in the documents aligns, or
            they are chats.
        NonFiniteError: for NaN or infinite activations, naming hook and batch.
        MismatchError: for a checkpoint of another run.
        ValueError: where the moments need more memory than is free.
    """
    run = settle(
        pair,
        source_layers=source_layers,
        target_layers=target_layers,
        n_tokens=n_tokens,
        context_length=context_length,
        seed=seed,
        null=null,
        skip_first=skip_first,
        lag=lag,
        block_rows=block_rows,
        moment_dtype=moment_dtype,
        joint=joint,
        shard=shard,
    )
    share = Share(shard=shard or (0, 1))
    writing = (
        nullcontext() if cache is None else CacheWriter(cache, run.cache_manifest(cache_dtype))
    )
    saving = (
        nullcontext()
        if checkpoint is None
        else Checkpoint(Path(checkpoint), run.arguments, share, every=checkpoint_every)
    )
    with writing as writer, saving as opened:
        options: dict[str, Any] = {
            "batch_tokens": batch_tokens,
            "on_block": on_block,
            "cache": writer,
            "progress": progress,
        }
        return run.harvest(documents, share, checkpoint=opened, **options)[0]


def settle(
    pair: ModelPair,
    *,
    source_layers: Layers = "all",
    target_layers: Layers = "all",
    n_tokens: int | None = 200_000,
    context_length: int = 256,
    seed: int = 0,
    null: Null = True,
    skip_first: int = SKIP_FIRST,
    lag: int = 0,
    block_rows: int = 4096,
    moment_dtype: str | torch.dtype = "float32",
    joint: bool = False,
    shard: tuple[int, int] | None = None,
) -> "HarvestRun":
    """What `harvest` would do with these arguments, checked; nothing is read."""
    if n_tokens is not None and n_tokens <= 0:
        raise ValueError(
            f"n_tokens is {n_tokens}; expected a positive number, or None for all documents"
        )
    if lag < 0:
        raise ValueError(f"lag is {lag}; expected 0, or the rows by which the target is read later")
    pairs = choose_pairs(source_layers, target_layers, pair.source, pair.target, joint=joint)
    length = window_length(context_length, pair.source, pair.target)
    plan = BlockPlan(
        context_length=length,
        skip_first=skip_first,
        n_tokens=n_tokens,
        block_rows=block_rows,
        seed=seed,
        lag=lag,
    )
    return HarvestRun(
        models=pair,
        pairs=pairs,
        plan=plan,
        null=null_kind(null, pairs, pair.source.d_model, pair.target.d_model),
        moment_dtype=torch_dtype(moment_dtype),
        shard=shard,
    )


@dataclass(frozen=True)
class HarvestRun:
    """Everything that decides the numbers of a harvest, but the documents."""

    models: ModelPair
    pairs: tuple[Pair, ...]
    plan: BlockPlan
    null: str
    moment_dtype: torch.dtype
    shard: tuple[int, int] | None = None

    @property
    def token_hook(self) -> str | None:
        """The source's embedding, where it has that hook point."""
        return EMBED if EMBED in self.models.source.hook_points else None

    @property
    def provenance(self) -> Provenance:
        """Of no document yet."""
        return provenance_of(
            self.plan,
            {"source": self.models.source, "target": self.models.target},
            shard=self.shard,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """As JSON values: what a resumed run, and every rank, must have in common."""
        found = asdict(self.provenance)
        for name in ("versions", "n_documents", "corpus", "stream", "aligned"):
            del found[name]
        moment_dtype = str(self.moment_dtype).removeprefix("torch.")
        return found | {
            "pairs": self.pairs,
            "token_hook": self.token_hook,
            "null": self.null,
            "moment_dtype": moment_dtype,
            "block_rows": self.plan.block_rows,
        }

    def cache_manifest(self, dtype: str) -> Manifest:
        """Of an activation cache of this harvest, still empty."""
        return Manifest(
            self.provenance,
            dtype,
            streams={},
            pairs=self.pairs,
            token_hook=self.token_hook,
            block_rows=self.plan.block_rows,
        )

    def with_pairs(self, pairs: tuple[Pair, ...]) -> "HarvestRun":
        """The same for some of the pairs: one of several passes under a memory budget."""
        return replace(self, pairs=pairs)

    def begin(self) -> CrossMoments:
        """Empty moments; ValueError where they would not fit into memory."""
        source, target = self.models.source, self.models.target
        needed = sum(
            moment_bytes(
                self.pairs, self.token_hook, self.null, source.d_model, target.d_model
            ).values()
        )
        refuse_more_than_there_is(needed, available_memory(source.device), source.device)
        return CrossMoments(
            self.pairs, self.token_hook, self.moment_dtype, self.null, self.provenance
        )

    def harvest(
        self,
        documents: Documents,
        share: Share,
        *,
        checkpoint: Checkpoint | None = None,
        batch_tokens: int = 4096,
        on_block: OnBlock | None = None,
        cache: CacheWriter | None = None,
        progress: bool = True,
    ) -> tuple[CrossMoments, int]:
        """(moments of the blocks that fall to ``share``, number of blocks in the whole stream)."""
        moments, feed = self.begin(), _Feed(self, batch_tokens, on_block, cache)
        if checkpoint is not None:
            checkpoint.resume(moments, self.models.source.device)
        stream, n_blocks = hashlib.blake2b(digest_size=8), 0
        bar = tqdm(
            total=self.plan.n_tokens,
            desc="harvest",
            unit="tok",
            unit_scale=True,
            disable=not progress,
            leave=False,
        )
        blocks = running_ahead(
            iterate_blocks(documents, self.models.source, self.plan, target=self.models.target)
        )
        with bar, blocks as arriving, _saved(checkpoint, moments):
            for block in arriving:
                stream.update(block.fingerprint.to_bytes(8, "big"))
                n_blocks += 1
                feed.take(moments, block, share, checkpoint)
                # Ranks go through the stream together: the whole stream is what is done.
                bar.update(min(block.n_rows, bar.total - bar.n) if bar.total else block.n_rows)
            if checkpoint is not None:
                checkpoint.refuse_shorter_stream(n_blocks)
                checkpoint.write(moments)
        if self.shard is not None:
            moments.provenance = replace(moments.provenance, stream=stream.hexdigest())
        return moments, n_blocks


@dataclass(frozen=True)
class _Feed:
    """Runs blocks through both models, into moments."""

    run: HarvestRun
    batch_tokens: int
    on_block: OnBlock | None
    cache: CacheWriter | None = None

    def take(
        self, moments: CrossMoments, block: Block, share: Share, checkpoint: Checkpoint | None
    ) -> None:
        """Add a block that falls to this share and is in nobody's moments yet. All shares begin
        with the mean of the first block.
        """
        is_wanted = not (checkpoint and checkpoint.has(block)) and share.takes(block.index)
        # What is in the moments may not be in the cache, and the other way round: each goes on
        # where it was.
        is_uncached = (
            self.cache is not None
            and share.takes(block.index)
            and not self.cache.has(block.index, block.fingerprint)
        )
        if not is_wanted and not is_uncached and moments.source:
            return
        order, x, y = self.rows(moments, block)
        try:
            if not moments.source:
                moments.start(x, y)
                if checkpoint:
                    checkpoint.share_shift(moments)
            if is_uncached and self.cache is not None:
                self.cache.add(block, order, x, y)
            if is_wanted:
                self.add(moments, block, (order, x, y), checkpoint)
        except NonFiniteError as error:
            pair = self.run.models
            raise NonFiniteError(
                f"{error} (source {pair.source.name!r}, target {pair.target.name!r})"
            ) from None

    def add(
        self,
        moments: CrossMoments,
        block: Block,
        rows: tuple[list[Window], Streams, Streams],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Rows, and the documents that begin here."""
        order, x, y = rows
        pairing = (
            torch.from_numpy(shuffled_rows(block, order, self.run.plan.seed))
            if moments.null != "none"
            else None
        )
        if self.on_block is not None:
            # First: a block that is noted as finished must have been seen here (one that is
            # interrupted may be seen again).
            self.on_block(block, order, x, y)
        with checkpoint.adding(block) if checkpoint else nullcontext():
            moments.add_block(block.part, x, y, pairing)
            moments.provenance = moments.provenance.with_documents(
                block.n_documents, block.digest, block.aligned and block.aligned.counts
            )
        if checkpoint:
            checkpoint.write_if_due(moments)

    def rows(
        self, moments: CrossMoments, block: Block
    ) -> tuple[list[Window], dict[str, Tensor], dict[str, Tensor]]:
        """(windows in the order of the rows, x, y by hook point)."""
        x, y = (self._streams(moments, block, side) for side in (0, 1))
        return block_order(block, self.batch_tokens), x, y

    def _streams(self, moments: CrossMoments, block: Block, side: int) -> dict[str, Tensor]:
        """Rows of one model by hook point, layers that count as one side by side."""
        model = (self.run.models.source, self.run.models.target)[side]
        hooks = list(dict.fromkeys(pair[side] for pair in moments.kept_pairs))
        role = "target" if side else "source"
        rows = block_rows(
            model,
            [part for hook in hooks for part in joint_parts(hook)],
            block,
            self.batch_tokens,
            role,
        )
        # Layers of one model may sit on several devices; products need one.
        device = moments.n.device if moments.source else self.run.models.source.device
        rows = {hook: values.to(device) for hook, values in rows.items()}
        return {
            hook: rows[hook]
            if hook in rows
            else torch.cat([rows[part] for part in joint_parts(hook)], 1)
            for hook in hooks
        }


def _saved(checkpoint: Checkpoint | None, moments: CrossMoments) -> AbstractContextManager[None]:
    return checkpoint.saving(moments) if checkpoint else nullcontext()
