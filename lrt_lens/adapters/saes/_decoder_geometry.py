"""Are the decoders of two SAEs linearly related? LRT's figure 2 (arXiv 2506.00653) with nulls of
its own scale.

The paper regresses the rows of one decoder on those of another, feature i on feature i, and reports
the norm of what is left against random matrices. Three things decide what such a number means:

- *Scale.* Rows of unit norm leave ``‖E‖_F = √n·√(1 − d/n)`` on *any* d columns that have nothing to
  do with them: 113.1 for n = 16384, d = 3584, where the paper reports about 114; N(0, 1) rows of
  width 2304 leave 5430. A null must have the rows' own norm.
- *Numbering.* SAEs trained apart number their features at random: match features first
  (`match_features`), permute for the null.
- *Fit.* n rows on d columns are fitted to 1 − d/n by chance: score features that did not fit.

    found = decoder_geometry(source_sae.W_dec, target_sae.W_dec, matches=matches, affine=stitch.up)
    found.summary; found.figure()

Held-out R² is ridge with an intercept over five folds of features, the penalty chosen by
leave-one-out inside the fitting folds.

Limits: SAEs split features, so a held-out row may have a near twin among those that fit; and a
linear relation of decoders says nothing about whether the features *do* the same: that is
`steering_agreement`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._repr_html import card, table
from lrt_lens.adapters.saes._feature_matching import FeatureMatches
from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.figures._decoder_geometry import decoder_geometry_figure
from lrt_lens.statistics._intervals import bootstrap_ratio, spread
from lrt_lens.stitching._affine import AffineMap

N_FEATURE_FOLDS = 5
_ALPHAS = tuple(10.0**power for power in range(-5, 3))
"""Penalties relative to the mean square of a singular value."""


@dataclass(frozen=True)
class DecoderGeometry:
    """Every arm's residual and held-out R²."""

    table: pd.DataFrame
    """A row per arm and draw: arm, draw, n_features, d_source, norm (‖W_t‖_F), residual (‖E‖_F
    after least squares without intercept, the paper's number), chance (norm·√(1 − d/n)), share
    (residual ÷ norm), r2 (held-out features), cosine (mean over held-out features, about the rows'
    mean)."""
    by_feature: pd.DataFrame
    """The arms without draws, a row a feature: arm, feature, error, variance, cosine."""
    matches: FeatureMatches | None = None
    seed: int = 0

    @property
    def summary(self) -> pd.DataFrame:
        """A row an arm: means, and r2 with its interval: over features by bootstrap, over draws
        (95% of them) for the random arms.
        """
        rows = []
        for arm, part in self.table.groupby("arm", sort=False):
            of_arm = self.by_feature[self.by_feature["arm"] == arm]
            if len(of_arm):
                left = bootstrap_ratio(
                    np.asarray(of_arm["error"]), np.asarray(of_arm["variance"]), seed=self.seed
                )
                interval = (1 - left.value, 1 - left.high, 1 - left.low)
            else:
                drawn = spread(list(part["r2"]))
                interval = (drawn.value, drawn.low, drawn.high)
            means = {
                name: float(np.mean(part[name]))
                for name in ("norm", "residual", "chance", "share", "cosine")
            }
            n = int(part["n_features"].iloc[0])
            rows.append(
                {
                    "arm": arm,
                    "n_features": n,
                    **means,
                    "r2": interval[0],
                    "r2_low": interval[1],
                    "r2_high": interval[2],
                    "draws": len(part),
                }
            )
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """Residual against chance, and held-out R², arm by arm."""
        return decoder_geometry_figure(self.summary)

    def _repr_html_(self) -> str:
        return card("DecoderGeometry", table(self.summary))


def chance_residual(norm: float, n: int, d: int) -> float:
    """``norm·√(1 − d/n)``: what least squares on d unrelated columns leaves of n rows of that
    Frobenius norm; 0 where d ≥ n.
    """
    return norm * math.sqrt(max(0.0, 1 - d / n))


