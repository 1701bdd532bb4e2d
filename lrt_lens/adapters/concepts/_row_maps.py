"""Maps from one row a text: minimum-norm least squares and ridge from rows in memory, scored on
rows that they never saw.

    fit = fit_rows(x, y, groups=[0, 1, 2, 0, 1, 2])              # least squares without intercept: L-Cross's map
    fit = fit_rows(x, y, groups=pairs, method="ridge")           # penalty by cross-validation
    fit.weight, fit.rank, fit.r2                                 # r2 is held out

With the thin singular value decomposition X = UΣVᵀ of the rows [text, d_source] (centred where
there is an intercept):

| method | objective | solution |
| --- | --- | --- |
| ``least_squares`` | min ‖W‖ among the minimisers of ‖Y − XW‖² (L-Cross, arXiv 2501.02009, §3) | ``VΣ⁺UᵀY`` |
| ``ridge`` | ‖Y − XW‖² + α·(tr XᵀX / d)·‖W‖² | ``V Σ/(Σ² + α·trXᵀX/d) UᵀY`` |

Texts number hundreds where tokens number millions: rows are kept and nothing of size d² is formed
but the map itself. Rows of one group (the two texts of a pair) are held out together. ``r2``
compares with the held-out rows' own mean: without centring, the large mean of a residual stream
alone would give an R² near 1. Ridge's scores are nested: the penalty that predicts a fold is chosen
without that fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lrt_lens.errors import NonFiniteError
from lrt_lens.moments._scatter import r2_of
from lrt_lens.stitching._diagnostics import effective_rank
from lrt_lens.stitching.solvers._ridge import DEFAULT_ALPHAS

Method = Literal["least_squares", "ridge"]
RCOND = 1e-6
"""Singular values below this share of the largest are rounding of float32 activations and count as
zero.
"""
N_FOLDS = 5


@dataclass(frozen=True, eq=False)
class RowMap:
    """A map fitted on rows, ``y ≈ x @ weight + bias``, with what it explains of rows that it never
    saw.
    """

    weight: Tensor
    """[d_source, d_target], float64."""
    bias: Tensor
    """[d_target]; zeros without an intercept."""
    alpha: float
    """Penalty relative to the mean second moment of the source; 0 for least squares."""
    n: int
    """Rows that fitted."""
    rank: int
    """Rank of the source's rows (centred where there is an intercept)."""
    effective_rank: float
    """exp(entropy) of the centred source rows' singular values: how many directions they really use
    (Roy and Vetterli 2007, eq. 4).
    """
    r2: float
    """Held out, by variance."""
    r2_uniform: float
    """Held out, mean over dimensions."""
    held_out: Tensor
    """[row, d_target]: every row as predicted by the fit without its group; NaN where there was
    none.
    """
    held_out_directions: Tensor
    """The same without the bias: what such a fit makes of differences of rows."""

    @property
    def interpolates(self) -> bool:
        """Whether the map runs through all rows it was fitted on, whatever they are: as many
        independent rows as there are rows, no penalty.
        """
        return self.alpha == 0 and self.rank >= self.n - bool(self.bias.any())


def fit_rows(
    x: Tensor,
    y: Tensor,
    *,
    groups: Sequence[int],
    method: Method = "least_squares",
    intercept: bool | None = None,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    n_folds: int = N_FOLDS,
    seed: int = 0,
    score: bool = True,
) -> RowMap:
    """The map of all rows and its held-out scores.

    Args: x: [row, d_source]. y: [row, d_target]. groups: number of the group that each row belongs
        to; groups are held out whole. method: ``"least_squares"`` or ``"ridge"``. intercept:
        whether both sides are centred; none for least squares (as L-Cross), one for ridge, unless
        told otherwise. alphas: penalties that ridge chooses from. n_folds: folds of groups, fewer
        where there are fewer groups. seed: of the folds. score: False leaves the held-out scores
        out (ridge still chooses by them): much faster where many maps are fitted.

    Raises: ValueError: rows do not pair up, fewer than two of them, an unknown method, or one group
        only. NonFiniteError: a row holds NaN or infinity.
    """
    x, y = x.double(), y.double()
    _check(x, y, groups, method)
    centred = method == "ridge" if intercept is None else intercept
    candidates = torch.tensor(
        [0.0] if method == "least_squares" else list(alphas), dtype=torch.float64
    )
    folds = _folds(groups, n_folds, seed) if score or len(candidates) > 1 else []
    alpha = _choose(x, y, folds, candidates, centred)
    whole = _Spectrum.of(x, y, centred)
    weight = whole.weight(alpha)
    with_bias, without = torch.full_like(y, torch.nan), torch.full_like(y, torch.nan)
    for number, rows in enumerate(folds if score else []):
        rest = [fold for other, fold in enumerate(folds) if other != number]
        kept = torch.cat(rest)
        part = _Spectrum.of(x[kept], y[kept], centred)
        local = part.weight(_choose(x, y, rest, candidates, centred) if len(rest) > 1 else alpha)
        without[rows] = x[rows] @ local
        with_bias[rows] = without[rows] + part.bias(local)
    r2, r2_uniform, _ = (
        r2_of(((y - with_bias) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0))
        if score
        else (torch.nan, torch.nan, 0)
    )
    return RowMap(
        weight,
        whole.bias(weight),
        alpha,
        len(x),
        whole.rank,
        effective_rank(torch.linalg.svdvals(x - x.mean(0))),
        r2,
        r2_uniform,
        with_bias,
        without,
    )


