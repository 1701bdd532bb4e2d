"""Whitened Procrustes maps: a change of axes between two streams of equal spread.

Problem: a Procrustes map turns the axes of the source and keeps their variances, so that directions
of large variance decide which rotation is best. Mechanism: both streams are whitened first, the
rotation is found there, and the result is brought back into the metric of the target. With
``K = Sxx^-½ Sxy Syy^-½ = UΣVᵀ``, the objective is to minimise ``Σ‖y Syy^-½ − x Sxx^-½ Q‖²`` over
semi-orthogonal ``Q`` [d_source, d_target]. Whitened rows have the identity as their scatter, so
that the quadratic term ``tr QᵀQ`` is the same for every ``Q``, and ``Q = UVᵀ`` is the minimum for
all widths:

    W = s·Sxx^-½ UVᵀ Syy^½,      s = tr WᵀSxy / tr WᵀSxxW at s = 1,      b = ȳ − x̄W

    grid = moments.fit(WhitenedProcrustes())              # λ by cross-validation
    grid = moments.fit(WhitenedProcrustes(alpha=1e-3))    # a fixed λ

Both scatters are regularised, ``Sxx + λ·tr(Sxx)/d_s·I`` and ``Syy + λ·tr(Syy)/d_t·I``, because
whitening divides by the smallest variances, which few rows do not determine. ``UVᵀ`` pairs the
canonical directions of both streams (CCA): ridge shrinks each by its own correlation, this map
shrinks all by one factor, the ``s`` of the least squared error. With ``scale=False`` it shrinks
nothing, and mapped states have the covariance of the target.

Limits: directions that the source does not predict are not shrunk more than others, so that the map
predicts worse than ridge. With d_source ≠ d_target some directions of the wider stream have no
partner and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from lrt_lens.moments._scatter import Scatter
from lrt_lens.stitching.solvers._procrustes import polar
from lrt_lens.stitching.solvers._solver import DEFAULT_ALPHAS, ClosedForm, Setting

_ALPHAS = DEFAULT_ALPHAS[::3]
"""Every third penalty of ridge, 1e-6 to 4: each one needs a polar decomposition of its own."""


@dataclass(frozen=True)
class WhitenedProcrustes(ClosedForm):
    """Semi-orthogonal map between whitened streams, in the units of both streams."""

    alpha: float | None = None
    """Penalty relative to the mean variance of each stream; None chooses from ``alphas`` by
    cross-validated R².
    """
    alphas: tuple[float, ...] = _ALPHAS
    """Penalties among which cross-validation chooses if ``alpha`` is None."""
    scale: bool = True
    """True if the map has the scale factor s of the least squared error; False fixes s = 1."""
    label: ClassVar[str] = "whitened_procrustes"

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("alphas is empty; give at least one penalty, or alpha=…")
        for alpha in self.candidates:
            # Whitening divides by the square roots of variances, which may be 0. `not alpha > 0`
            # also refuses NaN.
            if not alpha > 0 or alpha == float("inf"):
                raise ValueError(
                    f"alpha is {alpha!r}; expected a positive number (1e-6 is almost no penalty)"
                )

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        label = self.label if self.scale else "whitened_procrustes_unscaled"
        return f"{label}_standardized" if self.standardize else label

    @property
    def candidates(self) -> tuple[float, ...]:
        """Return the penalties that cross-validation scores."""
        return self.alphas if self.alpha is None else (self.alpha,)

    # The widths are for solvers that choose a rank.
    def settings(self, d_source: int, d_target: int) -> list[Setting]:  # noqa: ARG002
        """Return one setting per penalty."""
        return [Setting(alpha=alpha) for alpha in self.candidates]

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Return ``s·Sxx^-½ UVᵀ Syy^½`` for every penalty."""
        source, target = _Spread.of(fit.xx), _Spread.of(fit.yy)
        weights = []
        for setting in settings:
            whitened = source.power(setting.alpha, -0.5)  # (Sxx + λ·tr(Sxx)/d_s·I)^-½
            # K = Sxx^-½ Sxy Syy^-½,  W = Sxx^-½ polar(K) Syy^½
            cross = whitened @ fit.xy @ target.power(setting.alpha, -0.5)
            weight = whitened @ polar(cross) @ target.power(setting.alpha, 0.5)
            weights.append(self._stretch(weight, fit) * weight)
        return weights

    def _stretch(self, weight: Tensor, fit: Scatter) -> Tensor:
        # s = tr WᵀSxy / tr WᵀSxxW minimises the error for a fixed W.
        quadratic = (weight * (fit.xx @ weight)).sum()
        if not self.scale:
            return torch.ones_like(quadratic)
        return (weight * fit.xy).sum() / quadratic.clamp_min(torch.finfo(quadratic.dtype).tiny)


@dataclass(frozen=True)
class _Spread:
    """Eigendecomposition of a scatter matrix, which every penalty shares."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, scatter: Tensor) -> "_Spread":
        """Return the decomposition of a scatter matrix [d, d]."""
        values, vectors = torch.linalg.eigh(scatter)
        # Rounding makes eigenvalues of a singular scatter slightly negative.
        return cls(values.clamp_min(0), vectors)

    def power(self, alpha: float, exponent: float) -> Tensor:
        """Return ``(S + λ·tr(S)/d·I)^exponent``, [d, d]."""
        # V diag((e + λ·mean(e))^p) Vᵀ
        values = (self.values + alpha * self.values.mean()) ** exponent
        return (self.vectors * rearrange(values, "d -> 1 d")) @ self.vectors.T
