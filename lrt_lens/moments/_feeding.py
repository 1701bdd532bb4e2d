"""Blocks through both models of a harvest, and their rows into moments and cache.

Problem: moments and cache resume each from its own position, so that a block may be needed by one,
by both or by neither. Mechanism: `BlockFeed` asks both sides for the rows of a block only if one of
them needs it. A side is a model that runs here, or states that were computed elsewhere.

    feed = BlockFeed(pair, seed=0, batch_tokens=4096, on_block=None)
    feed.take(moments, block, checkpoint, is_ours=True)

While the rows of one block are added, kept states of the next one are read in a thread.

Limits: the rows of one block are in memory at once, and those of the next one if they are kept.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lrt_lens.data._windows import Block, Window, shuffled_rows
from lrt_lens.errors import MismatchError, NonFiniteError
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


Upcoming = Callable[[], Iterable[Block]]
"""Function that returns blocks of this process behind the current one, as far as they are cut."""


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
        self,
        moments: Accumulator,
        block: Block,
        checkpoint: Checkpoint | None,
        *,
        is_ours: bool,
        upcoming: Upcoming = lambda: (),
    ) -> None:
        """Add a block of this process to moments and cache, if they do not hold it yet."""
        is_wanted, is_uncached = self._lacking(block, checkpoint) if is_ours else (False, False)
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
            self._read_ahead(moments, checkpoint, upcoming)
            if is_uncached and self.cache is not None:
                self.cache.add(block, order, x, y)
            if is_wanted:
                self.add(moments, block, (order, x, y), checkpoint)
        except NonFiniteError as error:
            pair = self.models
            raise NonFiniteError(
                f"{error} (source {pair.source.name!r}, target {pair.target.name!r})"
            ) from None

    def close(self) -> None:
        """End the threads that read ahead."""
        for side, _ in self._kept_sides:
            side.stop_reading()

    @cached_property
    def _kept_sides(self) -> list[tuple[KeptStates, Role]]:
        roles: tuple[tuple[HookedModel | KeptStates, Role], ...] = (
            (self.models.source, "source"),
            (self.models.target, "target"),
        )
        return [(side, role) for side, role in roles if isinstance(side, KeptStates)]

    def _lacking(self, block: Block, checkpoint: Checkpoint | None) -> tuple[bool, bool]:
        """Return whether the moments, and whether the cache, lack a block of this process."""
        # Moments and cache resume independently, each from its own position.
        is_uncached = self.cache is not None and not self.cache.has(block.index, block.fingerprint)
        return not (checkpoint and checkpoint.has(block)), is_uncached

    def _read_ahead(
        self, moments: Accumulator, checkpoint: Checkpoint | None, upcoming: Upcoming
    ) -> None:
        """Let kept states of the next block be read while the rows of this one are added."""
        following = next(iter(upcoming()), None) if self._kept_sides else None
        try:
            if following is None or not any(self._lacking(following, checkpoint)):
                return
        except MismatchError:  # other documents: raised when the block is taken
            return
        order = block_order(following, self.batch_tokens)
        for side, role in self._kept_sides:
            side.read_ahead(self._hooks(moments, role), following, order, role)

    def _skip(self, block: Block) -> None:
        order = block_order(block, self.batch_tokens)
        for side, role in self._kept_sides:
            side.skip(block, order, role)

    @staticmethod
    def _hooks(moments: Accumulator, role: Role) -> list[str]:
        """Return the hook points of one side; the parts of joint layers are named one by one."""
        hooks = hooks_of(moments.kept_pairs, SOURCE if role == "source" else TARGET)
        return [part for hook in hooks for part in joint_parts(hook)]

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
        x, y = (self._streams(moments, block, role) for role in ("source", "target"))
        return block_order(block, self.batch_tokens), x, y

    def _streams(self, moments: Accumulator, block: Block, role: Role) -> dict[str, Tensor]:
        """Return the rows of one model by hook point; joint layers are concatenated."""
        model = self.models.source if role == "source" else self.models.target
        hooks = hooks_of(moments.kept_pairs, SOURCE if role == "source" else TARGET)
        rows = block_rows(model, self._hooks(moments, role), block, self.batch_tokens, role)
        # Layers of one model may be on several devices; a product needs both factors on one.
        device = self.models.source.device
        rows = {hook: values.to(device) for hook, values in rows.items()}
        return {
            hook: rows[hook]
            if hook in rows
            else torch.cat([rows[part] for part in joint_parts(hook)], 1)
            for hook in hooks
        }
