"""Ridge regression from moments: one eigendecomposition serves every target and every penalty.

Objective: minimise ``Σ‖y − xW − b‖² + λ̃·‖W‖²_F`` with ``λ̃ = λ·tr(Sxx)/d``, so that ``W = (Sxx +
λ̃·I)⁻¹ Sxy`` and ``b = ȳ − x̄W``. ``alpha`` is the relative penalty λ: scikit-learn's
``Ridge(alpha=λ·tr(Sxx)/d)`` gives the same map.

    grid = moments.fit(Ridge())                     # λ by cross-validation
    grid = moments.fit(Ridge(alpha=1e-3))           # a fixed λ

Let ``Sxx = V diag(e) Vᵀ`` be the scatter of the fitting folds, ``B = VᵀSxy`` and ``D =
diag(1/(e + λ̃))``. Primed quantities are those of the held-out fold in the same basis: ``M =
VᵀSxx'V``, ``N = VᵀSxy'``. The weighted held-out error of *all* penalties then needs two matrix
products per hook pair:

    Σ_k w_k·error_k = Σ_k w_k Syy'_kk − 2 dᵀh + dᵀ(M ∘ G)d + n'·Σ_k w_k·offset_k²
    G = B diag(w) Bᵀ,  h_i = Σ_k w_k B_ik N_ik

where ``d`` is the diagonal of ``D``. Equal weights give R²; weights ``1/Syy'_kk`` give the mean R²
over dimensions.

Limits: one penalty for all source dimensions. `ManyToOne` has one penalty per source layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import Scatter, score_weights
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching.solvers._solver import (
    DEFAULT_ALPHAS,
    FoldErrors,
    MapFitter,
    Setting,
    Solver,
    fold_variances,
    unit_scale,
)
from lrt_lens.stitching.solvers._spectrum import HeldOutFold, Spectrum


@dataclass(frozen=True)
class Ridge(Solver):
    """Affine map with a penalty on its size; see the module docstring for the objective."""

    alpha: float | None = None
    """Penalty relative to the mean variance of the source; None chooses from ``alphas`` by
    cross-validated R².
    """
    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    """Penalties among which cross-validation chooses if ``alpha`` is None."""
    standardize: bool = False
    """Scale every source dimension to unit variance before the penalty is applied; use it for
    streams with massive dimensions.
    """

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("alphas is empty; give at least one penalty, or alpha=…")
        # λ = 0 would divide by eigenvalues of 0 (fewer rows than dimensions); `LeastSquares` is
        # that limit. `not alpha > 0` also refuses NaN.
        for alpha in self.candidates:
            if not alpha > 0 or alpha == float("inf"):
                raise ValueError(
                    f"alpha is {alpha!r}; expected a positive number (1e-6 is almost no penalty)"
                )

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        return "ridge_standardized" if self.standardize else "ridge"

    @property
    def candidates(self) -> tuple[float, ...]:
        """Return the penalties that cross-validation scores."""
        return self.alphas if self.alpha is None else (self.alpha,)

    def fitters(self, moments: CrossMoments) -> tuple["RidgeFitter", "RidgeFitter"]:
        """Return the fitters of both directions (up, down)."""
        return RidgeFitter(moments, self, down=False), RidgeFitter(moments, self, down=True)

    def decompose(self, xx: Tensor, scale: Tensor | None = None) -> "Spectrum":
        """Return the spectrum of the predicting side, which all targets and penalties share.

        This is the only expensive step. ``scale`` [d] multiplies the dimensions first, so that
        dimension i has the relative penalty 1/scale_i²; the unit of ``alpha`` does not change.
        """
        unit = unit_scale(xx.diagonal()) if self.standardize else torch.ones_like(xx.diagonal())
        # tr(Sxx)/d of the rows that the penalty is relative to (standardised, but not scaled)
        mean_value = float((xx.diagonal() * unit**2).mean())
        scale = unit if scale is None else scale * unit
        # diag(s)·Sxx·diag(s)
        values, vectors = torch.linalg.eigh(xx * rearrange(scale, "d -> d 1") * scale)
        # Rounding makes eigenvalues of a singular scatter slightly negative.
        return Spectrum(values.clamp_min(0), vectors, scale, mean_value)


class RidgeFitter(MapFitter):
    """One direction under `Ridge`; hook pairs with one predicting hook point share its spectra."""

    separable = True

    def __init__(self, moments: CrossMoments, solver: Ridge, *, down: bool) -> None:
        super().__init__(moments, down=down)
        self.solver = solver
        # Spectra of one predicting hook point only, because they are many d × d matrices:
        # `fit_grid` orders the hook pairs so that those with the same one follow each other.
        self._prepared: object = None
        self._total: Spectrum
        self._folds: list[HeldOutFold]

    def cross_validate(self, hook_pair: HookPair) -> FoldErrors:
        """Return held-out errors at the best penalty; each is scored on every held-out fold."""
        self.prepare(hook_pair)
        folds = [self.fold(hook_pair, k) for k in self.parts.fit]
        variance = fold_variances([held_out for _, held_out in folds])  # [fold, d_target]
        weights = score_weights(variance.sum(0))  # [2, d_target]
        alphas = torch.tensor(self.solver.candidates, dtype=weights.dtype, device=weights.device)
        # [fold, alpha, 2]
        errors = torch.stack(
            [
                shared.errors(fit, held_out, shared.spectrum.shrink(alphas), weights)
                for shared, (fit, held_out) in zip(self._folds, folds, strict=True)
            ]
        )
        # Column 0 is the error of the variance-weighted R², by which the penalty is chosen.
        best = int(errors[:, :, 0].sum(0).argmin())
        return FoldErrors(
            Setting(alpha=self.solver.candidates[best]), errors[:, best], variance @ weights.T
        )

    def solve(self, hook_pair: HookPair, parts: Sequence[int], setting: Setting) -> AffineMap:
        """Return the map fitted on the rows of some parts."""
        fit = self.scatter(hook_pair, parts)
        return self.spectrum(hook_pair, parts, fit).solve(
            fit, setting.alpha, *self.names(hook_pair)
        )

    def fit_null(self, hook_pair: HookPair, setting: Setting) -> AffineMap:
        """Return the map fitted on shuffled pairs."""
        # Shuffling changes which y belongs to an x, so Sxy only: the spectrum of Sxx still holds.
        self.prepare(hook_pair)
        return self._total.solve(
            self.null_scatter(hook_pair, test=False), setting.alpha, *self.names(hook_pair)
        )

    def prepare(self, hook_pair: HookPair) -> None:
        """Decompose the predicting side's scatter, unless the previous hook pair had the same."""
        key = self.shared_by(hook_pair)
        if key == self._prepared:
            return
        self._total = self.decompose(hook_pair, self.scatter(hook_pair, self.parts.fit))
        self._folds = []
        for k in self.parts.fit:
            fit, held_out = self.fold(hook_pair, k)
            self._folds.append(HeldOutFold(self.decompose(hook_pair, fit), fit, held_out))
        self._prepared = key

    def spectrum(self, hook_pair: HookPair, parts: Sequence[int], fit: Scatter) -> Spectrum:
        """Return the spectrum of the scatter of some parts, a prepared one if there is one."""
        self.prepare(hook_pair)
        folds = set(self.parts.fit)
        if set(parts) == folds:
            return self._total
        left_out = [k for k in self.parts.fit if set(parts) == folds - {k}]
        return self._folds[left_out[0]].spectrum if left_out else self.decompose(hook_pair, fit)

    def shared_by(self, hook_pair: HookPair) -> object:
        """Return the key that hook pairs which use the same spectra have in common."""
        return hook_pair[int(self.down)]

    # The hook pair is for solvers whose settings differ by pair.
    def decompose(self, hook_pair: HookPair, fit: Scatter) -> Spectrum:  # noqa: ARG002
        """Return the spectrum of the predicting side."""
        return self.solver.decompose(fit.xx)
