"""Maps in both directions, fitted together with their round trips.

Objective: equation 3 of "Transferring Features with Model Stitching" (arXiv 2506.06609),

    J(W, V) = E‖y − xW‖²/d_t + E‖x − yV‖²/d_s
              + α (E‖x − xWV‖²/d_s + E‖y − yVW‖²/d_t) + λ_W‖W‖² + λ_V‖V‖²

for centred rows. The best biases are ``ȳ − x̄W`` and ``x̄ − ȳV`` for any W and V, because they make
the mean of all four residuals zero. The ridge terms ``λ_W = alpha·tr(Sxx)/(d_s d_t)`` and ``λ_V =
alpha·tr(Syy)/(d_t d_s)`` are relative to the mean variance of the predicting side, as in `Ridge`.

    grid = moments.fit(TwoWay())                 # α = 1, ridge terms by cross-validation
    grid = moments.fit(TwoWay(alpha=0))          # the objective of the paper

Mechanism: the paper runs Adam over about 100 M tokens. J depends on the tokens through second
moments only, so it is minimised here from the moments, and the gradient norm is reported. For a
fixed V, the best W solves

    (Sxx/d_t + (α/d_t) VᵀSyyV + λ_W I) W + (α/d_s) Sxx W VVᵀ = R
    R = Sxy/d_t + (α/d_s) Sxx Vᵀ + (α/d_t) Vᵀ Syy              (S are covariances)

which two eigendecompositions give exactly (`_solve_step`); the best V for a fixed W follows with
the roles exchanged. The two solves alternate, with Anderson acceleration on V (Walker & Ni 2011). A
step that raises J is rejected.

Limits: J is a polynomial of degree four and not convex, so the result is a local minimum.
`TwoWay.starts` shows the minima that other starts reach.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import Scatter
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.stitching.solvers._solver import (
    FoldErrors,
    MapFitter,
    Setting,
    Solver,
    held_out_errors,
    unit_scale,
)

_FLOOR = 1e-9
"""Share of the mean variance that is added to the diagonal of a covariance before its Cholesky
factorisation, which exists only for positive definite matrices.
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
        """Return J without ridge terms, for the α ``inversion_weight``."""
        return (
            self.up
            + self.down
            + inversion_weight * (self.source_round_trip + self.target_round_trip)
        )


@dataclass(frozen=True)
class TwoWaySolution:
    """A local minimum of eq. 3."""

    up: Tensor
    """Map W for centred rows [d_source, d_target]."""
    down: Tensor
    """Map V for centred rows [d_target, d_source]."""
    terms: TwoWayTerms
    """Terms of eq. 3 on the fitting rows, without the ridge terms."""
    objective: float
    """Minimised objective, ridge terms included."""
    gradient_norm: float
    """Norm ‖∂/∂(W, V)‖_F of the gradient of the objective at the solution."""
    relative_gradient: float
    """Gradient norm ÷ the gradient norm at W = V = 0."""
    sweeps: int
    """Number of sweeps; each solves once for W and once for V."""
    converged: bool
    """True if ``relative_gradient`` is at most the tolerance."""


