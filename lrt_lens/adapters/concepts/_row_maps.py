"""Linear maps fitted on one row per text, by minimum-norm least squares or ridge, in memory.

    fit = fit_rows(x, y, groups=[0, 1, 2, 0, 1, 2])      # least squares without intercept (L-Cross)
    fit = fit_rows(x, y, groups=pairs, method="ridge")   # penalty by cross-validation
    fit.weight, fit.rank, fit.r2                         # r2 is held out

Problem: a contrast set has hundreds of texts and a stream thousands of dimensions, so XᵀX is
singular. Mechanism: with the thin singular value decomposition X = UΣVᵀ of the rows [text,
d_source], centred if there is an intercept:

| method | objective | solution |
| --- | --- | --- |
| ``least_squares`` | min ‖W‖ among the minimisers of ‖Y − XW‖² | ``VΣ⁺UᵀY`` |
| ``ridge`` | ‖Y − XW‖² + α·(tr XᵀX / d)·‖W‖² | ``V Σ/(Σ² + α·trXᵀX/d) UᵀY`` |

Least squares is the map of L-Cross (arXiv 2501.02009, §3). Texts number hundreds, unlike tokens, so
the rows are stored and no matrix of size d² is formed except the map itself. Rows of one group (the
two texts of a pair) are held out together. ``r2`` compares with the held-out rows' own mean:
without centring, the large mean of a residual stream alone would give an R² near 1. Ridge's scores
are nested: the penalty that predicts a fold is chosen without that fold.

Limits: all rows are held in memory in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from torch import Tensor

from lrt_lens.errors import NonFiniteError
from lrt_lens.moments._scatter import r2_of
from lrt_lens.stitching._diagnostics import effective_rank
from lrt_lens.stitching.solvers._solver import DEFAULT_ALPHAS

Method = Literal["least_squares", "ridge"]
"""Method of a fit, as in the table of the module docstring."""
RCOND = 1e-6
"""Singular values below this share of the largest are rounding of float32 and count as zero."""
N_FOLDS = 5
"""Number of folds of groups that are held out in turn."""


@dataclass(frozen=True, eq=False)
class RowMap:
    """A map ``y ≈ x @ weight + bias`` fitted on rows, with its held-out scores."""

    weight: Tensor
    """Weights in float64, [d_source, d_target]."""
    bias: Tensor
    """Bias in float64, zeros without an intercept, [d_target]."""
    alpha: float
    """Penalty relative to the mean second moment of the source; 0 for least squares."""
    n: int
    """Number of rows that the map was fitted on."""
    rank: int
    """Rank of the source's rows (centred if there is an intercept)."""
    effective_rank: float
    """Effective rank exp(entropy) of the centred source rows' singular values (Roy and Vetterli
    2007, eq. 4)."""
    r2: float
    """R² of held-out rows, weighted by variance."""
    r2_uniform: float
    """R² of held-out rows, mean over dimensions."""
    held_out: Tensor
    """Rows as predicted by the fit without their group; NaN without such a fit, [row, d_target]."""
    held_out_directions: Tensor
    """Held-out predictions without the bias, for differences of rows, [row, d_target]."""

    @property
    def interpolates(self) -> bool:
        """True if the map predicts the target rows of its fit exactly, whatever these rows are.

        This is so without a penalty if the source rows are linearly independent.
        """
        # Centring takes one dimension from the rows: n centred rows have at most rank n − 1.
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
    """Map fitted on all rows, with held-out scores.

    Args:
        x: [row, d_source].
        y: [row, d_target].
        groups: number of the group of each row; groups are held out as a whole.
        method: ``"least_squares"`` or ``"ridge"``.
        intercept: True centres both sides; None centres for ridge only (L-Cross does not centre
            for least squares).
        alphas: candidates for the penalty of ridge.
        n_folds: number of folds of groups; fewer if there are fewer groups.
        seed: seed of the folds.
        score: True computes held-out scores. Without them, many maps are fitted much faster;
            ridge still chooses its penalty on held-out rows.

    Raises:
        ValueError: rows do not pair up, there are fewer than two rows or groups, or the method is
            unknown.
        NonFiniteError: a row holds NaN or infinity.
    """
    x, y = x.double(), y.double()
    _check(x, y, groups, method)
    centred = method == "ridge" if intercept is None else intercept
    candidates = torch.tensor(
        [0.0] if method == "least_squares" else list(alphas), dtype=torch.float64
    )
    folds = _folds(groups, n_folds, seed) if score or len(candidates) > 1 else []
    alpha = _choose_penalty(x, y, folds, candidates, centred)
    whole = _RowSpectrum.of(x, y, centred)
    weight = whole.weight(alpha)
    held_out, directions = torch.full_like(y, torch.nan), torch.full_like(y, torch.nan)
    r2 = r2_uniform = torch.nan
    if score:
        for number, rows in enumerate(folds):
            # The penalty that predicts a fold is chosen on the other folds.
            others = [fold for other, fold in enumerate(folds) if other != number]
            train = torch.cat(others)
            part = _RowSpectrum.of(x[train], y[train], centred)
            nested = len(others) > 1
            penalty = _choose_penalty(x, y, others, candidates, centred) if nested else alpha
            local = part.weight(penalty)
            directions[rows] = x[rows] @ local
            held_out[rows] = directions[rows] + part.bias(local)
        # R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²
        r2, r2_uniform, _ = r2_of(((y - held_out) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0))
    return RowMap(
        weight,
        whole.bias(weight),
        alpha,
        len(x),
        whole.rank,
        effective_rank(torch.linalg.svdvals(x - x.mean(0))),
        r2,
        r2_uniform,
        held_out,
        directions,
    )


