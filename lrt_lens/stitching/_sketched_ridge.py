"""Scores of ridge maps from the sketched moments of a survey.

Problem: the held-out error of a ridge map is a sum over the dimensions of the target, and a survey
knows only random columns of it. Mechanism: each column r of signs gives one estimate of the error,
e_r = Σ(r·(y − ŷ))², and one of the variance, v_r = Σ(r·(y − ȳ))². The variance itself, V, is known
exactly, so that the noise that both share is taken out (a regression estimate with a known mean,
Cochran 1977, *Sampling Techniques*, ch. 7):

    E = ē − β (v̄ − V),      β = cov(e, v) / var(v) over the columns
    R² = 1 − E / V,         standard error  √(Σ(e − β v)²/(k − 2)/k) / V

The columns of standardised dimensions give the mean R² over dimensions in the same way. Penalties
are chosen by cross-validation, as `Ridge` chooses them, from the summed errors of the columns.

    scored = SketchedRidge(moments, Ridge(), "up").score(predictor, outcome)
    scored.folds.r2, scored.test.r2, scored.noise

Limits: a standardised dimension whose spread differs between the first block and all of the text
has the weight of its variance in units of the first block's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._scatter import FIT_PARTS, Scatter, gram, squared_errors
from lrt_lens.moments._survey_moments import SurveyMoments
from lrt_lens.moments._survey_sums import SURVEY_TEST, ColumnVariance, Direction
from lrt_lens.stitching.solvers._solver import FoldErrors, Setting, fold_variances
from lrt_lens.stitching.solvers._spectrum import HasPenalties, HeldOutFold, Spectrum


@dataclass(frozen=True)
class ColumnErrors:
    """Held-out errors of the columns, and what is known of the whole."""

    errors: Tensor
    """Σ(y − ŷ)² of each column [fold, column], plain columns or standardised ones."""
    variances: Tensor
    """Σ(y − ȳ)² of each column about the mean of all folds [fold, column]."""
    whole: Tensor
    """Exact sum of Σ(y − ȳ)² over the dimensions [fold]."""

    @property
    def slope(self) -> float:
        """Slope β of the columns' errors on their variances; 0 for constant variances."""
        e, v = (sums.sum(0) - sums.sum(0).mean() for sums in (self.errors, self.variances))
        spread = float(v @ v)
        return float(e @ v) / spread if spread > 0 else 0.0

    def estimates(self) -> tuple[Tensor, Tensor]:
        """Return (errors, variances) as shares of the whole variance, [fold] each."""
        total = self.whole.sum()
        gap = self.variances.mean(1) - self.whole
        return (self.errors.mean(1) - self.slope * gap) / total, self.whole / total

    @property
    def residuals(self) -> Tensor:
        """Deviations of the columns from the regression, as shares of the variance [column]."""
        rest = self.errors.sum(0) - self.slope * self.variances.sum(0)
        return (rest - rest.mean()) / self.whole.sum()


@dataclass(frozen=True)
class SketchedScore:
    """Scores of one predictor and outcome."""

    folds: FoldErrors
    """Held-out errors by fold, as those of exact moments."""
    residuals: Tensor
    """Noise of the columns in the two errors [2, column]; see `ColumnErrors.residuals`."""
    test: tuple[float, float]
    """R², and the mean R² over dimensions, of the test fold."""
    null: float | None
    """R² of shuffled pairs on the test fold; None without a null."""

    @property
    def noise(self) -> list[float]:
        """Standard errors of both cross-validated R² because of the random columns, [2]."""
        return [column_error(rest) for rest in self.residuals]


def column_error(residuals: Tensor) -> float:
    """Return the standard error of a mean over columns from their residuals [column]."""
    k = len(residuals)
    # The mean and the slope are estimated.
    return float((residuals.square().sum() / max(1, k - 2) / k).sqrt())


