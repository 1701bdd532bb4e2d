"""States of the same tokens at one hook point of one or two models, with their folds.

    rows = read_rows(documents, target, source, plan=plan)
    rows = read_cache(ActivationCache.open("cache"), hooks, 30_000)
    rows.target, rows.source, rows.folds      # [row, d_target], [row, d_source], [row]

Problem: several refits (of an SAE and of its controls) need the same rows several times. Mechanism:
the models run once over the documents of the fitting folds, and the rows stay in memory. An
`ActivationCache` gives the same rows from disk: recording it can be interrupted and resumed.

Limits: rows take 4 bytes per number: 30,000 rows of 2,304 dimensions are 276 MB.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens.adapters.saes._compatibility import refuse_joined_hook_points
from lrt_lens.adapters.saes.refit._settings import RefitSettings
from lrt_lens.adapters.saes.refit._states import RefitRows
from lrt_lens.data._blocks import iterate_blocks
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.data._parts import N_FOLDS
from lrt_lens.data._windows import BlockPlan
from lrt_lens.errors import MismatchError
from lrt_lens.models._belonging import refuse_other_models
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._block_rows import block_rows, window_length
from lrt_lens.stitching._stitch_data import StitchData

_BATCH_TOKENS = 4096
"""Number of tokens per forward pass."""


@dataclass(frozen=True)
class SAERefit:
    """Models, documents and settings with which `Stitch.transfer` refits an SAE.

    stitch.transfer(sae, refit=SAERefit(pair, documents))
    """

    pair: ModelPair
    """Models of the stitch."""
    documents: Any = field(repr=False)
    """Text in any form that `fit_stitches` accepts, or an `ActivationCache` with the hook points
    of the stitch."""
    settings: RefitSettings = RefitSettings()
    """Settings of the refit; the seed is that of the stitch."""


@runtime_checkable
class RowCache(Protocol):
    """Part of an `ActivationCache` that a refit uses."""

    folder: Any
    """Folder of the cache."""

    @property
    def manifest(self) -> Any:
        """Manifest, whose provenance has the seed of the folds."""
        ...

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Hook pairs whose rows are stored."""
        ...

    def check(self, source: Any = None, target: Any = None) -> None:
        """Raise `MismatchError` if a model is not the one that was recorded."""
        ...

    def rows(
        self, source_hook: str, target_hook: str, *, parts: Any = None, shuffle: int | None = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (x, y) of the stored rows of some parts."""
        ...


@dataclass(frozen=True)
class ReadPoint:
    """A hook point of a model that reads the documents."""

    model: HookedModel
    """Model that reads the documents."""
    hook: str
    """Name of the hook point."""


def read_rows(
    documents: Documents,
    target: ReadPoint,
    source: ReadPoint | None = None,
    *,
    plan: BlockPlan,
    progress: bool = True,
) -> RefitRows:
    """Rows of the unmasked tokens of the documents that are in the fitting folds.

    With two tokenizers, these are the tokens that are aligned.

    Raises:
        TooFewDocumentsError: the documents fill fewer than two fitting folds.
        NonFiniteError: a state is NaN or infinite.
    """
    ends: dict[Literal["target", "source"], ReadPoint] = {"target": target}
    if source is not None:
        ends["source"] = source
    first = (source or target).model
    other = target.model if source is not None else None
    kept: dict[str, list[Tensor]] = {role: [] for role in ends}
    folds: list[Tensor] = []
    blocks = iterate_blocks(documents, first, plan, target=other)
    for block in tqdm(blocks, desc="states for the refit", disable=not progress, leave=False):
        # Parts from N_FOLDS on are the test fold, which no fit reads.
        if block.part >= N_FOLDS:
            continue
        for role, end in ends.items():
            rows = block_rows(end.model, [end.hook], block, _BATCH_TOKENS, role)[end.hook]
            kept[role].append(rows.float().cpu())
        folds.append(torch.full((block.n_rows,), block.part))
    return RefitRows.joined(kept, folds)


def read_cache(cache: RowCache, hooks: tuple[str, str], n: int) -> RefitRows:
    """First ``n`` rows of the fitting folds that a cache holds at a hook pair.

    Each fold gives the same number of rows, if it has as many.

    Raises:
        MismatchError: the cache does not hold the hook pair.
        TooFewDocumentsError: the cache has rows of fewer than two fitting folds.
    """
    if hooks not in cache.pairs:
        raise MismatchError(
            f"the cache {str(cache.folder)!r} holds the hook pairs {list(cache.pairs)}; "
            f"expected {hooks}: record these hook points"
        )
    kept: dict[str, list[Tensor]] = {"source": [], "target": []}
    folds: list[Tensor] = []
    for fold in range(N_FOLDS):
        left = n // N_FOLDS
        for x, y in cache.rows(*hooks, parts=[fold], shuffle=None):
            kept["source"].append(x[:left].float().cpu())
            kept["target"].append(y[:left].float().cpu())
            folds.append(torch.full((len(x[:left]),), fold))
            left -= len(folds[-1])
            if left <= 0:
                break
    return RefitRows.joined(kept, folds)


def refit_plan(
    context_length: int, n_tokens: int, seed: int, skip_first: int, *models: HookedModel
) -> BlockPlan:
    """Windows and folds of a refit's documents."""
    return BlockPlan(
        context_length=window_length(context_length, *models, skip_first=skip_first),
        skip_first=skip_first,
        n_tokens=n_tokens,
        max_document_tokens="auto",
        seed=seed,
    )


def stitch_rows(stitch: StitchData, refit: SAERefit) -> RefitRows:
    """Rows of both hook points of a stitch, in the fitting folds of its harvest.

    Raises:
        TypeError: ``refit`` is no `SAERefit`.
        MismatchError: the models or the folds are not those of the stitch.
        HookPointError: the stitch joins several hook points.
    """
    if not isinstance(refit, SAERefit):
        raise TypeError(
            f"refit is a {type(refit).__name__}; expected the models and the text on which the SAE "
            "is refitted: refit=lrt.SAERefit(pair, documents)"
        )
    pair, run = refit.pair, refit.settings
    models = pair.source.identity, pair.target.identity
    refuse_other_models("", models, (stitch.source, stitch.target))
    refuse_joined_hook_points(stitch)
    hooks, seed = (stitch.source_hook, stitch.target_hook), stitch.provenance.seed
    if isinstance(refit.documents, RowCache):
        settings = replace(run, seed=seed)
        return cached_rows(refit.documents, pair.target, pair.source, hooks, settings)
    stitch.provenance.refuse_other_folds(DocumentSource.of(refit.documents).group)
    plan = refit_plan(
        run.context_length, run.n_tokens, seed, stitch.skip_first, pair.source, pair.target
    )
    ends = (ReadPoint(pair.target, hooks[1]), ReadPoint(pair.source, hooks[0]))
    return read_rows(refit.documents, *ends, plan=plan, progress=run.progress)


def cached_rows(
    cache: RowCache,
    model: HookedModel,
    source: HookedModel | None,
    hooks: tuple[str, str],
    run: RefitSettings,
) -> RefitRows:
    """Rows of a cache of both models, whose documents were split by the seed of the refit.

    Raises:
        MismatchError: the cache has other models, hook points or folds.
    """
    cache.check(source, model)
    seed = cache.manifest.provenance.seed
    if seed is not None and seed != run.seed:
        raise MismatchError(
            f"the cache was split by seed {seed}, and seed is {run.seed}: documents held out by one"
            f" are fitted by the other; expected a cache of seed={run.seed}: record it again"
        )
    rows = read_cache(cache, hooks, run.n_tokens)
    return rows if source is not None else replace(rows, source=None)