def _check(x: Tensor, y: Tensor, groups: Sequence[int], method: str) -> None:
    if method not in ("least_squares", "ridge"):
        raise ValueError(f"method is {method!r}; expected 'least_squares' or 'ridge'")
    if not len(x) == len(y) == len(groups):
        raise ValueError(
            f"{len(x)} source rows, {len(y)} target rows and {len(groups)} groups do not pair up; "
            "give one of each for every text"
        )
    if len(x) < 2 or len(set(groups)) < 2:
        raise ValueError(
            f"{len(x)} text(s) in {len(set(groups))} group(s); a map needs at least two texts of "
            "two groups, so that one can be held out: give more texts"
        )
    # A single NaN would spread to the whole map through the decomposition.
    for role, rows in (("source", x), ("target", y)):
        if not torch.isfinite(rows).all():
            raise NonFiniteError(
                f"the {role} rows hold NaN or infinity; load the model in float32 or bfloat16, or "
                "drop those texts"
            )


def _folds(groups: Sequence[int], n_folds: int, seed: int) -> list[Tensor]:
    """Row numbers of each fold."""
    member = torch.tensor(groups)
    # `unique` sorts the groups, so the folds depend on the seed and not on the order of the rows.
    distinct = torch.unique(member)
    order = distinct[torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))]
    return [
        torch.isin(member, part).nonzero()[:, 0]
        for part in order.tensor_split(min(n_folds, len(distinct)))
    ]


def _choose_penalty(
    x: Tensor, y: Tensor, folds: list[Tensor], candidates: Tensor, centred: bool
) -> float:
    """Penalty with the smallest squared error on held-out folds.

    With fewer than two folds nothing can be held out, and the largest candidate is returned.
    """
    if len(candidates) == 1:
        return float(candidates[0])
    if len(folds) < 2:
        return float(candidates.max())
    errors = torch.zeros(len(candidates), dtype=torch.float64)
    for number, rows in enumerate(folds):
        train = torch.cat([fold for other, fold in enumerate(folds) if other != number])
        part = _RowSpectrum.of(x[train], y[train], centred)
        # Both products with the singular vectors are the same for all penalties:
        # ŷ = (x V) · (shrink(α) ⊙ UᵀY)
        along, wanted = (x[rows] - part.mean_x) @ part.right, y[rows] - part.mean_y
        errors += torch.stack(
            [((wanted - along @ part.shrunk(float(alpha))) ** 2).sum() for alpha in candidates]
        )
    return float(candidates[int(errors.argmin())])


@dataclass(frozen=True, eq=False)
class _RowSpectrum:
    """Thin singular value decomposition X = UΣVᵀ of the source's rows, with UᵀY."""

    right: Tensor
    """Right singular vectors V, [d_source, rank]."""
    values: Tensor
    """Singular values Σ, [rank]."""
    projected: Tensor
    """Target rows in the basis of the left singular vectors, UᵀY, [rank, d_target]."""
    mean_x: Tensor
    """Mean of the source's rows, zeros without centring, [d_source]."""
    mean_y: Tensor
    """Mean of the target's rows, zeros without centring, [d_target]."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor, centred: bool) -> "_RowSpectrum":
        """Decomposition of these rows; the means are zero unless ``centred``."""
        mean_x, mean_y = (
            rows.mean(0) if centred else rows.new_zeros(rows.shape[1]) for rows in (x, y)
        )
        left, values, right = torch.linalg.svd(x - mean_x, full_matrices=False)
        # Smaller singular values are rounding; their inverses would dominate the pseudo-inverse.
        nonzero = values > RCOND * values[0]
        projected = left[:, nonzero].T @ (y - mean_y)
        return cls(right[nonzero].T, values[nonzero], projected, mean_x, mean_y)

    @property
    def rank(self) -> int:
        """Number of singular values above rounding."""
        return len(self.values)

    def shrink(self, alpha: float) -> Tensor:
        """Shrunk inverse singular values, [rank]; the pseudo-inverse for α = 0."""
        # Σ / (Σ² + α·tr(XᵀX)/d), where tr(XᵀX) = ΣΣ²
        return self.values / (
            self.values**2 + alpha * self.values.square().sum() / len(self.mean_x)
        )

    def shrunk(self, alpha: float) -> Tensor:
        """Return shrink(α) ⊙ UᵀY, [rank, d_target]."""
        return einsum(self.shrink(alpha), self.projected, "rank, rank d_target -> rank d_target")

    def weight(self, alpha: float) -> Tensor:
        """Map of the rows, [d_source, d_target]."""
        # W = V · shrink(α) · UᵀY
        return self.right @ self.shrunk(alpha)

    def bias(self, weight: Tensor) -> Tensor:
        """Bias that centring implies, ``ȳ − x̄ W``, [d_target]; zeros without centring."""
        return self.mean_y - self.mean_x @ weight
