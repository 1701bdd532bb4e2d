"""One pass over two models: documents in, `CrossMoments` out.

    moments = harvest(pair, documents, source_layers="all", target_layers="all", n_tokens=200_000)

Blocks of windows (`lrt_lens.data.blocks`) run through both models; unmasked rows go into the moments, and are forgotten. Memory does
not grow with the number of tokens. Neither model runs past its deepest wanted hook point, and neither unembeds.
"""

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens.data.blocks import Block, BlockPlan, Corpus, Window, iterate_blocks, shuffled_rows
from lrt_lens.data.documents import Documents
from lrt_lens.errors import NonFiniteError
from lrt_lens.models.hook_points import EMBED, Layers, layer_pairs, place
from lrt_lens.models.hooked_model import SKIP_FIRST, HookedModel
from lrt_lens.models.loading import torch_dtype
from lrt_lens.models.pair import ModelPair
from lrt_lens.stitching.grid import StitchGrid
from lrt_lens.stitching.moments import CrossMoments, Pair
from lrt_lens.stitching.provenance import Provenance, package_versions
from lrt_lens.stitching.ridge import Ridge

Null = bool | Literal["full", "sketch", "none"]

_FULL_NULL_NUMBERS = 32_000_000
"""Numbers in all cross-moments together up to which ``null=True`` keeps the shuffled pairs whole."""


def fit_stitches(
    pair: ModelPair,
    documents: Documents,
    *,
    source_layers: Layers = "all",
    target_layers: Layers = "all",
    solver: Ridge | None = None,
    n_tokens: int | None = 200_000,
    context_length: int = 256,
    seed: int = 0,
    null: Null = True,
    skip_first: int = SKIP_FIRST,
    batch_tokens: int = 4096,
    moment_dtype: str | torch.dtype = "float32",
    progress: bool = True,
) -> StitchGrid:
    """Harvest both models on ``documents`` and fit every layer pair: `harvest`, then `CrossMoments.fit`."""
    moments = harvest(
        pair, documents, source_layers=source_layers, target_layers=target_layers, n_tokens=n_tokens, context_length=context_length,
        seed=seed, null=null, skip_first=skip_first, batch_tokens=batch_tokens, moment_dtype=moment_dtype, progress=progress,
    )  # fmt: skip
    return moments.fit(solver, progress=progress)


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
    batch_tokens: int = 4096,
    moment_dtype: str | torch.dtype = "float32",
    progress: bool = True,
) -> CrossMoments:
    """Moments of the chosen layer pairs, and of token identity with every target layer.

    Args:
        pair: both models.
        documents: see `lrt_lens.data.documents`.
        source_layers: hook points of the source; ``"all"`` is every ``hook_resid_post``.
        target_layers: the same of the target; ``"proportional"`` pairs equal relative depths.
        n_tokens: unmasked tokens after which no further document is taken; None takes all.
        context_length: tokens a window, cut to what both models can read.
        seed: decides the folds and the shuffled pairs.
        null: shuffled pairs: True keeps them whole for small grids and sketched for large ones; ``"full"``, ``"sketch"``, ``"none"``.
        skip_first: masked positions at the start of each window.
        batch_tokens: padded tokens a forward pass.
        moment_dtype: precision of products, ``"float32"`` or ``"float64"``; sums are always float64.
        progress: show a bar.

    Raises:
        HookPointError: for a layer that a model does not have.
        TooFewDocumentsError: where a fold stays empty.
        NonFiniteError: for NaN or infinite activations, naming hook and batch.
    """
    if n_tokens is not None and n_tokens <= 0:
        raise ValueError(f"n_tokens is {n_tokens}; expected a positive number, or None for all documents")
    pairs = tuple(layer_pairs(source_layers, target_layers, pair.source, pair.target))
    plan = BlockPlan(context_length=_context(context_length, pair), skip_first=skip_first, n_tokens=n_tokens, seed=seed)
    kind = _null_kind(null, pairs, pair)
    moments = CrossMoments(
        pairs=pairs,
        token_hook=EMBED if EMBED in pair.source.hook_points else None,
        moment_dtype=torch_dtype(moment_dtype),
        null=kind,
        provenance=_provenance(pair, plan),
    )
    corpus = Corpus()
    with tqdm(total=n_tokens, desc="harvest", unit="tok", unit_scale=True, disable=not progress, leave=False) as bar:
        for block in iterate_blocks(documents, pair.source, plan, corpus):
            _add(moments, block, pair, batch_tokens, plan.seed)
            bar.update(min(block.n_rows, bar.total - bar.n) if bar.total else block.n_rows)
    moments.provenance = _provenance(pair, plan, corpus)
    return moments


