"""Damage of an intervention: its cost on neutral text, where it should change nothing.

    neutral = NeutralText(model, texts, vector.hook)
    neutral.damage(vector.hook_at(2.0))          # rise of the loss, nats per token
    neutral.divergence(vector.hook_at(2.0))      # KL(unsteered ‖ steered), nats per token

Problem: interventions can only be compared at the same side effect, measured at dozens of
strengths. Mechanism: two measures, both means over the same predicted tokens. The rise of the loss
compares the model with the text; it can be negative if the intervention makes correct predictions
more confident. The divergence compares the model with itself: it counts every change of the
next-token distribution and is never negative. For a small step it grows with the square of the
step. If the loss is near the entropy of the text, both agree. Everything before the steered hook
point is the same at every strength, so `TokenBatches` runs it once: the stored residual is changed
as the hook would change it, and the pass resumes from there.

A plain text counts after its first positions, which are never steered; one that is longer than the
context is read in windows. A conversation (``[{"role",
"content"}, …]``, ending with the assistant's turn) is formatted with the tokenizer's chat template.
Everything before the last turn is prompt and only the last turn counts, because a chat model is not
used to predict its user.

Limits: damage on neutral text says nothing about side effects on other kinds of text. The residual
of all rows stays in memory; hooks before the stored hook point have no effect.
"""

import logging
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lrt_lens._stored_fields import json_checksum
from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.data._documents import iterate_documents, iterate_rows
from lrt_lens.models._far_norms import FarNorms
from lrt_lens.models._finite import refuse_nan
from lrt_lens.models._hook_points import residual_post, resolve
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._ownership import entering
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.typing import Direction, HookFunction

logger = logging.getLogger(__name__)

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
        self,
        starts: Sequence[int],
        hook: SteeringHook | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield each row number with log-probabilities of its tokens, [length - 1 - start].

        Args:
            starts: position of each row whose prediction is the first one returned, [row].
            hook: changes the stored residual; None runs without intervention.
            prompt_lengths: tell the hook which tokens count as generated, [row].
        """
        # The last position predicts no token of the row.
        for tokens, logits, parts in self._passes(starts, 1, hook, prompt_lengths):
            logits = logits.float()
            rows, positions = _selected(parts)
            predicted = tokens[rows, positions + 1].to(logits.device)
            # log softmax(z)ₜ = zₜ − log Σⱼ exp zⱼ, without a second array of the size of z
            log_p = logits.gather(1, predicted[:, None])[:, 0] - logits.logsumexp(1)
            yield from _by_row(parts, log_p.cpu())

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
        for _, logits, parts in self._passes(starts, 0, hook, prompt_lengths):
            for i, part in _by_row(parts, logits):
                yield i, part.float().log_softmax(-1).cpu()

    def _passes(
        self,
        starts: Sequence[int],
        n_left_out: int,
        hook: SteeringHook | None,
        prompt_lengths: Sequence[int] | None,
    ) -> Iterator[tuple[Tensor, Tensor, "list[_Part]"]]:
        """Yield (tokens, logits [selected, vocabulary], parts) of every batch.

        Selected are the positions of each row from its start on, without the ``n_left_out`` last.
        """
        for chunk, tokens, residual in zip(
            self._chunks, self._tokens, self._residuals, strict=True
        ):
            # A hook is called per batch, so it gets the prompt lengths of that batch.
            if hook is not None and prompt_lengths is not None:
                hook.prompt_lengths = torch.tensor([prompt_lengths[i] for i in chunk])
            changed = residual if hook is None else hook.restarted()(residual)
            parts = [
                (i, line, starts[i], max(starts[i], len(self.rows[i]) - n_left_out))
                for line, i in enumerate(chunk)
            ]
            engine = self.model.engine
            with engine.resuming(self.hook, changed), torch.inference_mode():
                logits = engine.logits_at(tokens, *_selected(parts))
            yield tokens, refuse_nan(logits, self.model.name), parts


_Part = tuple[int, int, int, int]
"""Row number, line of the batch, and the first position and the end of what is selected of it."""


def _selected(parts: Sequence[_Part]) -> tuple[Tensor, Tensor]:
    """Return (line of the batch, position) of every selected position, [selected] each."""
    lines = [line for _, line, start, end in parts for _ in range(start, end)]
    positions = [position for _, _, start, end in parts for position in range(start, end)]
    return torch.tensor(lines, dtype=torch.long), torch.tensor(positions, dtype=torch.long)


def _by_row(parts: Sequence[_Part], values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each row number with its share of the selected positions."""
    for (i, *_), part in zip(parts, values.split([e - s for *_, s, e in parts]), strict=True):
        yield i, part


Unit = Literal["loss", "kl"]
"""Measure of damage in nats per token: the rise of the loss, or KL(unsteered ‖ steered)."""
Neutral = Any
"""Texts, or conversations as lists of ``{"role", "content"}``: a list, a column, or a table or data
set with a column of them (`DocumentSource(table, text_field=…)` names it).
"""
LaterHooks = dict[str, SteeringHook]
"""Hooks at hook points after the first one, by hook point."""


