"""Ridge from codes: one system for all folds' sums, by Cholesky or by conjugate gradients.

Minimises ``Σ‖y − cW − b‖² + λ·tr(S)/F · ‖W‖²_F`` over the live features, ``S = Σ(c − c̄)(c −
c̄)ᵀ``, so

    (S + λ·tr(S)/F·I) W = Σ(c − c̄)(y − ȳ)ᵀ,      b = ȳ − c̄W

`Ridge` of a stitch decomposes S once for all penalties (some 10 F³); with thousands of features a
Cholesky factor a penalty and fold (F³/3) is less. Where S does not fit into memory it is never
formed: conjugate gradients, preconditioned by its diagonal, need only its products, and every
penalty starts at the solution of the next larger one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrt_lens.adapters.saes.codes._moments import CodeFold, CodeMoments, DenseGram
from lrt_lens.moments._scatter import score_weights

logger = logging.getLogger(__name__)

CODE_ALPHAS = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5)
"""Penalties to choose from, relative to the mean variance of a live feature; largest first."""
TOLERANCE = 1e-7
"""Conjugate gradients stop where every column's residual is this share of its right side."""
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class NormalEquations:
    """The centred system of some folds."""

    folds: Sequence[CodeFold]

    @property
    def n(self) -> int:
        """Tokens."""
        return sum(fold.n for fold in self.folds)

    @property
    def mean_codes(self) -> Tensor:
        """[live]."""
        return torch.stack([fold.total_codes for fold in self.folds]).sum(0) / self.n

    @property
    def mean_y(self) -> Tensor:
        """[d_target], about the shift."""
        return torch.stack([fold.total_y for fold in self.folds]).sum(0) / self.n

    @property
    def right(self) -> Tensor:
        """[live, d_target], Σ(c − c̄)(y − ȳ)ᵀ."""
        cross = self.folds[0].cross.clone()
        for fold in self.folds[1:]:
            cross += fold.cross
        return cross - self.n * torch.outer(self.mean_codes, self.mean_y)

    @property
    def variance(self) -> Tensor:
        """[live], Σ(c − c̄)²: the diagonal of S."""
        return (
            torch.stack([fold.gram.diagonal for fold in self.folds]).sum(0)
            - self.n * self.mean_codes**2
        )

    def times(self, weight: Tensor, mean: Tensor) -> Tensor:
        """S · weight, S never formed."""
        product = self.folds[0].gram.times(weight)
        for fold in self.folds[1:]:
            product = product + fold.gram.times(weight)
        return product - self.n * torch.outer(mean, mean @ weight)

    def matrix(self) -> Tensor:
        """S itself, [live, live]."""
        total, mean = self.folds[0].gram.matrix.clone(), self.mean_codes
        for fold in self.folds[1:]:
            total.add_(fold.gram.matrix)
        return total.addmm_(mean[:, None], mean[None], alpha=-self.n)

    def bias(self, weight: Tensor) -> Tensor:
        """[d_target], about the shift."""
        return self.mean_y - self.mean_codes @ weight


@dataclass(frozen=True)
class CodeSolution:
    """What cross-validation chose, and the fit of all fitting folds at it."""

    weight: Tensor
    """[live, d_target]."""
    bias: Tensor
    """[d_target], in the target's own units."""
    alpha: float
    r2_cv: float
    r2_uniform_cv: float
    curve: tuple[tuple[float, float, float], ...]
    """(alpha, r2, r2_uniform) of every penalty, cross-validated."""


def fit_codes(moments: CodeMoments, alphas: Sequence[float]) -> CodeSolution:
    """The penalty with the best cross-validated R² over the fitting folds, and the map at it."""
    descending = sorted(alphas, reverse=True)
    used = [fold for fold in moments.folds if fold.n]
    weights = score_weights(torch.stack([fold.variance for fold in used]).sum(0))
    errors = torch.zeros(len(descending), 2, dtype=torch.float64, device=weights.device)
    for held_out in used:
        rest = NormalEquations([fold for fold in used if fold is not held_out])
        for place, weight in enumerate(solutions(rest, descending)):
            errors[place] += weights @ held_out.errors(weight, rest.bias(weight))
    scores = (1 - errors).cpu()
    best = int(scores[:, 0].argmax())
    system = NormalEquations(used)
    weight = list(
        solutions(system, descending[: best + 1] if _is_sparse(system) else [descending[best]])
    )[-1]
    curve = tuple(
        (alpha, float(r2), float(uniform))
        for alpha, (r2, uniform) in zip(descending, scores, strict=True)
    )
    return CodeSolution(weight, system.bias(weight) + moments.shift, *curve[best], curve=curve)


def solutions(system: NormalEquations, alphas: Sequence[float]) -> list[Tensor]:
    """[live, d_target] for every penalty, given in descending order."""
    return _by_gradients(system, alphas) if _is_sparse(system) else _by_cholesky(system, alphas)


def _is_sparse(system: NormalEquations) -> bool:
    return not all(isinstance(fold.gram, DenseGram) for fold in system.folds)


def _by_cholesky(system: NormalEquations, alphas: Sequence[float]) -> list[Tensor]:
    matrix, right = system.matrix(), system.right
    unit = float(matrix.diagonal().mean())
    found, added = [], 0.0
    for alpha in alphas:
        matrix.diagonal().add_(alpha * unit - added)
        added = alpha * unit
        found.append(torch.cholesky_solve(right, torch.linalg.cholesky(matrix)))
    return found


def _by_gradients(system: NormalEquations, alphas: Sequence[float]) -> list[Tensor]:
    right, variance, mean = system.right, system.variance, system.mean_codes
    unit = float(variance.mean())
    found, weight = [], torch.zeros_like(right)
    for alpha in alphas:
        weight = _conjugate_gradients(system, right, weight, mean, variance, alpha * unit)
        found.append(weight)
    return found


def _conjugate_gradients(
    system: NormalEquations,
    right: Tensor,
    start: Tensor,
    mean: Tensor,
    variance: Tensor,
    penalty: float,
) -> Tensor:
    """All columns at once, each with its own step; warns where the iterations do not suffice."""
    tiny = torch.finfo(torch.float64).tiny
    times = lambda w: system.times(w, mean) + penalty * w  # noqa: E731
    inverse = 1 / (variance + penalty)[:, None]
    weight = start.clone()
    residual = right - times(weight)
    goal = TOLERANCE * right.norm(dim=0)
    preconditioned = inverse * residual
    direction, rho = preconditioned, (residual * preconditioned).sum(0)
    for _ in range(MAX_ITERATIONS):
        if bool((residual.norm(dim=0) <= goal).all()):
            return weight
        product = times(direction)
        step = rho / (direction * product).sum(0).clamp_min(tiny)
        weight = weight + step * direction
        residual = residual - step * product
        preconditioned = inverse * residual
        following = (residual * preconditioned).sum(0)
        direction, rho = preconditioned + following / rho.clamp_min(tiny) * direction, following
    left = float((residual.norm(dim=0) / right.norm(dim=0).clamp_min(tiny)).max())
    logger.warning(
        "conjugate gradients stopped after %d steps at a relative residual of %.1e",
        MAX_ITERATIONS,
        left,
    )
    return weight