@dataclass(frozen=True)
class TwoWay(Solver):
    """Affine maps up and down, fitted together with their round trips."""

    inversion_weight: float = 1.0
    """Weight α of the round trips in eq. 3; the paper uses 1, out of {0, 0.1, 1, 10}."""
    alpha: float | None = None
    """Ridge term relative to the mean variance; 0 is the paper's objective, None chooses from
    ``alphas`` by the held-out eq. 3.
    """
    alphas: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    """Ridge terms among which cross-validation chooses if ``alpha`` is None."""
    standardize: bool = False
    """Scale all dimensions to unit variance first; otherwise a few massive dimensions make up most
    of J.
    """
    tolerance: float = 1e-5
    """Gradient norm at which the iteration stops, relative to the norm at W = V = 0."""
    max_sweeps: int = 300
    """Most sweeps; each solves once for W and once for V."""
    memory: int = 8
    """Number of steps that Anderson acceleration combines; 0 alternates without acceleration."""

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
                f"alphas is {self.alphas!r}; expected one or more penalties of at least 0"
            )

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        return "two_way_standardized" if self.standardize else "two_way"

    def fitters(self, moments: CrossMoments) -> tuple["TwoWayFitter", "TwoWayFitter"]:
        """Return the fitters of both directions (up, down), which share their fits."""
        fits = JointFits(moments, self)
        return TwoWayFitter(fits, down=False), TwoWayFitter(fits, down=True)

    def minimise(
        self, fit: Scatter, alpha: float = 0.0, start: tuple[Tensor, Tensor] | None = None
    ) -> TwoWaySolution:
        """Return a minimum of the objective on one scatter, starting at ``start`` (W, V).

        If ``start`` is None, the iteration starts at the two ridge maps.

        Raises:
            ValueError: without round trips and without a penalty, there are fewer rows than
                dimensions, or a dimension does not vary, so that the minimum is not unique.
        """
        self._refuse_too_few_rows(fit, alpha)
        problem = TwoWayProblem.of(fit, self.inversion_weight, alpha)
        up, down = start or _ridge_pair(fit)
        return _alternate(problem, up, down, self)

    def _refuse_too_few_rows(self, fit: Scatter, alpha: float) -> None:
        """Raise ValueError if plain least squares on these rows has more than one minimum."""
        # Round trips or a penalty make every solve unique. Otherwise both scatters are inverted;
        # centring takes one row.
        if self.inversion_weight == 0 and alpha == 0 and fit.n - 1 < max(fit.xy.shape):
            raise _not_unique(f"{int(fit.n)} rows for {max(fit.xy.shape)} dimensions")

    def starts(
        self, fit: Scatter, alpha: float = 0.0, n_random: int = 3, seed: int = 0
    ) -> list[TwoWaySolution]:
        """Return the minima from several starts; their spread shows how unique the first one is.

        The starts are the two ridge maps, then Sxy and its transpose at norm 1, then ``n_random``
        pairs of normal random matrices.
        """
        generator = torch.Generator().manual_seed(seed)
        d_s, d_t = fit.xy.shape
        begun = [_ridge_pair(fit), (fit.xy / fit.xy.norm(), fit.xy.T / fit.xy.norm())]
        for _ in range(n_random):
            # Drawn on the CPU, so that a seed gives the same start on every device. Variance 1/d of
            # the entries keeps the size of a row that passes through the map.
            up, down = (
                torch.randn(*shape, generator=generator, dtype=fit.xy.dtype) / shape[0] ** 0.5
                for shape in ((d_s, d_t), (d_t, d_s))
            )
            begun.append((up.to(fit.xy.device), down.to(fit.xy.device)))
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
        """Return the problem of a scatter with the relative penalty ``alpha``."""
        d_s, d_t = scatter.xy.shape
        xx, yy = scatter.xx / scatter.n, scatter.yy / scatter.n
        # λ_W = alpha·tr(Sxx)/(d_s·d_t), λ_V = alpha·tr(Syy)/(d_s·d_t)
        unit_up, unit_down = float(xx.trace()) / (d_s * d_t), float(yy.trace()) / (d_s * d_t)
        return cls(
            xx, yy, scatter.xy / scatter.n, inversion_weight, alpha * unit_up, alpha * unit_down
        )

    def swapped(self) -> "TwoWayProblem":
        """Return the problem with source and target exchanged."""
        return TwoWayProblem(
            self.yy, self.xx, self.xy.T, self.inversion_weight, self.penalty_down, self.penalty_up
        )

    def terms(self, up: Tensor, down: Tensor) -> TwoWayTerms:
        """Return the four terms of eq. 3 for maps W (``up``) and V (``down``)."""
        d_s, d_t = self.xy.shape
        # E‖b − aM‖² = tr Sbb − 2 tr MᵀSab + tr MᵀSaaM; own = Sbb, cross = Sab, other = Saa
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
        """Return J with the ridge terms."""
        penalty = self.penalty_up * float((up**2).sum()) + self.penalty_down * float(
            (down**2).sum()
        )
        return self.terms(up, down).total(self.inversion_weight) + penalty

    def gradient(self, up: Tensor, down: Tensor) -> Tensor:
        """Return ∂J/∂W [d_source, d_target]; ``swapped().gradient(down, up)`` is ∂J/∂V."""
        d_s, d_t = self.xy.shape
        a = self.inversion_weight
        # ½ ∂J/∂W = (SxxW − Sxy)/d_t + λ_W W + (α/d_s)(Sxx W VVᵀ − Sxx Vᵀ)
        #           + (α/d_t)(VᵀSyyV W − VᵀSyy)
        left = self.xx @ up
        one_way = (left - self.xy) / d_t + self.penalty_up * up
        source_trip = self.xx @ ((up @ down) @ down.T) - self.xx @ down.T
        down_yy = down.T @ self.yy
        target_trip = down_yy @ (down @ up) - down_yy
        return 2 * (one_way + a / d_s * source_trip + a / d_t * target_trip)

    def gradient_norm(self, up: Tensor, down: Tensor) -> float:
        """Return the norm of the gradient with respect to both maps."""
        return math.hypot(
            float(self.gradient(up, down).norm()), float(self.swapped().gradient(down, up).norm())
        )

    def best_up(self, down: Tensor, factor: Tensor) -> Tensor:
        """Return the W that minimises J for a V; ``factor`` is the Cholesky factor of Sxx."""
        d_s, d_t = self.xy.shape
        a = self.inversion_weight
        if a == 0:
            # Without round trips this is plain ridge: (Sxx/d_t + λ_W I) W = Sxy/d_t
            system = self.xx / d_t + self.penalty_up * torch.eye(
                d_s, dtype=self.xx.dtype, device=self.xx.device
            )
            solution, info = torch.linalg.solve_ex(system, self.xy / d_t)
            if int(info):
                raise _not_unique("a dimension that does not vary")
            return solution
        # R, and VᵀSyyV·α/d_t + λ_W I, of the module docstring.
        down_yy = down.T @ self.yy
        right = self.xy / d_t + (a / d_s) * (self.xx @ down.T) + (a / d_t) * down_yy
        middle = (a / d_t) * (down_yy @ down)
        middle.diagonal().add_(self.penalty_up)
        return _solve_step(factor, middle, (a / d_s) * (down @ down.T), right, 1 / d_t)