@dataclass(frozen=True)
class _Row:
    """Tokens of one text, and the positions that count."""

    tokens: list[int]
    """Token ids of the whole text, BOS included if the model prepends it."""
    prompt: int
    """Number of tokens of the prompt; the others count as generated."""
    start: int
    """First position whose prediction counts."""
    text: int
    """Number of the text that the row belongs to; a long text has several rows."""


class NeutralText:
    """Neutral texts on which the damage of interventions is measured.

    Args:
        model: the model that is steered.
        texts: texts, or conversations that end with the assistant's turn.
        hook: first hook point at which an intervention changes the stream.
        skip_first: first positions of a text that are not steered, and whose predictions do not
            count.

    Raises:
        ValueError: no text, no text of more than ``skip_first`` + 1 tokens, or a conversation
            without an answer.
    """

    def __init__(
        self, model: HookedModel, texts: Neutral, hook: int | str, *, skip_first: int = SKIP_FIRST
    ) -> None:
        self.model, self.skip_first = model, skip_first
        self._rows = _rows(model, texts, skip_first)
        # A row of n tokens has n − 1 predictions.
        if all(row.start >= len(row.tokens) - 1 for row in self._rows):
            raise ValueError(
                f"no neutral text is longer than {skip_first + 1} tokens; "
                "give texts of a few sentences"
            )
        self.batches = TokenBatches(model, [row.tokens for row in self._rows], hook)
        self._prompts = [row.prompt for row in self._rows]
        self._starts = [row.start for row in self._rows]
        texts_of_rows = [row.text for row in self._rows]
        # A row of n tokens has n − 1 predictions, of which those from `start` on count.
        n_counted = [max(0, len(row.tokens) - 1 - row.start) for row in self._rows]
        self.digest = json_checksum([row.tokens for row in self._rows])
        """Hash of the tokens of all texts, in hexadecimal."""
        self.n_tokens = np.bincount(texts_of_rows, weights=n_counted)
        """Number of tokens that count, [text]."""
        self.unsteered = self.losses(None)
        """Loss without intervention, summed over the tokens of each text, in nats, [text]."""

    def counted_rows(self) -> tuple[list[list[int]], list[int]]:
        """Return the token ids of each row, and the first position whose prediction counts."""
        return [row.tokens for row in self._rows], list(self._starts)

    def cost(self, unit: Unit, hook: SteeringHook, later: LaterHooks | None = None) -> float:
        """Return `damage` (unit ``"loss"``) or `divergence` (unit ``"kl"``), nats per token."""
        measures: dict[str, Callable[[SteeringHook, LaterHooks | None], float]] = {
            "loss": self.damage,
            "kl": self.divergence,
        }
        if unit not in measures:
            raise ValueError(
                f"unit is {unit!r}; expected 'loss' (rise of the loss) or 'kl' "
                "(KL from the unsteered model), both in nats per token"
            )
        return measures[unit](hook, later)

    def damage(self, hook: SteeringHook, later: LaterHooks | None = None) -> float:
        """Return the rise of the loss in nats per token, over the positions that may be steered.

        ``later`` are hooks at later hook points.
        """
        return float((self.losses(hook, later) - self.unsteered).sum() / self.n_tokens.sum())

    @property
    def baseline(self) -> float:
        """Mean loss without intervention, in nats per token."""
        return float(self.unsteered.sum() / self.n_tokens.sum())

    def losses(self, hook: SteeringHook | None, later: LaterHooks | None = None) -> np.ndarray:
        """Return the loss summed over the tokens that count, in nats, for each text, [text].

        Damage is a mean over tokens, so that an interval needs the sums and ``n_tokens`` of the
        texts, which are the independent units.
        """
        losses = np.zeros(len(self.n_tokens))
        passes = self.batches.log_probabilities(self._starts, hook, self._prompts)
        for i, log_p in self._under(later or {}, passes):
            losses[self._rows[i].text] -= float(log_p.double().sum())
        return losses

    def divergence(self, hook: SteeringHook, later: LaterHooks | None = None) -> float:
        """Return KL(unsteered ‖ steered) of the next token in nats, over the positions of `damage`.

        ``later`` are hooks at later hook points.
        """
        total = count = 0.0
        unsteered = self._last_block.next_log_probabilities(self._starts)
        steered = self.batches.next_log_probabilities(self._starts, hook, self._prompts)
        for (i, log_q), (j, log_p) in zip(
            self._under(later or {}, steered), unsteered, strict=True
        ):
            if i != j:
                raise RuntimeError(
                    f"steered row {i} is compared with unsteered row {j}; "
                    "batches of the same rows must have one order"
                )
            # The last prediction has no token to follow it, so the loss does not count it either.
            log_p, log_q = log_p[:-1], log_q[:-1]
            # KL(p ‖ q) = Σ p (log p − log q), summed in float64 over positions and vocabulary
            total += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
            count += len(log_p)
        return total / count

    def mean_component(self, direction: Direction, hook: str) -> float:
        """Return the mean component of the unsteered stream along a direction of any length.

        The mean is over the positions that may be steered.
        """
        stream = self._stream(hook)
        far = FarNorms()
        far.add(hook, stream)
        for sentence in far.warnings():
            logger.warning("%s", sentence)
        return float(stream.mean(0) @ (direction / direction.norm()).double().cpu())

    def median_norm(self, hook: str) -> float:
        """Return the median ‖x‖ of the unsteered stream over the positions that may be steered."""
        return float(self._stream(hook).norm(dim=1).median())

    def _stream(self, hook: str) -> Tensor:
        """Return the unsteered stream [token, d_model] in float64.

        The stream at the first hook point is stored; any other needs a pass.
        """
        if hook == self.batches.hook:
            residuals = (residual for _, residual in self.batches.residuals())
        else:
            residuals = (
                self.model.engine.capture(self.model.pad([row.tokens]), [hook])[hook][0]
                for row in self._rows
            )
        return torch.cat([residual[self.skip_first :].double().cpu() for residual in residuals])

    @cached_property
    def _last_block(self) -> TokenBatches:
        """Return the rows with the unsteered stream after the last block.

        From there, unsteered predictions cost one unembedding, and no logits have to be stored.
        """
        return TokenBatches(self.model, self.batches.rows, residual_post(self.model.n_layers - 1))

    def _under(
        self, later: LaterHooks, passes: Iterator[tuple[int, Tensor]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the rows of ``passes``, with hooks registered only while a pass runs."""
        hooks: dict[int | str, HookFunction] = {**later}
        while True:
            # The caller may run the model between two rows, so hooks are off at every yield.
            with entering(), self.model.intervene(hooks):
                row = next(passes, None)
            if row is None:
                return
            yield row


def _rows(model: HookedModel, texts: Neutral, skip_first: int) -> list[_Row]:
    expected = "expected a list of texts, or of conversations (lists of {'role', 'content'})"
    if isinstance(texts, str | dict) and len(texts):
        raise ValueError(f"neutral is one {type(texts).__name__}; {expected}")
    if isinstance(texts, Set):
        raise ValueError(f"neutral is a {type(texts).__name__}, which has no order; {expected}")
    has_length = hasattr(texts, "__len__")
    listed = [] if has_length and not len(texts) else list(iterate_rows(texts))
    if not listed:
        empty = (
            "no neutral text: text 0 is empty" if has_length and len(texts) else "no neutral text"
        )
        raise ValueError(f"{empty}; {expected}")
    if has_length and len(listed) < len(texts):
        logger.warning("%d neutral text(s) are empty and left out", len(texts) - len(listed))
    return [
        row
        for i, text in enumerate(listed)
        for row in (
            _plain(model, text, i, skip_first)
            if isinstance(text, str)
            else [_conversation(model, text, i, skip_first)]
        )
    ]


def _plain(model: HookedModel, text: str, index: int, skip_first: int) -> list[_Row]:
    """Return the rows of a text: one, or several windows if it is longer than the context."""
    # A plain text has no prompt, but positions="last" and "generated" need one: it ends with the
    # first token that may be steered.
    [windows] = model.codec.windows([text])
    return [_Row(window, skip_first + 1, skip_first, text=index) for window in windows]


def _conversation(
    model: HookedModel, turns: list[dict[str, Any]], index: int, skip_first: int
) -> _Row:
    # `iterate_documents` refuses a tokenizer without a template.
    [whole] = iterate_documents([turns], model.tokenizer)
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise ValueError(
            f"neutral conversation {index} ends with the turn of {turns[-1]['role']!r} and has "
            f"{len(turns)} turn(s); expected at least two, the last one of the assistant: damage "
            "is measured on the answer. Add one, such as the model's own (model.generate)"
        )
    templated = model.tokenizer.apply_chat_template(
        turns[:-1], tokenize=False, add_generation_prompt=True
    )
    # Chat templates write BOS themselves; `encode` does not write a second one.
    row, prompt = model.codec.encode([whole, templated], "right")
    # Tokens are compared, because some templates format a prompt alone differently from the same
    # turns at the beginning of a whole conversation.
    n_shared = min(len(row), len(prompt))
    n_shared = next((i for i in range(n_shared) if row[i] != prompt[i]), n_shared)
    if n_shared >= len(row):
        raise ValueError(
            f"neutral conversation {index} has no answer within the {model.context_length} tokens "
            f"of the context: its prompt has {len(prompt)} or more; leave it out, or shorten its "
            "earlier turns"
        )
    if model.codec.truncation != "right" and model.codec.longer([whole]):
        raise ValueError(
            f"neutral conversation {index} is longer than the {model.context_length} tokens of the"
            " context; leave it out, shorten its turns, or load the model with truncation='right'"
        )
    # Position n_shared − 1 predicts the first token of the answer.
    return _Row(row, n_shared, start=max(n_shared - 1, skip_first), text=index)
