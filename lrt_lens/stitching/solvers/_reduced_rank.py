"""Reduced-rank ridge: how many dimensions of the source does the target need?

Objective: minimise the objective of ridge, ``Σ‖y − xW − b‖² + λ̃‖W‖²_F``, over maps of rank ``r``
(Izenman 1975; with the penalty Mukherjee & Zhu 2011).

    grid = moments.fit(ReducedRank())          # penalty and rank by cross-validation
    grid = moments.fit(ReducedRank(rank=32))

Mechanism: project the outputs of the ridge map ``W`` onto the leading ``r`` eigenvectors ``U_r`` of
``WᵀSxy``: ``W_r = W U_r U_rᵀ``. With ``P = WU``, the held-out errors of *all* ranks are one
cumulative sum, so that choosing a rank costs no more than choosing a penalty.

Limits: the penalty is chosen at full rank first and is not chosen again for the selected rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import reduce
from torch import Tensor

from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import Scatter, score_weights, squared_errors
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching.solvers._ridge import Ridge, RidgeFitter
from lrt_lens.stitching.solvers._solver import (
    DEFAULT_ALPHAS,
    FoldErrors,
    MapFitter,
    Setting,
    Solver,
    fold_variances,
)


@dataclass(frozen=True)
class ReducedRank(Solver):
    """Affine map of limited rank with a penalty on its size.

    The penalty is chosen first, at full rank, then the rank.
    """

    rank: int | None = None
    """Rank of the map, at most the smaller width; None chooses it by cross-validated R²."""
    alpha: float | None = None
    """Penalty relative to the mean variance of the source, as in `Ridge`; None chooses from
    ``alphas`` by cross-validated R².
    """
    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    """Penalties among which cross-validation chooses if ``alpha`` is None."""
    standardize: bool = False
    """Scale every source dimension to unit variance before the penalty is applied."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(
                f"rank is {self.rank}; expected a positive number, or None to choose by "
                "cross-validation"
            )
        self.ridge  # noqa: B018 (checks the penalties)

    @property
    def ridge(self) -> Ridge:
        """Ridge solver of full rank, whose map is projected."""
        return Ridge(alpha=self.alpha, alphas=self.alphas, standardize=self.standardize)

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        return "reduced_rank_standardized" if self.standardize else "reduced_rank"

    def fitters(self, moments: CrossMoments) -> tuple["ReducedRankFitter", "ReducedRankFitter"]:
        """Return the fitters of both directions (up, down)."""
        return ReducedRankFitter(moments, self, down=False), ReducedRankFitter(
            moments, self, down=True
        )


class ReducedRankFitter(MapFitter):
    """One direction under `ReducedRank`."""

    def __init__(self, moments: CrossMoments, solver: ReducedRank, *, down: bool) -> None:
        super().__init__(moments, down=down)
        self.solver, self.ridge = solver, RidgeFitter(moments, solver.ridge, down=down)

    def cross_validate(self, hook_pair: HookPair) -> FoldErrors:
        """Return held-out errors at the best penalty (at full rank) and then the best rank."""
        alpha = self.ridge.cross_validate(hook_pair).setting.alpha
        folds = [self.fold(hook_pair, k) for k in self.parts.fit]
        variance = fold_variances([held_out for _, held_out in folds])
        weights = score_weights(variance.sum(0))
        full = [self.ridge.refit_without(hook_pair, k, Setting(alpha)) for k in self.parts.fit]
        bases = [
            _leading_outputs(affine.weight, fit.xy)
            for affine, (fit, _) in zip(full, folds, strict=True)
        ]
        if self.solver.rank is None:
            # Entry r − 1 is the held-out error of rank r over all folds.
            totals = sum(
                _errors_by_rank(affine.weight @ basis, basis, fit, held_out)
                for affine, basis, (fit, held_out) in zip(full, bases, folds, strict=True)
            )
            rank = 1 + int(torch.as_tensor(totals).argmin())
        else:
            rank = self._checked_rank(bases[0])
        setting = Setting(alpha=alpha, rank=rank)
        errors = []
        for affine, basis, (fit, held_out) in zip(full, bases, folds, strict=True):
            weight = affine.weight @ basis[:, :rank] @ basis[:, :rank].T  # W U_r U_rᵀ
            errors.append(
                weights @ squared_errors(weight, fit.mean_y - fit.mean_x @ weight, held_out)
            )
        return FoldErrors(setting, torch.stack(errors), variance @ weights.T)

    def solve(self, hook_pair: HookPair, parts: Sequence[int], setting: Setting) -> AffineMap:
        """Return the map fitted on the rows of some parts."""
        fit = self.scatter(hook_pair, parts)
        return _projected(self.ridge.solve(hook_pair, parts, setting), fit, setting)

    def fit_null(self, hook_pair: HookPair, setting: Setting) -> AffineMap:
        """Return the map of the same rank that was fitted on shuffled pairs."""
        return _projected(
            self.ridge.fit_null(hook_pair, setting),
            self.null_scatter(hook_pair, test=False),
            setting,
        )

    def _checked_rank(self, basis: Tensor) -> int:
        rank = self.solver.rank or 0
        if rank > basis.shape[1]:
            raise ValueError(
                f"rank is {rank}; these widths allow at most {basis.shape[1]}: use a smaller "
                "rank, or None"
            )
        return rank


def _leading_outputs(weight: Tensor, xy: Tensor) -> Tensor:
    """Return eigenvectors [d_target, min(d_source, d_target)] of ``WᵀSxy``, leading first."""
    # WᵀSxy = Sxyᵀ(Sxx + λ̃I)⁻¹Sxy is symmetric and not negative; eigh sorts ascending.
    _, vectors = torch.linalg.eigh(weight.T @ xy)
    return vectors.flip(1)[:, : min(weight.shape)]


def _errors_by_rank(projected: Tensor, basis: Tensor, fit: Scatter, held_out: Scatter) -> Tensor:
    """Return Σ‖y − ŷ‖² over held-out rows for the ranks 1, 2, …, as [rank].

    ``projected`` is ``P = WU``.
    """
    # W_r = P_r U_rᵀ, so with columns p_k of P and u_k of U, and e = ȳ' − ȳ, m = (x̄' − x̄)P:
    #   tr W_rᵀSxx'W_r − 2 tr W_rᵀSxy' = Σ_{k≤r} (p_kᵀSxx'p_k − 2 p_kᵀSxy'u_k)
    #   ‖x̄'W_r + b − ȳ'‖² = ‖e‖² + Σ_{k≤r} ((m_k − e·u_k)² − (e·u_k)²)
    change = reduce(
        projected * (held_out.xx @ projected) - 2 * projected * (held_out.xy @ basis),
        "d_source rank -> rank",
        "sum",
    )
    mean_shift = (held_out.mean_x - fit.mean_x) @ projected
    expected = held_out.mean_y - fit.mean_y
    inside = expected @ basis
    offset = (expected**2).sum() + ((mean_shift - inside) ** 2 - inside**2).cumsum(0)
    return held_out.variance.sum() + change.cumsum(0) + held_out.n * offset


def _projected(full: AffineMap, fit: Scatter, setting: Setting) -> AffineMap:
    basis = _leading_outputs(full.weight, fit.xy)[:, : setting.rank]
    weight = full.weight @ basis @ basis.T
    return replace(full, weight=weight, bias=fit.mean_y - fit.mean_x @ weight)
