"""How well an artefact reads at each hook point of a model, from one pass over its texts.

Problem: a layer is chosen by what the artefact does on texts that it was not learnt from, and
fitting at every layer on every split must not read the texts again. Mechanism: the states of the
texts are read once at all hook points. A *learner* learns the artefact from some of the texts, as a
linear classifier of states; each fold of texts is scored by the classifier of the other folds.

    learner = contrast_learner(contrast, "mean_difference", n_folds=5, seed=0)
    reading = read_hook(rows, learner)            # rows [text, d] of one hook point
    reading.auroc, reading.d_prime, reading.direction

A vector v is scored as the classifier (x − m)·v/‖v‖² with m the mean of the texts it was learnt
from. d′ is the distance between the mean scores of both classes, in their standard deviations; for
more than two classes it is the mean of each class against the others.

Limits: the scores of different folds are pooled, as those of scikit-learn's `cross_val_predict`.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lrt_lens.adapters.probes._labels import check_labels, class_numbers, classes_of, plain_label
from lrt_lens.adapters.probes._labels import group_numbers as label_groups
from lrt_lens.adapters.probes._logistic import (
    Logistic,
    fit_logistic,
    probabilities,
    stratified_folds,
)
from lrt_lens.adapters.vectors._contrast_states import ContrastStates
from lrt_lens.adapters.vectors._sources import group_numbers
from lrt_lens.statistics._bootstrap import Clusters
from lrt_lens.statistics._classification import auroc_interval
from lrt_lens.statistics._intervals import Interval

FEWEST_PAIRS = 4
"""Smallest number of contrast pairs: two folds of two pairs."""


@dataclass(frozen=True)
class ArtefactLearner:
    """Rule by which an artefact is learnt from texts, and the folds that score it."""

    truth: np.ndarray
    """Number of the class of each text, [text]."""
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Numbers of the texts that are learnt from, and of the held-out texts, per fold."""
    groups: np.ndarray
    """Number of the group of each text (its pair); groups are independent of each other, [text]."""
    learn: Callable[[np.ndarray, np.ndarray], Logistic]
    """Function of the rows of all texts [text, d] and the numbers of those to learn from."""
    of_vector: bool
    """True if a steering vector is learnt, False for a probe."""


@dataclass(frozen=True)
class HookReading:
    """Reading of an artefact at one hook point, on texts that it was not learnt from."""

    classifier: Logistic
    """Classifier learnt from all texts."""
    of_folds: tuple[Logistic, ...]
    """Classifiers learnt without each fold."""
    auroc: Interval
    """AUROC of the held-out texts with its 95% interval over texts (or groups of texts)."""
    d_prime: float
    """Distance between the classes in standard deviations of the held-out scores."""
    split_half: float
    """Cosine of the directions learnt from the two halves of the texts; mean over columns."""
    norm_share: float
    """Length of a vector relative to the median state; NaN for a probe."""

    @property
    def direction(self) -> torch.Tensor:
        """Directions of the artefact in the stream, [column, d], float64."""
        return torch.from_numpy(np.ascontiguousarray(self.classifier.weight.T)).double()


