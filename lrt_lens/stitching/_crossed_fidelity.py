"""Fidelity by cross-validation: the prediction by which hook pairs and solvers may be chosen.

Problem: `Stitch.fidelity` is computed on the test fold, and a choice that reads the test fold makes
every later score of the chosen stitch too high. Mechanism: the same correlations over the fitting
folds. For each fold k the maps, the covariances and their inverses are those of the other folds,
and the sums of the correlation are those of fold k, about its own mean; the sums of all folds are
added before they are divided:

    read   ρ(w) = Σ_k wᵀSxyᵏc_k / √(Σ_k wᵀSxxᵏw · Σ_k c_kᵀSyyᵏc_k),      c_k = W_down,k w
    write  ρ(v) likewise, with a_k = (Sxx + λI)⁻¹v and c_k = (Syy + λI)⁻¹(vW_k)

    fidelities_cv(grid, (source_hook, target_hook), directions, "read")       # [direction]
    compare_fidelities(grid.moments, [Ridge(), Procrustes()], pair, vector.direction)

Intervals are 95%, by the delete-a-group jackknife over the folds, on Fisher's scale.

Limits: the moments must be exact; the sketched moments of a survey have no fidelity. λ is the
penalty of the map up, as in `Stitch.fidelity`, so ρ_write of two solvers may differ by λ too.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.statistics._intervals import Interval
from lrt_lens.statistics._jackknife import few_groups, jackknife
from lrt_lens.stitching._fidelity import RIDGE, correlation_of, correlation_sums, regularised_solve
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching.solvers._solver import MapFitter, Setting, Solver

Role = Literal["write", "read"]
"""Role of a direction: one that is added (a vector), or one that is read (a probe's weights)."""


class CrossedFidelity:
    """Cross-validated fidelities of directions on the hook pairs of one grid.

    Hook pairs in the order of their source hook points share the decompositions of ``"write"``,
    those in the order of their target hook points the ones of ``"read"``.

    Args:
        grid: maps and exact moments.
    """

    def __init__(self, grid: StitchGrid) -> None:
        self.grid = grid
        self._up, self._down = grid.solver.fitters(grid.moments)

    def fold_sums(self, hook_pair: HookPair, directions: Tensor, kind: Role) -> Tensor:
        """Return the sums of the correlations on each held-out fold, [fold, 3, direction].

        Args:
            hook_pair: a hook pair of the grid.
            directions: [direction, d_source].
            kind: role of the directions.

        Raises:
            HookPointError: the grid has no exact moments of this hook pair.
            MismatchError: the directions have another width.
            ValueError: the role is unknown, or a direction is zero or not finite.
        """
        directions = directions.detach().double().cpu()
        self._refuse(hook_pair, directions, kind)
        folds = self.grid.folds[hook_pair]
        sums = []
        for k in self._up.parts.fit:
            if kind == "read":
                weight = _weight(self._down, hook_pair, k, folds.down.setting)
                # W_down: [d_target, d_source], so rows w become rows wᵀW_downᵀ
                a, c = directions, directions @ weight.T
            else:
                weight = _weight(self._up, hook_pair, k, folds.up.setting)
                fit, _ = self._up.fold(hook_pair, k)
                alpha = float(folds.up.setting.alpha) or RIDGE
                a = regularised_solve(fit.xx / fit.n, directions, alpha)
                c = regularised_solve(fit.yy / fit.n, directions @ weight, alpha)
            sums.append(correlation_sums(a, c, self.grid.moments.scatter(hook_pair, (k,))))
        return torch.stack(sums)

    def interval(self, sums: Tensor) -> Interval:
        """Return the mean ρ of some directions with its 95% jackknife interval.

        ``sums`` are those of `fold_sums`, [fold, 3, direction].
        """
        value = _rho(sums)
        others = [_rho(torch.cat([sums[:k], sums[k + 1 :]])) for k in range(len(sums))]
        moments = self.grid.moments
        sizes = [float(moments.n[k]) for k in moments.parts.fit]
        ends = jackknife(value, others, sizes, scale="correlation")
        documents = moments.provenance.documents_of(moments.parts.fit)
        flag = few_groups(sizes, documents, folds=len(sizes))
        return Interval(value, ends.low, ends.high, flag)

    def _refuse(self, hook_pair: HookPair, directions: Tensor, kind: str) -> None:
        if kind not in ("write", "read"):
            raise ValueError(
                f"kind is {kind!r}; expected 'write' (steering vectors, decoder rows) or 'read' "
                "(probe weights, encoder columns)"
            )
        # The grid refuses hook pairs without exact moments in its own words.
        if hook_pair not in self.grid.folds:
            self.grid[hook_pair]
        width = len(self.grid.moments.source[hook_pair[0]].shift)
        if directions.ndim != 2 or directions.shape[1] != width:
            raise MismatchError(
                f"directions have shape {tuple(directions.shape)}; expected [direction, {width}] "
                f"at {hook_pair[0]!r}: give directions of that hook point"
            )
        if not torch.isfinite(directions).all() or not directions.any(1).all():
            raise ValueError("a direction is zero, NaN or infinite; expected finite, non-zero ones")


def fidelities_cv(
    grid: StitchGrid, hook_pair: HookPair, directions: Tensor, kind: Role = "write"
) -> Tensor:
    """Return cross-validated ρ_write or ρ_read of directions [direction, d_source], [direction].

    Unlike `fidelities`, it reads the fitting folds only, so a choice may be made by it.

    Args:
        grid: maps and exact moments.
        hook_pair: (source hook point, target hook point) of the grid.
        directions: [direction, d_source], of any length.
        kind: ``"write"`` for steering vectors and decoder rows, ``"read"`` for probe weights and
            encoder columns.

    Raises:
        HookPointError: the grid has no exact moments of this hook pair.
        MismatchError: the directions have another width.
        ValueError: the role is unknown, or a direction is zero or not finite.
    """
    return correlation_of(CrossedFidelity(grid).fold_sums(hook_pair, directions, kind).sum(0))


def compare_fidelities(
    moments: CrossMoments,
    solvers: Sequence[Solver],
    hook_pair: HookPair,
    direction: Tensor,
    kind: Role = "write",
) -> pd.DataFrame:
    """Return the cross-validated fidelity of one direction under each family of maps, best first.

    Args:
        moments: exact moments, such as ``grid.moments``.
        solvers: families of maps.
        hook_pair: (source hook point, target hook point) of the moments.
        direction: [d_source], of any length.
        kind: role of the direction, as for `fidelities_cv`.

    Returns:
        One row per solver: ``solver``, ``rho``, ``rho_low``, ``rho_high`` (95% jackknife over the
        folds), ``r2_uniform_cv`` of its map up, and ``flag``. Intervals of single solvers are wider
        than those of their differences, because all solvers share the folds.

    Raises:
        HookPointError: the moments hold no such hook pair.
        MismatchError: the direction has another width.
        ValueError: no solver, or a direction that is zero or not finite.
    """
    if not solvers:
        raise ValueError("no solver given; give at least one, such as [Ridge(), Procrustes()]")
    rows = []
    for solver in solvers:
        grid = fit_grid(moments, solver, pairs=[hook_pair])
        crossed = CrossedFidelity(grid)
        rho = crossed.interval(crossed.fold_sums(hook_pair, direction[None], kind))
        rows.append(
            {
                "solver": solver.name,
                "rho": rho.value,
                "rho_low": rho.low,
                "rho_high": rho.high,
                "r2_uniform_cv": grid.folds[hook_pair].up.r2_uniform,
                "flag": rho.flag,
            }
        )
    return pd.DataFrame(rows).sort_values("rho", ascending=False, ignore_index=True)


def _weight(fitter: MapFitter, hook_pair: HookPair, k: int, setting: Setting) -> Tensor:
    """Return the weight of the map that is fitted without fold ``k``, in float64."""
    return fitter.refit_without(hook_pair, k, setting).weight.double().cpu()


def _rho(sums: Tensor) -> float:
    return float(correlation_of(sums.sum(0)).mean())
