"""Moments of activations that somebody already has, which is what the methods of `CrossMoments` do.

Problem: people have states of nnsight, nnterp, vLLM or a file, at several layers and with the ids
of documents and perhaps of tokens, and want what a harvest gives: one grid of all hook pairs with
shuffled pairs, token identity and the gain over it. Mechanism: the rows of each part are added to
the sums, and rows of different documents are paired in blocks for the null
(`lrt_lens.moments._own_null`). Token identity is predicted from the source's embedding, or from one
column per frequent token (`lrt_lens.moments._own_rows`).

    moments = CrossMoments.from_activations({3: x}, {5: y}, documents=ids, tokens=tokens)
    moments.update({3: more_x}, {5: more_y}, documents=more_ids, tokens=more_tokens)
    grid = moments.fit()

Limits: what is not given is unknown. Documents are counted by their ids, and one that continues
after the moments were saved and loaded, or in moments that are merged, counts twice.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_points import EMBED, SOURCE, TARGET, HookPair, hooks_of
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import torch_dtype
from lrt_lens.moments._activation_settings import ActivationSettings
from lrt_lens.moments._centred_rows import refuse_other_width
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._heavy_rows import document_row
from lrt_lens.moments._own_null import NullPlan
from lrt_lens.moments._own_rows import TOKENS, Activations, OwnRows, RowIds, hook_name
from lrt_lens.moments._placement import refuse_unfit
from lrt_lens.moments._plan import null_kind, rows_of_block
from lrt_lens.moments._provenance import Provenance, package_versions
from lrt_lens.moments._sketches import SKETCH_WIDTH


def moments_of_activations(
    x: Activations, y: Activations, ids: RowIds, settings: ActivationSettings
) -> CrossMoments:
    """Return the moments of activations, as `CrossMoments.from_activations` describes."""
    source, target = map(identity_of, (settings.source_model, settings.target_model))
    frequent = settings.frequent_tokens
    provenance = Provenance(
        source,
        target,
        seed=settings.seed,
        parts=settings.parts,
        versions=package_versions(),
        frequent_tokens=None if frequent is None else tuple(sorted(set(frequent))),
    )
    hooks, columns = (settings.source_hook, settings.target_hook), settings.token_columns
    rows = OwnRows.of(x, y, ids, hooks, provenance, token_columns=columns)
    pairs, token_hook = chosen_pairs(rows, settings.pairs, provenance)
    widths = (max(one.width for one in side.values()) for side in (rows.x, rows.y))
    null = null_kind(settings.null, pairs, *widths)
    dtype = torch_dtype(settings.moment_dtype)
    moments = CrossMoments(pairs, token_hook, dtype, null, provenance)
    _refuse_too_large(moments, rows)
    _add(moments, rows)
    moments.warn_of_heavy_rows()
    return moments


def _refuse_too_large(moments: CrossMoments, rows: OwnRows) -> None:
    """Raise ValueError if the sums need more memory than is free."""
    pairs, n_parts = moments.kept_pairs, moments.parts.n_parts
    x, y = ({hook: one.width for hook, one in side.items()} for side in (rows.x, rows.y))
    # P·(Σ d_s² + Σ d_t² + Σ_pairs d_s·d_t) numbers of float64, and two slices of the null
    numbers = sum(x[hook] ** 2 for hook in hooks_of(pairs, SOURCE))
    numbers += sum(y[hook] ** 2 for hook in hooks_of(pairs, TARGET))
    numbers = n_parts * (numbers + sum(x[s] * y[t] for s, t in pairs))
    widest = {"none": 0, "sketch": SKETCH_WIDTH, "full": max(y.values())}[moments.null]
    numbers += 2 * sum(x[s] * min(widest, y[t]) for s, t in moments.pairs)
    remedy = "give fewer hook pairs (pairs=…), null=False, or parts=Parts(…) with fewer of them"
    refuse_unfit(numbers * torch.float64.itemsize, rows.device, remedy)


def add_activations(moments: CrossMoments, x: Activations, y: Activations, ids: RowIds) -> None:
    """Add rows to moments, as `CrossMoments.update` describes."""
    if ids.tokens is not None and moments.token_hook is None:
        raise ValueError(
            "tokens are given, and these moments have no token identity: give tokens with the "
            "first rows, to from_activations"
        )
    if not moments.pairs:
        raise ValueError("these moments have no hook pair; expected at least one")
    _add(moments, OwnRows.of(x, y, ids, moments.pairs[0], moments.provenance))


def _add(moments: CrossMoments, rows: OwnRows) -> None:
    rows = rows.of_hooks(*(hooks_of(moments.kept_pairs, side) for side in (SOURCE, TARGET)))
    # All checks come before the first sum, so that a bad call leaves the moments as they were.
    before = moments.n_tokens
    rows.refuse_non_finite(before)
    if not moments.is_begun:
        moments.start_at(*rows.shifts(moments.moment_dtype))
    for streams, side in ((rows.x, moments.source), (rows.y, moments.target)):
        for hook, one in streams.items():
            refuse_other_width(hook, one.width, len(side[hook].shift))
    for part, index in rows.by_part(moments.parts):
        name = partial(document_row, index, before, rows.documents)
        moments.add_block(part, *rows.take(index), name=name)
    ranks, new = moments.open_null.count(rows.keys, moments.parts)
    if moments.null != "none":
        positions = ranks if rows.positions is None else rows.positions
        take, plan = partial(rows.take, pairs=moments.pairs), _null_plan(moments)
        for block in moments.open_null.add(rows.keys, positions, take, plan):
            moments.add_shuffled(block)
    moments.provenance = replace(
        moments.provenance.with_documents(sum(new), part_documents=new),
        frequent_tokens=rows.frequent_tokens,
    )
    # Shuffled pairs of the rows that wait come later, but no product is on its way.
    moments.placement.finish()


def _null_plan(moments: CrossMoments) -> NullPlan:
    sides = (moments.source, moments.target)
    widths = (max(len(one.shift) for one in side.values()) for side in sides)
    block_rows = rows_of_block("auto", moments.pairs, moments.token_hook, *widths)
    return NullPlan(moments.parts, moments.pairs, block_rows, moments.provenance.seed)


def chosen_pairs(
    rows: OwnRows, pairs: Sequence[tuple[int | str, int | str]] | None, provenance: Provenance
) -> tuple[tuple[HookPair, ...], str | None]:
    """Return (hook pairs, hook point of token identity or None).

    ``hook_embed`` next to other source hook points stands for token identity.

    Raises:
        HookPointError: there are no rows of a hook point in ``pairs``, or there are no pairs.
    """
    x, y = rows.x, rows.y
    token = next((hook for hook in (TOKENS, EMBED) if hook in x and len(x) > 1), None)
    if pairs is None:
        return tuple((s, t) for s in x if s != token for t in y), token
    models = (provenance.source, provenance.target)
    named = tuple(
        dict.fromkeys(
            (hook_name(source, models[0], "pairs"), hook_name(target, models[1], "pairs"))
            for source, target in pairs
        )
    )
    unknown = [pair for pair in named if pair[0] not in x or pair[1] not in y]
    if unknown or not named:
        raise HookPointError(
            f"pairs has {unknown[:1]}; x has rows of {list(x)} and y of {list(y)}: give pairs of "
            "these hook points"
        )
    return named, token


def identity_of(model: Any) -> ModelIdentity | None:
    """Return the identity of a model, of an identity, or of None.

    Raises:
        TypeError: it is no model that can be loaded.
    """
    if model is None or isinstance(model, ModelIdentity):
        return model
    return HookedModel.load(model).identity
