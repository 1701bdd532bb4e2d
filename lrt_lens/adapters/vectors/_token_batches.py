"""Texts that are tokenized once and run many times under changing interventions.

Problem: damage (loss on neutral text) and propensity (log-probabilities of continuations) are
measured at dozens of strengths of the same vector. Mechanism: everything before the steered hook
point is the same each time, so it runs once. The stored residual is changed as the hook would
change it, and the pass resumes from there.

Limits: the residual of all rows stays in memory; hooks before the stored hook point have no effect.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import HookedModel

_BATCH_ROWS = 128
"""Largest number of rows of a pass."""
_LOGITS_AT_ONCE = 2**27
"""Largest number of logits of a pass (half a gigabyte in float32): rows × length × vocabulary."""


class TokenBatches:
    """Rows of token ids in batches, with the residual at one hook point stored once."""

    def __init__(self, model: HookedModel, rows: Sequence[Sequence[int]], hook: int | str) -> None:
        self.model, self.hook = model, resolve(hook, model)
        # Rows of similar length share a batch, so that little of it is padding.
        self.order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        self.rows = [list(row) for row in rows]
        self._chunks = list(self._batches(model.d_vocab))
        # `pad` fills on the right: with causal attention no real token attends to the padding.
        self._tokens = [model.pad([self.rows[i] for i in chunk]) for chunk in self._chunks]
        self._residuals = [
            model.engine.capture(tokens, [self.hook])[self.hook] for tokens in self._tokens
        ]

    def _batches(self, d_vocab: int) -> Iterator[list[int]]:
        """Yield the row numbers of each batch, from short rows to long ones."""
        chunk: list[int] = []
        for i in self.order:
            # Rows are sorted by length, so row i gives the padded length of the batch.
            n_logits = (len(chunk) + 1) * len(self.rows[i]) * d_vocab
            if chunk and (n_logits > _LOGITS_AT_ONCE or len(chunk) == _BATCH_ROWS):
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def residuals(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each row number with its unsteered residual [length, d_model] at the hook point."""
        for chunk, residual in zip(self._chunks, self._residuals, strict=True):
            for line, i in enumerate(chunk):
                yield i, residual[line, : len(self.rows[i])]

    def log_probabilities(
        self, hook: SteeringHook | None = None, prompt_lengths: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield each row number with the log-probabilities of its tokens, [length - 1].

        The first token is not predicted. ``hook`` changes the stored residual; None runs without
        intervention. ``prompt_lengths`` [row] tell the hook which tokens count as generated.
        """
        for chunk, tokens, logits in self._passes(hook, prompt_lengths):
            logits = logits[:, :-1].float()
            of_tokens = logits.gather(2, tokens[:, 1:, None].to(logits.device))[..., 0]
            # log softmax(z)ₜ = zₜ − log Σⱼ exp zⱼ, without a second array of the size of z
            log_p = of_tokens - logits.logsumexp(2)
            for line, i in enumerate(chunk):
                yield i, log_p[line, : len(self.rows[i]) - 1].cpu()

    def next_log_probabilities(
        self,
        starts: Sequence[int],
        hook: SteeringHook | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield each row number with next-token log-probabilities, [length - start, vocabulary].

        ``starts`` [row] are the first positions that are returned; the other arguments are those of
        `log_probabilities`.
        """
        # log_softmax runs per row, because a float32 copy of a batch's logits would double its
        # memory.
        for chunk, _, logits in self._passes(hook, prompt_lengths):
            for line, i in enumerate(chunk):
                yield i, logits[line, starts[i] : len(self.rows[i])].float().log_softmax(-1).cpu()

    def _passes(
        self, hook: SteeringHook | None, prompt_lengths: Sequence[int] | None
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield (row numbers, tokens, logits [row, position, vocabulary]) of every batch."""
        for chunk, tokens, residual in zip(
            self._chunks, self._tokens, self._residuals, strict=True
        ):
            # A hook is called per batch, so it gets the prompt lengths of that batch.
            if hook is not None and prompt_lengths is not None:
                hook.prompt_lengths = torch.tensor([prompt_lengths[i] for i in chunk])
            changed = residual if hook is None else hook.restarted()(residual)
            with self.model.engine.resuming(self.hook, changed):
                logits = self.model.logits(tokens)
            yield chunk, tokens, logits
