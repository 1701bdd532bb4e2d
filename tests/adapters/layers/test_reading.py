"""An artefact's reading of held-out texts equals that of scikit-learn's cross-validation."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lrt_lens.adapters.layers._reading import (
    ArtefactLearner,
    contrast_learner,
    label_learner,
    read_hook,
)
from lrt_lens.adapters.vectors._contrast_states import ContrastStates

FIELDS = {"name": "concept", "hook": "blocks.1.hook_resid_post", "median_norm": 1.0}


class NearestMean(ClassifierMixin, BaseEstimator):
    """Classifier (x − m)·v/‖v‖², with v the difference of the class means and m the mean."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "NearestMean":
        self.classes_ = np.unique(y)
        self.gap_ = x[y == 1].mean(0) - x[y == 0].mean(0)
        self.middle_ = x.mean(0)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        return (x - self.middle_) @ self.gap_ / (self.gap_ @ self.gap_)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.classes_[(self.decision_function(x) > 0).astype(int)]


def states_of(gap: float, n: int = 40, d: int = 6) -> tuple[ContrastStates, np.ndarray]:
    """States of pairs whose classes differ by ``gap`` in the first dimension."""
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(size=(2, n, d))
    positive[:, 0] += gap
    rows = np.concatenate([positive, negative])
    tensors = torch.from_numpy(positive), torch.from_numpy(negative)
    return ContrastStates(*tensors, FIELDS), rows


def split_of(learner: ArtefactLearner) -> PredefinedSplit:
    """scikit-learn's split into the folds of a learner."""
    fold = np.zeros(len(learner.truth), dtype=int)
    for k, (_, held) in enumerate(learner.folds):
        fold[held] = k
    return PredefinedSplit(fold)


def test_a_vector_reads_as_the_nearest_mean_under_cross_val_predict() -> None:
    states, rows = states_of(1.0)
    learner = contrast_learner(states, "mean_difference", 5, 0)
    reading = read_hook(rows, learner)
    scores = cross_val_predict(
        NearestMean(), rows, learner.truth, cv=split_of(learner), method="decision_function"
    )
    assert reading.auroc.value == pytest.approx(roc_auc_score(learner.truth, scores), rel=1e-12)
    ours, others = (np.asarray(scores)[learner.truth == j] for j in (1, 0))
    d_prime = (ours.mean() - others.mean()) / np.sqrt((ours.var() + others.var()) / 2)
    assert reading.d_prime == pytest.approx(d_prime, rel=1e-9)
    assert reading.auroc.low < reading.auroc.value < reading.auroc.high


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_reads_as_logistic_regression_under_cross_val_predict(n_classes: int) -> None:
    rng = np.random.default_rng(1)
    truth = np.arange(90) % n_classes
    rows = rng.normal(size=(90, 5)) * [1, 2, 3, 4, 5] + 1.5 * np.eye(5)[truth]
    learner = label_learner(list(map(int, truth)), None, penalty=0.1, n_folds=3, seed=0)
    reading = read_hook(rows, learner)
    # C = 1/(λ n) with the n of each fit: folds of equal size have the same.
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.1 * 60), max_iter=2000))
    chances: Any = cross_val_predict(
        pipeline, rows, truth, cv=split_of(learner), method="predict_proba"
    )
    score = chances[:, 1] if n_classes == 2 else chances
    options: dict[str, Any] = {} if n_classes == 2 else {"multi_class": "ovr"}
    expected = roc_auc_score(truth, score, **options)
    assert reading.auroc.value == pytest.approx(expected, abs=1e-3)
    assert np.isnan(reading.norm_share), "the weights of a probe have no length in the stream"


def test_both_texts_of_a_pair_are_in_one_fold() -> None:
    states, _ = states_of(1.0, n=13)
    learner = contrast_learner(states, "mean_difference", 5, 0)
    for train, held in learner.folds:
        assert not set(train % 13) & set(held % 13)
    assert sorted(np.concatenate([held for _, held in learner.folds])) == list(range(26))


def test_groups_of_labelled_texts_stay_together() -> None:
    groups = [i // 3 for i in range(24)]
    labels = ["a", "b", "a"] * 8
    learner = label_learner(labels, groups, penalty=0.1, n_folds=4, seed=0)
    for train, held in learner.folds:
        assert not {groups[i] for i in train} & {groups[i] for i in held}


def test_a_clear_concept_has_a_stable_direction_and_a_long_vector() -> None:
    readings = {}
    for gap in (0.2, 4.0):
        states, rows = states_of(gap)
        readings[gap] = read_hook(rows, contrast_learner(states, "mean_difference", 5, 0))
    weak, clear = readings[0.2], readings[4.0]
    assert clear.split_half > 0.9 > weak.split_half
    assert clear.norm_share > weak.norm_share
    assert clear.auroc.value > 0.98 > weak.auroc.value
    # The gap of 4 is the mean distance of the classes, in units of the median norm.
    _, rows = states_of(4.0)
    gap = np.linalg.norm(rows[:40].mean(0) - rows[40:].mean(0))
    assert clear.norm_share == pytest.approx(gap / np.median(np.linalg.norm(rows, axis=1)))


def test_principal_components_are_learnt_too() -> None:
    states, rows = states_of(3.0)
    reading = read_hook(rows, contrast_learner(states, "principal_component", 5, 0))
    assert reading.auroc.value > 0.95
    assert abs(float(reading.direction[0, 0] / reading.direction.norm())) > 0.9


def test_too_few_texts_are_refused() -> None:
    states, _ = states_of(1.0, n=3)
    with pytest.raises(ValueError, match="at least 4"):
        contrast_learner(states, "mean_difference", 5, 0)
    with pytest.raises(ValueError, match="at least two texts"):
        label_learner(["a", "a", "a", "b"], None, penalty=0.1, n_folds=5, seed=0)
    with pytest.raises(ValueError, match="all 3 labels are 'a'"):
        label_learner(["a"] * 3, None, penalty=0.1, n_folds=5, seed=0)
