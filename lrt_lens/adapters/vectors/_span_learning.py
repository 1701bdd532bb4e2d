"""Directions that span where the texts of a contrast set differ.

Problem: a concept may take more than one direction, so that a model still holds it when the mean
difference is removed. Mechanism: two rules, both of which return orthonormal rows.

* ``"pca"``: the principal components of the differences within pairs (RepE, arXiv 2310.01405). The
  differences are not centred, because their mean is the shared part of them; this is the PCA of the
  differences with both signs.
* ``"inlp"``: iterative nullspace projection (Ravfogel et al. 2020, arXiv 2004.07667). A logistic
  regression tells the sides apart, its direction is projected out of all states, and the next one
  is fitted on what is left.

    rows = span_rows(states, "inlp", 3)                 # [3, d_model]

Limits: INLP removes what a linear classifier finds, one direction at a time, and with few texts the
later directions separate them by chance.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.adapters.vectors._contrast_states import ContrastStates

PENALTY = 0.1
"""Penalty λ of INLP's classifiers, for standardised features and the mean cross-entropy."""
_ROUNDING = 1e-6
"""Singular value of the differences, relative to the largest, that rounding explains."""


def span_rows(states: ContrastStates, method: str, k: int) -> Float[Tensor, "k d_model"]:
    """Return k orthonormal rows that a method learns, in float64.

    Each row points towards the positive texts.

    Raises:
        ValueError: the method is unknown, the texts have no k directions, or ``"pca"`` and the
            texts are not paired.
    """
    if method not in _RULES:
        raise ValueError(f"the method is {method!r}; only {sorted(_RULES)} learn a subspace")
    most = min(sum(states.sizes) - 1, states.positive.shape[1])
    if not 1 <= k <= most:
        raise ValueError(
            f"k is {k}; expected 1 to {most}: there are {sum(states.sizes)} texts in"
            f" {states.positive.shape[1]} dimensions"
        )
    rows = _RULES[method](states, k)
    # The sign of a direction is arbitrary; the gap of the means along it fixes it.
    signs = torch.where(rows @ mean_gap(states) < 0, -1.0, 1.0).to(rows)
    return rows * signs[:, None]


def mean_gap(states: ContrastStates) -> Float[Tensor, " d_model"]:
    """Return the mean of the positive states minus that of the negative ones, in float64."""
    return states.positive.double().mean(0) - states.negative.double().mean(0)


def centre_of(states: ContrastStates) -> Float[Tensor, " d_model"]:
    """Return the middle between the mean states of both sides, in float64."""
    return (states.positive.double().mean(0) + states.negative.double().mean(0)) / 2


def _principal_rows(states: ContrastStates, k: int) -> Tensor:
    if not states.paired:
        states.fields["contrast_set"].refuse_unpaired(
            "principal components are those of the differences within pairs; "
            "SteeringSubspace.inlp needs no pairs"
        )
    difference = states.positive.double() - states.negative.double()
    # D = U Σ Vᵀ, first k rows of Vᵀ
    values, rows = torch.linalg.svd(difference, full_matrices=False)[1:]
    n_found = int((values > _ROUNDING * values.max()).sum())
    if n_found < k:
        raise ValueError(
            f"k is {k}, and the {len(difference)} differences of {states.fields['name']!r} at"
            f" {states.fields['hook']!r} span {n_found} dimension(s); ask for at most so many, or"
            " give more pairs"
        )
    return rows[:k]


def _nullspace_rows(states: ContrastStates, k: int) -> Tensor:
    rows_of_texts = torch.cat([states.positive, states.negative]).double().cpu().numpy()
    is_positive = np.repeat([1, 0], states.sizes)
    found = np.zeros((0, rows_of_texts.shape[1]))
    for _ in range(k):
        # X − X BᵀB: nothing of the directions that were found is left.
        left = rows_of_texts - (rows_of_texts @ found.T) @ found
        direction = _classifier_direction(left, is_positive)
        # w lies in the nullspace up to rounding and the standardisation of features.
        direction -= (direction @ found.T) @ found
        length = np.linalg.norm(direction)
        if not length > 0:
            raise ValueError(
                f"k is {k}, and after {len(found)} direction(s) nothing tells the texts of"
                f" {states.fields['name']!r} apart; ask for fewer"
            )
        found = np.concatenate([found, direction[None] / length])
    return torch.from_numpy(found).to(states.positive.device)


def _classifier_direction(rows: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    """Return the unit normal of a logistic regression of rows; 0 if they do not differ."""
    from sklearn.linear_model import LogisticRegression

    deviation = rows.std(0)
    # A dimension that is constant up to rounding carries nothing.
    varies = deviation > 1e-9 * max(deviation.max(), 1e-30)
    scale = np.where(varies, deviation, np.inf)
    # minimise mean cross-entropy + λ/2 ‖v‖² over z = (x − μ)/σ, with C = 1 / (λ n)
    fit: Any = LogisticRegression(C=1 / (PENALTY * len(rows)), max_iter=2000, tol=1e-8)
    fit.fit((rows - rows.mean(0)) / scale, is_positive)
    # z·v = x·(v/σ) + …
    direction = fit.coef_[0] / scale
    length = np.linalg.norm(direction)
    return direction / length if length > 0 else direction


_RULES: dict[str, Callable[[ContrastStates, int], Tensor]] = {
    "pca": _principal_rows,
    "inlp": _nullspace_rows,
}
"""Rules by name."""
SPAN_METHODS = tuple(_RULES)
"""Names of the rules by which a subspace can be learnt again from texts."""
