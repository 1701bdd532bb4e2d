"""Second moments of what is compared: residuals of a ridge map, differences, canonical variates.

Problem: the rows are gone when moments are kept, and two models are compared by what a row of one
has that the paired row of the other does not explain. Mechanism: each comparison is a centred
scatter matrix that the moments give, with S the scatter of the fitting folds:

    residual of the target   E = Syy − WᵀSxy − SxyᵀW + WᵀSxxW,    W = (Sxx + λI)⁻¹Sxy
    difference y − x         Sxx + Syy − Sxy − Sxyᵀ                (equal widths)
    canonical correlations   singular values of Lx⁻¹ Sxy Ly⁻ᵀ,     LLᵀ = S + λI

`Unexplained` holds one of the first two, and evaluates single directions on any other rows.

The penalty λ is chosen by generalised cross-validation (Golub, Heath and Wahba 1979), which needs
one decomposition of Sxx for all candidates:

    GCV(λ) = RSS(λ) / (1 − df(λ)/n)²,    df(λ) = Σ_i s_i / (s_i + λ)

Residuals of a fit are smaller than the noise by the factor (n − df)/n, so E is divided by n − df.

Limits: GCV takes rows as independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.moments._scatter import Scatter
from lrt_lens.statistics._noise_spectrum import independent_rows
from lrt_lens.stitching.solvers._solver import DEFAULT_ALPHAS

_NO_PENALTY = 1e-12
"""Relative penalty of a map that explains a copy of the stream, with no error but rounding."""
_COLUMNS_OF_ESTIMATE = 128
"""Dimensions from which the number of independent rows is estimated."""


@dataclass(frozen=True)
class Unexplained:
    """Centred scatter of what one comparison leaves, and how it is computed on other rows."""

    scatter: Tensor
    """Scatter matrix of the fitting rows [d, d]."""
    n_free: float
    """Number of rows less the degrees of freedom of the map: ``scatter`` divided by it is a
    covariance."""
    whole: Tensor
    """Scatter matrix of the stream in which the directions lie, of the same rows [d, d]."""
    weight: Tensor | None
    """Ridge map of the other stream [d_other, d]; None for a difference, whose map is I."""
    alpha: float | None = None
    """Relative penalty of the map; None for a difference."""

    def on(self, other: Scatter, columns: Tensor) -> Tensor:
        """Return EU [d, k] of other rows for columns U [d, k]."""
        # EU = SyyU − Wᵀ(SxyU) − Sxyᵀ(WU) + WᵀSxx(WU)
        weight = self.weight
        mapped = columns if weight is None else weight @ columns
        explained = other.xy @ columns - other.xx @ mapped
        explained = explained if weight is None else weight.T @ explained
        return other.yy @ columns - explained - other.xy.T @ mapped

    def read_from_other(self, directions: Tensor) -> Tensor:
        """Return the directions [k, d_other] that read the predicted part from the other stream."""
        return directions if self.weight is None else directions @ self.weight.T

    def covariance(self) -> Tensor:
        """Return the covariance of what is left [d, d]."""
        return self.scatter / self.n_free

    def along(self, other: Scatter, directions: Tensor) -> Tensor:
        """Return the sums of squares along unit directions [direction, d] on other rows."""
        return (directions * self.on(other, directions.T).T).sum(1)

    def independent_rows(self, folds: Sequence[Scatter], seed: int) -> float:
        """Return the number of independent rows with so much variation between folds.

        It is estimated from some of the dimensions, at most 128, drawn by ``seed``.
        """
        d = len(self.scatter)
        generator = torch.Generator().manual_seed(seed)
        kept = torch.randperm(d, generator=generator)[:_COLUMNS_OF_ESTIMATE].sort().values
        columns = torch.eye(d, dtype=self.scatter.dtype, device=self.scatter.device)[:, kept]
        covariances = [(self.on(fold, columns)[kept] / fold.n).cpu().numpy() for fold in folds]
        total = sum(fold.n for fold in folds)
        return float(self.n_free * independent_rows(covariances, [f.n for f in folds]) / total)


def residual(fit: Scatter, alpha: float | None = None) -> Unexplained:
    """Return what a ridge map of x leaves of y.

    Args:
        fit: scatter of the fitting rows; `Scatter.swapped` compares the other way round.
        alpha: penalty relative to the mean variance of x; None chooses one of ``DEFAULT_ALPHAS`` by
            generalised cross-validation.

    Raises:
        TooFewDocumentsError: there are not more rows than dimensions of x, so that a map can
            explain everything.
    """
    d = len(fit.xx)
    if fit.n - 1 <= d:
        raise TooFewDocumentsError(
            f"the moments have {int(fit.n):,} fitting rows and the predicting side {d} dimensions:"
            " a linear map of so few rows explains anything; give more text, at least ten rows per"
            " dimension"
        )
    weight, degrees, chosen = _ridge(fit, alpha)
    # E = Syy − WᵀSxy − SxyᵀW + WᵀSxxW; rounding makes it slightly asymmetric.
    cross = weight.T @ fit.xy
    scatter = fit.yy - cross - cross.T + weight.T @ (fit.xx @ weight)
    return Unexplained((scatter + scatter.T) / 2, fit.n - 1 - degrees, fit.yy, weight, chosen)


def difference(fit: Scatter) -> Unexplained:
    """Return the scatter of y − x, both of one width."""
    return Unexplained(fit.xx + fit.yy - fit.xy - fit.xy.T, fit.n - 1, fit.yy, None)


def canonical(fit: Scatter, n: int, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return all canonical correlations, and the leading ``n`` directions of both sides.

    Args:
        fit: scatter of the fitting rows.
        n: number of pairs of directions.
        alpha: penalty of both inverses, relative to the mean variance.

    Returns:
        Correlations [min(d_x, d_y)], descending, and read-out directions a [n, d_x] and c [n, d_y]
        with corr(x·a, y·c) equal to them.
    """
    left, right = (_factor(matrix, alpha) for matrix in (fit.xx, fit.yy))
    # K = Lx⁻¹ Sxy Ly⁻ᵀ = U diag(ρ) Vᵀ;  a = Lx⁻ᵀu,  c = Ly⁻ᵀv
    half = torch.linalg.solve_triangular(left, fit.xy, upper=False)
    whitened = torch.linalg.solve_triangular(right, half.T, upper=False).T
    u, values, v = torch.linalg.svd(whitened, full_matrices=False)
    a = torch.linalg.solve_triangular(left.T, u[:, :n], upper=True).T
    c = torch.linalg.solve_triangular(right.T, v[:n].T, upper=True).T
    return values.clamp(0, 1), a, c


