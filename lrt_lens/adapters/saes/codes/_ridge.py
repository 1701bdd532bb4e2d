"""Ridge regression from codes to states, by Cholesky or by conjugate gradients.

Problem: the `Ridge` solver of a stitch decomposes S once for all penalties (about 10 F³
operations), which is too much for thousands of features. Mechanism: one Cholesky factor per penalty
and fold (F³/3), or, if S does not fit into memory, conjugate gradients that never form it.

Minimises ``Σ‖y − cW − b‖² + λ·tr(S)/F · ‖W‖²_F`` over F live features, with
``S = Σ(c − c̄)(c − c̄)ᵀ``. The solution is

    (S + λ·tr(S)/F·I) W = Σ(c − c̄)(y − ȳ)ᵀ,      b = ȳ − c̄W

Conjugate gradients are preconditioned by the diagonal of S and need only products with S; each
penalty starts at the solution of the next larger one.

Limits: small penalties need many steps of conjugate gradients; a warning names those that were not
reached.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes
from lrt_lens.adapters.saes.codes._moments import CodeFold, CodeMoments, DenseGram, gram_bytes
from lrt_lens.data._parts import N_FOLDS
from lrt_lens.moments._scatter import score_weights

logger = logging.getLogger(__name__)

CODE_ALPHAS = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5)
"""Penalties to choose from, relative to the mean variance of a live feature; largest first."""
TOLERANCE = 1e-7
"""Conjugate gradients stop when each column's residual is at most this share of its right side."""
MAX_ITERATIONS = 1000
"""Largest number of steps of conjugate gradients per penalty."""
SOLVERS = ("cholesky", "cg")
"""Names of the solvers, in the order in which ``solver="auto"`` tries them."""


@dataclass(frozen=True)
class NormalEquations:
    """Centred normal equations ``S W = R`` of the union of some folds."""

    folds: Sequence[CodeFold]
    """Folds whose sums are added."""

    @property
    def n(self) -> int:
        """Number of tokens."""
        return sum(fold.n for fold in self.folds)

    @property
    def mean_codes(self) -> Tensor:
        """Mean c̄ of the codes, [live]."""
        return torch.stack([fold.total_codes for fold in self.folds]).sum(0) / self.n

    @property
    def mean_y(self) -> Tensor:
        """Mean ȳ of the target states minus the shift, [d_target]."""
        return torch.stack([fold.total_y for fold in self.folds]).sum(0) / self.n

    @property
    def right(self) -> Tensor:
        """Right side R = Σ(c − c̄)(y − ȳ)ᵀ, [live, d_target]."""
        cross = self.folds[0].cross.clone()
        for fold in self.folds[1:]:
            cross += fold.cross
        # Σ(c − c̄)(y − ȳ)ᵀ = Σcyᵀ − n c̄ȳᵀ
        return cross - self.n * torch.outer(self.mean_codes, self.mean_y)

    @property
    def variance(self) -> Tensor:
        """Diagonal of S, Σ(c − c̄)², [live]."""
        squares = torch.stack([fold.gram.diagonal for fold in self.folds]).sum(0)
        # Σ(c − c̄)² = Σc² − n c̄²
        return squares - self.n * self.mean_codes**2

    def times(self, weight: Tensor, mean: Tensor) -> Tensor:
        """Product S · weight [live, d_target], without forming S; ``mean`` is `mean_codes`."""
        product = self.folds[0].gram.times(weight)
        for fold in self.folds[1:]:
            product = product + fold.gram.times(weight)
        # S W = Σccᵀ W − n c̄ (c̄ᵀ W)
        return product - self.n * torch.outer(mean, mean @ weight)

    def matrix(self) -> Tensor:
        """Matrix S, [live, live]."""
        total, mean = self.folds[0].gram.matrix.clone(), self.mean_codes
        for fold in self.folds[1:]:
            total.add_(fold.gram.matrix)
        # S = Σccᵀ − n c̄c̄ᵀ, in place: the matrix is the largest object of the fit.
        return total.addmm_(mean[:, None], mean[None], alpha=-self.n)

    def bias(self, weight: Tensor) -> Tensor:
        """Bias b = ȳ − c̄W of the target states minus the shift, [d_target]."""
        return self.mean_y - self.mean_codes @ weight


