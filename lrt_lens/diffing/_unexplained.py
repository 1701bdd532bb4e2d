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

Cost: one `PredictorSpectrum` Sxx = V diag(s) Vᵀ serves every map of x. With A = VᵀSxy the fit has
E = Syy − Aᵀ diag((s + 2λ)/(s + λ)²) A, which is one product, and W is never formed.

Limits: GCV takes rows as independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.moments._scatter import Scatter, gram
from lrt_lens.statistics._noise_spectrum import independent_rows
from lrt_lens.stitching.solvers._solver import DEFAULT_ALPHAS

_NO_PENALTY = 1e-12
"""Relative penalty of a map that explains a copy of the stream, with no error but rounding."""
_COLUMNS_OF_ESTIMATE = 128
"""Dimensions from which the number of independent rows is estimated."""


@dataclass(frozen=True)
class PredictorSpectrum:
    """Eigendecomposition of the scatter of the predicting side, with which ridge maps are built."""

    values: Tensor
    """Eigenvalues s, at least 0 [d]."""
    vectors: Tensor
    """Eigenvectors V as columns [d, d]."""

    @classmethod
    def of(cls, matrix: Tensor) -> "PredictorSpectrum":
        """Return the spectrum of a scatter matrix [d, d]."""
        values, vectors = torch.linalg.eigh(matrix)
        return cls(values.clamp_min(0), vectors)

    def penalty(self, alpha: float) -> float:
        """Return the penalty λ that is ``alpha`` relative to the mean variance."""
        return alpha * (float(self.values.mean()) or 1.0)

    def explained(self, alpha: float) -> Tensor:
        """Return g = (s + 2λ) / (s + λ)²: a map explains Σ_i g_i a_i² of the rows a_i of A."""
        shrunk = self.values + self.penalty(alpha)
        return (2 * shrunk - self.values) / shrunk.square()


@dataclass(frozen=True)
class RidgeMap:
    """Ridge map W = V diag(1 / (s + λ)) A of the other stream, in factors."""

    spectrum: PredictorSpectrum
    """PredictorSpectrum of the scatter of the predicting side."""
    turned: Tensor
    """A = VᵀSxy [d_other, d]."""
    alpha: float
    """Penalty relative to the mean variance of the predicting side."""

    def of(self, directions: Tensor) -> Tensor:
        """Return UWᵀ [k, d_other] for directions U [k, d]."""
        shrunk = self.spectrum.values + self.spectrum.penalty(self.alpha)
        # UWᵀ = UAᵀ diag(1 / (s + λ)) Vᵀ
        return (directions @ self.turned.T / shrunk) @ self.spectrum.vectors.T


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
    ridge: RidgeMap | None
    """Ridge map of the other stream; None for a difference, whose map is I."""

    @property
    def alpha(self) -> float | None:
        """Relative penalty of the map; None for a difference."""
        return None if self.ridge is None else self.ridge.alpha

    def read_from_other(self, directions: Tensor) -> Tensor:
        """Return the directions [k, d_other] that read the predicted part from the other stream."""
        return directions if self.ridge is None else self.ridge.of(directions)

    def covariance(self) -> Tensor:
        """Return the covariance of what is left [d, d]."""
        return self.scatter / self.n_free

    def along(self, others: Sequence[Scatter], directions: Tensor) -> Tensor:
        """Return the sums of squares along unit directions [direction, d] on other rows.

        Returns:
            One row per scatter [scatter, direction].
        """
        mapped = self.read_from_other(directions)
        # uᵀEu = uᵀSyyu − 2 (Wu)ᵀSxyu + (Wu)ᵀSxx(Wu)
        sums = [
            quadratic_forms(directions, other.yy)
            + (mapped * (mapped @ other.xx - 2 * (directions @ other.xy.T))).sum(1)
            for other in others
        ]
        return torch.stack(sums)

    def independent_rows(self, folds: Sequence[Scatter], seed: int, rounding: float = 0.0) -> float:
        """Return the number of independent rows with so much variation between folds.

        It is estimated from some of the dimensions, at most 128, drawn by ``seed``. Those whose
        variance is at most ``rounding`` are left out.
        """
        d = len(self.scatter)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(d, generator=generator)[:_COLUMNS_OF_ESTIMATE].sort().values
        varies = (self.scatter.diagonal() / self.n_free > rounding).cpu()
        kept = drawn[varies[drawn]]
        rows = torch.eye(d, dtype=self.scatter.dtype, device=self.scatter.device)[kept]
        mapped = self.read_from_other(rows)
        covariances = []
        for fold in folds:
            # UEUᵀ = USyyUᵀ − UWᵀSxyUᵀ − USxyᵀWUᵀ + UWᵀSxxWUᵀ, with U some rows of I
            cross = mapped @ fold.xy[:, kept]
            left = fold.yy[kept][:, kept] - cross - cross.T + (mapped @ fold.xx) @ mapped.T
            covariances.append((left / fold.n).cpu().numpy())
        total = sum(fold.n for fold in folds)
        return float(self.n_free * independent_rows(covariances, [f.n for f in folds]) / total)


