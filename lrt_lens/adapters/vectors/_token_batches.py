"""Texts made ready once and run many times under changing interventions.

Damage (loss on neutral text) and propensity (log-probability of continuations) are measured at
dozens of strengths of the same vector. Everything before the steered hook point is the same each
time, so it runs once: the stored residual is changed as the hook would change it, and the pass
resumes from there.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import HookedModel

_BATCH_ROWS = 128
_LOGITS_AT_ONCE = 2**27
"""Logits of a pass at most (half a gigabyte in float32): rows × length × vocabulary."""


class TokenBatches:
    """Rows of token ids in batches, with the residual at one hook point stored once."""

    def __init__(self, model: HookedModel, rows: Sequence[Sequence[int]], hook: int | str) -> None:
        self.model, self.hook = model, resolve(hook, model)
        self.order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        self.rows = [list(row) for row in rows]
        self._chunks = list(self._cut(model.d_vocab))
        self._tokens = [model.pad([self.rows[i] for i in chunk]) for chunk in self._chunks]
        self._residuals = [
            model.engine.capture(tokens, [self.hook])[self.hook] for tokens in self._tokens
        ]

    def _cut(self, d_vocab: int) -> Iterator[list[int]]:
        """Row numbers by length, as many at once as fit."""
        chunk: list[int] = []
        for i in self.order:
            full = (len(chunk) + 1) * len(self.rows[i]) * d_vocab > _LOGITS_AT_ONCE or len(
                chunk
            ) == _BATCH_ROWS
            if chunk and full:
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def residuals(self) -> Iterator[tuple[int, Tensor]]:
        """(row, its unsteered residual at the hook point, [length, d_model])."""
        for chunk, residual in zip(self._chunks, self._residuals, strict=True):
            for place, i in enumerate(chunk):
                yield i, residual[place, : len(self.rows[i])]

    def log_probabilities(
        self, hook: SteeringHook | None = None, prompt_lengths: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """(row, log-probabilities of its tokens from the second on, [length - 1]) under a steering
        hook or none.
        """
        for chunk, tokens, logits in self._passes(hook, prompt_lengths):
            logits = logits[:, :-1].float()
            picked = logits.gather(2, tokens[:, 1:, None].to(logits.device))[
                ..., 0
            ] - logits.logsumexp(2)
            for place, i in enumerate(chunk):
                yield i, picked[place, : len(self.rows[i]) - 1].cpu()

    def next_log_probabilities(
        self,
        starts: Sequence[int],
        hook: SteeringHook | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """(row, log-probabilities of every possible next token at positions ``starts[row]`` and
        later, [length - start, vocabulary]).
        """
        for chunk, _, logits in self._passes(hook, prompt_lengths):
            for place, i in enumerate(chunk):
                yield i, logits[place, starts[i] : len(self.rows[i])].float().log_softmax(-1).cpu()

    def _passes(
        self, hook: SteeringHook | None, prompt_lengths: Sequence[int] | None
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(row numbers, their tokens, logits [row, position, vocabulary]) of every batch."""
        for chunk, tokens, residual in zip(
            self._chunks, self._tokens, self._residuals, strict=True
        ):
            if hook is not None and prompt_lengths is not None:
                hook.prompt_lengths = torch.tensor([prompt_lengths[i] for i in chunk])
            changed = residual if hook is None else hook.restarted()(residual)
            with self.model.engine.resuming(self.hook, changed):
                logits = self.model.logits(tokens)
            yield chunk, tokens, logits
