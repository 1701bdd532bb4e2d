"""Propensities at many strengths, with what both continuations share run once.

LRT's propensity (§3.4) is m_LD = logit(y⁺) − logit(y⁻) at the position of the answer. Where two
continuations of a prompt differ in one token, the difference of their log-probabilities is just
that, and a single pass over the shared text gives both: what comes in front of the last token of a
continuation is all that needs to run. Longer continuations are scored whole, each by its own sum;
`lrt_lens.adapters.vectors._choices` computes the same numbers with a pass a continuation.
"""

from itertools import takewhile

import numpy as np

from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.adapters.vectors._token_batches import TokenBatches
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.models._hooked_model import HookedModel


class PreferenceText:
    """Choice items made ready at one hook point; ValueError names an item whose continuations are
    the same tokens.
    """

    def __init__(self, model: HookedModel, items: ChoiceItems, hook: int | str) -> None:
        prompts = model.encode(items.prompts)
        sides = [model.encode_bodies(texts) for texts in (items.positive, items.negative)]
        self.n_items, self.n_uneven = (
            len(items),
            sum(len(a) != len(b) for a, b in zip(*sides, strict=True)),
        )
        self._rows: dict[tuple[int, ...], int] = {}
        """Place of (length of the prompt, tokens): the same tokens may be another prompt's
        beginning of a continuation.
        """
        self._prompt_lengths: list[int] = []
        self._starts: list[int] = []
        self._wanted: list[list[tuple[int, float, list[int]]]] = []
        """For each row: (item, sign, tokens of the continuation from the row's start on)."""
        for item, (prompt, positive, negative) in enumerate(zip(prompts, *sides, strict=True)):
            if positive == negative:
                raise ValueError(
                    f"item {item} has the continuation {items.positive[item]!r} twice (the same tokens to {model.name!r}); give two that differ"
                )
            shared = sum(
                1
                for _ in takewhile(
                    lambda both: both[0] == both[1], zip(positive, negative, strict=False)
                )
            )
            for sign, ids in ((1.0, positive), (-1.0, negative)):
                # Where one continuation is the beginning of the other, nothing of it is left to
                # score: log p = 0 of the rest.
                if len(ids) > shared:
                    self._want(item, sign, prompt, ids, shared)
        longest = max(
            len(prompt) + max(map(len, ends))
            for prompt, ends in zip(prompts, zip(*sides, strict=True), strict=True)
        )
        if longest > model.context_length:
            raise ValueError(
                f"an item has {longest} tokens; {model.name!r} reads {model.context_length}: shorten the prompts"
            )
        self.batches = TokenBatches(model, [row for _, *row in self._rows], hook)

    def _want(self, item: int, sign: float, prompt: list[int], ids: list[int], shared: int) -> None:
        row = [*prompt, *ids[:-1]]
        place = self._rows.setdefault((len(prompt), *row), len(self._rows))
        if place == len(self._wanted):
            self._wanted.append([])
            self._prompt_lengths.append(len(prompt))
            self._starts.append(len(row) - 1)
        start = len(prompt) + shared - 1
        self._starts[place] = min(self._starts[place], start)
        self._wanted[place].append((item, sign, ids[shared:]))

    @property
    def n_rows(self) -> int:
        """Rows that run: one an item where the continuations differ in one token, else two."""
        return len(self._rows)

    def propensity(self, hook: SteeringHook | None = None) -> np.ndarray:
        """[item], log p(positive) − log p(negative) in nats, each summed over the continuation's
        tokens.
        """
        sums = np.zeros(self.n_items)
        for i, table in self.batches.next_log_probabilities(
            self._starts, hook, self._prompt_lengths
        ):
            for item, sign, ids in self._wanted[i]:
                # A continuation's tokens are predicted from the last positions of its row.
                sums[item] += sign * sum(
                    float(table[len(table) - len(ids) + k, token]) for k, token in enumerate(ids)
                )
        return sums
