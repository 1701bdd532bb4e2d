"""Activations of one block of windows in one model: one row per unmasked token.

Problem: row i of a block must be the same token in both models, in the moments and in a cache.
Mechanism: harvest and cache take their rows from `block_rows`, in the order of `block_order`. If
the two models read different tokens, row i is the same position in the text.

    rows = block_rows(model, ["blocks.3.hook_resid_post"], block, batch_tokens=4096)
    rows["blocks.3.hook_resid_post"].shape    # [row, d_model]

Limits: the rows of all requested hook points are in memory at once.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lrt_lens.data._windows import Block, BlockPlan, Window, refuse_short_windows
from lrt_lens.models._hook_points import place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._text_reader import SKIP_FIRST, TextReader
from lrt_lens.moments._provenance import (
    BY_GROUP,
    BY_TEXT,
    Provenance,
    group_column,
    package_versions,
)

Role = Literal["source", "target"]
"""Side of a pair of models."""


@runtime_checkable
class KeptStates(TextReader, Protocol):
    """Model whose states were computed elsewhere, see `lrt_lens.moments.states`."""

    name: str
    n_layers: int
    context_length: int
    identity: Any
    dtype: str
    device: torch.device

    @property
    def d_model(self) -> int:
        """Width of the states."""
        ...

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Names of the hook points whose states are kept."""
        ...

    def block_rows(
        self, hooks: Sequence[str], block: Block, order: Sequence[Window], role: Role
    ) -> dict[str, Tensor]:
        """Return the rows of a block; ``order`` has its windows in the order of the rows."""
        ...

    def read_ahead(
        self, hooks: Sequence[str], block: Block, order: Sequence[Window], role: Role
    ) -> None:
        """Begin to read, in a thread, what `block_rows` will be asked for next, if it is there."""
        ...

    def stop_reading(self) -> None:
        """End a thread that reads ahead."""
        ...

    def skip(self, block: Block, order: Sequence[Window], role: Role) -> None:
        """Mark the states of a block as used, whose rows are not needed."""
        ...

    def delete(self, finished: Iterable[int]) -> None:
        """Delete the states of blocks whose rows are safe, if that is wanted."""
        ...


def block_rows(
    model: HookedModel | KeptStates,
    hooks: Sequence[str],
    block: Block,
    batch_tokens: int,
    role: Role = "source",
) -> dict[str, Tensor]:
    """Return the activations of a block's unmasked tokens, ``{hook: [row, d]}``.

    Args:
        model: model that reads the windows, or its states.
        hooks: names of hook points. Two names of one point in the stream (the output of a layer is
            the input of the next) are captured once and share one tensor.
        block: windows of one part.
        batch_tokens: padded tokens per forward pass.
        role: model whose tokens are read, if the windows hold the tokens of two models.
    """
    if isinstance(model, KeptStates):
        return model.block_rows(hooks, block, block_order(block, batch_tokens), role)
    rows_by_point: dict[str, Tensor] = {}
    points = list(dict.fromkeys(place(hook) for hook in hooks))
    begin = 0
    for windows in block.batches(batch_tokens):
        batch = [window.read_by(role) for window in windows]
        tokens = model.pad([window.ids for window in batch])
        index = _row_index(batch, tokens.shape[1])
        for point, activations in model.engine.capture(tokens, points).items():
            if point not in rows_by_point:
                rows_by_point[point] = activations.new_empty(block.n_rows, activations.shape[-1])
            # Written into the block's tensor directly: concatenating the batches would need
            # twice the memory.
            torch.index_select(
                rearrange(activations, "window position d -> (window position) d"),
                0,
                index.to(activations.device),
                out=rows_by_point[point][begin : begin + len(index)],
            )
        begin += len(index)
    return {hook: rows_by_point[place(hook)] for hook in hooks}


def block_order(block: Block, batch_tokens: int) -> list[Window]:
    """Return the windows of a block in the order of its rows."""
    return [window for batch in block.batches(batch_tokens) for window in batch]


def window_length(context_length: int, *models: Any, skip_first: int = SKIP_FIRST) -> int:
    """Return the tokens per window: ``context_length``, cut to the length that all models read.

    A model is a `HookedModel`, or anything else with a ``context_length``.

    Raises:
        ValueError: masked positions would take up more than half of each window.
    """
    length = min(context_length, *(model.context_length for model in models))
    refuse_short_windows(length, skip_first)
    return length


def provenance_of(
    plan: BlockPlan,
    models: Mapping[str, Any],
    *,
    shard: tuple[int, int] | None = None,
    group: Any = None,
) -> Provenance:
    """Return the provenance of rows that ``plan`` will cut, before any document is read.

    ``models`` has the roles ``"source"`` and ``"target"`` as keys, of which one is enough, and a
    `HookedModel` or `KeptStates` for each.
    ``group`` is that of the documents, as in `DocumentSource`; it then decides the folds.
    """
    # Two different tokenizers cannot read chats, so one template is enough.
    template = getattr(next(iter(models.values())).tokenizer, "chat_template", None)
    fields = {
        name: value
        for role, model in models.items()
        for name, value in model_fields(model, role).items()
    }
    digest = hashlib.blake2b(template.encode(), digest_size=8).hexdigest() if template else None
    return Provenance(
        context_length=plan.context_length,
        skip_first=plan.skip_first,
        n_tokens=plan.n_tokens,
        max_document_tokens=plan.max_document_tokens,
        seed=plan.seed,
        shard=shard,
        lag=plan.lag,
        chat_template=digest,
        versions=package_versions(),
        fold_rule=BY_TEXT if group is None else BY_GROUP,
        group_column=group_column(group),
        parts=plan.parts,
        **fields,
    )


def model_fields(model: HookedModel | KeptStates, role: str) -> dict[str, Any]:
    """Return the fields of a `Provenance` that describe the model in one role."""
    if isinstance(model, KeptStates):
        return {role: model.identity, f"{role}_dtype": model.dtype}
    parameter = next(model.engine.model.parameters())
    # The precision of the first parameter stands for that of the model.
    return {role: model.identity, f"{role}_dtype": str(parameter.dtype).removeprefix("torch.")}


def _row_index(batch: Sequence[Window], width: int) -> Tensor:
    """Return the unmasked positions of a batch, in the flattened axis (window position)."""
    return torch.from_numpy(
        np.concatenate([i * width + window.rows for i, window in enumerate(batch)])
    )


def row_name(order: list[Window], tokenizer: Any, row: int) -> str:
    """Return a name for a row of a block: its token, and the beginning of its window."""
    begins = list(accumulate((len(window.rows) for window in order), initial=0))
    # The window with the last beginning that is not behind the row.
    number = bisect_right(begins, row) - 1
    window = order[number]
    position = int(window.rows[row - begins[number]])
    token, begin = (
        tokenizer.decode(ids) for ids in (window.ids[position : position + 1], window.ids[:12])
    )
    return f"the token {token!r} at position {position} of the window that begins {begin!r}"
