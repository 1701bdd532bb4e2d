"""Logistic regression of rows, with a cross-validated penalty and standardisation folded in.

Problem: dimensions of a residual stream differ by orders of magnitude in variance, so one penalty
for all weights needs standardised features; a stored probe should read plain activations.
Mechanism: with standardised features ``z = (x − μ)/σ``, probabilities ``p = softmax(z V + c)`` (a
sigmoid of one column for two classes) and n rows:

    minimise  mean cross-entropy + λ/2 ‖V − V₀‖²        (scikit-learn's C = 1/(λ n), V₀ = 0)

The result is rewritten as a classifier of x. λ is the penalty with the lowest held-out
cross-entropy over stratified folds; of equal ones the larger.

    fit_logistic(x, y, n_classes=2)                # V₀ = 0, scikit-learn's LogisticRegression
    fit_towards(x, y, start=transferred)           # V₀ ≠ 0, L-BFGS on the same objective
    fit_towards(x, y, start, scaling=Whitening.of(mean, covariance, ridge=1e-3))

Limits: scikit-learn does not offer V₀ ≠ 0, so `fit_towards` has its own solver; the tests compare
both for V₀ = 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0)
"""Candidates for λ, for standardised features."""
TOWARDS_PENALTIES = (*PENALTIES, 1e2, 1e4)
"""Candidates for λ when shrinking to another classifier; the last one leaves it unchanged."""
N_FOLDS = 5
"""Number of folds that choose λ."""
_MAX_ITER = 2000
"""Largest number of iterations; scikit-learn's default of 100 ends early at small penalties."""


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier of rows with logits ``x @ weight + bias``."""

    weight: np.ndarray
    """Weights: one column for two classes (the logit of the second), else one per class, [d,
    column]."""
    bias: np.ndarray
    """Biases of the logits, [column]."""
    penalty: float = float("nan")
    """Penalty λ that was used; NaN if the classifier was not fitted here."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits of rows, [row, d] → [row, column]."""
        return x @ self.weight + self.bias

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of rows, [row, d] → [row, class]."""
        return probabilities(self.logits(x))


@dataclass(frozen=True)
class Scaling:
    """Means and standard deviations that standardise features."""

    mean: np.ndarray
    """Mean μ of each feature, [d]."""
    deviation: np.ndarray
    """Standard deviation σ of each feature, 1 if it is constant, [d]."""

    @classmethod
    def of(cls, x: np.ndarray) -> "Scaling":
        """Scaling of the columns of ``x``; a constant column gets a deviation of 1."""
        deviation = x.std(0)
        # The standard deviation of a constant column is not exactly 0 in floating point.
        varies = deviation > 1e-12 * (np.abs(x).max(0) + 1e-30)
        return cls(x.mean(0), np.where(varies, deviation, 1.0))

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Standardised rows, ``z = (x − μ)/σ``."""
        return (x - self.mean) / self.deviation

    def folded(self, weight: np.ndarray, bias: np.ndarray, penalty: float) -> Logistic:
        """Classifier of plain rows that equals a classifier of standardised rows."""
        # z·v + c = x·(v/σ) + c − μ·(v/σ)
        plain = weight / rearrange(self.deviation, "d -> d 1")
        return Logistic(plain, bias - self.mean @ plain, penalty)

    def unfolded(self, classifier: Logistic) -> tuple[np.ndarray, np.ndarray]:
        """Return weight and bias on standardised rows of a classifier of plain rows."""
        # x·w + c = z·(σ w) + c + μ·w
        weight = classifier.weight * rearrange(self.deviation, "d -> d 1")
        return weight, classifier.bias + self.mean @ classifier.weight


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logarithms of `probabilities`, [row, class], which order rows whose probabilities round to 1.

    Logits have one column (two classes) or one per class.
    """
    from scipy.special import logsumexp

    # A sigmoid is a softmax whose first logit is 0.
    full = np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    others = [np.asarray(logsumexp(np.delete(full, j, 1), axis=1)) for j in range(full.shape[1])]
    # log p_j = −log(1 + Σ_{k≠j} exp(z_k − z_j)), which is not rounded where p_j is nearly 1
    return -np.logaddexp(np.zeros(()), np.stack(others, 1) - full)


@dataclass(frozen=True)
class Whitening:
    """Mean and root of the covariance of a stream, which whiten features.

    A penalty on weights of whitened features is one on the variance of the logits over the stream:
    ``‖Σ^½ w‖² = wᵀ Σ w``.
    """

    mean: np.ndarray
    """Mean μ of the stream, [d]."""
    root: np.ndarray
    """Symmetric root Σ^½ of the covariance, [d, d]."""
    inverse: np.ndarray
    """Inverse Σ^-½ of the root, [d, d]."""

    @classmethod
    def of(cls, mean: np.ndarray, covariance: np.ndarray, ridge: float) -> "Whitening":
        """Whitening of a mean [d] and a covariance [d, d].

        ``ridge`` times the mean variance is added to every variance.
        """
        values, vectors = np.linalg.eigh(covariance)
        # Σ + λ·tr(Σ)/d·I = V Λ Vᵀ; rounding can leave eigenvalues below 0.
        deviations = np.sqrt(np.maximum(values, 0) + ridge * max(float(values.mean()), 1e-300))
        return cls(mean, (vectors * deviations) @ vectors.T, (vectors / deviations) @ vectors.T)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Whitened rows, ``z = (x − μ) Σ^-½``."""
        return (x - self.mean) @ self.inverse

    def folded(self, weight: np.ndarray, bias: np.ndarray, penalty: float) -> Logistic:
        """Classifier of plain rows that equals a classifier of whitened rows."""
        # z·v + c = x·(Σ^-½ v) + c − μ·(Σ^-½ v)
        plain = self.inverse @ weight
        return Logistic(plain, bias - self.mean @ plain, penalty)

    def unfolded(self, classifier: Logistic) -> tuple[np.ndarray, np.ndarray]:
        """Return weight and bias on whitened rows of a classifier of plain rows."""
        # x·w + c = z·(Σ^½ w) + c + μ·w
        return self.root @ classifier.weight, classifier.bias + self.mean @ classifier.weight


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Probabilities [row, class] from logits of one column (two classes) or one per class."""
    # A sigmoid is a softmax whose first logit is 0.
    full = np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    # Subtracting the largest logit keeps exp from overflowing.
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
    """Classifier of rows into classes by scikit-learn's logistic regression.

    Args:
        x: [row, d].
        y: [row], classes 0 … n_classes − 1, each of which occurs.
        n_classes: number of classes.
        penalties: candidates for λ.
        n_folds: folds that choose λ.
        groups: [row], rows of one group stay in one fold; None lets every row be its own group.
        scaling: standardisation from other (unlabelled) rows; None takes that of ``x``.
        seed: seed of the folds.
    """
    scaling = scaling or Scaling.of(x)
    # Means and deviations are those of all rows, held-out ones included: they use no labels.
    z = scaling.rows(x)
    folds = stratified_folds(y, n_folds, groups, seed)
    penalty = _choose_penalty(z, y, n_classes, _fit_sklearn, penalties, folds, fallback=1.0)
    return scaling.folded(*_fit_sklearn(z, y, penalty), penalty)


def fit_towards(
    x: np.ndarray,
    y: np.ndarray,
    start: Logistic,
    *,
    penalties: tuple[float, ...] = TOWARDS_PENALTIES,
    n_folds: int = N_FOLDS,
    groups: np.ndarray | None = None,
    scaling: Scaling | Whitening | None = None,
    seed: int = 0,
) -> Logistic:
    """Classifier of rows into classes, shrunk to the classifier ``start`` instead of to 0.

    The bias is shrunk too: with few labels a free bias would follow their class counts. Arguments
    are those of `fit_logistic`.
    """
    scaling = scaling or Scaling.of(x)
    origin, offset = scaling.unfolded(start)

    def fit(z: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        return _fit_shrunk(z, labels, penalty, origin, offset)

    z = scaling.rows(x)
    # A classifier of two classes has one column.
    n_classes = max(2, len(start.bias))
    folds = stratified_folds(y, n_folds, groups, seed)
    penalty = _choose_penalty(z, y, n_classes, fit, penalties, folds, fallback=penalties[-1])
    return scaling.folded(*fit(z, y, penalty), penalty)


_Fit = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]
"""Function from standardised rows, class numbers and λ to weight and bias."""
_Fold = tuple[np.ndarray, np.ndarray]
"""Indices of the rows to fit on and of the held-out rows."""


def _choose_penalty(
    z: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    fit: _Fit,
    penalties: tuple[float, ...],
    folds: Sequence[_Fold],
    *,
    fallback: float,
) -> float:
    """Return λ of the lowest held-out cross-entropy; ``fallback`` if no fold has all classes."""
    if len(penalties) == 1:
        return penalties[0]
    # A fold without a class to fit gives that class no column and cannot be compared.
    folds = [(train, held) for train, held in folds if len(np.unique(y[train])) == n_classes]
    if not folds:
        return fallback
    losses = np.zeros(len(penalties))
    for train, held in folds:
        for index, penalty in enumerate(penalties):
            weight, bias = fit(z[train], y[train], penalty)
            p = probabilities(z[held] @ weight + bias)[np.arange(len(held)), y[held]]
            # Probabilities can underflow to 0, whose logarithm is infinite.
            losses[index] -= np.log(np.maximum(p, 1e-12)).sum()
    # argmin returns the first of equals; reversed, that is the larger penalty.
    return penalties[len(penalties) - 1 - int(np.argmin(losses[::-1]))]


def stratified_folds(
    y: np.ndarray, n_folds: int, groups: np.ndarray | None, seed: int
) -> list[_Fold]:
    """Stratified folds; none if a class has a single row (or a single group)."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # Every fold needs every class, so the rarest class limits the number of folds: by its rows, or
    # by its groups if rows of one group stay together.
    members = np.arange(len(y)) if groups is None else groups
    smallest = min(len(np.unique(members[y == label])) for label in np.unique(y))
    if (n := min(n_folds, smallest)) < 2:
        return []
    if groups is None:
        return list(StratifiedKFold(n, shuffle=True, random_state=seed).split(y, y))
    return list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(y, y, groups))


