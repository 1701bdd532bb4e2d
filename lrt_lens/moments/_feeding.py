"""Blocks through both models of a harvest, and their rows into moments and cache.

Problem: moments and cache resume each from its own position, so that a block may be needed by one,
by both or by neither. Mechanism: `BlockFeed` asks both sides for the rows of a block only if one of
them needs it. A side is a model that runs here, or states that were computed elsewhere.

    feed = BlockFeed(pair, seed=0, batch_tokens=4096, on_block=None)
    feed.take(moments, block, checkpoint, is_ours=True)

Limits: the rows of one block are in memory at once.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lrt_lens.data._windows import Block, Window, shuffled_rows
from lrt_lens.errors import NonFiniteError
from lrt_lens.models._far_norms import FarNorms
from lrt_lens.models._hook_points import SOURCE, TARGET, hooks_of, joint_parts
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._accumulator import Accumulator
from lrt_lens.moments._block_rows import KeptStates, Role, block_order, block_rows, row_name
from lrt_lens.moments._checkpoint import Checkpoint

Streams = Mapping[str, Tensor]
"""Activations by hook point, each [row, d]."""
OnBlock = Callable[[Block, list[Window], Streams, Streams], None]
"""Callback ``(block, windows in the order of the rows, x, y)``, called before a block is added."""


@runtime_checkable
class BlockCache(Protocol):
    """Cache of the rows of blocks; see `lrt_lens.moments.cache`."""

    def has(self, index: int, fingerprint: int) -> bool:
        """Return whether a block is in the cache."""
        ...

    def add(self, block: Block, order: list[Window], x: Streams, y: Streams) -> None:
        """Add the rows of a block; ``order`` has its windows in the order of the rows."""
        ...


@dataclass(frozen=True)
class Sides:
    """Source and target of a harvest, of which one at least was computed elsewhere."""

    source: HookedModel | KeptStates
    target: HookedModel | KeptStates


@dataclass(frozen=True)
class BlockFeed:
    """Runs blocks through both models and adds their rows to moments and cache."""

    models: ModelPair | Sides
    seed: int
    """Seed of the shuffled pairs."""
    batch_tokens: int
    """Padded tokens per forward pass."""
    on_block: OnBlock | None
    cache: BlockCache | None = None
    far: FarNorms = field(default_factory=FarNorms)
    """Numbers of states far out of the stream, in the blocks of this run."""

    def take(
        self, moments: Accumulator, block: Block, checkpoint: Checkpoint | None, *, is_ours: bool
    ) -> None:
        """Add a block of this process to moments and cache, if they do not hold it yet."""
        is_wanted = not (checkpoint and checkpoint.has(block)) and is_ours
        # Moments and cache resume independently, each from its own position.
        is_uncached = (
            self.cache is not None
            and is_ours
            and not self.cache.has(block.index, block.fingerprint)
        )
        # The first block is always read: its mean is the shift of every share.
        if not is_wanted and not is_uncached and moments.is_begun:
            self._skip(block)
            return
        order, x, y = self.rows(moments, block)
        try:
            if not moments.is_begun:
                moments.start(x, y)
                if checkpoint:
                    checkpoint.share_origin(moments)
            if is_uncached and self.cache is not None:
                self.cache.add(block, order, x, y)
            if is_wanted:
                self.add(moments, block, (order, x, y), checkpoint)
        except NonFiniteError as error:
            pair = self.models
            raise NonFiniteError(
                f"{error} (source {pair.source.name!r}, target {pair.target.name!r})"
            ) from None

    def _skip(self, block: Block) -> None:
        order, models = block_order(block, self.batch_tokens), self.models
        roles: tuple[Role, Role] = ("source", "target")
        for side, role in zip((models.source, models.target), roles, strict=True):
            if isinstance(side, KeptStates):
                side.skip(block, order, role)

    def add(
        self,
        moments: Accumulator,
        block: Block,
        rows: tuple[list[Window], Streams, Streams],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Add the rows of a block, and count the documents that begin in it."""
        order, x, y = rows
        pairing = (
            torch.from_numpy(shuffled_rows(block, order, self.seed))
            if moments.null != "none"
            else None
        )
        if self.on_block is not None:
            # Before the block is recorded as finished, so that the callback sees every finished
            # block at least once; after an interrupt it may see one twice.
            self.on_block(block, order, x, y)
        for role, streams in (("source", x), ("target", y)):
            for hook, states in streams.items():
                self.far.add(f"{role} {hook}", states)
        with checkpoint.adding(block) if checkpoint else nullcontext():
            name = partial(row_name, order, self.models.source.tokenizer)
            moments.add_block(block.part, x, y, pairing, name=name)
            moments.provenance = moments.provenance.with_documents(
                block.n_documents,
                block.digest,
                block.aligned and block.aligned.counts,
                n_capped=block.n_capped,
                part_documents=block.part_documents,
            )
        if checkpoint:
            checkpoint.write_if_due(moments)

    def rows(
        self, moments: Accumulator, block: Block
    ) -> tuple[list[Window], dict[str, Tensor], dict[str, Tensor]]:
        """Return (windows in the order of the rows, x by hook point, y by hook point)."""
        x, y = (self._streams(moments, block, side) for side in (SOURCE, TARGET))
        return block_order(block, self.batch_tokens), x, y

    def _streams(self, moments: Accumulator, block: Block, side: int) -> dict[str, Tensor]:
        """Return the rows of one model by hook point; joint layers are concatenated."""
        model = (self.models.source, self.models.target)[side]
        hooks = hooks_of(moments.kept_pairs, side)
        rows = block_rows(
            model,
            [part for hook in hooks for part in joint_parts(hook)],
            block,
            self.batch_tokens,
            "target" if side == TARGET else "source",
        )
        # Layers of one model may be on several devices; a product needs both factors on one.
        device = self.models.source.device
        rows = {hook: values.to(device) for hook, values in rows.items()}
        return {
            hook: rows[hook]
            if hook in rows
            else torch.cat([rows[part] for part in joint_parts(hook)], 1)
            for hook in hooks
        }
