"""Centred scatter sums, and the held-out error of any affine map as exact algebra on them.

With primed quantities of the held-out rows and ``y ≈ x W + b``:

    Σ‖y − xW − b‖² = tr Syy' − 2 tr WᵀSxy' + tr WᵀSxx'W + n'‖ȳ' − x̄'W − b‖²

and the same for every output dimension from the diagonals. Nothing here looks at a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

_BLOCK = 128


def part_sum(stack: Tensor, parts: Sequence[int]) -> Tensor:
    """Sum of some slices of a stack; slice by slice, because indexing with a list would copy them
    all first.
    """
    total = stack[parts[0]]
    for part in parts[1:]:
        total = total + stack[part]
    return total


def gram(rows: Tensor) -> Tensor:
    """XᵀX, [d, d], of rows [n, d]: block rows right of the diagonal, mirrored; two thirds of the
    time of the whole product on a CPU.

    (numpy's product knows the symmetry, but its threads and torch's then fight over the cores:
    everything else took twice as long.)
    """
    if rows.device.type != "cpu":
        return rows.T @ rows
    d = rows.shape[1]
    product = rows.new_empty(d, d)
    for start in range(0, d, _BLOCK):
        end = min(start + _BLOCK, d)
        block = rows[:, start:end].T @ rows[:, start:]
        product[start:end, start:] = block
        product[end:, start:end] = block[:, end - start :].T
    return product


class SecondMoment:
    """A centred scatter matrix that is formed when it is first asked for.

    Most uses of a pair need only the diagonal of one side: forming d × d matrices that nobody reads
    was half the cost of a grid.
    """

    def __init__(self, second: Tensor, total: Tensor, n: float, parts: list[int]) -> None:
        self._second, self._total, self._n, self._parts = second, total, n, parts

    @cached_property
    def matrix(self) -> Tensor:
        """[d, d], Σ(x − x̄)(x − x̄)ᵀ."""
        return part_sum(self._second, self._parts) - torch.outer(self._total, self._total) / self._n

    @cached_property
    def diagonal(self) -> Tensor:
        """[d]: the diagonal alone."""
        return (
            part_sum(self._second.diagonal(dim1=1, dim2=2), self._parts) - self._total**2 / self._n
        )


class DenseSecondMoment(SecondMoment):
    """A scatter matrix that is there already."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    @cached_property
    def diagonal(self) -> Tensor:
        """[d]: the diagonal alone."""
        return self.matrix.diagonal()


class ProjectedSecondMoment(DenseSecondMoment):
    """The scatter matrix of the same rows seen through orthonormal columns, formed when it is first
    asked for.
    """

    def __init__(self, whole: SecondMoment, basis: Tensor) -> None:
        self._whole, self._basis = whole, basis

    @cached_property
    def matrix(self) -> Tensor:
        """[columns, columns]."""
        return self._basis.T @ self._whole.matrix @ self._basis


@dataclass(frozen=True)
class Scatter:
    """Sums over rows, centred on the rows' own means."""

    n: float
    """Rows."""
    mean_x: Tensor
    """[d_source]."""
    mean_y: Tensor
    """[d_target]."""
    xy: Tensor
    """[d_source, d_target], Σ(x − x̄)(y − ȳ)ᵀ."""
    second_x: SecondMoment
    second_y: SecondMoment

    @property
    def xx(self) -> Tensor:
        """[d_source, d_source], Σ(x − x̄)(x − x̄)ᵀ."""
        return self.second_x.matrix

    @property
    def yy(self) -> Tensor:
        """[d_target, d_target]."""
        return self.second_y.matrix

    @property
    def variance(self) -> Tensor:
        """[d_target], Σ(y − ȳ)² of every target dimension."""
        return self.second_y.diagonal

    def swapped(self) -> "Scatter":
        """The same rows seen from the other side: what a ``down`` map is fitted on."""
        return Scatter(self.n, self.mean_y, self.mean_x, self.xy.T, self.second_y, self.second_x)

    def with_target(self, xy: Tensor, basis: Tensor | None) -> "Scatter":
        """Other cross-scatter, and the target side seen through orthonormal columns ``basis``."""
        if basis is None:
            return replace(self, xy=xy)
        return replace(
            self,
            xy=xy,
            mean_y=self.mean_y @ basis,
            second_y=ProjectedSecondMoment(self.second_y, basis),
        )

    def onto_itself(self) -> "Scatter":
        """The source against itself: what a round trip is scored on."""
        return replace(self, mean_y=self.mean_x, xy=self.xx, second_y=self.second_x)

    def joined(self, other: "Scatter") -> "Scatter":
        """The scatter of both sets of rows together, about their common means."""
        n = self.n + other.n
        share = self.n * other.n / n
        dx, dy = self.mean_x - other.mean_x, self.mean_y - other.mean_y
        return Scatter(
            n=n,
            mean_x=(self.n * self.mean_x + other.n * other.mean_x) / n,
            mean_y=(self.n * self.mean_y + other.n * other.mean_y) / n,
            xy=self.xy + other.xy + share * torch.outer(dx, dy),
            second_x=DenseSecondMoment(self.xx + other.xx + share * torch.outer(dx, dx)),
            second_y=DenseSecondMoment(self.yy + other.yy + share * torch.outer(dy, dy)),
        )

    def detached(self) -> "Scatter":
        """The same sums, formed, so that they do not hold on to the moments they came from."""
        return replace(
            self,
            xy=self.xy.clone(),
            second_x=DenseSecondMoment(self.xx),
            second_y=DenseSecondMoment(self.yy),
        )

    def scaled(self, scale_x: Tensor, scale_y: Tensor) -> "Scatter":
        """The scatter of ``x * scale_x`` and ``y * scale_y``."""
        return Scatter(
            n=self.n,
            mean_x=self.mean_x * scale_x,
            mean_y=self.mean_y * scale_y,
            xy=self.xy * scale_x[:, None] * scale_y,
            second_x=DenseSecondMoment(self.xx * scale_x[:, None] * scale_x),
            second_y=DenseSecondMoment(self.yy * scale_y[:, None] * scale_y),
        )

    def uncentred(self) -> "Scatter":
        """Sums about zero instead of about the rows' means: what a map without a bias is fitted on."""
        outer = torch.outer
        return Scatter(
            n=self.n,
            mean_x=torch.zeros_like(self.mean_x),
            mean_y=torch.zeros_like(self.mean_y),
            xy=self.xy + self.n * outer(self.mean_x, self.mean_y),
            second_x=DenseSecondMoment(self.xx + self.n * outer(self.mean_x, self.mean_x)),
            second_y=DenseSecondMoment(self.yy + self.n * outer(self.mean_y, self.mean_y)),
        )