def _check(x: Tensor, y: Tensor, groups: Sequence[int], method: str) -> None:
    if method not in ("least_squares", "ridge"):
        raise ValueError(f"method is {method!r}; expected 'least_squares' or 'ridge'")
    if not len(x) == len(y) == len(groups):
        raise ValueError(
            f"{len(x)} source rows, {len(y)} target rows and {len(groups)} groups do not pair up; give one of each for every text"
        )
    if len(x) < 2 or len(set(groups)) < 2:
        raise ValueError(
            f"{len(x)} text(s) in {len(set(groups))} group(s); a map needs at least two texts of two pairs, one of them to be held out"
        )
    for role, rows in (("source", x), ("target", y)):
        if not torch.isfinite(rows).all():
            raise NonFiniteError(
                f"the {role} rows hold NaN or infinity; load the model in float32 or bfloat16, or drop those texts"
            )


def _folds(groups: Sequence[int], n_folds: int, seed: int) -> list[Tensor]:
    """Row numbers of each fold."""
    member = torch.tensor(groups)
    distinct = torch.unique(member)
    order = distinct[torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))]
    return [
        torch.isin(member, chosen).nonzero()[:, 0]
        for chosen in order.tensor_split(min(n_folds, len(distinct)))
    ]


def _choose(x: Tensor, y: Tensor, folds: list[Tensor], candidates: Tensor, centred: bool) -> float:
    """The penalty with the smallest squared error over rows held out in turn; the largest where no
    two folds are left to choose by.
    """
    if len(candidates) == 1:
        return float(candidates[0])
    if len(folds) < 2:
        return float(candidates.max())
    errors = torch.zeros(len(candidates), dtype=torch.float64)
    for number, rows in enumerate(folds):
        kept = torch.cat([fold for other, fold in enumerate(folds) if other != number])
        part = _Spectrum.of(x[kept], y[kept], centred)
        # Predictions for all penalties share both products with the singular vectors.
        along, wanted = (x[rows] - part.mean_x) @ part.right, y[rows] - part.mean_y
        errors += torch.stack(
            [
                ((wanted - along @ (part.shrink(float(a))[:, None] * part.projected)) ** 2).sum()
                for a in candidates
            ]
        )
    return float(candidates[int(errors.argmin())])


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Thin singular value decomposition of the source's rows, and the target's rows seen from its
    left side.
    """

    right: Tensor
    """[d_source, rank]."""
    values: Tensor
    """[rank]."""
    projected: Tensor
    """UᵀY, [rank, d_target]."""
    mean_x: Tensor
    mean_y: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, centred: bool) -> "_Spectrum":
        """Of these rows; means are zero unless centred."""
        mean_x, mean_y = (
            rows.mean(0) if centred else rows.new_zeros(rows.shape[1]) for rows in (x, y)
        )
        left, values, right = torch.linalg.svd(x - mean_x, full_matrices=False)
        kept = values > RCOND * values[0]
        return cls(right[kept].T, values[kept], left[:, kept].T @ (y - mean_y), mean_x, mean_y)

    @property
    def rank(self) -> int:
        """Singular values that are no rounding."""
        return len(self.values)

    def shrink(self, alpha: float) -> Tensor:
        """[rank], Σ/(Σ² + penalty): the pseudo-inverse without one."""
        return self.values / (
            self.values**2 + alpha * self.values.square().sum() / len(self.mean_x)
        )

    def weight(self, alpha: float) -> Tensor:
        """[d_source, d_target]."""
        return self.right @ (self.shrink(alpha)[:, None] * self.projected)

    def bias(self, weight: Tensor) -> Tensor:
        """[d_target], what the centring amounts to."""
        return self.mean_y - self.mean_x @ weight
