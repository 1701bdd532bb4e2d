"""A block of windows through one model: the activations of its unmasked tokens, row by row.

    rows = block_rows(model, ["blocks.3.hook_resid_post"], block, batch_tokens=4096)        # {hook: [row, d_model]}

Harvest and cache both take their rows from here, so that row i of a block is the same token in
both, and in both models (the same place in the text, where these read different tokens).
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lrt_lens.data._blocks import Block
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.models._hook_points import place
from lrt_lens.models._hooked_model import SKIP_FIRST, HookedModel
from lrt_lens.moments._provenance import Provenance, package_versions


def block_rows(
    model: HookedModel,
    hooks: Sequence[str],
    block: Block,
    batch_tokens: int,
    role: Literal["source", "target"] = "source",
) -> dict[str, Tensor]:
    """Activations of a block's unmasked tokens, ``{hook: [row, d]}``, windows in the order of
    `block_order`.

    ``role`` decides which tokens are read, where the windows hold those of two models.

    A place that has two names (the output of a layer, the input of the next) is captured once and
    returned under every name asked for.
    """
    by_place: dict[str, Tensor] = {}
    begin = 0
    for pairs in block.batches(batch_tokens):
        batch = [window.read_by(role) for window in pairs]
        tokens = model.pad([window.ids for window in batch])
        rows = _row_index(batch, tokens.shape[1])
        for where, activations in model.engine.capture(
            tokens, list(dict.fromkeys(place(hook) for hook in hooks))
        ).items():
            if where not in by_place:
                by_place[where] = activations.new_empty(block.n_rows, activations.shape[-1])
            torch.index_select(
                activations.flatten(0, 1),
                0,
                rows.to(activations.device),
                out=by_place[where][begin : begin + len(rows)],
            )
        begin += len(rows)
    return {hook: by_place[place(hook)] for hook in hooks}


def block_order(block: Block, batch_tokens: int) -> list[Window]:
    """The windows of a block in the order of its rows."""
    return [window for batch in block.batches(batch_tokens) for window in batch]


def window_length(context_length: int, *models: HookedModel) -> int:
    """Tokens a window: what was asked for, cut to what all models read; ValueError where masked
    positions would fill it.
    """
    if context_length < 2 * SKIP_FIRST:
        raise ValueError(
            f"context_length is {context_length}; windows need at least {2 * SKIP_FIRST} tokens"
        )
    return min(context_length, *(model.context_length for model in models))


def provenance_of(
    plan: BlockPlan, models: Mapping[str, HookedModel], *, shard: tuple[int, int] | None = None
) -> Provenance:
    """Where rows of the models (by role, ``"source"`` or ``"target"``) cut by ``plan`` come from;
    no document yet.
    """
    template = getattr(next(iter(models.values())).tokenizer, "chat_template", None)
    fields = {
        name: value
        for role, model in models.items()
        for name, value in model_fields(model, role).items()
    }
    return Provenance(
        context_length=plan.context_length,
        skip_first=plan.skip_first,
        n_tokens=plan.n_tokens,
        seed=plan.seed,
        shard=shard,
        lag=plan.lag,
        chat_template=hashlib.blake2b(template.encode(), digest_size=8).hexdigest()
        if template
        else None,
        versions=package_versions(),
        **fields,
    )


def model_fields(model: HookedModel, role: str) -> dict[str, Any]:
    """What a `Provenance` says of the model in one role, ``"source"`` or ``"target"``."""
    parameter = next(getattr(model.bridge, "original_model", model.bridge).parameters())
    return {role: model.identity, f"{role}_dtype": str(parameter.dtype).removeprefix("torch.")}


def _row_index(batch: Sequence[Window], width: int) -> Tensor:
    return torch.from_numpy(
        np.concatenate([i * width + window.rows for i, window in enumerate(batch)])
    )