@dataclass(frozen=True)
class CodeSolution:
    """Cross-validated penalty and the map fitted with it on all fitting folds."""

    weight: Tensor
    """Weights W of the live features, [live, d_target]."""
    bias: Tensor
    """Bias b in the units of the target's states, [d_target]."""
    alpha: float
    """Penalty with the best cross-validated R²."""
    r2_cv: float
    """Cross-validated share of the total variance that is explained."""
    r2_uniform_cv: float
    """Cross-validated share of explained variance, mean over target dimensions."""
    curve: tuple[tuple[float, float, float], ...]
    """Triples (alpha, r2, r2_uniform) of each penalty, cross-validated."""


def fit_codes(
    moments: CodeMoments, alphas: Sequence[float], *, n_held_out: int | None = None
) -> CodeSolution:
    """Map with the penalty that has the best cross-validated R² over the fitting folds.

    Args:
        moments: sums per fold.
        alphas: penalties to choose from.
        n_held_out: number of folds that are held out in turn; None for all of them, 0 for a single
            penalty that is not scored.
    """
    # From large to small: conjugate gradients start each penalty at the solution before.
    descending = sorted(alphas, reverse=True)
    # Few documents may leave folds without a token.
    used = [fold for fold in moments.folds if fold.n]
    # Both scores are weighted sums of the error per dimension: 1 − Σ_d w_d error_d.
    scored = used[:n_held_out]
    weights = score_weights(_total_variance(scored or used))
    errors = torch.zeros(len(descending), 2, dtype=torch.float64, device=weights.device)
    for held_out in scored:
        system = NormalEquations([fold for fold in used if fold is not held_out])
        for index, weight in enumerate(solutions(system, descending)):
            errors[index] += weights @ held_out.errors(weight, system.bias(weight))
    scores = (1 - errors).cpu() if scored else torch.full_like(errors, torch.nan).cpu()
    best = int(scores[:, 0].argmax())
    system = NormalEquations(used)
    # Conjugate gradients start at the solution of the next larger penalty; Cholesky needs none.
    penalties = descending[: best + 1] if _is_sparse(system) else [descending[best]]
    weight = solutions(system, penalties)[-1]
    curve = tuple(
        (alpha, float(r2), float(uniform))
        for alpha, (r2, uniform) in zip(descending, scores, strict=True)
    )
    return CodeSolution(weight, system.bias(weight) + moments.shift, *curve[best], curve=curve)


def choose_solver(
    solver: str,
    n_live: int,
    n_active: int,
    d_target: int,
    free: Mapping[str, int | None],
    *,
    n_folds: int = N_FOLDS,
) -> str:
    """First solver, ``"cholesky"`` or ``"cg"``, that fits into the free bytes per solver.

    Raises:
        ValueError: no allowed solver fits; the message names the sizes of both.
    """
    sizes = n_live, n_active, d_target
    needed = {name: gram_bytes(*sizes, sparse=name == "cg", n_folds=n_folds) for name in SOLVERS}
    # The order of SOLVERS decides: Cholesky is faster wherever its matrices fit.
    candidates = SOLVERS if solver == "auto" else (solver,)
    fitting = [
        name for name in candidates if (budget := free[name]) is None or needed[name] <= budget
    ]
    if not fitting:
        raise ValueError(
            f"{n_live} live features need {human_bytes(needed['cholesky'])} with Cholesky and "
            f"{human_bytes(needed['cg'])} with conjugate gradients (solver={solver!r}), and "
            f"{human_bytes(free[candidates[-1]] or 0)} may be taken; raise min_firings, lower "
            "n_tokens" + (", or take solver='auto'" if solver != "auto" else "")
        )
    return fitting[0]


def _total_variance(folds: Sequence[CodeFold]) -> Tensor:
    """Return Σ(y − ȳ)² of the rows of all folds about their common mean, [d_target]."""
    # About its own mean, a fold of few documents varies less than text does, and R² would be too
    # low. Σ(y − ȳ)² = Σ(y − s)² − (Σ(y − s))² / n, for any fixed shift s. A shift near the mean
    # keeps both terms small, so that their difference loses no digits.
    total = torch.stack([fold.total_y for fold in folds]).sum(0)
    square = torch.stack([fold.square_y for fold in folds]).sum(0)
    return square - total**2 / sum(fold.n for fold in folds)


