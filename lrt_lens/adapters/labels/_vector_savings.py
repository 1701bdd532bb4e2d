"""How many labelled pairs of the target a transferred steering vector saves.

    result = lrt.evaluate_vector_labels(pair, stitch, lrt.demo_contrast("sentiment"))
    result.summary

Problem and arms are those of `lrt_lens.adapters.labels._savings`. Mechanism: all pairs are read
once on both models. A vector is measured by its cosine to the mean difference of the held-out pairs
of the target, and by the AUROC with which projections on it tell their positive from their negative
texts. No model is steered.

Limits: the cosine is to an estimate: held-out pairs are finite, so that even all pairs of the pool
do not reach 1.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._settings import resolve, takes
from lrt_lens.adapters.labels._posterior_mean import StreamMetric, posterior_mean
from lrt_lens.adapters.labels._savings import (
    LabelSavings,
    LabelSavingsSettings,
    label_counts,
    pool_size,
)
from lrt_lens.adapters.vectors._contrast_states import ContrastStates, read_contrast_states
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import Read, ReadingRules, ShortTexts, readable
from lrt_lens.stitching._fidelity import fidelities
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

FEWEST_PAIRS = 2
"""Smallest number of pairs that have a spread."""


@takes(LabelSavingsSettings)
def evaluate_vector_labels(
    pair: ModelPair,
    stitch: Stitch,
    contrast: ContrastSet,
    *,
    read: Read = "last",
    short_texts: ShortTexts = "drop",
    progress: bool = True,
    settings: LabelSavingsSettings | None = None,
    **options: Any,
) -> LabelSavings:
    """Return the quality of vectors from k labelled pairs of the target, with and without transfer.

    Args:
        pair: both models.
        stitch: a stitch of these models; its null gives the control.
        contrast: pairs that are labelled on both models.
        read: token of a text that is read.
        short_texts: rule for texts that the mask leaves nothing of in one of the models.
        progress: show a progress bar.
        settings: the remaining settings; each field can be passed as a keyword instead.
        **options: fields of `LabelSavingsSettings`.

    Raises:
        MismatchError: models that are not the stitch's.
        ValueError: texts that are not paired, a k that is larger than the number of pairs that are
            not held out, or pairs whose texts have the same states.
    """
    settings = resolve(LabelSavingsSettings, settings, options)
    stitch.check(pair.source, pair.target)
    rules: dict[str, Any] = {"short_texts": short_texts}
    models = [pair.source, pair.target]
    contrast.refuse_unpaired("labelled pairs are drawn and held out")
    kept = readable(models, contrast.texts, read, pairs=True, **rules)
    # Both models keep the same pairs; the first half of the texts are the positive ones.
    numbers = [int(i) for i in kept.index if i < len(contrast)]
    sides = ([column[i] for i in numbers] for column in (contrast.positive, contrast.negative))
    shared = ContrastSet(*sides, name=contrast.name)
    n_pool = pool_size(len(shared), settings.held_out_share, FEWEST_PAIRS)
    label_counts(settings, n_pool, FEWEST_PAIRS)
    hooks = (stitch.source_hook, stitch.target_hook)
    own, native = (
        read_contrast_states(model, shared, [hook], ReadingRules(read, short_texts))[0]
        for model, hook in zip(models, hooks, strict=True)
    )
    arms = _VectorDraws(stitch, own, native, settings, n_pool)
    bar = tqdm(range(settings.n_draws), desc="label draws", disable=not progress, leave=False)
    rows = [row for draw in bar for row in arms.draw(draw)]
    task = contrast.name if settings.task == LabelSavingsSettings().task else settings.task
    key = {"task": task, "unit": "pairs"}
    chance = {"cosine": 0.0, "auroc": 0.5}
    table = pd.DataFrame([key | row for row in rows])
    return LabelSavings(table, chance, n_pool, len(shared) - n_pool)


@dataclass(frozen=True)
class _VectorDraws:
    """States of all pairs on both models, from which every draw is computed."""

    stitch: Stitch
    own: ContrastStates
    """States of the source."""
    native: ContrastStates
    """States of the target."""
    settings: LabelSavingsSettings
    n_pool: int
    """Number of pairs that are not held out."""

    def draw(self, draw: int) -> Iterator[dict[str, Any]]:
        """Rows of the table for one division of the pairs."""
        order = np.random.default_rng((self.settings.seed, draw)).permutation(len(self.own))
        pool, held_out = (torch.from_numpy(part) for part in np.split(order, [self.n_pool]))
        measures = _Measures.of(self.native, held_out)
        differences = (self.native.positive - self.native.negative).double()[pool]
        gap = (self.own.positive - self.own.negative)[pool].mean(0)
        vector = SteeringVector(gap, self.stitch.source_hook, model=self.stitch.source)
        # The order of the pool is random, so its first k pairs are a draw, nested over k.
        for k in label_counts(self.settings, self.n_pool, FEWEST_PAIRS):
            yield from measures.rows("native", k, draw, differences[:k].mean(0))
        metric = StreamMetric.of(self.stitch.target_statistics.covariance)
        for name, prior, rule, rho in self._priors(vector):
            for k in self.settings.ks:
                if k:
                    result = posterior_mean(prior, differences[:k], metric, rule, rho)
                    direction, weight = result.direction, result.weight
                    yield from measures.rows(f"combined{name}", k, draw, direction, weight)
                elif rule == "cv":
                    # Without labels, both rules leave the transferred direction as it is.
                    yield from measures.rows(name[1:] or "transferred", 0, draw, prior)

    def _priors(self, vector: SteeringVector) -> Iterator[tuple[str, Tensor, Any, float | None]]:
        """Yield the ending of the arm's name, the direction, the rule of the weight, and ρ."""
        direction = self.stitch.transfer(vector).direction.double()
        yield "", direction, "cv", None
        if self.stitch.held_out:
            rho = float(fidelities(self.stitch, vector.direction[None], "write")[0])
            yield "_fidelity", direction, "fidelity", rho
        if self.stitch.null is None:
            logger.warning(
                "the stitch has no map of shuffled pairs; the arm 'shuffled' is left out: fit this "
                "pair alone with null='full'"
            )
            return
        shuffled = self.stitch.transfer(vector, through=self.stitch.null.up)
        yield "_shuffled", shuffled.direction.double(), "cv", None


@dataclass(frozen=True)
class _Measures:
    """Held-out states of the target, on which directions are measured."""

    positive: Tensor
    """States of the positive texts, [pair, d]."""
    negative: Tensor
    """States of the negative texts, [pair, d]."""

    @classmethod
    def of(cls, states: ContrastStates, held_out: Tensor) -> "_Measures":
        """Return the held-out pairs of some states."""
        return cls(states.positive[held_out].double(), states.negative[held_out].double())

    def rows(
        self, arm: str, k: int, draw: int, direction: Tensor, weight: float = float("nan")
    ) -> Iterator[dict[str, Any]]:
        """Rows of the table for one direction."""
        gap = (self.positive - self.negative).mean(0)
        cosine = torch.nn.functional.cosine_similarity(direction, gap, dim=0)
        values = {"cosine": float(cosine), "auroc": self._auroc(direction)}
        for measure, value in values.items():
            yield {
                "measure": measure,
                "arm": arm,
                "k": k,
                "draw": draw,
                "value": value,
                "weight": weight,
            }

    def _auroc(self, direction: Tensor) -> float:
        from sklearn.metrics import roc_auc_score

        scores = torch.cat([self.positive, self.negative]) @ direction
        truth = np.repeat([1, 0], len(self.positive))
        return float(roc_auc_score(truth, scores.numpy()))
