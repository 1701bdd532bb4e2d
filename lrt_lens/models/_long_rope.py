"""LongRoPE in padded batches: every row with the frequencies of its own length.

Problem: models with LongRoPE (Phi-3, Phi-4-mini, MiniCPM) have two sets of rotary frequencies, for
texts up to ``original_max_position_embeddings`` and for longer ones. transformers picks one set by
the longest row of a batch, so a long text changes the states of the short texts beside it.
Mechanism: while an engine runs a batch of both kinds, a hook on the rotary embedding computes both
sets and gives every row its own. Rows count as short if all their ids behind the threshold are the
id that `HookedModel.pad` fills rows with.

    rope = LongRope.of(model)                  # None if no module has two sets of frequencies
    with rope.by_row(tokens, padding_id):
        model(tokens)

Limits: ``generate`` is not concerned, because only prompts of equal length share a batch there; a
text that grows beyond the threshold while it is generated changes its set as in transformers.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrt_lens.models._ownership import entering, registered
from lrt_lens.typing import Tokens


@dataclass(frozen=True)
class LongRope:
    """The rotary embeddings of a model that depend on the length of the longest row."""

    modules: tuple[nn.Module, ...]
    threshold: int
    """Largest length, in tokens, of texts that have the first set of frequencies."""

    @classmethod
    def of(cls, model: nn.Module) -> "LongRope | None":
        """Return the rotary embeddings of a model with two sets of frequencies, or None."""
        thresholds = {module: _threshold(module) for module in model.modules()}
        long = {module: threshold for module, threshold in thresholds.items() if threshold}
        return cls(tuple(long), min(long.values())) if long else None

    def by_row(self, tokens: Tokens, padding_id: int) -> AbstractContextManager[None]:
        """Return a context in which each row of a batch has the frequencies of its length."""
        if tokens.shape[1] <= self.threshold:
            return nullcontext()
        is_short = (tokens[:, self.threshold :] == padding_id).all(1)
        # A batch of one kind needs both sets only if all its rows are short.
        return self._choosing(is_short) if is_short.any() else nullcontext()

    @contextmanager
    def _choosing(self, is_short: Tensor) -> Iterator[None]:
        """Return a context in which short rows have the frequencies of short texts."""

        def choose(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
            given = {**dict(zip(("x", "position_ids"), args, strict=False)), **kwargs}
            # The largest position decides; what is behind the threshold of a short row is padding.
            given["position_ids"] = given["position_ids"].clamp(max=self.threshold - 1)
            short = module.forward(**given)
            rows = is_short.to(output[0].device)[:, None, None]
            # Cosines and sines [batch or 1, position, d_head].
            return tuple(torch.where(rows, s, o) for s, o in zip(short, output, strict=True))

        with ExitStack() as stack:
            act = stack.enter_context(entering()).only_here(choose)
            for module in self.modules:
                stack.callback(registered(module.register_forward_hook, act, with_kwargs=True))
            yield


def by_row(rope: LongRope | None, tokens: Tokens, padding_id: int) -> AbstractContextManager[None]:
    """Return `LongRope.by_row`, or a context that does nothing for a model without LongRoPE."""
    return nullcontext() if rope is None else rope.by_row(tokens, padding_id)


def padding_id(rope: LongRope | None, d_vocab: int) -> int:
    """Return the id that rows are filled with.

    For LongRoPE it is the last row of the embedding, which hardly any text ends with.
    """
    return 0 if rope is None else d_vocab - 1


def _threshold(module: nn.Module) -> int:
    """Return the length up to which a rotary embedding has its first frequencies; 0 for others."""
    kinds = getattr(module, "rope_type", None)
    config = getattr(module, "config", None)
    if kinds is None or config is None:
        return 0
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in parameters.values() if isinstance(one, dict)]
    lengths = [
        one.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", 0)
        for one in (nested or [parameters])
        if one.get("rope_type") == "longrope"
    ]
    return min((int(length) for length in lengths if length), default=0)