def largest_by_chance(d_x: int, d_y: int, n: float) -> float:
    """Return the largest canonical correlation of independent sides, for n rows (Wachter 1980).

    It is 1 if there are not more rows than dimensions.
    """
    if n <= d_x + d_y:
        return 1.0
    # ρ² = (√(γx(1 − γy)) + √(γy(1 − γx)))²,  γ = d/n
    x, y = d_x / n, d_y / n
    return float(np.sqrt(x * (1 - y)) + np.sqrt(y * (1 - x)))


def _ridge(fit: Scatter, alpha: float | None) -> tuple[Tensor, float, float]:
    """Return the weight [d_x, d_y], its degrees of freedom and its relative penalty."""
    values, vectors = torch.linalg.eigh(fit.xx)
    values = values.clamp_min(0)
    mean = float(values.mean()) or 1.0
    turned = vectors.T @ fit.xy
    candidates = (_NO_PENALTY, *DEFAULT_ALPHAS) if alpha is None else (alpha,)
    penalties = torch.tensor(candidates, dtype=values.dtype)
    shrunk = values + mean * penalties[:, None].to(values)  # [penalty, d]
    degrees = (values / shrunk).sum(1)
    # RSS(λ) = tr Syy − Σ_i a_i² (s_i + 2λ) / (s_i + λ)², with a_i the rows of UᵀSxy
    explained = (turned.square().sum(1) * (2 * shrunk - values) / shrunk.square()).sum(1)
    rss = float(fit.variance.sum()) - explained
    best = int((rss / (1 - degrees / fit.n).square()).argmin())
    weight = vectors @ (turned / shrunk[best][:, None])
    return weight, float(degrees[best]), float(penalties[best])


def _factor(matrix: Tensor, alpha: float) -> Tensor:
    """Return the lower Cholesky factor of a scatter with a relative penalty."""
    d = len(matrix)
    mean = float(matrix.diagonal().mean()) or 1.0
    eye = torch.eye(d, dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.cholesky(matrix + alpha * mean * eye)
