"""The interface of a solver.

Problem: a grid needs the same four things of every family of maps: the maps of a hook pair in both
directions, their held-out errors, the maps of shuffled pairs (the null), and refits without one
fold. Mechanism: a `Solver` is a frozen dataclass of settings. From moments it builds two
`MapFitter` objects, one per direction. A fitter chooses the open hyperparameters (penalty, rank) by
cross-validation over the fitting folds, fits, and refits without single folds. A solver that
fits each direction separately derives from `ClosedForm` and implements `ClosedForm.weights`, in
closed form or by iteration (`Procrustes`):

    @dataclass(frozen=True)
    class Mean(ClosedForm):
        label: ClassVar[str] = "mean"
        separable: ClassVar[bool] = True

        def weights(self, fit, settings):
            return [torch.zeros_like(fit.xy) for _ in settings]

Limits: a solver gets sums (`Scatter`), never rows, so only objectives that depend on second moments
fit this interface. Maps that are trained on rows are scored through `FixedMaps`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrt_lens.data._parts import Parts
from lrt_lens.errors import HookPointError, TooFewDocumentsError
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import Scatter, score_weights, squared_errors, varying
from lrt_lens.stitching._affine import AffineMap

DEFAULT_ALPHAS = tuple(float(f"{10 ** (-6 + 7 * i / 19):.3g}") for i in range(20))
"""20 penalties from 1e-6 to 10, evenly spaced in the logarithm."""


@dataclass(frozen=True)
class Setting:
    """Hyperparameters that cross-validation chooses for one direction of a hook pair."""

    alpha: float = 0.0
    """Ridge penalty relative to the mean variance of the predicting side; 0 for solvers without
    one. `stitch.fidelity` uses it as such, so a penalty of another kind needs its own field.
    """
    rank: int | None = None
    """Largest rank of the map; None is the full rank."""
    groups: tuple[float, ...] = ()
    """Relative penalty of each group of predicting dimensions (`ManyToOne`)."""


@dataclass(frozen=True)
class FoldErrors:
    """Held-out errors of one direction of a hook pair at its selected setting, by fold."""

    setting: Setting
    errors: Tensor
    """Weighted sums of squared errors [fold, 2]: column 0 for R², column 1 for the mean R² over
    dimensions.
    """
    variances: Tensor
    """Weighted sums of squares of the held-out rows about the mean of all folds [fold, 2], with the
    columns of ``errors``; each column adds up to 1.
    """

    @property
    def r2(self) -> float:
        """R² pooled over the held-out folds."""
        # R² = 1 − Σ_k error_k / Σ_k variance_k, and the weights make the denominator 1.
        return float(1 - self.errors[:, 0].sum())

    @property
    def r2_uniform(self) -> float:
        """Mean over dimensions of R², pooled over the held-out folds."""
        return float(1 - self.errors[:, 1].sum())

    def r2_without(self, k: int, weighting: int) -> float:
        """Return `r2` (``weighting`` 0) or `r2_uniform` (1) with fold ``k`` left out of the pool.

        The delete-a-group jackknife uses it.
        """
        # Without fold k the variances no longer add up to 1, so their sum has to divide.
        others = [j for j in range(len(self.errors)) if j != k]
        return float(
            1 - self.errors[others, weighting].sum() / self.variances[others, weighting].sum()
        )


class MapFitter(ABC):
    """Fits the maps of one direction (``up`` or ``down``) from moments, under one solver."""

    separable: bool = False
    """True if every output dimension is fitted separately. Only then is a null that is stored as
    random columns of the target (a sketch) meaningful.
    """

    def __init__(self, moments: CrossMoments, *, down: bool) -> None:
        self.moments, self.down = moments, down

    @property
    def parts(self) -> Parts:
        """Folds and test groups of the moments."""
        return self.moments.parts

    @abstractmethod
    def cross_validate(self, hook_pair: HookPair) -> FoldErrors:
        """Return the held-out errors of the setting with the best held-out R²."""

    @abstractmethod
    def solve(self, hook_pair: HookPair, parts: Sequence[int], setting: Setting) -> AffineMap:
        """Return the map fitted on the rows of some parts."""

    @abstractmethod
    def fit_null(self, hook_pair: HookPair, setting: Setting) -> AffineMap:
        """Return the map fitted on shuffled pairs of all fitting folds."""

    def fit(self, hook_pair: HookPair, setting: Setting) -> AffineMap:
        """Return the map fitted on all fitting folds."""
        return self.solve(hook_pair, self.parts.fit, setting)

    def refit_without(self, hook_pair: HookPair, k: int, setting: Setting) -> AffineMap:
        """Return the map of all fitting folds except ``k``, for the delete-a-group jackknife."""
        return self.solve(hook_pair, tuple(p for p in self.parts.fit if p != k), setting)

    def scatter(self, hook_pair: HookPair, parts: Iterable[int]) -> Scatter:
        """Return the scatter of a hook pair with the predicting side as x."""
        scatter = self.moments.scatter(hook_pair, tuple(parts))
        return scatter.swapped() if self.down else scatter

    def null_scatter(self, hook_pair: HookPair, *, test: bool) -> Scatter:
        """Return the scatter of shuffled pairs with the predicting side as x."""
        scatter = self.moments.null_scatter(hook_pair, test=test)
        return scatter.swapped() if self.down else scatter

    def fold(self, hook_pair: HookPair, k: int) -> tuple[Scatter, Scatter]:
        """Return two scatters: of the fitting folds without ``k``, and of fold ``k``."""
        others = (p for p in self.parts.fit if p != k)
        return self.scatter(hook_pair, others), self.scatter(hook_pair, (k,))

    def names(self, hook_pair: HookPair) -> tuple[str, str]:
        """Return the hook points at which the map starts and ends."""
        return (hook_pair[1], hook_pair[0]) if self.down else hook_pair


class Solver(ABC):
    """A family of maps; subclasses are frozen dataclasses."""

    joint: ClassVar[bool] = False
    """True if one fit gives both directions of a hook pair."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the solver in tables."""

    @abstractmethod
    def fitters(self, moments: CrossMoments) -> tuple[MapFitter, MapFitter]:
        """Return the fitters of both directions (up, down)."""


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Solver):
    """A solver that fits each direction separately, from one `Scatter` and a setting."""

    standardize: bool = False
    """Scale the dimensions of both sides to unit variance before solving; use it for streams with
    massive dimensions.
    """

    label: ClassVar[str]
    """Name in tables, without the suffix for ``standardize``; it has no default, so every subclass
    sets it or overrides `name`.
    """
    separable: ClassVar[bool] = False
    """Value of `MapFitter.separable` for both directions."""
    iterative: ClassVar[bool] = False
    """True if `weights` has a further parameter ``start`` [d_source, d_target], None by default;
    refits then begin at the fit of all folds.
    """

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        return f"{self.label}_standardized" if self.standardize else self.label

    @property
    def has_intercept(self) -> bool:
        """True if the bias is ``ȳ − x̄W``; otherwise it is 0 and `weights` gets uncentred sums."""
        return True

    # The widths are for solvers that choose a rank.
    def settings(self, d_source: int, d_target: int) -> list[Setting]:  # noqa: ARG002
        """Return the settings among which cross-validation chooses."""
        return [Setting()]

    @abstractmethod
    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Return the weight [d_source, d_target] for every setting.

        The scatter sums are centred (see `has_intercept`) and scaled already. If `iterative` is
        True, the method also takes ``start: Tensor | None = None``.
        """

    def fitters(self, moments: CrossMoments) -> tuple[MapFitter, MapFitter]:
        """Return the fitters of both directions (up, down)."""
        return ClosedFormFitter(moments, self, down=False), ClosedFormFitter(
            moments, self, down=True
        )

    def maps(
        self,
        fit: Scatter,
        settings: Sequence[Setting],
        source_hook: str,
        target_hook: str,
        start: Tensor | None = None,
    ) -> list[AffineMap]:
        """Return the map of every setting, in the original units of both streams.

        ``start`` is the weight with which an iteration begins.
        """
        scale_x, scale_y = (
            (unit_scale(fit.second_x.diagonal), unit_scale(fit.variance))
            if self.standardize
            else (None, None)
        )
        scatter = fit if scale_x is None or scale_y is None else fit.scaled(scale_x, scale_y)
        if not self.has_intercept:
            scatter = scatter.uncentred()
        if start is not None and scale_x is not None and scale_y is not None:
            # With x' = x·a and y' = y·b (elementwise):  y ≈ xW  ⇔  y' ≈ x'W',
            # W' = diag(1/a) W diag(b)
            start = start / scale_x[:, None] * scale_y
        options = {"start": start} if self.iterative else {}
        maps = []
        for weight in self.weights(scatter, settings, **options):
            if scale_x is not None and scale_y is not None:
                # W = diag(a) W' diag(1/b)
                weight = weight * scale_x[:, None] / scale_y
            # For any W, the bias with the least squared error is b = ȳ − x̄W.
            bias = (
                fit.mean_y - fit.mean_x @ weight
                if self.has_intercept
                else torch.zeros_like(fit.mean_y)
            )
            maps.append(AffineMap(weight, bias, source_hook, target_hook))
        return maps


class ClosedFormFitter(MapFitter):
    """One direction of a `ClosedForm` solver: every setting is solved on every fold."""

    def __init__(self, moments: CrossMoments, solver: ClosedForm, *, down: bool) -> None:
        super().__init__(moments, down=down)
        self.solver, self.separable = solver, solver.separable
        self._starts: dict[HookPair, AffineMap] = {}

    def cross_validate(self, hook_pair: HookPair) -> FoldErrors:
        """Return held-out errors at the best setting; each is scored on every held-out fold."""
        folds = [self.fold(hook_pair, k) for k in self.parts.fit]
        settings = self.solver.settings(*folds[0][0].xy.shape)
        start = self._start(hook_pair)
        maps = [
            self.solver.maps(fit, settings, *self.names(hook_pair), start=start) for fit, _ in folds
        ]
        return held_out_errors([held_out for _, held_out in folds], maps, settings)

    def solve(self, hook_pair: HookPair, parts: Sequence[int], setting: Setting) -> AffineMap:
        """Return the map fitted on the rows of some parts."""
        # The start of an iterative solver is its fit of all folds: it is that map already.
        if self.solver.iterative and set(parts) == set(self.parts.fit) and setting == Setting():
            return self._whole(hook_pair)
        return self.solver.maps(
            self.scatter(hook_pair, parts),
            [setting],
            *self.names(hook_pair),
            start=self._start(hook_pair),
        )[0]

    def fit_null(self, hook_pair: HookPair, setting: Setting) -> AffineMap:
        """Return the map fitted on shuffled pairs."""
        # No start: the fit of the true pairs would leak the true relation into the null.
        return self.solver.maps(
            self.null_scatter(hook_pair, test=False), [setting], *self.names(hook_pair)
        )[0]

    def _start(self, hook_pair: HookPair) -> Tensor | None:
        return self._whole(hook_pair).weight if self.solver.iterative else None

    def _whole(self, hook_pair: HookPair) -> AffineMap:
        """Return the map of all fitting folds at the default setting, from no start."""
        if hook_pair not in self._starts:
            # Only the latest hook pair is kept: pairs come one after the other, and each start is a
            # whole weight matrix. The default setting is enough for a start.
            self._starts = {
                hook_pair: self.solver.maps(
                    self.scatter(hook_pair, self.parts.fit), [Setting()], *self.names(hook_pair)
                )[0]
            }
        return self._starts[hook_pair]


def held_out_errors(
    held_out: Sequence[Scatter], maps: Sequence[Sequence[AffineMap]], settings: Sequence[Setting]
) -> FoldErrors:
    """Return the errors of ``maps[fold][setting]`` on their held-out folds, at the best setting."""
    variance = fold_variances(held_out)  # [fold, d_target]
    # Both R² divide by the variance pooled over all folds, so the weights are common to them.
    weights = score_weights(variance.sum(0))  # [2, d_target]
    # [fold, setting, 2]
    errors = torch.stack(
        [
            torch.stack(
                [
                    weights @ squared_errors(affine.weight, affine.bias, scatter)
                    for affine in of_fold
                ]
            )
            for scatter, of_fold in zip(held_out, maps, strict=True)
        ]
    )
    # Column 0 is the error of the variance-weighted R², by which settings are chosen.
    best = int(errors[:, :, 0].sum(0).argmin())
    return FoldErrors(settings[best], errors[:, best], variance @ weights.T)


def fold_variances(held_out: Sequence[Scatter]) -> Tensor:
    """Return Σ(y − ȳ)² of the rows of each held-out fold, [fold, d_target].

    ȳ is the mean of all held-out rows. About its own mean, a fold of few documents varies less than
    text does, and R² would be too low.
    """
    n = sum(scatter.n for scatter in held_out)
    mean = torch.stack([scatter.n * scatter.mean_y for scatter in held_out]).sum(0) / n
    # Σ(y − ȳ)² = Σ(y − ȳ_k)² + n_k·(ȳ_k − ȳ)²
    return torch.stack(
        [scatter.variance + scatter.n * (scatter.mean_y - mean) ** 2 for scatter in held_out]
    )


def unit_scale(sums_of_squares: Tensor) -> Tensor:
    """Return factors [d] that bring every dimension to the same variance.

    A factor is 1 if its dimension does not vary.
    """
    varies = varying(sums_of_squares)
    # 1/√Σ(x − x̄)². The factor √n to unit variance is common to all dimensions and changes no map.
    # The inner `where` keeps 1/√0 out of the branch that is not selected.
    return torch.where(
        varies, torch.where(varies, sums_of_squares, torch.ones_like(sums_of_squares)).rsqrt(), 1.0
    )


@dataclass(frozen=True)
class PairFolds:
    """Held-out errors of one hook pair by fold; its cross-validated columns are sums of these."""

    up: FoldErrors
    down: FoldErrors
    token: FoldErrors | None
    """Held-out errors of token identity as the predictor of the same target; None if the moments
    hold no token embedding.
    """


def wanted_pairs(
    moments: CrossMoments, task: str, pairs: Sequence[HookPair] | None
) -> list[HookPair]:
    """Return the hook pairs of a task: ``pairs``, or all of the moments if None.

    Args:
        moments: cross-moments of both models.
        task: the verb in the error message, such as ``"fit"``.
        pairs: hook pairs that the user asked for.

    Raises:
        HookPointError: the moments hold no cross-moments of a hook pair.
        TooFewDocumentsError: there is no hook pair, or no row.
    """
    # By default the pairs of two layers; `kept_pairs` also has token identity with each target.
    wanted = list(moments.pairs if pairs is None else pairs)
    for hook_pair in wanted:
        if hook_pair not in moments.kept_pairs:
            raise HookPointError(
                f"these moments hold no hook pair {hook_pair}; they hold {len(moments.pairs)}, "
                f"such as {moments.pairs[0]}: choose among moments.pairs, or harvest that pair"
            )
    if not moments.source or not wanted:
        raise TooFewDocumentsError(
            f"nothing to {task}: {moments.n_tokens} tokens and {len(wanted)} pair(s); add rows and "
            "choose at least one pair"
        )
    return wanted
