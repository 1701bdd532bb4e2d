"""Texts made ready once and scored many times under changing interventions.

Damage (loss on neutral text) and propensity (log-probability of continuations) are measured at dozens of strengths of the same
vector. Everything before the steered hook point is the same each time, so it is run once: passes resume from the stored residual
where the model allows it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lrt_lens.adapters.steering import Mode, Positions, SteeringHook, SteeringVector
from lrt_lens.data.contrast import ChoiceItems
from lrt_lens.models.hook_points import resolve
from lrt_lens.models.hooked_model import SKIP_FIRST, HookedModel

_BATCH_ROWS = 64


class TokenBatches:
    """Rows of token ids in batches, with the residual at one hook point stored once."""

    def __init__(self, model: HookedModel, rows: Sequence[Sequence[int]], hook: int | str) -> None:
        self.model, self.hook = model, resolve(hook, model)
        self.order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        self.rows = [list(row) for row in rows]
        self._chunks = [self.order[i : i + _BATCH_ROWS] for i in range(0, len(self.order), _BATCH_ROWS)]
        self._tokens = [model.pad([self.rows[i] for i in chunk]) for chunk in self._chunks]
        self._residuals = [model.engine.capture(tokens, [self.hook])[self.hook] for tokens in self._tokens]

    def log_probabilities(
        self, hook: SteeringHook | None = None, prompt_lengths: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """(row, log-probabilities of its tokens from the second on, [length - 1]) under a steering hook or none."""
        for chunk, tokens, residual in zip(self._chunks, self._tokens, self._residuals, strict=True):
            if hook is not None and prompt_lengths is not None:
                hook.prompt_lengths = torch.tensor([prompt_lengths[i] for i in chunk])
            with self._steered(hook), self.model.engine.resuming(self.hook, residual):
                logits = self.model.logits(tokens)[:, :-1].float()
            picked = logits.gather(2, tokens[:, 1:, None].to(logits.device))[..., 0] - logits.logsumexp(2)
            for place, i in enumerate(chunk):
                yield i, picked[place, : len(self.rows[i]) - 1].cpu()

    @contextmanager
    def _steered(self, hook: SteeringHook | None) -> Iterator[None]:
        if hook is None:
            yield
            return
        with self.model.intervene({self.hook: hook}):
            yield


class NeutralText:
    """Neutral texts on which an intervention's damage is measured."""

    def __init__(self, model: HookedModel, texts: Sequence[str], hook: int | str) -> None:
        rows = model.encode(texts)
        if all(len(row) <= SKIP_FIRST + 1 for row in rows):
            raise ValueError(f"no neutral text is longer than {SKIP_FIRST + 1} tokens; give texts of a few sentences")
        self.batches = TokenBatches(model, rows, hook)
        self.n_passes = 0
        self.baseline = self._loss(None)

    def damage(self, hook: SteeringHook) -> float:
        """Nats per token by which the loss rises, over the positions that may be steered."""
        return self._loss(hook) - self.baseline

    def _loss(self, hook: SteeringHook | None) -> float:
        self.n_passes += 1
        losses = [-values[SKIP_FIRST:] for _, values in self.batches.log_probabilities(hook)]
        return float(torch.cat(losses).mean())


class ChoiceText:
    """Choice items made ready: the propensity of each under an intervention."""

    def __init__(self, model: HookedModel, items: ChoiceItems, hook: int | str) -> None:
        prompts = model.encode(items.prompts)
        continuations = [model.encode_bodies(texts) for texts in (items.positive, items.negative)]
        rows = [[*prompt, *ids] for side in continuations for prompt, ids in zip(prompts, side, strict=True)]
        longest = max(len(row) for row in rows)
        if longest > model.context_length:
            raise ValueError(f"an item has {longest} tokens; {model.name!r} reads {model.context_length}: shorten the prompts")
        self.n_items = len(items)
        self.prompt_lengths = [len(prompt) for prompt in prompts] * 2
        self.batches = TokenBatches(model, rows, hook)

    def propensity(self, hook: SteeringHook | None = None) -> np.ndarray:
        """[item], log p(positive) − log p(negative) in nats, each summed over the continuation's tokens."""
        sums = np.zeros(2 * self.n_items)
        for i, values in self.batches.log_probabilities(hook, self.prompt_lengths):
            sums[i] = float(values[self.prompt_lengths[i] - 1 :].sum())
        return sums[: self.n_items] - sums[self.n_items :]


def steering_hook(vector: SteeringVector, scale: float, *, positions: Positions = "all", mode: Mode = "add") -> SteeringHook:
    """The one hook of a vector at one strength."""
    return vector.hooks(scale=scale, positions=positions, mode=mode)[0][1]