@dataclass(frozen=True)
class MapScore:
    """How well a map predicts held-out rows."""

    r2: float
    """Share of variance explained: scikit-learn's ``variance_weighted`` R²."""
    r2_uniform: float
    """Mean R² over output dimensions: scikit-learn's ``uniform_average``, dimensions of zero
    variance dropped.
    """
    cosine: float
    """Σ⟨ŷ−ȳ', y−ȳ'⟩ / √(Σ‖ŷ−ȳ'‖² Σ‖y−ȳ'‖²), pooled over tokens."""
    n_constant: int
    """Output dimensions dropped from ``r2_uniform`` because they do not vary."""


def score_map(weight: Tensor, bias: Tensor, held_out: Scatter) -> MapScore:
    """Scores of ``x @ weight + bias`` on held-out moments, equal to scores from the rows."""
    explained, predicted = _explained_and_predicted(weight.double(), bias.double(), held_out)
    variance = held_out.variance
    r2, r2_uniform, n_constant = r2_of(variance - 2 * explained + predicted, variance)
    norm = (predicted.sum() * variance.sum()).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return MapScore(
        r2=r2, r2_uniform=r2_uniform, cosine=float(explained.sum() / norm), n_constant=n_constant
    )


def squared_errors(weight: Tensor, bias: Tensor, held_out: Scatter) -> Tensor:
    """[d_target]: Σ(y − x W − b)² of every target dimension over held-out rows."""
    explained, predicted = _explained_and_predicted(weight.double(), bias.double(), held_out)
    return held_out.variance - 2 * explained + predicted


def _explained_and_predicted(
    weight: Tensor, bias: Tensor, held_out: Scatter
) -> tuple[Tensor, Tensor]:
    """Σ(ŷ−ȳ)(y−ȳ) and Σ(ŷ−ȳ)² of every target dimension, ȳ the mean of the held-out rows."""
    offset = held_out.mean_x @ weight + bias - held_out.mean_y
    return (weight * held_out.xy).sum(0), (weight * (held_out.xx @ weight)).sum(
        0
    ) + held_out.n * offset**2


def r2_of(error: Tensor, variance: Tensor) -> tuple[float, float, int]:
    """(R² by variance, mean R² over varying dimensions, number of constant dimensions) from sums of
    squares, [d].
    """
    varies = varying(variance)
    if not bool(varies.any()):
        return float("nan"), float("nan"), len(variance)
    uniform = 1 - error[varies] / variance[varies]
    return float(1 - error.sum() / variance.sum()), float(uniform.mean()), int((~varies).sum())


def varying(variance: Tensor) -> Tensor:
    """Dimensions that vary at all, against rounding left over from centring."""
    return variance > 1e-12 * variance.max().clamp_min(torch.finfo(variance.dtype).tiny)


def score_weights(variance: Tensor) -> Tensor:
    """[2, d]: weights whose error sums become R² and the mean R² over dimensions, from held-out
    sums of squares, [d].
    """
    varies = varying(variance)
    uniform = (
        torch.where(
            varies,
            1 / torch.where(varies, variance, torch.ones_like(variance)),
            torch.zeros_like(variance),
        )
        / varies.sum()
    )
    total = float(variance.sum())
    return torch.stack([torch.full_like(variance, 1 / total if total else float("nan")), uniform])


def linear_cka(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    """Linear CKA debiased across folds, from covariances stacked by fold, [fold, d, d].

    Σ_{j≠k}⟨Cxyʲ, Cxyᵏ⟩ / √(Σ_{j≠k}⟨Cxxʲ, Cxxᵏ⟩ · Σ_{j≠k}⟨Cyyʲ, Cyyᵏ⟩); the products of different
    folds have no bias in the width.
    """
    return cka_of(between_folds(xy), between_folds(xx), between_folds(yy))


def cka_of(xy: float, xx: float, yy: float) -> float:
    """CKA from its three terms; NaN where a side's own is not positive: too little data to tell it
    from nothing.
    """
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan


def between_folds(stack: Tensor) -> float:
    """Σ_{j≠k}⟨Cʲ, Cᵏ⟩ of matrices stacked by fold."""
    norm = torch.linalg.vector_norm
    return float(norm(stack.sum(0)) ** 2 - norm(stack) ** 2)
