"""Maps in both directions at once, with the round trips in the objective.

This is equation 3 of Transferring Features with Model Stitching (arXiv 2506.06609).

    J(W, V) = E‖y − xW‖²/d_t + E‖x − yV‖²/d_s
              + α (E‖x − xWV‖²/d_s + E‖y − yVW‖²/d_t) + λ_W‖W‖² + λ_V‖V‖²

for centred rows (the best biases are ``ȳ − x̄W`` and ``x̄ − ȳV``, whatever the maps: they bring all
four residuals to mean zero at once). The paper runs Adam over some 100 M tokens; J depends on them
through second moments only, so it is minimised from the moments, to a gradient norm that is
reported. For fixed V the optimum W solves (``S`` are covariances, ``R = Sxy/d_t + (α/d_s) Sxx Vᵀ +
(α/d_t) Vᵀ Syy``)

    (Sxx/d_t + (α/d_t) VᵀSyyV + λ_W I) W + (α/d_s) Sxx W VVᵀ = R,

exactly, by two eigendecompositions (`_solve_step`); V likewise with the roles swapped. The two are
alternated, with Anderson acceleration on V (Walker & Ni 2011), which is safeguarded: a step that
raises J is not taken. J is biquadratic, not convex: `TwoWay.starts` shows what other starts reach.

The ridge terms are ``λ_W = alpha·tr(Sxx)/(d_s d_t)`` and ``λ_V = alpha·tr(Syy)/(d_t d_s)``: as in
`Ridge`, relative to the mean variance of the predicting side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from lrt_lens.moments._cross_moments import FIT_PARTS, CrossMoments
from lrt_lens.moments._hook_pairs import HookPair as Pair
from lrt_lens.moments._scatter import Scatter
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.stitching.solvers._solver import (
    FoldErrors,
    Setting,
    Side,
    Solver,
    held_out_errors,
    unit_scale,
)

_FLOOR = 1e-9
"""Least share of the mean variance that is added to the diagonal of a scatter matrix before it is
factored: the step needs it positive.
"""


@dataclass(frozen=True)
class TwoWayTerms:
    """The four terms of eq. 3, each a mean squared error per dimension."""

    up: float
    """E‖y − xW‖² / d_target."""
    down: float
    """E‖x − yV‖² / d_source."""
    source_round_trip: float
    """E‖x − xWV‖² / d_source."""
    target_round_trip: float
    """E‖y − yVW‖² / d_target."""

    def total(self, inversion_weight: float) -> float:
        """J."""
        return (
            self.up
            + self.down
            + inversion_weight * (self.source_round_trip + self.target_round_trip)
        )


@dataclass(frozen=True)
class TwoWaySolution:
    """A minimum of eq. 3."""

    up: Tensor
    """W, [d_source, d_target], on centred rows."""
    down: Tensor
    """V, [d_target, d_source]."""
    terms: TwoWayTerms
    """On the fitting rows, without the ridge terms."""
    objective: float
    """What was minimised, ridge terms included."""
    gradient_norm: float
    """‖∂/∂(W, V)‖_F of the objective at the solution."""
    relative_gradient: float
    """The same ÷ the norm at W = V = 0."""
    sweeps: int
    """Solves for both maps."""
    converged: bool
    """Whether ``relative_gradient`` reached the tolerance."""


@dataclass(frozen=True)
class TwoWay(Solver):
    """Affine maps up and down fitted together, round trips included."""

    inversion_weight: float = 1.0
    """α of eq. 3; the paper takes 1 of {0, 0.1, 1, 10}."""
    alpha: float | None = None
    """Ridge term; 0 is the paper's objective, None chooses from ``alphas`` by the held-out eq. 3.
    """
    alphas: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    standardize: bool = False
    """Scale all dimensions to unit variance first: otherwise the few massive ones are most of J."""
    tolerance: float = 1e-5
    """Gradient norm to reach, relative to that at W = V = 0."""
    max_sweeps: int = 300
    memory: int = 8
    """Steps that Anderson acceleration remembers; 0 alternates plainly."""

    joint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (
            ("inversion_weight", self.inversion_weight),
            ("alpha", 0.0 if self.alpha is None else self.alpha),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}; expected a number of at least 0")
        if not self.alphas or not all(0 <= alpha < math.inf for alpha in self.alphas):
            raise ValueError(
                f"alphas is {self.alphas!r}; expected penalties of at least 0 to choose from"
            )

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        return "two_way_standardized" if self.standardize else "two_way"

    def sides(self, moments: CrossMoments) -> tuple["TwoWaySide", "TwoWaySide"]:
        """Return the two directions (up, down), which share their fits."""
        fits = JointFits(moments, self)
        return TwoWaySide(fits, down=False), TwoWaySide(fits, down=True)

    def minimise(
        self, fit: Scatter, alpha: float = 0.0, start: tuple[Tensor, Tensor] | None = None
    ) -> TwoWaySolution:
        """Return a minimum of the objective on one scatter, starting at ``start`` (W, V).

        Without it the start is the ridge pair.
        """
        problem = TwoWayProblem.of(fit, self.inversion_weight, alpha)
        up, down = start or _ridge_pair(fit)
        return _alternate(problem, up, down, self)

    def starts(
        self, fit: Scatter, alpha: float = 0.0, n_random: int = 3, seed: int = 0
    ) -> list[TwoWaySolution]:
        """Return the minima from several starts; their spread says how unique the first is.

        The starts are the ridge pair, transposed cross-covariances and ``n_random`` draws.
        """
        generator = torch.Generator().manual_seed(seed)
        d_s, d_t = fit.xy.shape
        begun = [_ridge_pair(fit), (fit.xy / fit.xy.norm(), fit.xy.T / fit.xy.norm())]
        for _ in range(n_random):
            draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=fit.xy.dtype).to(  # noqa: E731
                fit.xy.device
            )
            begun.append((draw(d_s, d_t) / d_s**0.5, draw(d_t, d_s) / d_t**0.5))
        return [self.minimise(fit, alpha, start) for start in begun]


@dataclass(frozen=True)
class TwoWayProblem:
    """Eq. 3 on one scatter: covariances, weights and penalties."""

    xx: Tensor
    yy: Tensor
    xy: Tensor
    inversion_weight: float
    penalty_up: float = 0.0
    penalty_down: float = 0.0

    @classmethod
    def of(cls, scatter: Scatter, inversion_weight: float, alpha: float = 0.0) -> "TwoWayProblem":
        """The problem of a scatter with a relative penalty."""
        d_s, d_t = scatter.xy.shape
        xx, yy = scatter.xx / scatter.n, scatter.yy / scatter.n
        unit_up, unit_down = float(xx.trace()) / (d_s * d_t), float(yy.trace()) / (d_s * d_t)
        return cls(
            xx, yy, scatter.xy / scatter.n, inversion_weight, alpha * unit_up, alpha * unit_down
        )

    def swapped(self) -> "TwoWayProblem":
        """With the models exchanged."""
        return TwoWayProblem(
            self.yy, self.xx, self.xy.T, self.inversion_weight, self.penalty_down, self.penalty_up
        )

    def terms(self, up: Tensor, down: Tensor) -> TwoWayTerms:
        """The four terms."""
        d_s, d_t = self.xy.shape
        error = lambda own, cross, other, weight: float(  # noqa: E731
            own.trace() - 2 * (weight * cross).sum() + (weight * (other @ weight)).sum()
        )
        around, back = up @ down, down @ up
        return TwoWayTerms(
            up=error(self.yy, self.xy, self.xx, up) / d_t,
            down=error(self.xx, self.xy.T, self.yy, down) / d_s,
            source_round_trip=error(self.xx, self.xx, self.xx, around) / d_s,
            target_round_trip=error(self.yy, self.yy, self.yy, back) / d_t,
        )

    def objective(self, up: Tensor, down: Tensor) -> float:
        """J with the ridge terms."""
        penalty = self.penalty_up * float((up**2).sum()) + self.penalty_down * float(
            (down**2).sum()
        )
        return self.terms(up, down).total(self.inversion_weight) + penalty

    def gradient(self, up: Tensor, down: Tensor) -> Tensor:
        """∂J/∂W, [d_source, d_target]; of V by ``swapped().gradient(down, up)``."""
        d_s, d_t = self.xy.shape
        a = self.inversion_weight
        left = self.xx @ up
        one_way = (left - self.xy) / d_t + self.penalty_up * up
        source_trip = self.xx @ ((up @ down) @ down.T) - self.xx @ down.T
        down_yy = down.T @ self.yy
        target_trip = down_yy @ (down @ up) - down_yy
        return 2 * (one_way + a / d_s * source_trip + a / d_t * target_trip)

    def gradient_norm(self, up: Tensor, down: Tensor) -> float:
        """Over both maps."""
        return math.hypot(
            float(self.gradient(up, down).norm()), float(self.swapped().gradient(down, up).norm())
        )

    def best_up(self, down: Tensor, factor: Tensor) -> Tensor:
        """The W that minimises J for a V; ``factor`` is the Cholesky factor of Sxx."""
        d_s, d_t = self.xy.shape
        a = self.inversion_weight
        if a == 0:
            system = self.xx / d_t + self.penalty_up * torch.eye(
                d_s, dtype=self.xx.dtype, device=self.xx.device
            )
            return torch.linalg.solve(system, self.xy / d_t)
        down_yy = down.T @ self.yy
        right = self.xy / d_t + (a / d_s) * (self.xx @ down.T) + (a / d_t) * down_yy
        middle = (a / d_t) * (down_yy @ down)
        middle.diagonal().add_(self.penalty_up)
        return _solve_step(factor, middle, (a / d_s) * (down @ down.T), right, 1 / d_t)


def _solve_step(
    factor: Tensor, middle: Tensor, outer: Tensor, right: Tensor, one_way: float
) -> Tensor:
    """Return W that solves ``(one_way·S + middle) W + S W outer = right``.

    ``S = factor factorᵀ``; ``middle`` and ``outer`` are symmetric.

    ``factor⁻¹ middle factor⁻ᵀ = U diag(λ) Uᵀ``, ``T = factor⁻ᵀ U`` (so ``TᵀST = I``) and ``outer =
    Q diag(γ) Qᵀ`` make it one division: ``W = T [(Tᵀ right Q)_ij / (one_way + λ_i + γ_j)] Qᵀ``.
    """
    triangular = torch.linalg.solve_triangular
    whitened = triangular(factor, triangular(factor, middle, upper=False).T, upper=False)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    basis = triangular(factor.T, vectors, upper=True)
    gains, rotation = torch.linalg.eigh(outer)
    divided = (basis.T @ right @ rotation) / (
        one_way
        + rearrange(values.clamp_min(0), "i -> i 1")
        + rearrange(gains.clamp_min(0), "j -> 1 j")
    )
    return basis @ divided @ rotation.T


def _alternate(
    problem: TwoWayProblem, up: Tensor, down: Tensor, settings: TwoWay
) -> TwoWaySolution:
    """Alternate exact solves for W and V, extrapolated by Anderson mixing of the last V's.

    ``up`` is the map for which the first V is solved.
    """
    swapped = problem.swapped()
    factor_x, factor_y = _factor(problem.xx), _factor(problem.yy)
    scale = problem.gradient_norm(torch.zeros_like(up), torch.zeros_like(down)) or 1.0
    history = Anderson(settings.memory)
    best_value, sweeps, gradient = problem.objective(up, down), 0, math.inf
    while sweeps < settings.max_sweeps:
        sweeps += 1
        new_up = problem.best_up(down, factor_x)
        new_down = swapped.best_up(new_up, factor_y)
        value = problem.objective(new_up, new_down)
        if value > best_value * (1 + 1e-9) and history.steps:
            # The extrapolation went too far: back to the last plain step, and forget what it was
            # made from.
            down = history.plain
            history = Anderson(settings.memory)
            continue
        best_value = min(value, best_value)
        up = new_up
        gradient = problem.gradient_norm(new_up, new_down)
        if gradient <= settings.tolerance * scale:
            down = new_down
            break
        # Measured in the target's own metric: V acts on y, so a step's size is that of yV.
        down = history.mixed(down, new_down, factor_y)
    if gradient > settings.tolerance * scale and history.steps:
        down = history.plain
        gradient = problem.gradient_norm(up, down)
    return TwoWaySolution(
        up=up,
        down=down,
        terms=problem.terms(up, down),
        objective=problem.objective(up, down),
        gradient_norm=gradient,
        relative_gradient=gradient / scale,
        sweeps=sweeps,
        converged=gradient <= settings.tolerance * scale,
    )


class Anderson:
    """Type-II Anderson mixing of a fixed-point iteration ``V ← G(V)``."""

    def __init__(self, memory: int) -> None:
        self.memory, self.steps = memory, 0
        self.plain: Tensor
        """The last plain step, G(V)."""
        self._points: list[Tensor] = []
        self._residuals: list[Tensor] = []

    def mixed(self, point: Tensor, image: Tensor, factor: Tensor) -> Tensor:
        """Return the next point, from ``image = G(point)``.

        Residuals are weighed by the metric ``factor factorᵀ``.
        """
        self.plain, self.steps = image, self.steps + 1
        self._points.append(image)
        self._residuals.append((factor.T @ (image - point)).flatten())
        del self._points[: -self.memory - 1], self._residuals[: -self.memory - 1]
        if self.memory == 0 or len(self._points) < 2:
            return image
        latest = self._residuals[-1]
        differences = torch.stack([latest - earlier for earlier in self._residuals[:-1]], 1)
        normal = differences.T @ differences
        normal.diagonal().add_(
            1e-12 * float(normal.diagonal().max()) + torch.finfo(normal.dtype).tiny
        )
        mixing = torch.linalg.solve(normal, differences.T @ latest)
        step = sum(
            weight * (image - earlier)
            for weight, earlier in zip(mixing, self._points[:-1], strict=True)
        )
        return image - step


def _factor(covariance: Tensor) -> Tensor:
    floor = _FLOOR * float(covariance.diagonal().mean()) or torch.finfo(covariance.dtype).tiny
    return torch.linalg.cholesky(
        covariance
        + floor * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    )


def _ridge_pair(fit: Scatter) -> tuple[Tensor, Tensor]:
    both = (fit, fit.swapped())
    up, down = (
        Ridge().decompose(scatter.xx).solve(scatter, 1e-4, "", "").weight for scatter in both
    )
    return up, down


class JointFits:
    """Solutions of a solver on some moments, shared by both directions."""

    def __init__(self, moments: CrossMoments, solver: TwoWay) -> None:
        self.moments, self.solver = moments, solver
        self._solved: dict[tuple[Pair, tuple[int, ...], float], tuple[AffineMap, AffineMap]] = {}
        self._latest: dict[tuple[Pair, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
        self._chosen: dict[Pair, float] = {}

    def maps(self, pair: Pair, parts: Sequence[int], alpha: float) -> tuple[AffineMap, AffineMap]:
        """Return the maps (up, down) fitted on some parts; the last fits are remembered."""
        key = (pair, tuple(parts), alpha)
        if key not in self._solved:
            self._solved = {k: v for k, v in self._solved.items() if k[0] == pair}
            self._latest = {k: v for k, v in self._latest.items() if k[0] == pair}
            self._solved[key] = self._solve(
                self.moments.scatter(pair, parts), alpha, pair, self.solver, key[:2]
            )
        return self._solved[key]

    def null_maps(self, pair: Pair, alpha: float) -> tuple[AffineMap, AffineMap]:
        """Return the maps of shuffled pairs."""
        key = (pair, (), alpha)
        if key not in self._solved:
            # Nothing links shuffled streams, so the minimum is flat, and how precisely it is met
            # does not matter.
            loose = replace(self.solver, tolerance=1e-3, max_sweeps=50)
            self._solved[key] = self._solve(
                self.moments.null_scatter(pair, test=False), alpha, pair, loose, None
            )
        return self._solved[key]

    def alpha(self, pair: Pair) -> float:
        """The penalty with the least held-out eq. 3, over the fitting folds."""
        if self.solver.alpha is not None:
            return self.solver.alpha
        if pair not in self._chosen:
            totals = []
            for alpha in self.solver.alphas:
                totals.append(sum(self._held_out(pair, k, alpha) for k in FIT_PARTS))
            self._chosen[pair] = self.solver.alphas[totals.index(min(totals))]
        return self._chosen[pair]

    def _held_out(self, pair: Pair, k: int, alpha: float) -> float:
        up, down = self.maps(pair, tuple(p for p in FIT_PARTS if p != k), alpha)
        held_out = self.moments.scatter(pair, (k,))
        units = _units(held_out, self.solver)
        problem = TwoWayProblem.of(
            held_out if units is None else held_out.scaled(*units), self.solver.inversion_weight
        )
        return problem.terms(*_in_units(up.weight, down.weight, units)).total(
            self.solver.inversion_weight
        )

    def _solve(
        self,
        fit: Scatter,
        alpha: float,
        pair: Pair,
        solver: TwoWay,
        remembered: tuple[Pair, tuple[int, ...]] | None,
    ) -> tuple[AffineMap, AffineMap]:
        units = _units(fit, solver)
        # The same rows under another penalty are a good place to start.
        start = self._latest.get(remembered) if remembered else None
        solution = solver.minimise(fit if units is None else fit.scaled(*units), alpha, start)
        if remembered:
            self._latest[remembered] = solution.up, solution.down
        back = None if units is None else (1 / units[0], 1 / units[1])
        up, down = _in_units(solution.up, solution.down, back)
        return (
            AffineMap(up, fit.mean_y - fit.mean_x @ up, *pair),
            AffineMap(down, fit.mean_x - fit.mean_y @ down, pair[1], pair[0]),
        )


def _units(scatter: Scatter, solver: TwoWay) -> tuple[Tensor, Tensor] | None:
    """Return factors [d_source] and [d_target] that bring dimensions to unit variance.

    They are None if the solver takes the dimensions as they are.
    """
    return (
        (unit_scale(scatter.second_x.diagonal), unit_scale(scatter.variance))
        if solver.standardize
        else None
    )


def _in_units(
    up: Tensor, down: Tensor, units: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return the maps between streams whose dimensions are multiplied by ``units``."""
    if units is None:
        return up, down
    scale_x, scale_y = units
    return up / scale_x[:, None] * scale_y, down / scale_y[:, None] * scale_x


class TwoWaySide(Side):
    """One direction of `JointFits`."""

    def __init__(self, fits: JointFits, *, down: bool) -> None:
        super().__init__(fits.moments, down=down)
        self.fits = fits

    def cross_validate(self, pair: Pair) -> FoldErrors:
        """Held-out errors at the penalty that both directions share."""
        setting = Setting(alpha=self.fits.alpha(pair))
        maps = [[self.refit_without(pair, k, setting)] for k in FIT_PARTS]
        errors = held_out_errors([self.scatter(pair, (k,)) for k in FIT_PARTS], maps, [setting])
        return replace(errors, setting=setting)

    def solve(self, pair: Pair, parts: Sequence[int], setting: Setting) -> AffineMap:
        """The map fitted on some parts."""
        return self.fits.maps(pair, parts, setting.alpha)[int(self.down)]

    def fit_null(self, pair: Pair, setting: Setting) -> AffineMap:
        """The map of shuffled pairs."""
        return self.fits.null_maps(pair, setting.alpha)[int(self.down)]
