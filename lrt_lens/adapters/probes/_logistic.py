"""Logistic regression on rows, its penalty cross-validated, its standardisation folded into the
weights.

With features ``z = (x − μ)/σ``, ``p = softmax(z V + c)`` (a sigmoid of one column for two classes)
and n rows:

    minimise  mean cross-entropy + λ/2 ‖V − V₀‖²        (scikit-learn's C = 1/(λ n), V₀ = 0)

λ is the one with the lowest held-out cross-entropy over stratified folds, the larger of equals.
`fit_logistic` is scikit-learn's ``LogisticRegression`` (V₀ = 0); `fit_towards` shrinks to a
classifier that is there already (V₀ ≠ 0), which scikit-learn does not have: L-BFGS on the same
objective.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0)
"""λ that are tried, for standardised features."""
TOWARDS_PENALTIES = (*PENALTIES, 1e2, 1e4)
"""The same for shrinking to another classifier; the last leaves it as it is."""
N_FOLDS = 5
_MAX_ITER = 2000


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier of rows: logits ``x @ weight + bias``."""

    weight: np.ndarray
    """[d, column]: one column for two classes (the second's logit), else one a class."""
    bias: np.ndarray
    """[column]."""
    penalty: float = float("nan")
    """λ; NaN where nothing was chosen."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[row, column]."""
        return x @ self.weight + self.bias

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """[row, class]."""
        return probabilities(self.logits(x))


@dataclass(frozen=True)
class Scaling:
    """Means and standard deviations by which features are standardised."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> "Scaling":
        """Of the columns of ``x``; a column that does not vary keeps its unit."""
        deviation = x.std(0)
        return cls(
            x.mean(0), np.where(deviation > 1e-12 * (np.abs(x).max(0) + 1e-30), deviation, 1.0)
        )

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Standardised."""
        return (x - self.mean) / self.deviation

    def folded(self, weight: np.ndarray, bias: np.ndarray, penalty: float) -> Logistic:
        """A classifier of standardised rows as one of plain rows: w = v/σ, c − μ·w."""
        plain = weight / self.deviation[:, None]
        return Logistic(plain, bias - self.mean @ plain, penalty)

    def unfolded(self, classifier: Logistic) -> tuple[np.ndarray, np.ndarray]:
        """(weight, bias) of the same classifier on standardised rows."""
        return classifier.weight * self.deviation[
            :, None
        ], classifier.bias + self.mean @ classifier.weight


def probabilities(logits: np.ndarray) -> np.ndarray:
    """[row, class] from logits of one column (two classes) or one a class."""
    full = np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    shifted = np.exp(full - full.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def fit_logistic(
    x: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    n_folds: int = N_FOLDS,
    groups: np.ndarray | None = None,
    scaling: Scaling | None = None,
    seed: int = 0,
) -> Logistic:
    """A classifier of rows ``x`` [row, d] into classes ``y`` (0 … n_classes − 1), each of which
    occurs.

    ``groups`` [row] keeps rows of one text in one fold; ``scaling`` standardises by other rows than
    ``x`` (unlabelled ones).
    """
    scaling = scaling or Scaling.of(x)

    def fit(z: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        return _sklearn(z, labels, penalty)

    z = scaling.rows(x)
    penalty = _choose(z, y, n_classes, fit, penalties, n_folds, groups, seed, 1.0)
    return scaling.folded(*fit(z, y, penalty), penalty)


def fit_towards(
    x: np.ndarray,
    y: np.ndarray,
    start: Logistic,
    *,
    penalties: tuple[float, ...] = TOWARDS_PENALTIES,
    n_folds: int = N_FOLDS,
    scaling: Scaling | None = None,
    seed: int = 0,
) -> Logistic:
    """The same, shrunk to ``start`` instead of to 0, its bias included: with few labels a free bias
    would follow their class counts.
    """
    scaling = scaling or Scaling.of(x)
    origin, offset = scaling.unfolded(start)

    def fit(z: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        return _shrunk(z, labels, penalty, origin, offset)

    z = scaling.rows(x)
    penalty = _choose(
        z, y, max(2, len(start.bias)), fit, penalties, n_folds, None, seed, penalties[-1]
    )
    return scaling.folded(*fit(z, y, penalty), penalty)


_Fit = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]


def _choose(
    z: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    fit: _Fit,
    penalties: tuple[float, ...],
    n_folds: int,
    groups: np.ndarray | None,
    seed: int,
    alone: float,
) -> float:
    """λ of the lowest held-out cross-entropy; ``alone`` where a class has a single row, so that
    nothing can be held out.
    """
    if len(penalties) == 1:
        return penalties[0]
    folds = _folds(y, n_folds, groups, seed)
    folds = [(train, held) for train, held in folds if len(np.unique(y[train])) == n_classes]
    if not folds:
        return alone
    losses = np.zeros(len(penalties))
    for train, held in folds:
        for place, penalty in enumerate(penalties):
            weight, bias = fit(z[train], y[train], penalty)
            chance = probabilities(z[held] @ weight + bias)[np.arange(len(held)), y[held]]
            losses[place] -= np.log(np.maximum(chance, 1e-12)).sum()
    # The larger penalty of equals: read from the back.
    return penalties[len(penalties) - 1 - int(np.argmin(losses[::-1]))]


def _folds(
    y: np.ndarray, n_folds: int, groups: np.ndarray | None, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # How many folds every class can be spread over: its rows, or its texts where rows of one text
    # stay together.
    members = np.arange(len(y)) if groups is None else groups
    smallest = min(len(np.unique(members[y == label])) for label in np.unique(y))
    if (n := min(n_folds, smallest)) < 2:
        return []
    if groups is None:
        return list(StratifiedKFold(n, shuffle=True, random_state=seed).split(y, y))
    return list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(y, y, groups))


def _sklearn(z: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=1 / (penalty * len(z)), max_iter=_MAX_ITER).fit(z, y)
    return found.coef_.T, found.intercept_


def _shrunk(
    z: np.ndarray, y: np.ndarray, penalty: float, origin: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The minimiser of the objective with V₀ = ``origin``, by L-BFGS from there."""
    from scipy.optimize import minimize

    n, columns = len(z), origin.shape[1]
    truth = np.eye(max(2, columns))[y]

    def objective(step: np.ndarray) -> tuple[float, np.ndarray]:
        change, bias = step[:-columns].reshape(-1, columns), step[-columns:]
        chance = probabilities(z @ (origin + change) + offset + bias)
        loss = (
            -np.log(np.maximum(chance[np.arange(n), y], 1e-300)).mean()
            + penalty / 2 * (step**2).sum()
        )
        error = (chance - truth)[:, -columns:] / n
        return float(loss), np.concatenate(
            [(z.T @ error + penalty * change).ravel(), error.sum(0) + penalty * bias]
        )

    start = np.zeros(origin.size + columns)
    options: dict[str, Any] = {"maxiter": _MAX_ITER, "gtol": 1e-6}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    return origin + found[:-columns].reshape(-1, columns), offset + found[-columns:]