def contrast_learner(
    states: ContrastStates, method: str, n_folds: int, seed: int
) -> ArtefactLearner:
    """Return the learner of a steering vector; texts are the positive ones, then the negative ones.

    Args:
        states: states of the texts at any hook point, of which only numbers and names are used.
        method: rule by which a direction is learnt from them.
        n_folds: number of folds of pairs; at most half the number of pairs. Of texts that are not
            paired, each fold has positive and negative texts, both in equal shares.
        seed: seed of the folds.

    Raises:
        ValueError: fewer than 4 pairs.
    """
    n = len(states)
    if n < FEWEST_PAIRS:
        raise ValueError(
            f"{n} contrast pair(s) can be read; cross-validation needs at least {FEWEST_PAIRS}: "
            "give more pairs"
        )
    # Sides of one length are divided alike, so that both texts of a pair are in one fold.
    both = np.concatenate(
        [group_numbers(size, min(n_folds, n // 2), seed) for size in states.sizes]
    )
    folds = [(np.flatnonzero(both != k), np.flatnonzero(both == k)) for k in range(both.max() + 1)]

    def learn(rows: np.ndarray, index: np.ndarray) -> Logistic:
        positive, negative = (rows[index[is_of_side[index]]] for is_of_side in sides)
        part = replace(
            states, positive=torch.from_numpy(positive), negative=torch.from_numpy(negative)
        )
        v = part.direction(method).double().numpy()
        # (x − m)·v/‖v‖² is 1 apart for the two class means of a mean difference, with m between
        # them.
        weight = v / (v @ v)
        middle = (positive.mean(0) + negative.mean(0)) / 2
        return Logistic(weight[:, None], np.array([-middle @ weight]))

    truth = np.repeat([1, 0], states.sizes)
    sides = (truth == 1, truth == 0)
    # Texts of a pair are not independent of each other, others are.
    groups = np.tile(np.arange(n), 2) if states.paired else np.arange(len(truth))
    return ArtefactLearner(truth, tuple(folds), groups, learn, True)


def label_learner(
    labels: Sequence[Any],
    groups: Sequence[Hashable] | None,
    *,
    penalty: float,
    n_folds: int,
    seed: int,
) -> ArtefactLearner:
    """Return the learner of a linear probe, by logistic regression with one fixed penalty.

    Args:
        labels: one label per text.
        groups: texts of one group stay in one fold; None lets every text be its own group.
        penalty: λ for standardised features and the mean cross-entropy.
        n_folds: number of stratified folds.
        seed: seed of the folds.

    Raises:
        ValueError: a class of a single text (or group), or labels of one class.
    """
    plain = [plain_label(label) for label in labels]
    classes = classes_of(plain)
    truth = class_numbers(plain, classes)
    numbers = label_groups(groups, len(plain))
    folds = [
        (train, held)
        for train, held in stratified_folds(truth, n_folds, numbers, seed)
        if len(np.unique(truth[train])) == len(classes)
    ]
    if not folds:
        raise ValueError(
            f"no split of {len(plain)} texts has all {len(classes)} classes to learn from; give at "
            "least two texts (and two groups) of each class"
        )

    def learn(rows: np.ndarray, index: np.ndarray) -> Logistic:
        return fit_logistic(rows[index], truth[index], len(classes), penalties=(penalty,))

    group_of = np.arange(len(plain)) if numbers is None else numbers
    return ArtefactLearner(truth, tuple(folds), group_of, learn, False)


def labelled_texts(texts: Any) -> tuple[list[str], list[Any]]:
    """Return texts and labels of a pair ``(texts, labels)``.

    Raises:
        TypeError: it is no pair of both.
        ValueError: the numbers differ, or there is one class.
    """
    if not isinstance(texts, tuple | list) or len(texts) != 2 or isinstance(texts[0], str):
        raise TypeError(
            f"texts is a {type(texts).__name__}; expected a ContrastSet (for a steering vector), or"
            " a pair (texts, labels) (for a probe), such as lrt.demo_texts('sentiment')"
        )
    return check_labels(texts[0], texts[1])


def read_hook(rows: np.ndarray, learner: ArtefactLearner) -> HookReading:
    """Return what the artefact reads at one hook point, from the states [text, d] of all texts.

    Raises:
        ValueError: the classes have the same states.
    """
    everything = np.arange(len(rows))
    classifier = learner.learn(rows, everything)
    of_folds = tuple(learner.learn(rows, train) for train, _ in learner.folds)
    logits = held_out_logits(rows, learner, of_folds)
    # The groups of a split in halves, not those of the folds: every other group of texts.
    odd = learner.groups % 2 == 1
    halves = [learner.learn(rows, everything[odd == side]) for side in _splits(learner, odd)]
    weight = classifier.weight
    # ‖v‖ of a vector is 1/‖weight‖; a probe's weights have no length in the stream.
    length = 1 / float(np.linalg.norm(weight)) if learner.of_vector else math.nan
    return HookReading(
        classifier,
        of_folds,
        pooled_auroc(logits, learner),
        d_prime(logits, learner),
        _mean_cosine(*halves) if len(halves) == 2 else math.nan,
        length / float(np.median(np.linalg.norm(rows, axis=1))),
    )


def held_out_logits(
    rows: np.ndarray, learner: ArtefactLearner, classifiers: Sequence[Logistic]
) -> np.ndarray:
    """Return the logits of each text by the classifier of the folds without it, [text, column].

    NaN for texts that are in no held-out fold.
    """
    logits = np.full((len(rows), len(classifiers[0].bias)), math.nan)
    for (_, held), classifier in zip(learner.folds, classifiers, strict=True):
        logits[held] = classifier.logits(rows[held])
    return logits


def pooled_auroc(logits: np.ndarray, learner: ArtefactLearner) -> Interval:
    """Return the AUROC of held-out logits [text, column] with its interval over groups of texts."""
    known = np.isfinite(logits).all(1)
    clusters = Clusters.of(learner.groups[known].tolist())
    return auroc_interval([probabilities(logits[known])], learner.truth[known], clusters=clusters)


def d_prime(logits: np.ndarray, learner: ArtefactLearner) -> float:
    """Return d′ of held-out logits [text, column]: a mean over the columns."""
    known = np.isfinite(logits).all(1)
    truth, logits = learner.truth[known], logits[known]
    columns = [1] if logits.shape[1] == 1 else range(logits.shape[1])
    found = []
    for j, column in zip(columns, logits.T, strict=True):
        ours, others = column[truth == j], column[truth != j]
        # d′ = (μ⁺ − μ⁻) / √((σ⁺² + σ⁻²)/2)
        spread = math.sqrt((ours.var() + others.var()) / 2)
        found.append((ours.mean() - others.mean()) / spread if spread > 0 else math.nan)
    return float(np.mean(found))


def _splits(learner: ArtefactLearner, odd: np.ndarray) -> list[bool]:
    """Return both halves if each has every class, else none."""
    classes = len(np.unique(learner.truth))
    complete = all(len(np.unique(learner.truth[odd == side])) == classes for side in (False, True))
    return [False, True] if complete else []


def _mean_cosine(first: Logistic, second: Logistic) -> float:
    norms = np.linalg.norm(first.weight, axis=0) * np.linalg.norm(second.weight, axis=0)
    return float(((first.weight * second.weight).sum(0) / norms).mean())
