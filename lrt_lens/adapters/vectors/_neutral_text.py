"""What an intervention costs on neutral text, where it should change nothing.

    neutral = NeutralText(model, texts, vector.hook)
    neutral.damage(vector.hook_at(2.0))          # nats per token by which the loss rises
    neutral.divergence(vector.hook_at(2.0))      # KL(unsteered ‖ steered), nats per token

Both are means over the same predicted tokens. The rise of the loss asks the text: a model that gets
more confident may even be paid for it. The divergence asks the unsteered model: it counts every
change of the next-token distribution and is never negative. For a small step it grows with the
square of the step; where the model knows its text well (loss near the text's entropy) both agree.

A plain text counts behind its first positions, which are never steered. A conversation (``[{"role",
"content"}, …]``, ending with the assistant's turn) goes through the tokenizer's chat template,
everything before that turn is prompt, and only that turn counts: nobody steers a chat model for
what it predicts of its user.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.adapters.vectors._token_batches import TokenBatches
from lrt_lens.data._documents import iterate_documents
from lrt_lens.models._hook_points import residual_post
from lrt_lens.models._hooked_model import SKIP_FIRST, HookedModel
from lrt_lens.typing import Direction, HookFunction

Unit = Literal["loss", "kl"]
"""What is counted in nats per token: the rise of the loss, or KL(unsteered ‖ steered)."""
Neutral = Sequence[Any]
"""Texts, or conversations as lists of ``{"role", "content"}``."""
LaterHooks = dict[str, SteeringHook]
"""Hooks behind the first, by hook point."""


@dataclass(frozen=True)
class _Row:
    """One text as tokens."""

    tokens: list[int]
    prompt: int
    """Tokens of the prompt; what follows counts as generated."""
    start: int
    """First position whose prediction counts."""


class NeutralText:
    """Neutral texts on which an intervention's damage is measured; ``hook`` is the first place
    where it changes anything.
    """

    def __init__(self, model: HookedModel, texts: Neutral, hook: int | str) -> None:
        self.model = model
        self._rows = _rows(model, texts)
        if all(row.start >= len(row.tokens) - 1 for row in self._rows):
            raise ValueError(
                f"no neutral text is longer than {SKIP_FIRST + 1} tokens; give texts of a few sentences"
            )
        self.batches = TokenBatches(model, [row.tokens for row in self._rows], hook)
        self._prompts = [row.prompt for row in self._rows]
        self._starts = [row.start for row in self._rows]
        self.baseline = self._loss(None, {})

    def cost(self, unit: Unit, hook: SteeringHook, later: LaterHooks | None = None) -> float:
        """`damage` or `divergence`."""
        measures: dict[str, Callable[[SteeringHook, LaterHooks | None], float]] = {
            "loss": self.damage,
            "kl": self.divergence,
        }
        if unit not in measures:
            raise ValueError(
                f"unit is {unit!r}; expected 'loss' (rise of the loss) or 'kl' (KL from the unsteered model), both in nats per token"
            )
        return measures[unit](hook, later)

    def damage(self, hook: SteeringHook, later: LaterHooks | None = None) -> float:
        """Nats per token by which the loss rises, over the positions that may be steered; ``later``
        are hooks at further hook points.
        """
        return self._loss(hook, later or {}) - self.baseline

    def divergence(self, hook: SteeringHook, later: LaterHooks | None = None) -> float:
        """KL(unsteered ‖ steered) of the next-token distributions, nats per token, over the
        positions of `damage`.
        """
        total = count = 0.0
        unsteered = self._at_the_end.next_log_probabilities(self._starts)
        steered = self.batches.next_log_probabilities(self._starts, hook, self._prompts)
        for (i, now), (j, before) in zip(self._under(later or {}, steered), unsteered, strict=True):
            if i != j:
                raise RuntimeError(
                    f"row {i} met row {j}: batches of the same rows must come in one order"
                )
            # The last prediction has no token to follow it, so the loss does not count it either.
            before, now = before[:-1], now[:-1]
            total += float((before.exp() * (before - now)).sum(dtype=torch.float64))
            count += len(before)
        return total / count

    def mean_component(self, direction: Direction, hook: str) -> float:
        """Mean component of the unsteered stream along a direction of any length, over the
        positions that may be steered.
        """
        return float(self._stream(hook).mean(0) @ (direction / direction.norm()).double().cpu())

    def median_norm(self, hook: str) -> float:
        """Median ‖x‖ of the unsteered stream, over the positions that may be steered."""
        return float(self._stream(hook).norm(dim=1).median())

    def _stream(self, hook: str) -> Tensor:
        """[token, d_model] in float64, unsteered; only the first hook point's is at hand without a
        pass.
        """
        if hook == self.batches.hook:
            residuals = (residual for _, residual in self.batches.residuals())
        else:
            residuals = (
                self.model.engine.capture(self.model.pad([row.tokens]), [hook])[hook][0]
                for row in self._rows
            )
        return torch.cat([residual[SKIP_FIRST:].double().cpu() for residual in residuals])

    @cached_property
    def _at_the_end(self) -> TokenBatches:
        """The unsteered stream behind the last block: from there the unsteered predictions cost an
        unembedding and no storage of logits.
        """
        return TokenBatches(self.model, self.batches.rows, residual_post(self.model.n_layers - 1))

    def _loss(self, hook: SteeringHook | None, later: LaterHooks) -> float:
        found = self._under(later, self.batches.log_probabilities(hook, self._prompts))
        return float(torch.cat([-values[self._starts[i] :] for i, values in found]).mean())

    def _under(
        self, later: LaterHooks, passes: Iterator[tuple[int, Tensor]]
    ) -> Iterator[tuple[int, Tensor]]:
        """What the passes yield, with hooks on while they run and off while anything else does."""
        hooks: dict[int | str, HookFunction] = {**later}
        while True:
            with self.model.intervene(hooks):
                found = next(passes, None)
            if found is None:
                return
            yield found


def _rows(model: HookedModel, texts: Neutral) -> list[_Row]:
    if isinstance(texts, str | dict) or not len(texts):
        found = "no neutral text" if not len(texts) else f"neutral is one {type(texts).__name__}"
        raise ValueError(
            f"{found}; expected a list of texts, or of conversations (lists of {{'role', 'content'}})"
        )
    return [
        _plain(model, text) if isinstance(text, str) else _conversation(model, text, i)
        for i, text in enumerate(texts)
    ]


def _plain(model: HookedModel, text: str) -> _Row:
    # Positions mean something on a plain text too: the first steerable token ends the prompt, the
    # rest counts as generated.
    return _Row(model.encode([text])[0], prompt=SKIP_FIRST + 1, start=SKIP_FIRST)


def _conversation(model: HookedModel, chat: Any, index: int) -> _Row:
    [whole] = iterate_documents(
        [chat], model.tokenizer
    )  # refuses what is no conversation, and a tokenizer without a template
    turns = chat["messages"] if isinstance(chat, dict) else chat
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise ValueError(
            f"neutral conversation {index} ends with the turn of {turns[-1]['role']!r} and has {len(turns)} turn(s); damage is measured on the "
            "assistant's answer to something: add one, the model's own (model.generate) where you have none"
        )
    asked = model.tokenizer.apply_chat_template(
        turns[:-1], tokenize=False, add_generation_prompt=True
    )
    row, prompt = _tokens(model, whole), _tokens(model, asked)
    # Token by token, because a template may write a prompt otherwise than the beginning of the
    # whole.
    same = next(
        (place for place, (a, b) in enumerate(zip(row, prompt, strict=False)) if a != b),
        min(len(row), len(prompt)),
    )
    if same >= len(row):
        raise ValueError(
            f"neutral conversation {index} has no answer within the {model.context_length} tokens of the context: its prompt has {len(prompt)} or "
            "more; leave it out, or shorten its earlier turns"
        )
    return _Row(row, prompt=same, start=max(same - 1, SKIP_FIRST))


def _tokens(model: HookedModel, templated: str) -> list[int]:
    [row] = model.encode([templated])
    twice = model.prepend_bos and row[1:2] == row[:1]
    return row[1:] if twice else row  # chat templates write the BOS themselves