def solutions(system: NormalEquations, alphas: Sequence[float]) -> list[Tensor]:
    """Weights [live, d_target] for each penalty; ``alphas`` must descend."""
    return _by_gradients(system, alphas) if _is_sparse(system) else _by_cholesky(system, alphas)


def _is_sparse(system: NormalEquations) -> bool:
    """Return True if some second moments are held as sparse codes and not as a matrix."""
    return not all(isinstance(fold.gram, DenseGram) for fold in system.folds)


def _by_cholesky(system: NormalEquations, alphas: Sequence[float]) -> list[Tensor]:
    """Weights for each penalty, by one Cholesky factor per penalty."""
    matrix, right = system.matrix(), system.right
    # tr(S)/F, the mean variance of a live feature times n: the unit of the penalty.
    unit = float(matrix.diagonal().mean())
    weights, added = [], 0.0
    for alpha in alphas:
        # W = (S + λ·tr(S)/F·I)⁻¹ R; penalties change only the diagonal, so S is not copied.
        matrix.diagonal().add_(alpha * unit - added)
        added = alpha * unit
        weights.append(torch.cholesky_solve(right, torch.linalg.cholesky(matrix)))
    return weights


def _by_gradients(system: NormalEquations, alphas: Sequence[float]) -> list[Tensor]:
    """Weights for each penalty, by conjugate gradients from the solution of the previous one."""
    right, variance, mean = system.right, system.variance, system.mean_codes
    # tr(S)/F, the same unit as in `_by_cholesky`
    unit = float(variance.mean())
    weights, weight = [], torch.zeros_like(right)
    for alpha in alphas:
        weight = _conjugate_gradients(system, right, weight, mean, variance, alpha * unit)
        weights.append(weight)
    return weights


def _conjugate_gradients(
    system: NormalEquations,
    right: Tensor,
    start: Tensor,
    mean: Tensor,
    variance: Tensor,
    penalty: float,
) -> Tensor:
    """Weights W with (S + penalty·I) W = right, [live, d_target].

    All columns advance together, each with its own step length. A warning is logged if the
    residual is above `TOLERANCE` after `MAX_ITERATIONS` steps.

    Source: preconditioned conjugate gradients, Saad, Iterative Methods, algorithm 9.1.
    """
    tiny = torch.finfo(torch.float64).tiny

    def times(weight: Tensor) -> Tensor:
        return system.times(weight, mean) + penalty * weight

    # Jacobi preconditioner M⁻¹ = 1 / diag(S + penalty·I).
    inverse = 1 / rearrange(variance + penalty, "live -> live 1")
    weight = start.clone()
    residual = right - times(weight)
    goal = TOLERANCE * right.norm(dim=0)
    preconditioned = inverse * residual
    direction, rho = preconditioned, (residual * preconditioned).sum(0)
    for _ in range(MAX_ITERATIONS):
        if bool((residual.norm(dim=0) <= goal).all()):
            return weight
        # α = rᵀz / pᵀAp; W ← W + αp; r ← r − αAp; z = M⁻¹r; β = r'ᵀz' / rᵀz; p ← z + βp
        product = times(direction)
        # A column that has converged has p = 0: the clamp makes its step 0 instead of 0/0.
        step = rho / (direction * product).sum(0).clamp_min(tiny)
        weight = weight + step * direction
        residual = residual - step * product
        preconditioned = inverse * residual
        following = (residual * preconditioned).sum(0)
        direction, rho = preconditioned + following / rho.clamp_min(tiny) * direction, following
    left = float((residual.norm(dim=0) / right.norm(dim=0).clamp_min(tiny)).max())
    logger.warning(
        "conjugate gradients stopped after %d steps at a relative residual of %.1e; expected "
        "%.0e: raise the smallest of alphas, or use solver='cholesky'",
        MAX_ITERATIONS,
        left,
        TOLERANCE,
    )
    return weight
