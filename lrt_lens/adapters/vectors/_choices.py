"""Propensity: which of two continuations a model prefers."""

import numpy as np

from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.adapters.vectors._token_batches import TokenBatches
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.models._hooked_model import HookedModel


class ChoiceText:
    """Choice items made ready: the propensity of each under an intervention."""

    def __init__(self, model: HookedModel, items: ChoiceItems, hook: int | str) -> None:
        prompts = model.encode(items.prompts)
        continuations = [model.encode_bodies(texts) for texts in (items.positive, items.negative)]
        rows = [
            [*prompt, *ids]
            for side in continuations
            for prompt, ids in zip(prompts, side, strict=True)
        ]
        longest = max(len(row) for row in rows)
        if longest > model.context_length:
            raise ValueError(
                f"an item has {longest} tokens; {model.name!r} reads {model.context_length}: shorten the prompts"
            )
        self.n_items = len(items)
        self.prompt_lengths = [len(prompt) for prompt in prompts] * 2
        self.batches = TokenBatches(model, rows, hook)

    def propensity(self, hook: SteeringHook | None = None) -> np.ndarray:
        """[item], log p(positive) − log p(negative) in nats, each summed over the continuation's
        tokens.
        """
        sums = np.zeros(2 * self.n_items)
        for i, values in self.batches.log_probabilities(hook, self.prompt_lengths):
            sums[i] = float(values[self.prompt_lengths[i] - 1 :].sum())
        return sums[: self.n_items] - sums[self.n_items :]
