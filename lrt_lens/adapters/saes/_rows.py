"""Rows of one hook point for training an SAE, from documents, a cache, or tensors.

    rows = SAERows.from_documents(model, documents, at=3)
    cache = ActivationCache.open("cache")
    rows = SAERows.from_cache(cache, "target", at="blocks.3.hook_resid_post")
    batch = next(rows.batches(1024, seed=0))    # [1024, d]; endless, in a new order every epoch

Problem: training needs rows in random order, many times, but documents arrive in order and their
rows may not fit into memory. Mechanism: rows are shuffled inside a buffer.

Documents of the test fold are held out (`lrt_lens.data._blocks`): the same documents on which a
stitch of the same seed is tested. All other documents train.

Limits: rows are shuffled inside a buffer; if one buffer holds all of them, the model runs over the
documents only once, whatever the number of epochs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.data._blocks import iterate_blocks
from lrt_lens.data._documents import Documents, read_once
from lrt_lens.data._parts import N_FOLDS, N_PARTS
from lrt_lens.data._windows import BlockPlan
from lrt_lens.errors import NonFiniteError, TooFewDocumentsError
from lrt_lens.models._belonging import Origin, refuse_foreign
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments._block_rows import block_rows, window_length
from lrt_lens.moments.cache._activation_cache import ActivationCache
from lrt_lens.typing import Rows

BUFFER_ROWS = 2**18
"""Number of rows that are shuffled together: 256 MiB in float32 at a width of 256."""
N_HELD_OUT = 8192
"""Number of rows that are held out of training."""
_BATCH_TOKENS = 4096
"""Number of tokens per forward pass."""


@dataclass(frozen=True)
class SAERows:
    """Training rows, which can be read repeatedly, and held-out rows."""

    hook: str
    """Hook point of the rows."""
    held_out: Rows
    """Rows [token, d] of documents from which no training row comes."""
    chunks: Callable[[], Iterator[Tensor]]
    """Function that returns one epoch of training rows, in pieces of any size, in stored order."""
    model: ModelIdentity | None = None
    """Model whose states are the rows; None if it is unknown."""
    context_length: int | None = None
    """Number of tokens per window; None if it is unknown."""
    seed: int | None = None
    """Seed of the split into training and held-out documents; None for rows from tensors."""

    def __post_init__(self) -> None:
        refuse_non_finite(self.held_out, f"held-out rows of {self.hook!r}")

    @property
    def origin(self) -> Origin:
        """Hook point, model and width of the rows."""
        return Origin("these rows", self.hook, self.model, self.width, "were read")

    def refuse_foreign(self, expected: Origin) -> None:
        """Raise `MismatchError` unless the rows belong to a hook point of a model."""
        refuse_foreign(self.origin, expected, remedy="read them there: SAERows.from_documents")

    @property
    def width(self) -> int:
        """Number of dimensions of a row."""
        return self.held_out.shape[1]

    @classmethod
    def from_documents(
        cls,
        model: HookedModel,
        documents: Documents,
        *,
        at: int | str,
        n_held_out: int = N_HELD_OUT,
        context_length: int = 256,
        seed: int = 0,
    ) -> "SAERows":
        """Rows of all unmasked tokens of documents at one hook point of a model.

        Args:
            model: the model whose states are the rows.
            documents: a list of texts, a file or a data set; they are read once per epoch.
            at: hook point, or layer.
            n_held_out: rows to hold out.
            context_length: tokens per window.
            seed: seed of the split into training and held-out documents.

        Raises:
            ValueError: ``documents`` is an iterator.
            TooFewDocumentsError: no document is held out.
        """
        if (name := read_once(documents)) is not None:
            raise ValueError(
                f"{name} is an iterator, which can be read only once; give a list of texts, a "
                # The documents are read once per epoch and once more for the held-out rows.
                "file or a data set"
            )
        hook = resolve(at, model)
        plan = BlockPlan(context_length=window_length(context_length, model), seed=seed)

        def run(*, held_out: bool) -> Iterator[Tensor]:
            for block in iterate_blocks(documents, model, plan):
                # Parts from N_FOLDS on are the test fold.
                if (block.part >= N_FOLDS) == held_out:
                    yield block_rows(model, [hook], block, _BATCH_TOKENS)[hook].float()

        return cls(
            hook,
            held_out=first_rows(run(held_out=True), n_held_out, hook),
            chunks=lambda: run(held_out=False),
            model=model.identity,
            context_length=plan.context_length,
            seed=seed,
        )

    @classmethod
    def from_cache(
        cls,
        cache: ActivationCache,
        role: Literal["source", "target"],
        *,
        at: str,
        n_held_out: int = N_HELD_OUT,
    ) -> "SAERows":
        """Rows of one model that a harvest has recorded, at the hook point ``at``."""
        name = cache.stored_name(role, at)
        side = 0 if role == "source" else 1
        # Any stored pair with this hook point will do: only one side of its rows is read.
        hook_pair = next(hook_pair for hook_pair in cache.pairs if hook_pair[side] == name)

        # shuffle=None returns rows in stored order; `batches` shuffles them.
        def run(parts: range) -> Iterator[Tensor]:
            return (batch[side] for batch in cache.rows(*hook_pair, parts=parts, shuffle=None))

        provenance = cache.manifest.provenance
        return cls(
            name,
            held_out=first_rows(run(range(N_FOLDS, N_PARTS)), n_held_out, name),
            chunks=lambda: run(range(N_FOLDS)),
            model=getattr(provenance, role),
            seed=provenance.seed,
        )

    @classmethod
    def from_tensors(
        cls, training: Rows, held_out: Float[Tensor, "held_out d"], *, hook: str
    ) -> "SAERows":
        """Rows from tensors of training and held-out states at ``hook``."""
        return cls(hook, held_out, lambda: iter([training]))

    def in_memory(self, n_rows: int | None = None) -> "SAERows":
        """Copy of the rows with the first ``n_rows`` training rows held in memory.

        Several training runs over the copy read the documents once. None holds all rows.
        """
        training = first_rows(self.chunks(), n_rows, self.hook)
        return replace(self, chunks=lambda: iter([training]))

    def batches(
        self, batch_rows: int, *, seed: int = 0, buffer_rows: int = BUFFER_ROWS
    ) -> Iterator[Tensor]:
        """Endless batches of exactly ``batch_rows`` rows, in an order that ``seed`` decides.

        Raises:
            NonFiniteError: a row holds NaN or infinity.
            TooFewDocumentsError: fewer rows than one batch.
        """
        generator = torch.Generator().manual_seed(seed)
        whole: Tensor | None = None
        last = torch.empty(0)
        while True:
            buffer = max(buffer_rows, batch_rows)
            pools = self._pools(buffer) if whole is None else iter([whole])
            n_pools = 0
            for pool in pools:
                n_pools += 1
                if len(pool) < batch_rows:
                    raise TooFewDocumentsError(
                        f"{len(pool)} training row(s) at {self.hook!r}, fewer than one batch of "
                        f"{batch_rows}; give more text, or a smaller batch_rows"
                    )
                order = torch.randperm(len(pool), generator=generator)
                # Rows after the last whole batch are left out of this epoch, others in the next.
                for start in range(0, len(pool) - batch_rows + 1, batch_rows):
                    yield pool[order[start : start + batch_rows]]
                last = pool
            if n_pools == 0:
                raise TooFewDocumentsError(f"no training rows at {self.hook!r}; give more text")
            # A single pool holds every row: later epochs shuffle it without running the model.
            whole = last if n_pools == 1 else None

    def _pools(self, buffer_rows: int) -> Iterator[Tensor]:
        """Chunks joined to buffers of at least ``buffer_rows``; the last takes the remainder."""
        # One buffer waits until the next is full: the remainder can be shorter than a batch, so it
        # is joined to the buffer before it.
        held: list[Tensor] = []
        ready: Tensor | None = None
        for chunk in self.chunks():
            refuse_non_finite(chunk, f"training rows of {self.hook!r}")
            held.append(chunk)
            if sum(map(len, held)) >= buffer_rows:
                if ready is not None:
                    yield ready
                ready, held = torch.cat(held), []
        remainder = [*([] if ready is None else [ready]), *held]
        if remainder:
            yield torch.cat(remainder)


def first_rows(chunks: Iterator[Tensor], n: int | None, hook: str) -> Tensor:
    """First ``n`` rows of some chunks, or all rows if there are fewer or ``n`` is None."""
    taken: list[Tensor] = []
    for chunk in chunks:
        taken.append(chunk if n is None else chunk[: n - sum(map(len, taken))])
        if n is not None and sum(map(len, taken)) >= n:
            break
    if not taken:
        raise TooFewDocumentsError(
            f"no rows at {hook!r}; give more text, so that each fold has a document"
        )
    return torch.cat(taken)


def refuse_non_finite(rows: Tensor, what: str) -> None:
    """Raise `NonFiniteError` if a number of ``rows`` is NaN or infinite."""
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows)).any(-1).sum())
        raise NonFiniteError(
            f"{bad} of {len(rows)} {what} hold NaN or infinity; expected finite activations: load "
            "the model with dtype='float32'"
        )