def _not_unique(reason: str) -> ValueError:
    return ValueError(
        f"inversion_weight is 0 and alpha is 0, with {reason}: the minimum is not unique; give "
        "alpha or alphas above 0 (1e-6 is almost no penalty), or use LeastSquares"
    )


def _solve_step(
    factor: Tensor, middle: Tensor, outer: Tensor, right: Tensor, one_way: float
) -> Tensor:
    """Return W that solves ``(one_way·S + middle) W + S W outer = right``.

    ``S = factor factorᵀ``; ``middle`` and ``outer`` are symmetric.

    Mechanism: let ``factor⁻¹ middle factor⁻ᵀ = U diag(λ) Uᵀ``, ``T = factor⁻ᵀ U`` (so that ``TᵀST =
    I``) and ``outer = Q diag(γ) Qᵀ``. In these bases the equation is diagonal: ``W = T [(Tᵀ right
    Q)_ij / (one_way + λ_i + γ_j)] Qᵀ``.
    """
    triangular = torch.linalg.solve_triangular
    # L⁻¹ M L⁻ᵀ = L⁻¹ (L⁻¹ M)ᵀ, because M is symmetric; symmetrised below against rounding.
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
    """Return the solution of alternating exact solves, with Anderson mixing of the last V's.

    The first W is solved for ``down``. ``up`` only sets the value of J that must not be exceeded.
    """
    swapped = problem.swapped()
    factor_x, factor_y = _factor(problem.xx), _factor(problem.yy)
    # The gradient norm at W = V = 0 is the unit of the tolerance; 1 if Sxy, Sxx and Syy are 0.
    scale = problem.gradient_norm(torch.zeros_like(up), torch.zeros_like(down)) or 1.0
    history = Anderson(settings.memory)
    best_value, sweeps, gradient = problem.objective(up, down), 0, math.inf
    while sweeps < settings.max_sweeps:
        sweeps += 1
        new_up = problem.best_up(down, factor_x)
        new_down = swapped.best_up(new_up, factor_y)
        value = problem.objective(new_up, new_down)
        # 1e-9 is above the rounding error of J, so that a step at the minimum is not rejected.
        if value > best_value * (1 + 1e-9) and history.steps:
            # The extrapolation raised J: return to the last plain step, and restart the history.
            down = history.plain
            history = Anderson(settings.memory)
            continue
        best_value = min(value, best_value)
        up = new_up
        gradient = problem.gradient_norm(new_up, new_down)
        if gradient <= settings.tolerance * scale:
            down = new_down
            break
        # V acts on y, so a step ΔV is measured by the size of yΔV: tr ΔVᵀSyyΔV.
        down = history.mixed(down, new_down, factor_y)
    if gradient > settings.tolerance * scale and history.steps:
        # Not converged: ``down`` is an extrapolation, and `plain` is the V that belongs to ``up``.
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
    """Type-II Anderson mixing of a fixed-point iteration ``V ← G(V)`` (Walker & Ni 2011)."""

    def __init__(self, memory: int) -> None:
        self.memory, self.steps = memory, 0
        self.plain: Tensor
        """Result G(V) of the last step without mixing."""
        self._points: list[Tensor] = []
        self._residuals: list[Tensor] = []

    def mixed(self, point: Tensor, image: Tensor, factor: Tensor) -> Tensor:
        """Return the next point, from ``image = G(point)``.

        The size of a residual r is ``tr rᵀ (factor factorᵀ) r``.
        """
        self.plain, self.steps = image, self.steps + 1
        self._points.append(image)
        self._residuals.append((factor.T @ (image - point)).flatten())
        del self._points[: -self.memory - 1], self._residuals[: -self.memory - 1]
        if self.memory == 0 or len(self._points) < 2:
            return image
        # With residuals f_j = G(V_j) − V_j:  γ = argmin ‖f_k − Σ_j γ_j (f_k − f_j)‖,
        # V_{k+1} = G(V_k) − Σ_j γ_j (G(V_k) − G(V_j))
        latest = self._residuals[-1]
        differences = torch.stack([latest - earlier for earlier in self._residuals[:-1]], 1)
        normal = differences.T @ differences
        # Close to convergence the differences are almost collinear and the system singular.
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
    """Return the lower Cholesky factor of a covariance with `_FLOOR` added to its diagonal.

    Raises:
        ValueError: rounding errors of the products are larger than the smallest eigenvalues.
    """
    floor = _FLOOR * float(covariance.diagonal().mean()) or torch.finfo(covariance.dtype).tiny
    factor, info = torch.linalg.cholesky_ex(
        covariance
        + floor * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    )
    if int(info):
        raise ValueError(
            f"the covariance of {len(covariance)} dimensions is singular up to rounding, as with "
            "fewer rows than dimensions; harvest more tokens, or with moment_dtype='float64'"
        )
    return factor