def _fit_sklearn(z: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    # scikit-learn minimises C·Σ cross-entropy + ½‖V‖², which is the objective with C = 1/(λ n).
    fit = LogisticRegression(C=1 / (penalty * len(z)), max_iter=_MAX_ITER).fit(z, y)
    return fit.coef_.T, fit.intercept_


def _fit_shrunk(
    z: np.ndarray, y: np.ndarray, penalty: float, origin: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight and bias that minimise the objective, by L-BFGS from V₀ = ``origin``."""
    from scipy.optimize import minimize

    n, columns = len(z), origin.shape[1]
    # One-hot labels [row, class]; the gradient uses the last `columns` of them, as p does.
    truth = np.eye(max(2, columns))[y]
    logits = z @ origin + offset
    # The gradient is zero only if V − V₀ is a combination of the rows. Fewer rows than dimensions
    # therefore leave as many coordinates as rows: zᵀ = Q R, V − V₀ = Q U, and ‖Q U‖ = ‖U‖.
    basis = np.linalg.qr(z.T)[0] if n < z.shape[1] else None
    rows = z if basis is None else z @ basis

    def objective(step: np.ndarray) -> tuple[float, np.ndarray]:
        change, bias = step[:-columns].reshape(-1, columns), step[-columns:]
        p = probabilities(logits + rows @ change + bias)
        # mean cross-entropy + λ/2 (‖V − V₀‖² + ‖c − c₀‖²)
        loss = (
            -np.log(np.maximum(p[np.arange(n), y], 1e-300)).mean() + penalty / 2 * (step**2).sum()
        )
        # gradient: zᵀ(p − y)/n + λ (V − V₀), and Σ(p − y)/n + λ (c − c₀)
        error = (p - truth)[:, -columns:] / n
        gradient = [(rows.T @ error + penalty * change).ravel(), error.sum(0) + penalty * bias]
        return float(loss), np.concatenate(gradient)

    # `step` is V − V₀ and c − c₀, flattened, so that 0 is the start and the penalty is λ/2 ‖step‖².
    start = np.zeros((rows.shape[1] + 1) * columns)
    options: dict[str, Any] = {"maxiter": _MAX_ITER, "gtol": 1e-6}
    step = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    change = rearrange(step[:-columns], "(d column) -> d column", column=columns)
    whole = change if basis is None else basis @ change
    return origin + whole, offset + step[-columns:]
