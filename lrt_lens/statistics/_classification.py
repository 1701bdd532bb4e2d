"""Accuracy and AUROC of predicted probabilities, with paired bootstrap intervals over items.

Problem: an AUROC needs a sort, and a bootstrap needs 2,000 of them. Mechanism: the AUROC of a
resample equals that of all items, weighted by how often each was drawn. One sort therefore serves
all resamples:

    AUROC = Σ_i w⁺_i · (W⁻(score < s_i) + W⁻(score = s_i) / 2) / (W⁺ · W⁻)

    w⁺_i is the weight of positive item i; W⁻(…) is the weight of the negative items in a range of
    scores; W⁺ and W⁻ are the total weights.

    probabilities = [probe.predict_proba(x) for probe in draws]      # each [item, class]
    ItemScores.of(probabilities, truth).auroc                           # Interval

Limits: with more than two classes, the AUROC is the mean over classes of each against all others.
"""

from dataclasses import dataclass

import numpy as np

from lrt_lens.statistics._bootstrap import bootstrap_mean
from lrt_lens.statistics._intervals import LEVEL, N_BOOTSTRAP, NOTHING, Interval


@dataclass(frozen=True)
class ItemScores:
    """Accuracy and AUROC of one arm (all its draws) on the test items."""

    correct: np.ndarray
    """Share of draws that classify each item correctly, [item]."""
    accuracies: np.ndarray
    """Accuracy of each draw, [draw]."""
    aurocs: np.ndarray
    """AUROC of each draw, [draw]."""
    auroc: Interval
    """Mean AUROC over draws, with its bootstrap interval over items."""

    @classmethod
    def of(cls, chances: list[np.ndarray], truth: np.ndarray, *, seed: int = 0) -> "ItemScores":
        """Return accuracy and AUROC from the probabilities [item, class] of every draw."""
        correct = np.stack([one.argmax(1) == truth for one in chances]).astype(float)
        values = np.array([auroc(one, truth) for one in chances])
        interval = bootstrap_auroc(chances, truth, seed=seed)
        return cls(correct.mean(0), correct.mean(1), values, interval)

    def accuracy(self, *, seed: int = 0) -> Interval:
        """Return the mean accuracy over draws, with its bootstrap interval over items."""
        return bootstrap_mean(self.correct, seed=seed)


def auroc(chances: np.ndarray, truth: np.ndarray) -> float:
    """Return the AUROC of probabilities [item, class]; NaN unless every class occurs."""
    return float(_weighted_auroc(chances, truth, np.ones((1, len(truth))))[0])


def bootstrap_auroc(draws: list[np.ndarray], truth: np.ndarray, *, seed: int = 0) -> Interval:
    """Return the mean AUROC of the draws with its percentile bootstrap interval over items.

    A resample that lacks one of the classes is left out.
    """
    value = float(np.mean([auroc(chances, truth) for chances in draws]))
    if np.isnan(value):
        return NOTHING
    drawn = np.random.default_rng(seed).integers(0, len(truth), size=(N_BOOTSTRAP, len(truth)))
    counts = np.stack([np.bincount(index, minlength=len(truth)) for index in drawn]).astype(float)
    # All draws are weighted by the same counts, so that the mean over draws is paired by item.
    resampled = np.mean([_weighted_auroc(chances, truth, counts) for chances in draws], 0)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _weighted_auroc(chances: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUROC [resample] for weights [resample, item]."""
    # With two classes, the second against the first says all: both AUROCs are equal.
    columns = [1] if chances.shape[1] == 2 else range(chances.shape[1])
    return np.mean([_one_against_others(chances[:, j], truth == j, weights) for j in columns], 0)


def _one_against_others(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(score, kind="stable")
    # Items of equal score form a group; `reduceat` sums the weights of each group.
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    positives = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    negatives = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    negatives_below = np.cumsum(negatives, 1) - negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        # Σ_g w⁺_g · (W⁻(<g) + w⁻_g / 2) / (W⁺ · W⁻); 0/0 = NaN if a resample lacks a class
        ranked = (positives * (negatives_below + negatives / 2)).sum(1)
        return ranked / (positives.sum(1) * negatives.sum(1))
