"""The decoder of a Hugging Face model: its blocks and its embedding, found by running it once.

Problem: every architecture has other names for its blocks, and a hook on the wrong list of modules
gives wrong numbers without a word. Mechanism: a short row runs through the model, and the blocks
are the list of modules that ran once each, in order, and passed states [batch, position, d_model]
on. On the same pass the attention is checked to be causal: rows are padded on the right, and a
position that reads later ones would read the padding.

    decoder = find_decoder(model, "gpt2")
    decoder.blocks[3], decoder.embedding, decoder.d_model

Limits: models whose blocks run more than once per pass, or pass several streams on, are refused.
"""

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrt_lens.errors import NonFiniteError
from lrt_lens.models._comparing import (
    padded_positions,
    relative_difference,
    short_row,
    without_cache,
)
from lrt_lens.models._ownership import entering, registered

_CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "context_length",
    "max_context_length",
    "max_target_positions",
)
_DEFAULT_CONTEXT = 2048
"""Context length of a model whose config names none, such as a recurrent one."""
_CAUSAL_TOLERANCE = 1e-3
"""Relative change of earlier logits that rounding may cause when only the last token changes."""


_SAME_STREAM = 0.999
"""Cosine of what a block returns and what the next one gets, above which it is one stream."""


@dataclass(frozen=True)
class Decoder:
    """Modules and sizes of a decoder, with its logits of a short row."""

    blocks: tuple[nn.Module, ...]
    embedding: nn.Module
    """Token embedding; its output is ``hook_embed``, unless a norm follows (BLOOM, BERT)."""
    d_model: int
    d_vocab: int
    context_length: int
    containers: tuple[type | None, ...]
    """``tuple`` or ``list`` for each block that returns one which starts with the stream, or None.
    """
    row_logits: Tensor
    """Logits [1, 8, vocabulary] of `short_row`."""


def find_decoder(model: Any, name: str) -> Decoder:
    """Return the decoder of a Hugging Face model.

    Raises:
        NonFiniteError: its logits overflow.
        ValueError: the model is an encoder or has one, its attention is not causal, or its blocks
            are no list of modules that each run once and pass one stream on.
    """
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name!r} ({type(model).__name__}) has an encoder and a decoder; expected a decoder,"
            " a causal language model"
        )
    embedding = model.get_input_embeddings()
    table = getattr(embedding, "weight", None)
    if not isinstance(table, Tensor):
        raise ValueError(
            f"{name!r} ({type(model).__name__}) embeds its tokens by a {type(embedding).__name__};"
            " expected one table of weights, a row per token"
        )
    d_vocab = int(table.shape[0])
    row = short_row(d_vocab).to(table.device)
    changed = row.clone()
    changed[0, -1] = (row[0, -1] + 1) % d_vocab
    with torch.inference_mode(), _recording(model) as passes:
        out = model(torch.cat([row, changed]), **without_cache(model))
    if not isinstance(getattr(out, "logits", None), Tensor):
        raise ValueError(
            f"{name!r} ({type(model).__name__}) returns no logits; load the class with a language"
            " model head, such as AutoModelForCausalLM"
        )
    logits = out.logits
    _refuse_later_positions(name, model, logits)
    blocks, records = _blocks(passes, name, model, embedding)
    return Decoder(
        blocks=tuple(blocks),
        embedding=embedding,
        d_model=records[0].stream.shape[-1],
        d_vocab=d_vocab,
        context_length=_context_length(config, model),
        containers=tuple(record.container for record in records),
        row_logits=logits[:1],
    )