def residual(
    fit: Scatter, alpha: float | None = None, spectrum: PredictorSpectrum | None = None
) -> Unexplained:
    """Return what a ridge map of x leaves of y.

    Args:
        fit: scatter of the fitting rows; `Scatter.swapped` compares the other way round.
        alpha: penalty relative to the mean variance of x; None chooses one of ``DEFAULT_ALPHAS`` by
            generalised cross-validation.
        spectrum: spectrum of ``fit.xx`` if it is known.

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
    spectrum = spectrum or PredictorSpectrum.of(fit.xx)
    turned = spectrum.vectors.T @ fit.xy
    if alpha is None:
        alpha = _chosen_alpha(fit, spectrum, turned)
    n_free = fit.n - 1 - _degrees(spectrum, alpha)
    # E = Syy − Aᵀ diag(g) A
    scatter = fit.yy - gram(turned * spectrum.explained(alpha).sqrt()[:, None])
    return Unexplained(scatter, n_free, fit.yy, RidgeMap(spectrum, turned, alpha))


def left_along(
    fit: Scatter, alpha: float, directions: Tensor, spectrum: PredictorSpectrum | None = None
) -> Tensor:
    """Return the variance [direction] that a ridge map of x leaves of y along unit directions.

    Equal to the diagonal of ``directions @ residual(fit, alpha).covariance() @ directions.T``.

    Args:
        fit: scatter of the fitting rows.
        alpha: penalty relative to the mean variance of x.
        directions: unit directions of y [direction, d_y].
        spectrum: spectrum of ``fit.xx`` if it is known.
    """
    spectrum = spectrum or PredictorSpectrum.of(fit.xx)
    turned = (directions @ fit.xy.T) @ spectrum.vectors
    # uᵀEu = uᵀSyyu − Σ_i g_i (Au)_i²
    left = quadratic_forms(directions, fit.yy) - turned.square() @ spectrum.explained(alpha)
    return left / (fit.n - 1 - _degrees(spectrum, alpha))


def difference(fit: Scatter) -> Unexplained:
    """Return the scatter of y − x, both of one width."""
    return Unexplained(fit.xx + fit.yy - fit.xy - fit.xy.T, fit.n - 1, fit.yy, None)


@dataclass(frozen=True)
class PairWhitening:
    """Cholesky factors of the scatters of both sides, with a relative penalty."""

    left: Tensor
    """Lower factor of x [d_x, d_x]."""
    right: Tensor
    """Lower factor of y [d_y, d_y]."""

    @classmethod
    def of(cls, fit: Scatter, alpha: float) -> "PairWhitening":
        """Return the factors of a scatter; ``alpha`` is relative to the mean variance."""
        return cls(_factor(fit.xx, alpha), _factor(fit.yy, alpha))

    def canonical(self, cross: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ``n`` largest squared canonical correlations, and their directions.

        Args:
            cross: cross-scatter [d_x, d_y].
            n: number of pairs of directions.

        Returns:
            Squared correlations [k], descending, and read-out directions a [k, d_x] and c [k, d_y]
            with corr(x·a, y·c)² equal to them; k is at most the smaller width.
        """
        solve = torch.linalg.solve_triangular
        # K = Lx⁻¹ Sxy Ly⁻ᵀ = U diag(ρ) Vᵀ;  a = Lx⁻ᵀu,  c = Ly⁻ᵀv
        half = solve(self.left, cross, upper=False)
        whitened = solve(self.right, half.T, upper=False).T
        wide = whitened.shape[1] > whitened.shape[0]
        small = whitened.T if wide else whitened
        # KᵀK = V diag(ρ²) Vᵀ and U = K V / ρ; rounding changes ρ² by about 1e-16.
        squared, v = leading(gram(small), n)
        u = torch.nn.functional.normalize(v @ small.T, dim=1)
        u, v = (v, u) if wide else (u, v)
        a = solve(self.left.T, u.T, upper=True).T.contiguous()
        c = solve(self.right.T, v.T, upper=True).T.contiguous()
        return squared.clamp(0, 1), a, c


