"""Rows of one hook point for the training of an SAE: from documents, from an `ActivationCache`, or
from tensors.

    rows = SAERows.from_documents(model, documents, at=3) rows =
    SAERows.from_cache(ActivationCache.open("cache"), "target", at="blocks.3.hook_resid_post")
    batch = next(rows.batches(1024, seed=0))          # [1024, d]; endless, a new order every epoch

Documents of the test fold are held out (`lrt_lens.data._blocks`): the same documents that a stitch
of the same seed is tested on. All others train. Rows are mixed in a buffer; where one buffer holds
them all the model runs over the documents once, whatever the number of epochs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.data._blocks import iterate_blocks
from lrt_lens.data._documents import Documents
from lrt_lens.data._parts import N_FOLDS, N_PARTS
from lrt_lens.data._windows import BlockPlan
from lrt_lens.errors import NonFiniteError, TooFewDocumentsError
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments._block_rows import block_rows, window_length
from lrt_lens.moments.cache._activation_cache import ActivationCache
from lrt_lens.typing import Rows

BUFFER_ROWS = 2**18
"""Rows that are mixed with each other: 256 MiB at a width of 256."""
N_HELD_OUT = 8192
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class SAERows:
    """Training rows, to be read again and again, and rows that are held out."""

    hook: str
    held_out: Rows
    """Of documents that no training row comes from."""
    chunks: Callable[[], Iterator[Tensor]]
    """One epoch of training rows in pieces of any size, in stored order."""
    model: ModelIdentity | None = None
    context_length: int | None = None
    seed: int | None = None
    """Of the split into training and held-out documents; None for rows of your own."""

    def __post_init__(self) -> None:
        refuse_non_finite(self.held_out, f"held-out rows of {self.hook!r}")

    @property
    def width(self) -> int:
        """Dimensions of a row."""
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
        """Rows of every unmasked token of the documents, which are read once an epoch (list, file
        or data set, no iterator).
        """
        if iter_is_self(documents):
            raise ValueError(
                "documents is an iterator, which can be read only once; give a list of texts, a file or a data set"
            )
        hook = resolve(at, model)
        plan = BlockPlan(context_length=window_length(context_length, model), seed=seed)

        def run(*, held_out: bool) -> Iterator[Tensor]:
            for block in iterate_blocks(documents, model, plan):
                if (block.part >= N_FOLDS) == held_out:
                    yield block_rows(model, [hook], block, _BATCH_TOKENS)[hook].float()

        kept = first_rows(run(held_out=True), n_held_out, hook)
        return cls(
            hook, kept, lambda: run(held_out=False), model.identity, plan.context_length, seed
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
        """Rows that a harvest has recorded, of either model."""
        name = cache.stored_name(role, at)
        side = 0 if role == "source" else 1
        pair = next(pair for pair in cache.pairs if pair[side] == name)

        def run(parts: range) -> Iterator[Tensor]:
            return (batch[side] for batch in cache.rows(*pair, parts=parts, shuffle=None))

        kept = first_rows(run(range(N_FOLDS, N_PARTS)), n_held_out, name)
        provenance = cache.manifest.provenance
        return cls(
            name, kept, lambda: run(range(N_FOLDS)), getattr(provenance, role), seed=provenance.seed
        )

    @classmethod
    def from_tensors(
        cls, training: Rows, held_out: Float[Tensor, "held_out d"], *, hook: str
    ) -> "SAERows":
        """Rows of your own."""
        return cls(hook, held_out, lambda: iter([training]))

    def in_memory(self, n_rows: int | None = None) -> "SAERows":
        """The same with the first ``n_rows`` training rows held in memory: for several runs over
        the same rows.
        """
        training = first_rows(self.chunks(), n_rows, self.hook)
        return replace(self, chunks=lambda: iter([training]))

    def batches(
        self, batch_rows: int, *, seed: int = 0, buffer_rows: int = BUFFER_ROWS
    ) -> Iterator[Tensor]:
        """Batches of exactly ``batch_rows`` rows without end, in an order that the seed decides;
        `NonFiniteError` where a row is not finite.
        """
        generator = torch.Generator().manual_seed(seed)
        whole: Tensor | None = None
        last = torch.empty(0)
        while True:
            pools = (
                iter([whole]) if whole is not None else self._pools(max(buffer_rows, batch_rows))
            )
            n_pools = 0
            for pool in pools:
                n_pools += 1
                order = torch.randperm(len(pool), generator=generator)
                for start in range(0, len(pool) - batch_rows + 1, batch_rows):
                    yield pool[order[start : start + batch_rows]]
                if len(pool) < batch_rows:
                    raise TooFewDocumentsError(
                        f"{len(pool)} training row(s) at {self.hook!r}, fewer than one batch of {batch_rows}; give more text, or a smaller batch_rows"
                    )
                last = pool
            if n_pools == 0:
                raise TooFewDocumentsError(f"no training rows at {self.hook!r}; give more text")
            whole = last if n_pools == 1 else None

    def _pools(self, buffer_rows: int) -> Iterator[Tensor]:
        """Chunks put together until a buffer is full; what is left joins the last."""
        held: list[Tensor] = []
        ready: Tensor | None = None
        for chunk in self.chunks():
            refuse_non_finite(chunk, f"training rows of {self.hook!r}")
            held.append(chunk)
            if sum(map(len, held)) >= buffer_rows:
                if ready is not None:
                    yield ready
                ready, held = torch.cat(held), []
        rest = [*([] if ready is None else [ready]), *held]
        if rest:
            yield torch.cat(rest)


def first_rows(chunks: Iterator[Tensor], n: int | None, hook: str) -> Tensor:
    """The first ``n`` rows of a stream of chunks, or all of them."""
    taken: list[Tensor] = []
    for chunk in chunks:
        taken.append(chunk if n is None else chunk[: n - sum(map(len, taken))])
        if n is not None and sum(map(len, taken)) >= n:
            break
    if not taken:
        raise TooFewDocumentsError(
            f"no rows at {hook!r}; give more text, so that every fold has some"
        )
    return torch.cat(taken)


def refuse_non_finite(rows: Tensor, what: str) -> None:
    """Raise `NonFiniteError` where a number is NaN or infinite."""
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows)).any(-1).sum())
        raise NonFiniteError(
            f"{bad} of {len(rows)} {what} hold NaN or infinity; expected finite activations: load the model with dtype='float32'"
        )


def iter_is_self(documents: Any) -> bool:
    """Whether something can be read only once."""
    return isinstance(documents, Iterator)
