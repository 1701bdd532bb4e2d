"""Propensities of choice items at many strengths of an intervention.

Problem: the propensity of an item, log p(positive) − log p(negative), needs both continuations, and
an evaluation needs it at dozens of strengths. Mechanism: LRT's propensity (§3.4) is
m_LD = logit(y⁺) − logit(y⁻) at the position of the answer. If two continuations of a prompt differ
in one token, the difference of their log-probabilities is just that, and one row of tokens serves
both: all tokens before the last one of a continuation. Longer continuations are scored whole, each
with its own sum. Prompt and continuation are tokenized as one text, because many tokenizers write
``(A`` as one token behind some prompts: tokens that both texts begin with cancel, and all others
are scored. A token that spans the boundary is scored as one; ``n_spanning`` counts such items.

    text = PreferenceText(model, items, "blocks.3.hook_resid_post")
    text.propensity()                           # [item], without intervention
    text.propensity(vector.hook_at(2.0))        # [item], under the vector

Limits: of two continuations with different numbers of tokens the longer one scores lower for that
alone; ``n_uneven`` counts such items.
"""

import numpy as np

from lrt_lens.adapters.vectors._neutral_text import TokenBatches
from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._text_codec import shared_length


class PreferenceText:
    """Choice items, tokenized once and stored with the residual at one hook point.

    Raises:
        ValueError: both continuations of an item are the same tokens, an item is longer than the
            model's context, or no token is before the first one that is scored.
    """

    def __init__(self, model: HookedModel, items: ChoiceItems, hook: int | str) -> None:
        positives, negatives = (
            model.codec.continuations(items.prompts, texts)
            for texts in (items.positive, items.negative)
        )
        self.n_items = len(items)
        self.n_uneven = self.n_spanning = 0
        # Row number by (length of the prompt, *tokens). The length belongs to the key: the same
        # tokens may be one item's prompt and another item's prompt with part of a continuation.
        self._rows: dict[tuple[int, ...], int] = {}
        self._prompt_lengths: list[int] = []
        self._starts: list[int] = []
        # Per row: (item, sign, tokens of the continuation that are scored).
        self._scored: list[list[tuple[int, float, list[int]]]] = []
        for item, both in enumerate(zip(positives, negatives, strict=True)):
            (prompt, positive), (_, negative) = both
            if positive == negative:
                raise ValueError(
                    f"item {item} has the continuation {items.positive[item]!r} twice "
                    f"(the same tokens to {model.name!r}); give two that differ"
                )
            self.n_uneven += len(positive) != len(negative)
            if not shared_length(positive, negative):
                raise ValueError(
                    f"item {item} has no token before its continuations: the first one spans the"
                    f" prompt {items.prompts[item]!r}, and {model.name!r} reads no special token"
                    " before a text, so that nothing predicts it; give a longer prompt, or load"
                    " the model with prepend_bos=True"
                )
            # Where a token spans the boundary, the prompt loses its last tokens to it.
            n_kept = min(shared_length(prompt, text) for text in (positive, negative))
            self.n_spanning += n_kept < len(prompt)
            self._add_item(item, n_kept, positive, negative)
        _refuse_longer_than_context(model, [*positives, *negatives])
        self.batches = TokenBatches(model, [row for _, *row in self._rows], hook)

    def _add_item(self, item: int, n_prompt: int, positive: list[int], negative: list[int]) -> None:
        """Register the rows of one item; tokens that both texts begin with are not scored.

        Their log-probabilities cancel in log p(positive) − log p(negative).
        """
        shared = shared_length(positive, negative)
        for sign, tokens in ((1.0, positive), (-1.0, negative)):
            # If one text is the beginning of the other, it has no token left to score.
            if len(tokens) > shared:
                self._add_row(item, sign, tokens, n_prompt, shared)

    def _add_row(
        self, item: int, sign: float, tokens: list[int], n_prompt: int, shared: int
    ) -> None:
        # The last token is predicted, never read, so the row ends before it.
        row = tokens[:-1]
        index = self._rows.setdefault((n_prompt, *row), len(self._rows))
        if index == len(self._scored):
            self._scored.append([])
            self._prompt_lengths.append(n_prompt)
            self._starts.append(len(row) - 1)
        # Position p predicts token p + 1.
        self._starts[index] = min(self._starts[index], shared - 1)
        self._scored[index].append((item, sign, tokens[shared:]))

    @property
    def n_rows(self) -> int:
        """Number of rows that run.

        An item needs one row if its continuations differ in one token, otherwise two.
        """
        return len(self._rows)

    def propensity(self, hook: SteeringHook | None = None) -> np.ndarray:
        """Return log p(positive) − log p(negative) in nats, [item], under a hook or none.

        Each log-probability is summed over the tokens of the continuation.
        """
        sums = np.zeros(self.n_items)
        for row, log_p in self.batches.next_log_probabilities(
            self._starts, hook, self._prompt_lengths
        ):
            # Several items can share one row of tokens, and one item can have two rows.
            for item, sign, tokens in self._scored[row]:
                # The tokens of a continuation are predicted from the last positions of its row.
                first = len(log_p) - len(tokens)
                # log p(continuation | prompt) = Σₖ log p(tokenₖ | all tokens before it)
                sums[item] += sign * sum(
                    float(log_p[first + k, token]) for k, token in enumerate(tokens)
                )
        return sums


def _refuse_longer_than_context(
    model: HookedModel, rows: list[tuple[list[int], list[int]]]
) -> None:
    longest = max(len(row) for _, row in rows)
    if longest > model.context_length:
        raise ValueError(
            f"an item has {longest} tokens; {model.name!r} reads {model.context_length}: "
            "shorten the prompts"
        )
