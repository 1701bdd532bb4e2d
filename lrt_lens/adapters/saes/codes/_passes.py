"""Passes over the documents of a stitch that count and sum the codes of an SAE.

Problem: maps from codes to states need both models on the same tokens, in the folds of the stitch's
harvest. Mechanism: `CodePasses` reads the documents any number of times with the stitch's folds and
masked positions; one pass counts on how many tokens each feature is active, a second one sums
`CodeMoments` over the live features.

    passes = CodePasses(pair, stitch, documents, n_tokens=100_000, context_length=256)
    firings, n = count_firings(passes, sae)
    live = firings.nonzero()[:, 0]
    moments = collect_moments(passes, sae, firings, live, sparse=False)

Limits: documents of the test fold are not read by these two functions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens.adapters.saes._compatibility import refuse_foreign_sae, require_sae
from lrt_lens.adapters.saes.codes._moments import CodeMoments, encode
from lrt_lens.data._blocks import iterate_blocks
from lrt_lens.data._documents import Documents, DocumentSource, refuse_read_once
from lrt_lens.data._parts import N_FOLDS
from lrt_lens.data._windows import Block, BlockPlan
from lrt_lens.errors import NonFiniteError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._block_rows import block_rows, window_length
from lrt_lens.stitching._stitch import Stitch

_BATCH_TOKENS = 4096
"""Number of tokens per forward pass."""


def check_sae(sae: Any, model: HookedModel, hook: str, context_length: int) -> None:
    """Raise unless an SAE with ``encode`` and ``W_dec`` belongs to ``hook`` of ``model``.

    Raises:
        TypeError: the object has no ``encode`` and ``W_dec``.
        MismatchError: see `refuse_foreign_sae`.
    """
    require_sae(sae, "encode", "W_dec")
    length = min(context_length, model.context_length)
    refuse_foreign_sae(sae, hook, model.identity, context_length=length)


@dataclass(frozen=True)
class CodePasses:
    """Documents with the folds and the masked positions of a stitch's harvest.

    They can be read any number of times. Iterators are refused with a TypeError.
    """

    pair: ModelPair
    """Models of the stitch."""
    stitch: Stitch
    """Stitch that names hook points, masked positions and the seed of the folds."""
    documents: Documents
    """Documents; a list, a file or a data set, but no iterator."""
    n_tokens: int | None
    """Number of unmasked tokens after which no further document is read; None reads all."""
    context_length: int
    """Number of tokens per window, at most what both models read."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        refuse_read_once(self.documents)
        if self.n_tokens is not None and self.n_tokens < 1:
            raise ValueError(
                f"n_tokens is {self.n_tokens}; expected a positive number, or None for all "
                "documents"
            )
        self.stitch.check(self.pair.source, self.pair.target)
        self.stitch.provenance.refuse_other_folds(DocumentSource.of(self.documents).group)

    def blocks(self, parts: Sequence[int], what: str) -> Iterator[Block]:
        """Blocks of the documents in ``parts``, in the order of the documents."""
        plan = BlockPlan(
            context_length=window_length(
                self.context_length,
                self.pair.source,
                self.pair.target,
                skip_first=self.stitch.skip_first,
            ),
            skip_first=self.stitch.skip_first,
            n_tokens=self.n_tokens,
            max_document_tokens="auto",
            seed=self.stitch.provenance.seed,
        )
        blocks = iterate_blocks(self.documents, self.pair.source, plan, target=self.pair.target)
        for block in tqdm(blocks, desc=what, disable=not self.progress, leave=False):
            if block.part in parts:
                yield block

    def source_rows(self, block: Block) -> Tensor:
        """Source states of the unmasked tokens of a block, [token, d_source]."""
        hook = self.stitch.source_hook
        return block_rows(self.pair.source, [hook], block, _BATCH_TOKENS)[hook]

    def target_rows(self, block: Block) -> Tensor:
        """Target states of the same tokens as `source_rows`, [token, d_target]."""
        hook = self.stitch.target_hook
        return block_rows(self.pair.target, [hook], block, _BATCH_TOKENS, "target")[hook]


def count_firings(passes: CodePasses, sae: Any) -> tuple[Tensor, int]:
    """Number of tokens on which each feature is active, [feature], and number of all tokens.

    Counts over the fitting folds; only the source model is run.
    """
    firings, n = torch.zeros(sae.W_dec.shape[0], dtype=torch.int64), 0
    for block in passes.blocks(range(N_FOLDS), "live features"):
        codes = encode(sae, passes.source_rows(block))
        firings += (codes != 0).sum(0).cpu()
        n += len(codes)
    return firings, n


def collect_moments(
    passes: CodePasses, sae: Any, firings: Tensor, live: Tensor, *, sparse: bool
) -> CodeMoments:
    """Moments over the fitting folds; both models are run."""
    moments: CodeMoments | None = None
    for block in passes.blocks(range(N_FOLDS), "codes and states"):
        codes, y = encode(sae, passes.source_rows(block)), passes.target_rows(block)
        if not torch.isfinite(y).all():
            raise NonFiniteError(
                f"{passes.pair.target.name!r} has NaN or infinity at "
                f"{passes.stitch.target_hook!r}; expected finite states: load it with "
                "dtype='float32'"
            )
        if moments is None:
            # The mean of the first block is near enough to the mean of all rows; any fixed shift is
            # exact.
            moments = CodeMoments.empty(firings, live, y.double().mean(0), sparse=sparse)
        moments.add(block.part, codes, y)
    if moments is None:
        raise ValueError("no document falls into a fitting fold; give more text")
    return moments
