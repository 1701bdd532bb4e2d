"""Spectrum of a predicting side, which all targets and all ridge penalties share.

The formulas are those of `lrt_lens.stitching.solvers._ridge`.

    spectrum = solver.decompose(fit.xx)
    spectrum.solve(fit, alpha, source_hook, target_hook)       # the map at one penalty
    HeldOutFold(spectrum, fit, held_out).errors(fit, held_out, spectrum.shrink(alphas), weights)

Limits: one penalty for all dimensions; dimensions with penalties of their own are scaled first.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from torch import Tensor

from lrt_lens.moments._scatter import Scatter, gram
from lrt_lens.stitching._affine import AffineMap


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of a (scaled) scatter matrix."""

    values: Tensor
    """Eigenvalues [d], ascending, not negative."""
    vectors: Tensor
    """Eigenvectors as columns [d, d]."""
    scale: Tensor
    """Factors [d] by which the source dimensions were multiplied before the decomposition."""
    mean_value: float
    """Trace of the scatter matrix ÷ d, the unit of ``alpha``: of standardised dimensions if the
    solver standardises, without any other scaling.
    """

    @cached_property
    def basis(self) -> Tensor:
        """Eigenvectors in the original units of the source, ``diag(s)·V`` [d, d]."""
        return einsum(self.scale, self.vectors, "d, d rank -> d rank")

    def rotate(self, rows: Tensor) -> Tensor:
        """``Vᵀ`` times scaled rows, [d, ...]."""
        # Vᵀ·(diag(s)·rows) = (diag(s)·V)ᵀ·rows: the scaling is paid once, not for every target.
        return self.basis.T @ rows

    def shrink(self, alphas: Tensor) -> Tensor:
        """Return the diagonal of D for each penalty, as [alpha, d]."""
        # 1 / (e_i + λ·tr(Sxx)/d)
        return 1 / (self.values + rearrange(alphas, "alpha -> alpha 1") * self.mean_value)

    def solve(self, fit: Scatter, alpha: float, source_hook: str, target_hook: str) -> AffineMap:
        """Return the map at one penalty, in the original units of the source."""
        shrink = self.shrink(
            torch.tensor([alpha], dtype=self.values.dtype, device=self.values.device)
        )[0]
        # W = diag(s)·V·diag(1/(e + λ̃))·Vᵀ·diag(s)·Sxy
        weight = self.basis @ self.rotate(fit.xy).mul_(rearrange(shrink, "d -> d 1"))
        return AffineMap(weight, fit.mean_y - fit.mean_x @ weight, source_hook, target_hook)


class HeldOutFold:
    """Terms of one held-out fold that the errors of all targets share."""

    def __init__(self, spectrum: Spectrum, fit: Scatter, held_out: Scatter) -> None:
        self.spectrum = spectrum
        # M = VᵀSxx'V (the transpose puts the second axis first, where `rotate` works)
        self.rotated_xx = spectrum.rotate(spectrum.rotate(held_out.xx).T)
        # Vᵀ(x̄' − x̄)
        self.moved_mean = spectrum.rotate(held_out.mean_x - fit.mean_x)

    def errors(self, fit: Scatter, held_out: Scatter, shrink: Tensor, weights: Tensor) -> Tensor:
        """Return weighted held-out sums of squares at every penalty, as [alpha, weighting].

        ``weights`` is [weighting, d_target].
        """
        # B and N of the module docstring, [d_source, d_target] each.
        fitted, product = self.spectrum.rotate(fit.xy), self.spectrum.rotate(held_out.xy)
        # x̄'W + b − ȳ' = (x̄' − x̄)W + ȳ − ȳ', as [alpha, d_target]
        offset = (shrink * self.moved_mean) @ fitted + (fit.mean_y - held_out.mean_y)
        product *= fitted
        columns = []
        for weight in weights:
            # dᵀ(M ∘ G)d with G = B diag(w) Bᵀ
            quadratic = (
                (shrink @ _weighted_gram(fitted, weight).mul_(self.rotated_xx)) * shrink
            ).sum(1)
            # dᵀh with h_i = Σ_k w_k B_ik N_ik
            linear = shrink @ (product @ weight)
            columns.append(
                held_out.variance @ weight
                - 2 * linear
                + quadratic
                + held_out.n * (offset**2 @ weight)
            )
        return torch.stack(columns, 1)


def _weighted_gram(fitted: Tensor, weight: Tensor) -> Tensor:
    """Return ``B diag(w) Bᵀ`` [d_source, d_source] of B [d_source, d_target]."""
    if bool((weight == weight[0]).all()):
        # Equal weights, those of R², need no scaled copy of B.
        return gram(fitted.T).mul_(weight[0])
    return gram((fitted * weight.sqrt()).T)


@runtime_checkable
class HasPenalties(Protocol):
    """Ridge regression whose penalties are chosen by cross-validation."""

    @property
    def candidates(self) -> tuple[float, ...]:
        """Relative penalties."""
        ...

    def decompose(self, xx: Tensor) -> Spectrum:
        """Return the spectrum of a scatter matrix [d, d]."""
        ...