def _add(moments: CrossMoments, block: Block, pair: ModelPair, batch_tokens: int, seed: int) -> None:
    sources, targets = [s for s, _ in moments.kept_pairs], [t for _, t in moments.kept_pairs]
    x: dict[str, list[Tensor]] = {hook: [] for hook in sources}
    y: dict[str, list[Tensor]] = {hook: [] for hook in targets}
    order: list[Window] = []
    for batch in block.batches(batch_tokens):
        order.extend(batch)
        tokens = pair.source.pad([window.ids for window in batch])
        rows = _row_index(batch, tokens.shape[1])
        for rows_by_hook, model in ((x, pair.source), (y, pair.target)):
            for hook, activations in _capture_places(model, tokens, list(rows_by_hook)).items():
                rows_by_hook[hook].append(activations.flatten(0, 1)[rows.to(activations.device)])
    pairing = torch.from_numpy(shuffled_rows(block, order, seed)) if moments.null != "none" else None
    # Layers of one model may sit on several devices; products need one.
    device = next(iter(x.values()))[0].device
    gathered_x = {hook: torch.cat(parts).to(device) for hook, parts in x.items()}
    gathered_y = {hook: torch.cat(parts).to(device) for hook, parts in y.items()}
    try:
        moments.add_block(block.part, gathered_x, gathered_y, pairing)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} (source {pair.source.name!r}, target {pair.target.name!r})") from None


def _row_index(batch: list[Window], width: int) -> Tensor:
    return torch.from_numpy(np.concatenate([i * width + window.rows for i, window in enumerate(batch)]))


def _capture_places(model: HookedModel, tokens: Tensor, hooks: list[str]) -> dict[str, Tensor]:
    """Capture each place once, under every name that was asked for."""
    by_place: dict[str, list[str]] = {}
    for hook in hooks:
        by_place.setdefault(place(hook), []).append(hook)
    seen = model.engine.capture(tokens, list(by_place))
    return {name: seen[where] for where, names in by_place.items() for name in names}


def _context(context_length: int, pair: ModelPair) -> int:
    if context_length < 2 * SKIP_FIRST:
        raise ValueError(f"context_length is {context_length}; windows need at least {2 * SKIP_FIRST} tokens")
    return min(context_length, pair.context_length)


def _null_kind(null: Null, pairs: tuple[Pair, ...], models: ModelPair) -> str:
    if isinstance(null, str):
        return null
    if not null:
        return "none"
    return "full" if len(pairs) * models.source.d_model * models.target.d_model <= _FULL_NULL_NUMBERS else "sketch"


def _provenance(pair: ModelPair, plan: BlockPlan, corpus: Corpus | None = None) -> Provenance:
    template = getattr(pair.source.tokenizer, "chat_template", None)
    return Provenance(
        source=pair.source.identity,
        target=pair.target.identity,
        context_length=plan.context_length,
        skip_first=plan.skip_first,
        chat_template=hashlib.blake2b(template.encode(), digest_size=8).hexdigest() if template else None,
        seed=plan.seed,
        n_documents=corpus.n_documents if corpus else 0,
        corpus=f"{corpus.digest:016x}" if corpus else "",
        versions=package_versions(),
    )