def _ridge_pair(fit: Scatter) -> tuple[Tensor, Tensor]:
    """Return the ridge weights (up, down) at a small penalty, the default start."""
    both = (fit, fit.swapped())
    up, down = (
        Ridge().decompose(scatter.xx).solve(scatter, 1e-4, "", "").weight for scatter in both
    )
    return up, down


class JointFits:
    """Solutions of a `TwoWay` solver on some moments, shared by both directions."""

    def __init__(self, moments: CrossMoments, solver: TwoWay) -> None:
        self.moments, self.solver = moments, solver
        # By (hook pair, parts, alpha) and by (hook pair, parts); parts () are shuffled pairs.
        self._solved: dict[
            tuple[HookPair, tuple[int, ...], float], tuple[AffineMap, AffineMap]
        ] = {}
        self._latest: dict[tuple[HookPair, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
        self._chosen: dict[HookPair, float] = {}

    def maps(
        self, hook_pair: HookPair, parts: Sequence[int], alpha: float
    ) -> tuple[AffineMap, AffineMap]:
        """Return the maps (up, down) fitted on some parts; fits of the latest pair are cached."""
        key = (hook_pair, tuple(parts), alpha)
        if key not in self._solved:
            # Drop other hook pairs, so that memory does not grow with the grid.
            self._solved = {k: v for k, v in self._solved.items() if k[0] == hook_pair}
            self._latest = {k: v for k, v in self._latest.items() if k[0] == hook_pair}
            self._solved[key] = self._solve(
                self.moments.scatter(hook_pair, parts), alpha, hook_pair, self.solver, key[:2]
            )
        return self._solved[key]

    def null_maps(self, hook_pair: HookPair, alpha: float) -> tuple[AffineMap, AffineMap]:
        """Return the maps (up, down) fitted on shuffled pairs."""
        key = (hook_pair, (), alpha)
        if key not in self._solved:
            # Shuffled streams are almost unrelated, so J is flat around its minimum, and a loose
            # tolerance gives the same scores.
            loose = replace(self.solver, tolerance=1e-3, max_sweeps=50)
            self._solved[key] = self._solve(
                self.moments.null_scatter(hook_pair, test=False), alpha, hook_pair, loose, None
            )
        return self._solved[key]

    def alpha(self, hook_pair: HookPair) -> float:
        """Return the penalty with the least held-out eq. 3, summed over the fitting folds."""
        if self.solver.alpha is not None:
            return self.solver.alpha
        if hook_pair not in self._chosen:
            totals, folds = [], self.moments.parts.fit
            for alpha in self.solver.alphas:
                totals.append(sum(self._held_out(hook_pair, k, alpha) for k in folds))
            self._chosen[hook_pair] = self.solver.alphas[totals.index(min(totals))]
        return self._chosen[hook_pair]

    def _held_out(self, hook_pair: HookPair, k: int, alpha: float) -> float:
        """Return J, without ridge terms, on fold ``k`` of the maps fitted without it."""
        others = tuple(p for p in self.moments.parts.fit if p != k)
        up, down = self.maps(hook_pair, others, alpha)
        held_out = self.moments.scatter(hook_pair, (k,))
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
        hook_pair: HookPair,
        solver: TwoWay,
        remembered: tuple[HookPair, tuple[int, ...]] | None,
    ) -> tuple[AffineMap, AffineMap]:
        units = _units(fit, solver)
        # Start at the solution for the same rows under the previous penalty, which is close.
        start = self._latest.get(remembered) if remembered else None
        solution = solver.minimise(fit if units is None else fit.scaled(*units), alpha, start)
        if remembered:
            self._latest[remembered] = solution.up, solution.down
        # The maps are returned in the original units of both streams.
        back = None if units is None else (1 / units[0], 1 / units[1])
        up, down = _in_units(solution.up, solution.down, back)
        return (
            AffineMap(up, fit.mean_y - fit.mean_x @ up, *hook_pair),
            AffineMap(down, fit.mean_x - fit.mean_y @ down, hook_pair[1], hook_pair[0]),
        )


def _units(scatter: Scatter, solver: TwoWay) -> tuple[Tensor, Tensor] | None:
    """Return factors [d_source] and [d_target] that bring all dimensions to equal variance.

    Returns None if the solver does not standardise.
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
    # With x' = x·a and y' = y·b:  W' = diag(1/a) W diag(b),  V' = diag(1/b) V diag(a)
    scale_x, scale_y = units
    return up / scale_x[:, None] * scale_y, down / scale_y[:, None] * scale_x


class TwoWayFitter(MapFitter):
    """Returns the maps of one direction from `JointFits`."""

    def __init__(self, fits: JointFits, *, down: bool) -> None:
        super().__init__(fits.moments, down=down)
        self.fits = fits

    def cross_validate(self, hook_pair: HookPair) -> FoldErrors:
        """Return held-out errors at the penalty that both directions share."""
        setting = Setting(alpha=self.fits.alpha(hook_pair))
        maps = [[self.refit_without(hook_pair, k, setting)] for k in self.parts.fit]
        errors = held_out_errors(
            [self.scatter(hook_pair, (k,)) for k in self.parts.fit], maps, [setting]
        )
        return replace(errors, setting=setting)

    def solve(self, hook_pair: HookPair, parts: Sequence[int], setting: Setting) -> AffineMap:
        """Return the map fitted on the rows of some parts."""
        return self.fits.maps(hook_pair, parts, setting.alpha)[int(self.down)]

    def fit_null(self, hook_pair: HookPair, setting: Setting) -> AffineMap:
        """Return the map fitted on shuffled pairs."""
        return self.fits.null_maps(hook_pair, setting.alpha)[int(self.down)]
