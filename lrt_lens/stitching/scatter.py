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
    """Sum of some slices of a stack; slice by slice, because indexing with a list would copy them all first."""
    total = stack[parts[0]]
    for part in parts[1:]:
        total = total + stack[part]
    return total


def gram(rows: Tensor) -> Tensor:
    """XᵀX, [d, d], of rows [n, d]: block rows right of the diagonal, mirrored; two thirds of the time of the whole product on a CPU.

    (numpy's product knows the symmetry, but its threads and torch's then fight over the cores: everything else took twice as long.)
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

    Most uses of a pair need only the diagonal of one side: forming d × d matrices that nobody reads was half the cost of a grid.
    """

    def __init__(self, second: Tensor, total: Tensor, n: float, parts: list[int], basis: Tensor | None = None) -> None:
        self._second, self._total, self._n, self._parts, self._basis = second, total, n, parts, basis

    @cached_property
    def matrix(self) -> Tensor:
        """[d, d], Σ(x − x̄)(x − x̄)ᵀ."""
        matrix = part_sum(self._second, self._parts) - torch.outer(self._total, self._total) / self._n
        return matrix if self._basis is None else self._basis.T @ matrix @ self._basis

    @cached_property
    def diagonal(self) -> Tensor:
        """[d]: the diagonal alone."""
        if self._basis is not None:
            return self.matrix.diagonal()
        return part_sum(self._second.diagonal(dim1=1, dim2=2), self._parts) - self._total**2 / self._n

    def seen_through(self, basis: Tensor) -> "SecondMoment":
        """The same rows projected on orthonormal columns."""
        return SecondMoment(self._second, self._total, self._n, self._parts, basis)


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
        return replace(self, xy=xy, mean_y=self.mean_y @ basis, second_y=self.second_y.seen_through(basis))


@dataclass(frozen=True)
class MapScore:
    """How well a map predicts held-out rows."""

    r2: float
    """Share of variance explained: scikit-learn's ``variance_weighted`` R²."""
    r2_uniform: float
    """Mean R² over output dimensions: scikit-learn's ``uniform_average``, dimensions of zero variance dropped."""
    cosine: float
    """Σ⟨ŷ−ȳ', y−ȳ'⟩ / √(Σ‖ŷ−ȳ'‖² Σ‖y−ȳ'‖²), pooled over tokens."""
    n_constant: int
    """Output dimensions dropped from ``r2_uniform`` because they do not vary."""


def score_map(weight: Tensor, bias: Tensor, held_out: Scatter) -> MapScore:
    """Scores of ``x @ weight + bias`` on held-out moments, equal to scores from the rows."""
    weight, bias = weight.double(), bias.double()
    mapped = held_out.xx @ weight
    offset = held_out.mean_x @ weight + bias - held_out.mean_y
    explained = (weight * held_out.xy).sum(0)
    predicted = (weight * mapped).sum(0) + held_out.n * offset**2
    variance = held_out.variance
    error = variance - 2 * explained + predicted
    r2, r2_uniform, n_constant = r2_of(error, variance)
    norm = (predicted.sum() * variance.sum()).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return MapScore(r2=r2, r2_uniform=r2_uniform, cosine=float(explained.sum() / norm), n_constant=n_constant)


def r2_of(error: Tensor, variance: Tensor) -> tuple[float, float, int]:
    """(R² by variance, mean R² over varying dimensions, number of constant dimensions) from sums of squares, [d]."""
    varies = varying(variance)
    if not bool(varies.any()):
        return float("nan"), float("nan"), len(variance)
    uniform = 1 - error[varies] / variance[varies]
    return float(1 - error.sum() / variance.sum()), float(uniform.mean()), int((~varies).sum())


def varying(variance: Tensor) -> Tensor:
    """Dimensions that vary at all, against rounding left over from centring."""
    return variance > 1e-12 * variance.max().clamp_min(torch.finfo(variance.dtype).tiny)


def linear_cka(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    """Linear CKA debiased across folds, from covariances stacked by fold, [fold, d, d].

    Σ_{j≠k}⟨Cxyʲ, Cxyᵏ⟩ / √(Σ_{j≠k}⟨Cxxʲ, Cxxᵏ⟩ · Σ_{j≠k}⟨Cyyʲ, Cyyᵏ⟩); the products of different folds have no bias in the width.
    """
    return cka_of(between_folds(xy), between_folds(xx), between_folds(yy))


def cka_of(xy: float, xx: float, yy: float) -> float:
    """CKA from its three terms; NaN where a side's own is not positive: too little data to tell it from nothing."""
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan


def between_folds(stack: Tensor) -> float:
    """Σ_{j≠k}⟨Cʲ, Cᵏ⟩ of matrices stacked by fold."""
    norm = torch.linalg.vector_norm
    return float(norm(stack.sum(0)) ** 2 - norm(stack) ** 2)
