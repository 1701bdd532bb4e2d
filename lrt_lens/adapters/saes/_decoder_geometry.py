"""Linear relation of two SAE decoders: LRT's figure 2 with random rows of the same norms.

Problem: LRT (arXiv 2506.00653) regresses the rows of one decoder on those of another, feature i on
feature i, and reports the norm of the residual against random matrices. Three properties decide
what such a number means:

- *Norm.* Rows of unit norm leave ``‖E‖_F = √n·√(1 − d/n)`` on *any* d unrelated columns: 113.1 for
  n = 16384, d = 3584, for which the paper reports about 114. N(0, 1) rows of width 2304 leave 5430.
  Random rows must have the norms of the rows.
- *Numbering.* SAEs that were trained separately number their features at random: match features
  first (`match_features`), and permute them as a control.
- *Fit.* n random rows on d columns are fitted up to a share 1 − d/n: score features that were not
  in the fit.

    report = decoder_geometry(source_sae.W_dec, target_sae.W_dec, matches=matches, affine=stitch.up)
    report.summary; report.figure()

Held-out R² is that of ridge regression with an intercept over five folds of features; leave-one-out
inside the fitting folds chooses the penalty.

Limits: SAEs split features, so a held-out row can have a near copy in the fit. A linear relation
of decoders does not say that the features have the same effect: see `steering_agreement`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import einsum, rearrange, reduce
from torch import Tensor

from lrt_lens._repr_html import card, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.saes._feature_matching import FeatureMatches
from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.figures._decoder_geometry import decoder_geometry_figure
from lrt_lens.figures._template import count_range, rows_where, with_counts
from lrt_lens.statistics._bootstrap import bootstrap_ratio
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import Interval, joined_flags
from lrt_lens.stitching._affine import AffineMap

N_FEATURE_FOLDS = 5
"""Number of folds of features for held-out scores."""
RANDOM_ARMS = ("permuted", "random_unit", "random_gaussian")
"""Arms that are drawn at random and compared with the others."""
_MOST_LEVERAGE = 0.5
"""Mean leverage above which an interval of R² is not widened further."""
_HIGH_LEVERAGE = 0.05
"""Mean leverage above which an interval of R² has a flag: it holds .89 to .91 in simulations."""
_ALPHAS = tuple(10.0**power for power in range(-5, 3))
"""Penalties, relative to the mean square of a singular value."""


@dataclass(frozen=True, repr=False)
class DecoderGeometry(ShortRepr):
    """Residual and held-out R² of a regression between two decoders, per arm."""

    table: pd.DataFrame
    """One row per arm and draw.

    Columns: arm, draw, n_features, d_source, norm (‖W_t‖_F), residual (‖E‖_F after least squares
    without intercept, the paper's number), chance (norm·√(1 − d/n)), share (residual ÷ norm), r2
    (held-out features), cosine (mean over held-out features, after subtraction of the mean row),
    leverage (fitted numbers per target dimension, as a share of the features of a fit).
    """
    by_feature: pd.DataFrame
    """One row per feature of each arm without draws: arm, feature, error, variance, cosine."""
    matches: FeatureMatches | None = None
    """Matched features that were compared; None if rows correspond by index."""
    seed: int = 0
    """Seed of draws, folds and bootstraps."""

    @property
    def summary(self) -> pd.DataFrame:
        """Means over draws and held-out R² with its 95% interval, one row per arm.

        The interval is over features, which are scored and fitted on; a new draw of a random arm
        falls into its interval.
        ``p`` is the share of draws whose R² is as large as that of the first arm (``index`` or
        ``matched``), at least ``p_floor``. Columns: arm, n_features, norm, residual, chance, share,
        cosine, r2, r2_low, r2_high, draws, p, p_floor, interval_flag.
        """
        rows = []
        compared = "matched" if "matched" in self.table["arm"].to_list() else "index"
        [ours] = self.table.loc[self.table["arm"] == compared, "r2"].to_list()
        for arm, part in self.table.groupby("arm", sort=False):
            of_arm = self.by_feature[self.by_feature["arm"] == arm]
            p = p_floor = math.nan
            if len(of_arm):
                left = bootstrap_ratio(
                    np.asarray(of_arm["error"]), np.asarray(of_arm["variance"]), seed=self.seed
                )
                interval = _with_fit(left, float(part["leverage"].iloc[0]))
            else:
                drawn = part["r2"].to_numpy()
                interval = prediction_interval(drawn)
                p_floor = 1 / (len(drawn) + 1)
                # R² has a direction: p = (1 + #{draw ≥ ours}) / (n + 1)
                p = (1 + int((drawn >= ours).sum())) * p_floor
            means = ("norm", "residual", "chance", "share", "cosine")
            rows.append(
                {
                    "arm": arm,
                    "n_features": int(part["n_features"].iloc[0]),
                    **{name: float(np.mean(part[name])) for name in means},
                    "r2": interval.value,
                    "r2_low": interval.low,
                    "r2_high": interval.high,
                    "draws": len(part),
                    "p": p,
                    "p_floor": p_floor,
                    "interval_flag": interval.flag,
                }
            )
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """Plotly figure of the residual against chance and of held-out R², per arm."""
        summary = self.summary
        random = rows_where(summary, "arm", *RANDOM_ARMS)
        counts = {
            "features": count_range(summary, "n_features"),
            "draws of random rows": count_range(random, "draws"),
        }
        return with_counts(decoder_geometry_figure(summary), counts)

    def _repr_html_(self) -> str:
        return card("DecoderGeometry", table(self.summary))


def _with_fit(unexplained: Interval, leverage: float) -> Interval:
    """Return the interval of R² from that of 1 − R² over the held-out features of fixed fits.

    A feature also takes part in the fits of the others. Their held-out error is σ²(1 + h/(1 − h))
    to first order, with the mean leverage h, so the spread of σ² over samples counts 1/(1 − h) as
    much.
    """
    widening = 1 / (1 - min(leverage, _MOST_LEVERAGE))
    low = unexplained.value - widening * (unexplained.value - unexplained.low)
    high = unexplained.value + widening * (unexplained.high - unexplained.value)
    flags = [unexplained.flag.replace("items", "features")]
    if leverage > _HIGH_LEVERAGE:
        flags.append(f"{1 / leverage:.1f} features per fitted number")
    # R² = 1 − Σerror / Σvariance, so the ends of the interval swap.
    return Interval(1 - unexplained.value, 1 - high, 1 - low, joined_flags(flags))


def chance_residual(norm: float, n: int, d: int) -> float:
    """Expected residual norm of n rows after least squares on d unrelated columns.

    ``norm`` is the Frobenius norm of the rows; 0 if d ≥ n.
    """
    # d random directions of an n-dimensional space explain the share d/n: norm·√(1 − d/n).
    return norm * math.sqrt(max(0.0, 1 - d / n))


def decoder_geometry(
    source_decoder: Tensor,
    target_decoder: Tensor,
    *,
    matches: FeatureMatches | None = None,
    affine: AffineMap | None = None,
    n_draws: int = 20,
    seed: int = 0,
) -> DecoderGeometry:
    """Residual and held-out R² of the target decoder's rows, predicted from the source decoder's.

    Arms: ``index`` (row i on row i, as in the paper, if both have as many features), ``matched``
    (if matches are given), ``stitch`` (the map's image of the source row, with one fitted scale),
    and with draws ``permuted`` (matched rows in random order), ``random_unit`` (target rows of
    random direction and their own norms), ``random_gaussian`` (N(0, 1) rows, the paper's baseline).

    Args:
        source_decoder: [feature, d_source], such as ``sae.W_dec``.
        target_decoder: [feature, d_target].
        matches: matched features of the two SAEs; by default rows correspond by index.
        affine: map source → target, such as ``stitch.up``, which is fitted on states only.
        n_draws: draws of each random arm.
        seed: seed of the draws and of the folds of features.

    Raises:
        NonFiniteError: a decoder holds NaN or infinity.
        MismatchError: different numbers of features without matches; ``matches`` of other SAEs;
            ``affine`` of other widths.
        ValueError: fewer than ten features to compare.

    Source: LRT (arXiv 2506.00653), figure 2; random arms, matching and held-out scores are ours.
    """
    # One generator for all arms, in this order: folds first, then the draws of each random arm.
    source, target = _checked("source", source_decoder), _checked("target", target_decoder)
    _check_arguments(source, target, matches, affine, n_draws)
    rng = np.random.default_rng(seed)
    report = _Report()
    if matches is not None and len(source) == len(target):
        by_index = _Predictor(source, rng)
        report.add("index", 0, by_index, target, np.arange(len(source)), by_index.score(target))
    pairs = np.arange(len(source)) if matches is None else matches.table["source"].to_numpy()
    x = source[torch.tensor(pairs.tolist())]
    y = target if matches is None else target[torch.tensor(matches.table["target"].tolist())]
    predictor = _Predictor(x, rng)
    arm = "index" if matches is None else "matched"
    report.add(arm, 0, predictor, y, pairs, predictor.score(y))
    if affine is not None:
        image = x @ affine.weight.detach().double().cpu()
        report.add("stitch", 0, predictor, y, pairs, _scaled_scores(image, y, predictor.folds))
        # E = Y − s·Ŷ with s = ⟨Ŷ, Y⟩ / ⟨Ŷ, Ŷ⟩
        residual = float((y - (image * y).sum() / (image * image).sum() * image).norm())
        row = report.rows[-1]
        # One number is fitted, so an unrelated image leaves the whole norm.
        row |= {"residual": residual, "share": residual / row["norm"], "chance": row["norm"]}
    for arm in RANDOM_ARMS:
        for draw in range(n_draws):
            rows = _random_rows(arm, y, rng)
            report.add(arm, draw, predictor, rows, pairs, predictor.score(rows))
    by_feature = pd.concat(report.features, ignore_index=True)
    return DecoderGeometry(pd.DataFrame(report.rows), by_feature, matches, seed)


def _check_arguments(
    source: Tensor,
    target: Tensor,
    matches: FeatureMatches | None,
    affine: AffineMap | None,
    n_draws: int,
) -> None:
    """Raise for arguments of `decoder_geometry` that do not fit together."""
    if matches is None and len(source) != len(target):
        raise MismatchError(
            f"decoders have {len(source)} and {len(target)} features and no matches; give "
            "matches=match_features(...)"
        )
    if matches is not None:
        matches.refuse_other_decoders(source, target)
    widths = (source.shape[1], target.shape[1])
    if affine is not None and tuple(affine.weight.shape) != widths:
        raise MismatchError(
            f"affine maps {tuple(affine.weight.shape)}; expected {widths}, the decoders' widths: "
            "give the map from the source's hook point to the target's"
        )
    if n_draws < 1:
        raise ValueError(f"n_draws is {n_draws}; expected 1 or more: every random arm needs a draw")


class _Report:
    """Rows of the tables of `DecoderGeometry`, collected arm by arm."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.features: list[pd.DataFrame] = []

    def add(
        self,
        arm: str,
        draw: int,
        predictor: "_Predictor",
        y: Tensor,
        index: np.ndarray,
        scored: "_Scored",
    ) -> None:
        """Add the scores of rows ``y``; ``index`` holds their features in the source's SAE."""
        self.rows.append({"arm": arm, "draw": draw} | predictor.describe(y) | scored.means)
        if arm not in RANDOM_ARMS:
            self.features.append(pd.DataFrame({"arm": arm, "feature": index} | scored.columns))


def _random_rows(arm: str, y: Tensor, rng: np.random.Generator) -> Tensor:
    """One draw of rows for a random arm, [feature, d_target]."""
    # A permutation keeps the rows and breaks the correspondence; random unit rows keep the norms
    # alone; the Gaussian rows of the paper keep neither.
    if arm == "permuted":
        return y[torch.from_numpy(rng.permutation(len(y)))]
    draw = torch.from_numpy(rng.standard_normal(tuple(y.shape)))
    if arm == "random_gaussian":
        return draw
    lengths = rearrange(y.norm(dim=1), "feature -> feature 1")
    return draw / rearrange(draw.norm(dim=1), "feature -> feature 1") * lengths


def _checked(side: str, decoder: Tensor) -> Tensor:
    """Rows of a decoder in float64 on the CPU; raises if there are too few or NaN."""
    rows = decoder.detach().double().cpu()
    if rows.ndim != 2 or len(rows) < 2 * N_FEATURE_FOLDS:
        raise ValueError(
            f"the {side} decoder has shape {tuple(rows.shape)}; expected [feature, d] with at "
            f"least {2 * N_FEATURE_FOLDS} features"
        )
    if not torch.isfinite(rows).all():
        raise NonFiniteError(
            f"{int((~torch.isfinite(rows)).any(1).sum())} rows of the {side} decoder hold NaN or "
            "infinity; load the weights of the SAE again"
        )
    return rows


@dataclass(frozen=True)
class _Scored:
    """Scores of held-out features."""

    error: Tensor
    """Squared error ‖y − ŷ‖², [feature]."""
    variance: Tensor
    """Squared distance ‖y − ȳ‖² from the mean ȳ of the rows of the fit, [feature]."""
    cosine: Tensor
    """Cosine of ŷ − ȳ and y − ȳ, [feature]."""
    leverage: float
    """Mean leverage of the features in the fits."""

    @property
    def means(self) -> dict[str, float]:
        """R² and mean cosine over features."""
        # R² = 1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²
        return {
            "r2": float(1 - self.error.sum() / self.variance.sum()),
            "cosine": float(self.cosine.mean()),
            "leverage": self.leverage,
        }

    @property
    def columns(self) -> dict[str, Any]:
        """Scores per feature as columns of a table."""
        return {name: getattr(self, name).numpy() for name in ("error", "variance", "cosine")}


@dataclass(frozen=True)
class _Fold:
    """One held-out fold of features, with one decomposition of the others for all targets."""

    x: Tensor
    """All rows that predict, [feature, d_source]."""
    fit: Tensor
    """Indices of the features of the fit."""
    held_out: Tensor
    """Indices of the held-out features."""

    @cached_property
    def mean(self) -> Tensor:
        """Mean row of the fit, [d_source]."""
        return self.x[self.fit].mean(0)

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Thin singular value decomposition of the centred rows of the fit."""
        u, s, vh = torch.linalg.svd(self.x[self.fit] - self.mean, full_matrices=False)
        return u, s, vh

    def predict(self, y: Tensor) -> tuple[Tensor, Tensor, float]:
        """Predicted rows ŷ of the held-out features, mean row ȳ and mean leverage of the fit."""
        u, s, vh = self.svd
        mean = y[self.fit].mean(0)
        centred = y[self.fit] - mean
        rotated, unit = u.T @ centred, float((s**2).mean())
        least, best, mean_leverage = math.inf, torch.zeros_like(s), 0.0
        scale_rows = "rank, rank d_target -> rank d_target"
        for alpha in _ALPHAS:
            # Ridge in the singular basis: ŷ = U diag(s² / (s² + λ)) Uᵀ y
            # `unit` is the mean squared singular value, so that α does not depend on the scale of
            # the rows.
            shrink = s**2 / (s**2 + alpha * unit)
            # Exact leave-one-out residual (y − ŷ) / (1 − h), with the leverage
            # h_i = Σ_j u_ij² s_j² / (s_j² + λ) + 1/n, where 1/n is that of the intercept.
            leverage = (u**2) @ shrink + 1 / len(self.fit)
            residual = centred - u @ einsum(shrink, rotated, scale_rows)
            remaining = rearrange((1 - leverage).clamp_min(1e-12), "feature -> feature 1")
            error = ((residual / remaining) ** 2).sum()
            if float(error) < least:
                least, best = float(error), s / (s**2 + alpha * unit)
                mean_leverage = float(leverage.mean())
        # W = V diag(s / (s² + λ)) Uᵀ y
        weight = vh.T @ einsum(best, rotated, scale_rows)
        return (self.x[self.held_out] - self.mean) @ weight + mean, mean, mean_leverage


class _Predictor:
    """Regression on fixed rows [feature, d_source], with fixed folds of features."""

    def __init__(self, x: Tensor, rng: np.random.Generator) -> None:
        if len(x) < 2 * N_FEATURE_FOLDS:
            raise ValueError(
                f"{len(x)} features to compare; expected at least {2 * N_FEATURE_FOLDS}: match "
                "more features, or lower min_correlation"
            )
        self.x = x
        fold_of = torch.from_numpy(rng.permutation(len(x)) % N_FEATURE_FOLDS)
        self.folds = [
            _Fold(x, (fold_of != fold).nonzero()[:, 0], (fold_of == fold).nonzero()[:, 0])
            for fold in range(N_FEATURE_FOLDS)
        ]

    @cached_property
    def basis(self) -> Tensor:
        """Orthonormal columns that span the columns of x, [feature, rank]."""
        u, s, _ = torch.linalg.svd(self.x, full_matrices=False)
        # Smaller singular values are rounding errors of a column that depends on others.
        return u[:, s > 1e-10 * s.max()]

    def describe(self, y: Tensor) -> dict[str, Any]:
        """Norm of the least-squares residual of ``y``, and the norm that chance would leave."""
        n, d = self.x.shape
        # E = Y − Q Qᵀ Y, with Q an orthonormal basis of the columns of X
        norm, residual = float(y.norm()), float((y - self.basis @ (self.basis.T @ y)).norm())
        return {
            "n_features": n,
            "d_source": d,
            "norm": norm,
            "residual": residual,
            "chance": chance_residual(norm, n, d),
            "share": residual / norm if norm else math.nan,
        }

    def score(self, y: Tensor) -> _Scored:
        """Scores of ridge predictions of ``y``, each from the folds without it."""
        return _gather(y, ((fold, *fold.predict(y)) for fold in self.folds))


def _scaled_scores(image: Tensor, y: Tensor, folds: Sequence[_Fold]) -> _Scored:
    """Scores of fixed images of the rows, with one fitted scale and an intercept.

    The scale is fitted because the norm of decoder rows is a convention of the SAE.
    """

    def predicted() -> Iterator[tuple[_Fold, Tensor, Tensor, float]]:
        for fold in folds:
            mean_image, mean = image[fold.fit].mean(0), y[fold.fit].mean(0)
            a, b = image[fold.fit] - mean_image, y[fold.fit] - mean
            # s = ⟨A, B⟩ / ⟨A, A⟩ of the centred rows of the fit
            scale = (a * b).sum() / (a * a).sum().clamp_min(torch.finfo(a.dtype).tiny)
            guess = scale * (image[fold.held_out] - mean_image) + mean
            # A scale for all dimensions and a mean per dimension are fitted.
            yield fold, guess, mean, (1 + 1 / y.shape[1]) / len(fold.fit)

    return _gather(y, predicted())


def _gather(y: Tensor, predicted: Iterator[tuple[_Fold, Tensor, Tensor, float]]) -> _Scored:
    """Scores of held-out predictions, put in the order of the features."""
    error, variance, cosine = (torch.zeros(len(y), dtype=y.dtype) for _ in range(3))
    leverages = []
    for fold, guess, mean, leverage in predicted:
        leverages.append(leverage)
        truth = y[fold.held_out]
        per_feature = "feature d_target -> feature"
        error[fold.held_out] = reduce((truth - guess) ** 2, per_feature, "sum")
        variance[fold.held_out] = reduce((truth - mean) ** 2, per_feature, "sum")
        cosine[fold.held_out] = torch.nn.functional.cosine_similarity(
            guess - mean, truth - mean, dim=1
        )
    return _Scored(error, variance, cosine, float(np.mean(leverages)))