def decoder_geometry(
    source_decoder: Tensor,
    target_decoder: Tensor,
    *,
    matches: FeatureMatches | None = None,
    affine: AffineMap | None = None,
    n_draws: int = 10,
    seed: int = 0,
) -> DecoderGeometry:
    """How well the rows of the source's decoder predict those of the target's, beside nulls.

    Arms: ``index`` (row i on row i, as in the paper, where both have as many features), ``matched``
    (where matches are given), ``stitch`` (the map's image of the source's row, one scale fitted),
    and with draws ``permuted`` (matched rows, shuffled among each other), ``random_unit`` (target
    rows of random direction and their own norms), ``random_gaussian`` (N(0, 1) rows, the paper's
    bar).

    Args:
        source_decoder: [feature, d_source], such as ``sae.W_dec``.
        target_decoder: [feature, d_target].
        matches: of the two SAEs; without, rows are taken to correspond by index.
        affine: source → target, such as ``stitch.up``: fitted on states, it never saw a decoder.
        n_draws: of each random arm.
        seed: of draws and of the folds of features.

    Raises: NonFiniteError: NaN or infinity in a decoder. MismatchError: no matches given and
        different numbers of features; ``affine`` of other widths. ValueError: fewer than ten
        features to compare.

    Source: LRT (arXiv 2506.00653) figure 2; nulls, matching and held-out scores are ours.
    """
    source, target = _checked("source", source_decoder), _checked("target", target_decoder)
    if matches is None and len(source) != len(target):
        raise MismatchError(
            f"decoders have {len(source)} and {len(target)} features and no matches; give matches=match_features(...)"
        )
    if affine is not None and tuple(affine.weight.shape) != (source.shape[1], target.shape[1]):
        raise MismatchError(
            f"affine maps {tuple(affine.weight.shape)}; expected ({source.shape[1]}, {target.shape[1]}): the decoders' widths"
        )
    if n_draws < 1:
        raise ValueError(f"n_draws is {n_draws}; expected 1 or more: a null needs a draw")
    rng = np.random.default_rng(seed)
    rows, features = [], []

    def note(
        arm: str, draw: int, predictor: _Predictor, y: Tensor, index: np.ndarray, scored: "_Scored"
    ) -> None:
        rows.append({"arm": arm, "draw": draw} | predictor.describe(y) | scored.means)
        if arm not in RANDOM_ARMS:
            features.append(pd.DataFrame({"arm": arm, "feature": index} | scored.columns))

    if matches is not None and len(source) == len(target):
        by_index = _Predictor(source, rng)
        note("index", 0, by_index, target, np.arange(len(source)), by_index.score(target))
    pairs = np.arange(len(source)) if matches is None else matches.table["source"].to_numpy()
    x = source[torch.tensor(pairs.tolist())]
    y = target if matches is None else target[torch.tensor(matches.table["target"].tolist())]
    predictor = _Predictor(x, rng)
    note("index" if matches is None else "matched", 0, predictor, y, pairs, predictor.score(y))
    if affine is not None:
        image = x @ affine.weight.detach().double().cpu()
        note("stitch", 0, predictor, y, pairs, _scaled_scores(image, y, predictor.folds))
        residual = float((y - (image * y).sum() / (image * image).sum() * image).norm())
        # One number is fitted, so chance leaves all of it.
        rows[-1] |= {
            "residual": residual,
            "share": residual / rows[-1]["norm"],
            "chance": rows[-1]["norm"],
        }
    for arm in RANDOM_ARMS:
        for draw in range(n_draws):
            null = _null(arm, y, rng)
            note(arm, draw, predictor, null, pairs, predictor.score(null))
    return DecoderGeometry(
        pd.DataFrame(rows), pd.concat(features, ignore_index=True), matches, seed
    )


RANDOM_ARMS = ("permuted", "random_unit", "random_gaussian")


def _null(arm: str, y: Tensor, rng: np.random.Generator) -> Tensor:
    if arm == "permuted":
        return y[torch.from_numpy(rng.permutation(len(y)))]
    draw = torch.from_numpy(rng.standard_normal(tuple(y.shape)))
    return (
        draw
        if arm == "random_gaussian"
        else draw / draw.norm(dim=1, keepdim=True) * y.norm(dim=1, keepdim=True)
    )


def _checked(side: str, decoder: Tensor) -> Tensor:
    rows = decoder.detach().double().cpu()
    if rows.ndim != 2 or len(rows) < 2 * N_FEATURE_FOLDS:
        raise ValueError(
            f"the {side} decoder has shape {tuple(rows.shape)}; expected [feature, d] with at least {2 * N_FEATURE_FOLDS} features"
        )
    if not torch.isfinite(rows).all():
        raise NonFiniteError(
            f"{int((~torch.isfinite(rows)).any(1).sum())} rows of the {side} decoder hold NaN or infinity; check the SAE"
        )
    return rows


