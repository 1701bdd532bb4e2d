"""Least squares of minimum norm: ``W = Sxx⁺ Sxy``, the limit of ridge as the penalty goes to 0.

With fewer rows than dimensions, infinitely many maps predict the fitting rows without error; the
pseudo-inverse gives the one of smallest norm. Without the intercept, on uncentred sums, it is the
map of L-Cross Modulation (arXiv 2501.02009, eq. 3):

    grid = moments.fit(LeastSquares())
    grid = moments.fit(LeastSquares(intercept=False))      # L-Cross

Limits: L-Cross is fitted on fewer texts than dimensions. Such a map interpolates, and only its
held-out scores mean anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import einsum
from torch import Tensor

from lrt_lens.moments._scatter import Scatter
from lrt_lens.stitching.solvers._solver import ClosedForm, Setting


@dataclass(frozen=True)
class LeastSquares(ClosedForm):
    """The minimiser of ``Σ‖y − xW − b‖²`` with the least ``‖W‖_F``."""

    intercept: bool = True
    """True if the map has a bias; the map of L-Cross has none."""
    rcond: float = 1e-12
    """Eigenvalues of the scatter below this share of the largest count as zero. For sums of few
    float32 products use 1e-6.
    """
    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.rcond < 1:
            raise ValueError(
                f"rcond is {self.rcond!r}; expected a share of the largest eigenvalue, at least 0 "
                "and below 1"
            )

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        label = "least_squares" if self.intercept else "least_squares_no_intercept"
        return f"{label}_standardized" if self.standardize else label

    @property
    def has_intercept(self) -> bool:
        """True if the bias is ``ȳ − x̄W``; otherwise it is 0 and `weights` gets uncentred sums."""
        return self.intercept

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Return ``Sxx⁺ Sxy`` for every setting."""
        # eigh sorts ascending, so values[-1] is the largest. `tiny` instead of 0, so that no
        # eigenvalue of a zero matrix is above the threshold.
        values, vectors = torch.linalg.eigh(fit.xx)
        keep = values > self.rcond * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
        # The rank is at most n, or n − 1 for centred rows. With few rows, rounding lifts some of
        # the zero eigenvalues above the threshold, so they are removed by number.
        independent = int(fit.n) - int(self.intercept)
        if independent < len(values):
            keep[: len(values) - independent] = False
        # W = V·diag(1/e or 0)·Vᵀ·Sxy; the inner `where` keeps 1/0 out of the unused branch.
        inverse = torch.where(keep, 1 / torch.where(keep, values, torch.ones_like(values)), 0.0)
        shrunk = einsum(inverse, vectors.T @ fit.xy, "rank, rank d_target -> rank d_target")
        return [vectors @ shrunk] * len(settings)
