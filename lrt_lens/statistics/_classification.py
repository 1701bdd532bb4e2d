"""How well probabilities tell labelled items apart: accuracy and AUROC, with paired bootstraps over
the items.

The AUROC of a resample is that of the items weighted by how often each was drawn, so that one sort
serves all resamples: ``Σ_i w⁺_i (W⁻(<i) + W⁻(=i)/2) / (W⁺ W⁻)``. Several classes: the mean over
classes, each against the rest.
"""

from dataclasses import dataclass

import numpy as np

from lrt_lens.statistics._intervals import N_BOOTSTRAP, NOTHING, Interval, bootstrap_mean
from lrt_lens.statistics._jackknife import LEVEL


@dataclass(frozen=True)
class Verdict:
    """What one arm (all its draws) said of the test items."""

    correct: np.ndarray
    """[item], share of the draws that were right."""
    accuracies: np.ndarray
    """[draw]."""
    aurocs: np.ndarray
    """[draw]."""
    auroc: Interval
    """Mean over draws, bootstrap over items."""

    @classmethod
    def of(cls, chances: list[np.ndarray], truth: np.ndarray, *, seed: int = 0) -> "Verdict":
        """From the probabilities [item, class] of every draw."""
        right = np.stack([one.argmax(1) == truth for one in chances]).astype(float)
        values = np.array([auroc(one, truth) for one in chances])
        return cls(right.mean(0), right.mean(1), values, bootstrap_auroc(chances, truth, seed=seed))

    def accuracy(self, *, seed: int = 0) -> Interval:
        """Mean over draws, bootstrap over items."""
        return bootstrap_mean(self.correct, seed=seed)


def auroc(chances: np.ndarray, truth: np.ndarray) -> float:
    """Of probabilities [item, class]; NaN unless every class occurs."""
    return float(_weighted(chances, truth, np.ones((1, len(truth))))[0])


def bootstrap_auroc(draws: list[np.ndarray], truth: np.ndarray, *, seed: int = 0) -> Interval:
    """Mean AUROC of the draws with its percentile bootstrap interval over items; resamples without
    one of the classes are left out.
    """
    value = float(np.mean([auroc(chances, truth) for chances in draws]))
    if np.isnan(value):
        return NOTHING
    drawn = np.random.default_rng(seed).integers(0, len(truth), size=(N_BOOTSTRAP, len(truth)))
    counts = np.stack([np.bincount(index, minlength=len(truth)) for index in drawn]).astype(float)
    resampled = np.mean([_weighted(chances, truth, counts) for chances in draws], 0)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _weighted(chances: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[resample], for weights [resample, item]."""
    columns = [1] if chances.shape[1] == 2 else range(chances.shape[1])
    return np.mean([_one_against_rest(chances[:, j], truth == j, weights) for j in columns], 0)


def _one_against_rest(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    ahead = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    behind = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(behind, 1) - behind
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ahead * (below + behind / 2)).sum(1) / (ahead.sum(1) * behind.sum(1))
