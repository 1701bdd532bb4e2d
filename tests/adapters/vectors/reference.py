"""Reference implementations that tests compare the toolkit with."""

import numpy as np

from lrt_lens.adapters.vectors._neutral_text import TokenBatches
from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.data import ChoiceItems
from lrt_lens.models import HookedModel


class OneRowPerContinuation:
    """Propensities from one row of tokens per continuation, nothing shared between the two.

    `PreferenceText` gives the same numbers with fewer rows.
    """

    def __init__(self, model: HookedModel, items: ChoiceItems, hook: int | str) -> None:
        prompts = model.encode(items.prompts)
        continuations = [model.encode_bodies(texts) for texts in (items.positive, items.negative)]
        rows = [
            [*prompt, *tokens]
            for side in continuations
            for prompt, tokens in zip(prompts, side, strict=True)
        ]
        self.n_items = len(items)
        self.prompt_lengths = [len(prompt) for prompt in prompts] * 2
        self.batches = TokenBatches(model, rows, hook)

    def propensity(self, hook: SteeringHook | None = None) -> np.ndarray:
        """Return log p(positive) − log p(negative) in nats, [item], each a sum over tokens."""
        sums = np.zeros(2 * self.n_items)
        starts = [length - 1 for length in self.prompt_lengths]
        for i, log_p in self.batches.log_probabilities(starts, hook, self.prompt_lengths):
            sums[i] = float(log_p.sum())
        return sums[: self.n_items] - sums[self.n_items :]
