"""Logits of states that stand for the output of the last block: a model's own final norm and head.

    logits = readout(model, states)              # [..., d] → [..., vocabulary]

Problem: a final norm, a head, a scale of logits and a soft cap differ between architectures.
Mechanism: a pass of the model resumes from the states behind its last block, so that everything
after them is the model's own code; the tokens of that pass do not matter.

Limits: engines of TransformerLens run all blocks before they replace the stream.
"""

import torch
from torch import Tensor

from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import residual_post
from lrt_lens.models._hooked_model import HookedModel

_MOST_LOGITS = 2**24
"""Largest number of logits that are computed at once: 64 MiB in float32."""


def wide(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def final_hook(n_layers: int) -> str:
    """Return the hook point after the last block."""
    return residual_post(n_layers - 1)


def readout(model: HookedModel, states: Tensor) -> Tensor:
    """Return the logits [..., vocabulary] of states [..., d] behind the last block.

    They are computed in the precision of the model, and returned in float32, or in float64 if the
    model computes in float64.

    Args:
        model: the model whose norm and head read the states.
        states: states in the stream after the last block.

    Raises:
        MismatchError: the states have another width than the model.
    """
    if states.shape[-1] != model.d_model:
        raise MismatchError(
            f"the states have width {states.shape[-1]}; {model.name!r} reads its last stream with "
            f"{model.d_model} dimensions: give states behind its last block"
        )
    # The precision in which the model computes its last stream.
    hook, row = final_hook(model.n_layers), torch.ones(1, 1, dtype=torch.int64)
    like = model.engine.capture(row, [hook])[hook]
    rows = states.reshape(-1, model.d_model)
    length = max(1, min(model.context_length, _MOST_LOGITS // model.d_vocab))
    # No block sees these tokens.
    logits = [
        read_batch(model, row.expand(1, len(piece)).clone(), piece[None].to(like))[0]
        for piece in rows.split(length)
        if len(piece)
    ]
    together = torch.cat(logits) if logits else rows.new_zeros(0, model.d_vocab)
    return together.reshape(*states.shape[:-1], model.d_vocab)


def read_batch(model: HookedModel, tokens: Tensor, states: Tensor) -> Tensor:
    """Return the logits [batch, position, vocabulary] of states behind the last block.

    They are in float32, or in float64 if the model is.

    Args:
        model: the model.
        tokens: token ids [batch, position], of the shape of the states.
        states: states [batch, position, d], in the precision and on the device of the stream.
    """
    with model.engine.resuming(final_hook(model.n_layers), states):
        return wide(model.logits(tokens))
