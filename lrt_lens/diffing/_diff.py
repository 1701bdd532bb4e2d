"""Compare two models by their moments: what the target gained, what it lost, what both share.

    result = lrt.diff(grid, (source_hook, target_hook))     # or moments; an int for both sides
    result.table, result.figure()
    result.vector("gained", 1)                              # a SteeringVector

Problem: what does one model hold that no linear map of the other explains? Sparse autoencoders of
differences and crosscoders need training on cached activations. Mechanism: the residual of a ridge
map, the difference of two streams and their canonical correlations have covariances that are
functions of second moments, so that their principal directions cost a few decompositions
(`lrt_lens.diffing._unexplained` has the formulas).

**Evidence.** Noise has principal directions too. An eigenvalue counts if it is larger than the
largest one that columns without anything in common would have, and so are all before it
(`lrt_lens.statistics._noise_spectrum`). The number of rows is that of rows independent of each
other, and the directions found so far are taken out of the variances of the columns (deflation;
Dobriban and Owen 2019). The interval is over documents, by the jackknife over the fitting folds,
and ``held_out`` is the same on the test fold, which took no part. For canonical correlations the
level is the larger of that of shuffled pairs and Wachter's for independent sides.

``rows="all"`` fits on the test fold too: then ``"difference"`` is scikit-learn's
``PCA().fit(y - x)`` of all rows, and ``held_out`` is NaN.

Limits: directions, not features: concepts that come together share a direction. What varies little
is among the last directions of a kind; ``unexplained`` says how much of its variance is new.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.diffing._model_diff import (
    DIFF_COLUMNS,
    KINDS,
    DiffDirections,
    Kind,
    ModelDiff,
    oriented,
)
from lrt_lens.diffing._unexplained import (
    PairWhitening,
    PredictorSpectrum,
    Unexplained,
    difference,
    largest_by_chance,
    leading,
    left_along,
    quadratic_forms,
    residual,
)
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models._hook_points import HookPair, hook_name, same_place
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import Scatter
from lrt_lens.statistics._jackknife import jackknife
from lrt_lens.statistics._noise_spectrum import noise_limit
from lrt_lens.stitching._grid import StitchGrid

_ALPHA = 1e-4
"""Relative penalty of the inverses of canonical correlations."""
_TINY = 1e-30
"""Smallest divisor."""
_NORMAL_95 = 1.645
"""One-sided 95% quantile of the normal distribution."""


@dataclass(frozen=True)
class DiffSettings(Settings):
    """Settings of `diff`: kinds and number of directions, and the rows that they are fitted on."""

    n_directions: int = 10
    """Number of directions of each kind."""
    kinds: Sequence[Kind] | None = None
    """Kinds of directions, see `ModelDiff`; None: all that the widths allow."""
    rows: Literal["fit", "all"] = "fit"
    """Rows on which directions are fitted: ``"fit"`` leaves out the test fold, on which they are
    then measured; ``"all"`` has every row."""
    alpha: float | None = None
    """Penalty of the ridge maps relative to the mean variance of the predicting side; None: by
    generalised cross-validation."""
    seed: int = 0
    """Seed of the dimensions from which the number of independent rows is estimated."""


@takes(DiffSettings)
def diff(
    given: CrossMoments | StitchGrid,
    hook: tuple[int | str, int | str] | int | str | None = None,
    *,
    settings: DiffSettings | None = None,
    **options: Any,
) -> ModelDiff:
    """Return the directions that source and target do not share at a hook pair; needs no model.

    Args:
        given: cross-moments of both models, or a grid, whose moments are taken.
        hook: source and target hook point, as names or layers; an int or a name for the same
            hook point on both sides; None if there is only one pair.
        settings: a `DiffSettings`, whose fields may also be keywords.

    Raises:
        HookPointError: there are no moments of this hook pair, or None was given for several.
        MismatchError: a kind needs equal widths.
        TooFewDocumentsError: there are not more fitting rows than dimensions.
        ValueError: a kind is unknown, or ``n_directions`` is below 1.
    """
    chosen = resolve(DiffSettings, settings, options)
    moments = given.moments if isinstance(given, StitchGrid) else given
    moments.finish()
    return _Differ(moments, _pair_of(moments, hook), chosen).result()


class _Differ:
    """Scatters of one hook pair, and the rows of the table that each kind of direction gives."""

    def __init__(self, moments: CrossMoments, pair: HookPair, settings: DiffSettings) -> None:
        self.moments, self.pair, self.settings = moments, pair, settings
        parts = moments.parts
        self.fitted = parts.fit if settings.rows == "fit" else (*parts.fit, *parts.test)
        self.fit = moments.scatter(pair, self.fitted)
        self.folds = [moments.scatter(pair, (p,)) for p in self.fitted if moments.n[p] >= 2]
        held_out = settings.rows == "fit" and float(moments.n[list(parts.test)].sum()) >= 2
        self.test = moments.scatter(pair, parts.test) if held_out else None
        self.widths = (len(self.fit.mean_x), len(self.fit.mean_y))
        self.kinds = self._checked_kinds()
        self.table: list[dict[str, Any]] = []
        self.directions: dict[Kind, DiffDirections] = {}
        self.alpha: dict[str, float] = {}
        self.independent: dict[str, float] = {}
        self.spectra: dict[Kind, PredictorSpectrum] = {}
        self.left: dict[Kind, tuple[Unexplained, float]] = {}

    def result(self) -> ModelDiff:
        """Return the directions of all kinds."""
        for kind in self.kinds:
            if kind == "shared":
                self._add_shared()
            elif kind == "shift":
                self._add_shift()
            else:
                self._add_principal(kind)
        source, target = self.pair
        moments = self.moments
        return ModelDiff(
            table=pd.DataFrame(self.table, columns=list(DIFF_COLUMNS)),
            directions=self.directions,
            source_hook=source,
            target_hook=target,
            alpha=self.alpha,
            n_tokens=int(self.fit.n),
            n_independent=self.independent,
            provenance=moments.provenance,
            median_norms=(moments.source[source].median_norm, moments.target[target].median_norm),
        )

    def _checked_kinds(self) -> list[Kind]:
        settings, equal = self.settings, self.widths[0] == self.widths[1]
        if settings.n_directions < 1:
            raise ValueError(f"n_directions is {settings.n_directions}; expected at least 1")
        if settings.rows not in ("fit", "all"):
            raise ValueError(f"rows is {settings.rows!r}; expected 'fit' or 'all'")
        asked = KINDS if settings.kinds is None else settings.kinds
        if unknown := [kind for kind in asked if kind not in KINDS]:
            raise ValueError(f"kinds has {unknown}; expected some of {list(KINDS)}")
        of_equal = ("difference", "shift")
        refused = [kind for kind in settings.kinds or () if kind in of_equal and not equal]
        if refused:
            raise MismatchError(
                f"kinds has {refused}, and the streams have {self.widths[0]} and "
                f"{self.widths[1]} dimensions: a difference needs equal widths; ask for 'gained', "
                "'lost' and 'shared'"
            )
        return [kind for kind in KINDS if kind in asked and (equal or kind not in of_equal)]

    def _turned(self, kind: Kind, scatter: Scatter) -> Scatter:
        """Return the scatter with the stream of the directions as y."""
        return scatter.swapped() if kind == "lost" else scatter

    def _add_principal(self, kind: Kind) -> None:
        """Add the principal directions of residuals or differences."""
        fit = self._turned(kind, self.fit)
        folds = [self._turned(kind, fold) for fold in self.folds]
        left, n = self._left(kind)
        if left.alpha is not None:
            self.alpha[kind] = left.alpha
        self.independent[kind] = n
        covariance = left.covariance()
        values, unit = leading(covariance, self.settings.n_directions)
        unit = oriented(unit, self._shift() if self.widths[0] == self.widths[1] else None)
        values = torch.where(values > self._rounding(left.whole), values, 0.0)
        noise = _deflated_noise(covariance, values, unit, n)
        total = float(covariance.trace())
        variance = quadratic_forms(unit, left.whole) / fit.n
        sums = left.along(folds, unit).cpu().numpy()
        sizes = np.array([fold.n for fold in folds])
        low, high = _over_folds(values.cpu().numpy(), sums, sizes)
        test = None if self.test is None else self._turned(kind, self.test)
        held_out = None if test is None else (left.along([test], unit)[0] / test.n).tolist()
        shuffled = self._shuffled(kind, unit)
        above = True
        for i, value in enumerate(values.tolist()):
            above = above and value > noise[i]
            stream = float(variance[i])
            self._enter(
                kind,
                i + 1,
                value,
                (float(low[i]), float(high[i])),
                held_out=math.nan if held_out is None else held_out[i],
                share=value / total if total > 0 else math.nan,
                variance=stream,
                unexplained=value / stream if stream > 0 else math.nan,
                unexplained_shuffled=math.nan if shuffled is None else shuffled[i],
                noise=noise[i],
                above_noise=above,
            )
        partner = -left.read_from_other(unit)
        reads = (unit, partner) if kind == "lost" else (partner, unit)
        deviation = values.sqrt()
        self.directions[kind] = self._placed(unit, deviation, reads, deviation)

    def _enter(
        self, kind: Kind, index: int, value: float, ends: tuple[float, float], **columns: Any
    ) -> None:
        """Add a row to the table; columns that a kind does not have are NaN."""
        low, high = ends
        row = dict.fromkeys(DIFF_COLUMNS, math.nan) | {"kind": kind, "index": index}
        # A variance is at least 0; NaN stays NaN.
        row |= {"eigenvalue": value, "low": low if low != low else max(0.0, low), "high": high}
        self.table.append(row | columns)

    def _rounding(self, whole: Tensor) -> float:
        """Return the eigenvalue that rounding of the products alone may give.

        Errors of a scatter S are about ε·√(S_ii·S_jj): their norm is that of the largest dimension,
        and 2√d times the mean of the others.
        """
        diagonal = whole.diagonal() / self.fit.n
        size = float(diagonal.max() + 2 * math.sqrt(len(diagonal)) * diagonal.mean())
        return 4 * torch.finfo(self.moments.moment_dtype).eps * size

    def _placed(
        self, unit: Tensor, length: Tensor, reads: tuple[Tensor, Tensor], deviation: Tensor
    ) -> DiffDirections:
        offset = reads[0] @ self.fit.mean_x + reads[1] @ self.fit.mean_y
        parts = (unit, length, *reads, offset, deviation)
        return DiffDirections(*(part.detach().float().cpu() for part in parts))

    def _shuffled(self, kind: Kind, unit: Tensor) -> list[float] | None:
        """Return the unexplained share along directions for a map of shuffled pairs."""
        moments, known = self.moments, self.moments.null == "full"
        if kind == "difference" or not known or self.pair not in moments.cross_null:
            return None
        null = self._turned(kind, self._null)
        spectrum = self._spectrum(kind) if self._null_has_the_fitted_rows else None
        left = left_along(null, self.alpha[kind], unit, spectrum)
        return (left * null.n / quadratic_forms(unit, null.yy)).tolist()

    @cached_property
    def _null(self) -> Scatter:
        """Scatter of shuffled pairs of the fitting folds."""
        return self.moments.null_scatter(self.pair, test=False)

    @property
    def _null_has_the_fitted_rows(self) -> bool:
        """True if only the cross-scatter of shuffled pairs differs from that of the true ones."""
        return self.settings.rows == "fit"

    def _spectrum(self, kind: Kind) -> PredictorSpectrum:
        """Return the spectrum of the side that predicts, computed once."""
        if kind not in self.spectra:
            self.spectra[kind] = PredictorSpectrum.of(self._turned(kind, self.fit).xx)
        return self.spectra[kind]

    def _left(self, kind: Kind) -> tuple[Unexplained, float]:
        """Return what a comparison leaves and its number of independent rows, computed once."""
        if kind not in self.left:
            fit = self._turned(kind, self.fit)
            if kind == "difference":
                left = difference(fit)
            else:
                left = residual(fit, self.settings.alpha, self._spectrum(kind))
            folds = [self._turned(kind, fold) for fold in self.folds]
            rounding = self._rounding(left.whole)
            self.left[kind] = left, left.independent_rows(folds, self.settings.seed, rounding)
        return self.left[kind]

    def _shift(self) -> Tensor:
        return self.fit.mean_y - self.fit.mean_x

    def _add_shift(self) -> None:
        """Add the mean of y − x."""
        fit, folds, shift = self.fit, self.folds, self._shift()
        squared = float(shift.square().sum())
        unit = shift / math.sqrt(squared) if squared > 0 else torch.zeros_like(shift)
        # θ_k: the squared length without fold k, along the whole shift.
        sums = torch.stack([fold.n * (fold.mean_y - fold.mean_x) for fold in folds])
        sizes = torch.tensor([fold.n for fold in folds]).to(sums)
        others = (sums.sum(0) - sums) / (sizes.sum() - sizes)[:, None]
        interval = jackknife(squared, others.square().sum(1).tolist(), sizes.tolist())
        left, n = self._left("difference")
        self.independent["shift"] = n
        covariance = left.covariance()
        # Without a shift, the squared mean of n rows has mean tr C/n and variance 2·tr C²/n².
        noise = float(covariance.trace() + _NORMAL_95 * (2 * covariance.square().sum()).sqrt()) / n
        test = self.test
        stream = float(unit @ (fit.yy @ unit)) / fit.n
        held_out = math.nan if test is None else float((test.mean_y - test.mean_x) @ unit) ** 2
        self._enter(
            "shift",
            1,
            squared,
            (float(interval.low), float(interval.high)),
            held_out=held_out,
            variance=stream,
            unexplained=squared / stream if stream > 0 else math.nan,
            noise=noise,
            above_noise=squared > max(noise, self._rounding(fit.yy)),
        )
        row = unit[None]
        length = torch.tensor([math.sqrt(squared)]).to(row)
        deviation = (unit @ (covariance @ unit)).clamp_min(0).sqrt()[None]
        self.directions["shift"] = self._placed(row, length, (-row, row), deviation)

    def _add_shared(self) -> None:
        """Add the canonical directions of the target, by squared correlation."""
        fit, folds = self.fit, self.folds
        alpha = self.alpha["shared"] = self.settings.alpha or _ALPHA
        whitening = PairWhitening.of(fit, alpha)
        values, a, c = whitening.canonical(fit.xy, self.settings.n_directions)
        n = self.independent["shared"] = self._left("gained")[1]
        noise = largest_by_chance(*self.widths, n) ** 2
        moments = self.moments
        if moments.null == "full" and self.pair in moments.cross_null:
            null = self._null
            if not self._null_has_the_fitted_rows:
                whitening = PairWhitening.of(null, alpha)
            noise = max(noise, float(whitening.canonical(null.xy, 1)[0][0]))
        # Loadings: directions along which the target moves with the canonical variate, Syy c.
        unit = torch.nn.functional.normalize(c @ fit.yy, dim=1)
        signs = (oriented(unit, None) * unit).sum(1).sign()[:, None]
        unit, a, c = unit * signs, a * signs, c * signs
        terms = np.array([_correlation_terms(fold, a, c) for fold in folds])
        low, high = _over_correlations(terms, [fold.n for fold in folds])
        test = None if self.test is None else _correlation_of(_correlation_terms(self.test, a, c))
        variance = quadratic_forms(unit, fit.yy) / fit.n
        above = True
        for i in range(len(a)):
            value = float(values[i])
            above = above and value > noise
            self._enter(
                "shared",
                i + 1,
                value,
                (float(low[i]), float(high[i])),
                held_out=math.nan if test is None else float(test[i]),
                variance=float(variance[i]),
                unexplained=1 - value,
                noise=noise,
                above_noise=above,
            )
        deviation = (quadratic_forms(c, fit.yy) / fit.n).sqrt()
        reads = (torch.zeros_like(a), c)
        self.directions["shared"] = self._placed(unit, variance.sqrt(), reads, deviation)


def _pair_of(
    moments: CrossMoments, hook: tuple[int | str, int | str] | int | str | None
) -> HookPair:
    """Return the hook pair of the moments that was asked for."""
    pairs = list(moments.kept_pairs)
    if hook is None:
        if len(moments.pairs) != 1:
            raise HookPointError(
                f"the moments have {len(moments.pairs)} hook pairs; say which one to compare, such "
                f"as hook={moments.pairs[0]!r}"
            )
        return moments.pairs[0]
    asked = hook if isinstance(hook, tuple) else (hook, hook)
    models = (moments.provenance.source, moments.provenance.target)
    names = tuple(
        hook_name(one, None if model is None else model.n_layers)
        for one, model in zip(asked, models, strict=True)
    )
    for pair in pairs:
        if all(same_place(*both) for both in zip(pair, names, strict=True)):
            return pair
    raise HookPointError(
        f"the moments have no hook pair {names[0]!r} → {names[1]!r}; they have "
        f"{[f'{s} → {t}' for s, t in moments.pairs[:8]]}: harvest it with pairs=[{names!r}]"
    )


def _deflated_noise(covariance: Tensor, values: Tensor, unit: Tensor, n: float) -> list[float]:
    """Return the level of noise of each eigenvalue, without the directions before it."""
    variances, limits = covariance.diagonal().clone(), []
    for value, direction in zip(values, unit, strict=True):
        limits.append(noise_limit(variances.clamp_min(0).cpu().numpy(), n))
        # λ = s + Σ_j (v_j − s·u_j²) u_j²: the variance s of the signal, and the noise along u that
        # stays in the columns.
        squares = direction.square()
        rest = float(value - variances @ squares) / max(_TINY, 1 - float(squares.square().sum()))
        variances = variances - max(0.0, rest) * squares
    return limits


def _over_folds(
    values: np.ndarray, sums: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return intervals of eigenvalues [k] from the sums of squares of each fold [fold, k]."""
    n, total = sizes.sum(), sums.sum(0)
    if len(sizes) < 2:
        return np.full_like(values, math.nan), np.full_like(values, math.nan)
    # Degrees of freedom are those of the whole: one factor for all folds.
    factor = np.divide(values * n, total, out=np.ones_like(values), where=total > 0)
    others = factor * (total - sums) / (n - sizes)[:, None]
    interval = jackknife(values, others, np.repeat(sizes[:, None], len(values), 1))
    return np.asarray(interval.low), np.asarray(interval.high)