def block_list(model: nn.Module, n_layers: int) -> str:
    """Return the name of the list of blocks in a model, such as ``"model.layers"``.

    Empty if there is not exactly one list of that many equal modules.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    # A list inside a block, such as that of experts, is none of blocks.
    outer = [name for name in names if not re.search(r"\.\d+\.", name)]
    return outer[0] if len(outer) == 1 else ""


def stream_of(output: Any) -> Any:
    """Return the stream in what a block returns: the output, or the first part of several."""
    return output[0] if isinstance(output, tuple | list) else output


def with_stream(output: Any, stream: Tensor) -> Any:
    """Return what a block returns, with another stream in it."""
    if not isinstance(output, tuple | list):
        return stream
    return type(output)((stream, *output[1:]))


@dataclass
class _Record:
    """One call of a module: its place in the order of calls, what it got and what it returned."""

    order: int
    entered: Any
    """First argument of the call, which is the stream before a block."""
    stream: Tensor
    container: type | None


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, list[list[_Record]]]]:
    """Record the calls of the members of every list of modules, by the name of the list."""
    passes: dict[str, list[list[_Record]]] = {}
    order = itertools.count()
    with ExitStack() as stack:
        entry = stack.enter_context(entering())
        for name, modules in model.named_modules():
            if isinstance(modules, nn.ModuleList) and len(modules):
                passes[name] = [[] for _ in modules]
                for calls, module in zip(passes[name], modules, strict=True):

                    def record(
                        _module: nn.Module,
                        args: tuple,
                        kwargs: dict[str, Any],
                        output: Any,
                        calls: list = calls,
                    ) -> None:
                        stream = stream_of(output)
                        container = None if isinstance(output, Tensor) else type(output)
                        entered = args[0] if args else kwargs.get("hidden_states")
                        calls.append(_Record(next(order), entered, stream, container))

                    stack.callback(
                        registered(
                            module.register_forward_hook, entry.only_here(record), with_kwargs=True
                        )
                    )
        yield passes


def _blocks(
    passes: dict[str, list[list[_Record]]], name: str, model: nn.Module, embedding: nn.Module
) -> tuple[nn.ModuleList, list[_Record]]:
    """Return the list of modules that passes the stream on, and one record of each member."""
    # Without the vocabulary's matrices, which outweigh the blocks of small models.
    base: Any = getattr(model, "base_model", model)
    total = _n_weights(base) - _n_weights(embedding)
    # The outermost list, and the longest of those: experts and branches lie inside the blocks.
    for path in sorted(passes, key=lambda path: (path.count("."), -len(passes[path]))):
        calls = passes[path]
        # Projections between streams can be a list of modules too, but a small one.
        is_small = 2 * _n_weights(model.get_submodule(path)) < total
        if is_small or any(len(one) != 1 for one in calls):
            continue
        records = [one[0] for one in calls]
        shapes = {tuple(getattr(record.stream, "shape", ())) for record in records}
        in_order = [record.order for record in records] == sorted(r.order for r in records)
        shape = next(iter(shapes))
        # A caller that reads other parts of an output by name would miss them.
        plain = all(record.container in (None, tuple, list) for record in records)
        is_stream = len(shapes) == 1 and len(shape) == 3 and shape[:2] == (2, 8)
        if plain and in_order and is_stream and _passes_on(records):
            return model.get_submodule(path), records  # type: ignore[return-value]
    raise ValueError(
        f"{name!r} ({type(model).__name__}) has no list of blocks that each run once per pass and"
        " return one stream [batch, position, d_model]; such a decoder has no residual hook points"
    )


def _passes_on(records: list[_Record]) -> bool:
    """Return whether each block gets what the block before it returned, up to a factor.

    A list of attentions or of norms does not: what is between two of them is no block.
    """
    for one, other in itertools.pairwise(records):
        before, after = one.stream.double(), other.entered
        if not isinstance(after, Tensor) or after.shape != before.shape:
            return False
        after = after.to(before)
        if not (before.isfinite().all() and after.isfinite().all()):
            continue  # it overflows, which is refused where numbers are read
        # RWKV halves the stream every few blocks.
        cosine = float((before * after).sum() / (before.norm() * after.norm()).clamp_min(1e-30))
        if cosine < _SAME_STREAM:
            return False
    return True


def _n_weights(module: nn.Module) -> int:
    """Return the number of weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _refuse_later_positions(name: str, model: nn.Module, logits: Tensor) -> None:
    """Raise an error if the last token changes the logits before it (rows 0 and 1).

    Raises:
        NonFiniteError: the logits overflow, so that nothing can be compared.
        ValueError: the attention is not causal.
    """
    # Some models mask tokens that have no meaning with -inf, everywhere.
    is_masked = (logits == float("-inf")).all(0).all(0)
    logits = logits[..., ~is_masked]
    n_infinite = int(logits.isinf().sum())
    if n_infinite:
        raise NonFiniteError(
            f"{n_infinite} of {logits.numel()} logits of {name!r} ({type(model).__name__}) are"
            f" infinite on a row of {logits.shape[1]} tokens: they overflow in {logits.dtype},"
            f" whose largest number is {torch.finfo(logits.dtype).max:.3g}; load the model with"
            " dtype='bfloat16' or 'float32'"
        )
    change = relative_difference(logits[1, :-1], logits[0, :-1])
    # NaN logits make the change infinite; they are refused where numbers are read.
    if change > _CAUSAL_TOLERANCE and not logits.isnan().any():
        raise ValueError(
            f"the attention of {name!r} ({type(model).__name__}) is not causal: changing the last"
            f" of {logits.shape[1]} tokens changes the logits before it by {change:.2g} (relative);"
            " expected a decoder. Rows are padded on the right, and this model would read the"
            " padding"
        )


def _context_length(config: Any, model: nn.Module) -> int:
    """Return the number of tokens that a text may have."""
    lengths = (getattr(config, field, None) for field in _CONTEXT_FIELDS)
    found = next((n for n in lengths if isinstance(n, int) and n > 0), None)
    if found is None:
        found = min([_DEFAULT_CONTEXT, *_table_lengths(model)])
    table = padded_positions(model)
    if table is not None:
        # RoBERTa counts positions from the row behind that of padding.
        found = min(found, table.num_embeddings - table.padding_idx - 1)
    return found


def _table_lengths(model: nn.Module) -> list[int]:
    """Return the numbers of positions in the learnt tables of positions of a model."""
    return [
        module.num_embeddings - int(getattr(module, "offset", 0))
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in path.split(".")[-1]
    ]