class SketchedRidge:
    """Ridge maps of one direction, scored on the columns of a survey."""

    def __init__(self, moments: SurveyMoments, solver: HasPenalties, direction: Direction) -> None:
        self.moments, self.solver = moments, solver
        self.direction: Direction = direction
        self._predictor = ""
        self._total: Spectrum
        self._folds: list[HeldOutFold] = []

    def score(self, pair: HookPair) -> SketchedScore:
        """Return the scores of (predictor, outcome); those with one predictor share its spectra."""
        folds = [self._fold(pair, k) for k in FIT_PARTS]
        self._prepare(pair, folds)
        alphas = torch.tensor(
            self.solver.candidates, dtype=torch.float64, device=self.moments.n.device
        )
        k = self.moments.sketch.columns
        errors = sum(
            _plain_errors(shared, fit, held_out, shared.spectrum.shrink(alphas), k)
            for shared, (fit, held_out) in zip(self._folds, folds, strict=True)
        )
        setting = Setting(alpha=self.solver.candidates[int(torch.as_tensor(errors).argmin())])
        maps = [
            shared.spectrum.solve(fit, setting.alpha, *pair)
            for shared, (fit, _) in zip(self._folds, folds, strict=True)
        ]
        held_out = [scatter for _, scatter in folds]
        by_column = torch.stack(
            [squared_errors(m.weight, m.bias, s) for m, s in zip(maps, held_out, strict=True)]
        )
        columns = self._columns(pair[1], by_column, held_out, [(k,) for k in FIT_PARTS])
        shares = [one.estimates() for one in columns]
        whole = FoldErrors(
            setting,
            torch.stack([error for error, _ in shares], 1),
            torch.stack([variance for _, variance in shares], 1),
        )
        return SketchedScore(
            whole,
            torch.stack([one.residuals for one in columns]),
            self._test(pair, setting),
            self._null(pair, setting),
        )

    def _fold(self, pair: HookPair, k: int) -> tuple[Scatter, Scatter]:
        """Return two scatters: of the fitting folds without ``k``, and of fold ``k``."""
        rest = [part for part in FIT_PARTS if part != k]
        return self._scatter(pair, rest), self._scatter(pair, [k])

    def _scatter(self, pair: HookPair, parts: Sequence[int]) -> Scatter:
        return self.moments.scatter(self.direction, pair, parts)

    def _prepare(self, pair: HookPair, folds: list[tuple[Scatter, Scatter]]) -> None:
        """Compute the spectra of a predictor, unless it is the last one."""
        if pair[0] == self._predictor:
            return
        self._folds = [
            HeldOutFold(self.solver.decompose(fit.xx), fit, held_out) for fit, held_out in folds
        ]
        self._total = self.solver.decompose(self._scatter(pair, FIT_PARTS).xx)
        self._predictor = pair[0]

    def _test(self, pair: HookPair, setting: Setting) -> tuple[float, float]:
        fit, test = self._scatter(pair, FIT_PARTS), self._scatter(pair, SURVEY_TEST)
        affine = self._total.solve(fit, setting.alpha, *pair)
        by_column = squared_errors(affine.weight, affine.bias, test)[None]
        r2, r2_uniform = (
            1 - float(one.estimates()[0].sum())
            for one in self._columns(pair[1], by_column, [test], [SURVEY_TEST])
        )
        return r2, r2_uniform

    def _null(self, pair: HookPair, setting: Setting) -> float | None:
        """Return R² of a map of shuffled pairs on shuffled pairs of the test fold."""
        fit_xy = self.moments.null_xy(self.direction, pair, test=False)
        test_xy = self.moments.null_xy(self.direction, pair, test=True)
        if fit_xy is None or test_xy is None:
            return None
        k = fit_xy.shape[1]
        fit, test = (
            _first_columns(self._scatter(pair, parts), k, xy)
            for parts, xy in ((FIT_PARTS, fit_xy), (SURVEY_TEST, test_xy))
        )
        affine = self._total.solve(fit, setting.alpha, *pair)
        errors = squared_errors(affine.weight, affine.bias, test)[None]
        whole = self.moments.variances(self.direction, pair[1], SURVEY_TEST).sum()[None]
        return 1 - float(ColumnErrors(errors, test.variance[None], whole).estimates()[0].sum())

    def _columns(
        self,
        outcome: str,
        by_column: Tensor,
        held_out: Sequence[Scatter],
        parts: Sequence[Sequence[int]],
    ) -> list[ColumnErrors]:
        """Return the errors of plain and of standardised columns.

        Args:
            outcome: predicted hook point.
            by_column: errors [fold, column].
            held_out: [fold], scatters of the held-out folds.
            parts: [fold], the parts of each fold.
        """
        k = self.moments.sketch.columns
        variances = fold_variances(held_out)
        whole = self._whole_variances(outcome, parts)
        scale = self.moments.directions[self.direction].outcomes[outcome].scale
        weights = torch.stack([torch.ones_like(scale), scale**2])
        return [
            ColumnErrors(by_column[:, columns], variances[:, columns], whole @ weight)
            for columns, weight in zip((slice(0, k), slice(k, None)), weights, strict=True)
        ]

    def _whole_variances(self, outcome: str, parts: Sequence[Sequence[int]]) -> Tensor:
        """Return the exact Σ(y − ȳ)² of each dimension about the mean of all folds [fold, d]."""
        side = self.moments.directions[self.direction].outcomes[outcome]
        n = torch.stack([self.moments.n[list(of_fold)].sum() for of_fold in parts])
        total = torch.stack([side.total[list(of_fold)].sum(0) for of_fold in parts])
        squares = torch.stack([side.squares[list(of_fold)].sum(0) for of_fold in parts])
        mean = total.sum(0) / n.sum()
        # Σ(y − ȳ)² = Σ(y − c)² − 2(ȳ − c)·Σ(y − c) + n(ȳ − c)²
        return squares - 2 * mean * total + n[:, None] * mean**2


def _plain_errors(
    shared: HeldOutFold, fit: Scatter, held_out: Scatter, shrink: Tensor, k: int
) -> Tensor:
    """Return the held-out error of the first ``k`` columns at every penalty, [alpha].

    The formula is that of `lrt_lens.stitching.solvers._ridge`, with weights of one.
    """
    fitted, seen = (shared.spectrum.rotate(scatter.xy[:, :k]) for scatter in (fit, held_out))
    offset = (shrink * shared.moved_mean) @ fitted + (fit.mean_y - held_out.mean_y)[:k]
    quadratic = ((shrink @ (shared.rotated_xx * gram(fitted.T))) * shrink).sum(1)
    linear = shrink @ (fitted * seen).sum(1)
    constant = held_out.variance[:k].sum()
    return constant - 2 * linear + quadratic + held_out.n * offset.square().sum(1)


def _first_columns(scatter: Scatter, k: int, xy: Tensor) -> Scatter:
    """Return a scatter of the first ``k`` columns only, with another ``xy``."""
    variance = ColumnVariance(scatter.variance[:k])
    return replace(scatter, xy=xy, mean_y=scatter.mean_y[:k], second_y=variance)