def _correlation_terms(scatter: Scatter, a: Tensor, c: Tensor) -> np.ndarray:
    """Return aᵀSxyc, aᵀSxxa and cᵀSyyc of pairs of directions, [3, k]."""
    terms = (
        ((a @ scatter.xy) * c).sum(1),
        quadratic_forms(a, scatter.xx),
        quadratic_forms(c, scatter.yy),
    )
    return torch.stack(terms).cpu().numpy()


def _correlation_of(terms: np.ndarray) -> np.ndarray:
    """Return squared correlations from their three sums, with the sign of the correlation."""
    cross, x, y = terms
    return np.sign(cross) * cross**2 / np.maximum(x * y, np.finfo(float).tiny)


def _over_correlations(terms: np.ndarray, sizes: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return intervals of squared correlations from the sums of each fold [fold, 3, k]."""
    total = terms.sum(0)
    full = _correlation_of(total)
    if len(sizes) < 2:
        return np.full_like(full, math.nan), np.full_like(full, math.nan)
    # On the scale of the correlation itself, where it lies between 0 and 1.
    others = np.array([np.sqrt(np.abs(_correlation_of(total - one))) for one in terms])
    weights = np.repeat(np.array(sizes)[:, None], len(full), 1)
    interval = jackknife(np.sqrt(np.abs(full)), others, weights, scale="correlation")
    return np.maximum(interval.low, 0) ** 2, np.asarray(interval.high) ** 2