def leading(matrix: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues [k], descending, and their unit directions [k, d].

    Eigenvalues are at least 0, and k is ``n`` or d, whichever is smaller.
    """
    from scipy.linalg import eigh

    d = len(matrix)
    values, vectors = eigh(matrix.cpu().numpy(), subset_by_index=(max(0, d - n), d - 1))
    largest = torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors.T[::-1].copy())
    return largest[0].to(matrix).clamp_min(0), largest[1].to(matrix)


def quadratic_forms(directions: Tensor, matrix: Tensor) -> Tensor:
    """Return uᵀMu [direction] of directions [direction, d] and a symmetric matrix."""
    return (directions * (directions @ matrix)).sum(1)


def largest_by_chance(d_x: int, d_y: int, n: float) -> float:
    """Return the largest canonical correlation of independent sides, for n rows (Wachter 1980).

    It is 1 if there are not more rows than dimensions.
    """
    if n <= d_x + d_y:
        return 1.0
    # ρ² = (√(γx(1 − γy)) + √(γy(1 − γx)))²,  γ = d/n
    x, y = d_x / n, d_y / n
    return float(np.sqrt(x * (1 - y)) + np.sqrt(y * (1 - x)))


def _chosen_alpha(fit: Scatter, spectrum: PredictorSpectrum, turned: Tensor) -> float:
    """Return the relative penalty with the smallest error of generalised cross-validation."""
    total, power = float(fit.variance.sum()), turned.square().sum(1)
    errors = []
    for alpha in (candidates := (_NO_PENALTY, *DEFAULT_ALPHAS)):
        # RSS(λ) = tr Syy − Σ_i a_i² (s_i + 2λ) / (s_i + λ)², with a_i the rows of A
        rss = total - float(power @ spectrum.explained(alpha))
        errors.append(rss / (1 - _degrees(spectrum, alpha) / fit.n) ** 2)
    return candidates[int(np.argmin(errors))]


def _degrees(spectrum: PredictorSpectrum, alpha: float) -> float:
    """Return df(λ) = Σ_i s_i / (s_i + λ), the degrees of freedom of a map."""
    return float((spectrum.values / (spectrum.values + spectrum.penalty(alpha))).sum())


def _factor(matrix: Tensor, alpha: float) -> Tensor:
    """Return the lower Cholesky factor of a scatter with a relative penalty."""
    d = len(matrix)
    mean = float(matrix.diagonal().mean()) or 1.0
    eye = torch.eye(d, dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.cholesky(matrix + alpha * mean * eye)