@dataclass(frozen=True)
class _Scored:
    """Held-out features."""

    error: Tensor
    """[feature], ‖y − ŷ‖²."""
    variance: Tensor
    """[feature], ‖y − ȳ‖², ȳ the mean of the rows that fitted."""
    cosine: Tensor
    """[feature], cos(ŷ − ȳ, y − ȳ)."""

    @property
    def means(self) -> dict[str, float]:
        return {
            "r2": float(1 - self.error.sum() / self.variance.sum()),
            "cosine": float(self.cosine.mean()),
        }

    @property
    def columns(self) -> dict[str, Any]:
        return {name: getattr(self, name).numpy() for name in ("error", "variance", "cosine")}


@dataclass(frozen=True)
class _Fold:
    """One fold of features, the rest decomposed once for all targets."""

    x: Tensor
    fit: Tensor
    held_out: Tensor

    @cached_property
    def mean(self) -> Tensor:
        return self.x[self.fit].mean(0)

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(self.x[self.fit] - self.mean, full_matrices=False)
        return u, s, vh

    def predict(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ŷ of the held-out features and ȳ of the fitted ones."""
        u, s, vh = self.svd
        mean = y[self.fit].mean(0)
        centred = y[self.fit] - mean
        rotated, unit = u.T @ centred, float((s**2).mean())
        best, chosen = math.inf, torch.zeros_like(s)
        for alpha in _ALPHAS:
            shrink = s**2 / (s**2 + alpha * unit)
            # Exact leave-one-out: the intercept's own leverage is 1/n.
            leverage = (u**2) @ shrink + 1 / len(self.fit)
            left = (
                (
                    (centred - u @ (shrink[:, None] * rotated))
                    / (1 - leverage).clamp_min(1e-12)[:, None]
                )
                ** 2
            ).sum()
            if float(left) < best:
                best, chosen = float(left), s / (s**2 + alpha * unit)
        weight = vh.T @ (chosen[:, None] * rotated)
        return (self.x[self.held_out] - self.mean) @ weight + mean, mean


class _Predictor:
    """Rows that predict, with their folds."""

    def __init__(self, x: Tensor, rng: np.random.Generator) -> None:
        if len(x) < 2 * N_FEATURE_FOLDS:
            raise ValueError(
                f"{len(x)} features to compare; expected at least {2 * N_FEATURE_FOLDS}: match more, or lower min_correlation"
            )
        self.x = x
        place = torch.from_numpy(rng.permutation(len(x)) % N_FEATURE_FOLDS)
        index = [
            ((place != fold).nonzero()[:, 0], (place == fold).nonzero()[:, 0])
            for fold in range(N_FEATURE_FOLDS)
        ]
        self.folds = [_Fold(x, fit, held_out) for fit, held_out in index]

    @cached_property
    def basis(self) -> Tensor:
        """Orthonormal columns that span those of x."""
        u, s, _ = torch.linalg.svd(self.x, full_matrices=False)
        return u[:, s > 1e-10 * s.max()]

    def describe(self, y: Tensor) -> dict[str, Any]:
        """The paper's number and what chance would leave."""
        n, d = self.x.shape
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
        """Ridge from x, held-out features."""
        return _gather(y, ((fold, *fold.predict(y)) for fold in self.folds))


def _scaled_scores(image: Tensor, y: Tensor, folds: Sequence[_Fold]) -> _Scored:
    """A given image of every row; one scale and an intercept are fitted, because decoder rows have
    no scale of their own.
    """

    def predicted() -> Iterator[tuple[_Fold, Tensor, Tensor]]:
        for fold in folds:
            mean_image, mean = image[fold.fit].mean(0), y[fold.fit].mean(0)
            a, b = image[fold.fit] - mean_image, y[fold.fit] - mean
            scale = (a * b).sum() / (a * a).sum().clamp_min(torch.finfo(a.dtype).tiny)
            yield fold, scale * (image[fold.held_out] - mean_image) + mean, mean

    return _gather(y, predicted())


def _gather(y: Tensor, predicted: Iterator[tuple[_Fold, Tensor, Tensor]]) -> _Scored:
    error, variance, cosine = (torch.zeros(len(y), dtype=y.dtype) for _ in range(3))
    for fold, guess, mean in predicted:
        truth = y[fold.held_out]
        error[fold.held_out] = ((truth - guess) ** 2).sum(1)
        variance[fold.held_out] = ((truth - mean) ** 2).sum(1)
        cosine[fold.held_out] = torch.nn.functional.cosine_similarity(
            guess - mean, truth - mean, dim=1
        )
    return _Scored(error, variance, cosine)
