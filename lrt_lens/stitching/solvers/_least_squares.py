"""Least squares of minimum norm: ``W = Sxx⁺ Sxy``, the limit of ridge at no penalty.

With fewer rows than dimensions infinitely many maps predict the fitting rows without error; the
pseudo-inverse takes the smallest. Without the intercept, on uncentred sums, it is the map of
L-Cross Modulation (arXiv 2501.02009, eq. 3), which is fitted on fewer texts than dimensions: there
the map interpolates, and only held-out scores mean anything.
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
    """Minimises ``Σ‖y − xW − b‖²``; of all minimisers the one with the least ``‖W‖_F``."""

    intercept: bool = True
    """Whether there is a bias; L-Cross has none."""
    rcond: float = 1e-12
    """Eigenvalues of the scatter below this share of the largest count as zero; 1e-6 is right for
    sums of few float32 products.
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
        """Whether the bias is ``ȳ − x̄W``; if not, it is zero and `weights` gets uncentred sums."""
        return self.intercept

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Return ``Sxx⁺ Sxy``.

        The rank is at most the number of independent rows, which rounding hides from the
        eigenvalues.
        """
        values, vectors = torch.linalg.eigh(fit.xx)
        keep = values > self.rcond * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
        independent = int(fit.n) - int(self.intercept)
        if independent < len(values):
            keep[: len(values) - independent] = False
        inverse = torch.where(keep, 1 / torch.where(keep, values, torch.ones_like(values)), 0.0)
        shrunk = einsum(inverse, vectors.T @ fit.xy, "rank, rank d_target -> rank d_target")
        return [vectors @ shrunk] * len(settings)
