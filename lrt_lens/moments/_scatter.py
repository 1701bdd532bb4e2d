"""Sums of one hook point, centred scatter of a hook pair, and the exact error of an affine map.

Problem: a sum of squares of activations with a large mean loses digits when the mean is subtracted
afterwards; and scoring each map of a grid on the held-out rows would need all rows for each of
them. Mechanism: `SideMoments` holds sums about a fixed shift c, close to the mean, which are exact
for any c (`lrt_lens.moments._centred_rows`); two sums about different shifts can be added
(`SideMoments.merged`). The squared error of an affine map ``y ≈ x W + b`` is a function of second
moments. Primed quantities are those of the held-out rows:

    Σ‖y − xW − b‖² = tr Syy' − 2 tr WᵀSxy' + tr WᵀSxx'W + n'‖ȳ' − x̄'W − b‖²

and the diagonals of the same matrices give the error of each output dimension.

    side = SideMoments.zeros(shift)                # shift [d]
    side.add(part, CentredRows.of(rows, shift, torch.float32).sums(), rows)
    score = score_map(weight, bias, moments.scatter(pair, TEST_PARTS))
    score.r2, score.r2_uniform, score.cosine

Limits: the scoring functions see sums, not rows, so a mean of the cosines of single tokens cannot
be computed. The median norm of the fitting folds comes from a histogram of 64 bins per factor of
two, so it has an error of about 0.5 %.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor

from lrt_lens.data._parts import DEFAULT_PARTS, N_PARTS
from lrt_lens.models._ownership import while_any

FIT_PARTS = DEFAULT_PARTS.fit
"""Default parts of the documents on which maps are fitted; the others form the test fold."""
_BLOCK = 128
"""Columns per block of `gram` on a CPU."""
_BLOCK_OF_ACCELERATOR = 512
"""Fewest columns per block of `gram` on other devices."""


def part_sum(stack: Tensor, parts: Sequence[int]) -> Tensor:
    """Return the sum of some slices of a stack [part, …]."""
    # One slice at a time, because indexing with a list copies all slices first. The first two are
    # added into a new tensor, so the stack does not change.
    if len(parts) == 1:
        return stack[parts[0]]
    total = stack[parts[0]] + stack[parts[1]]
    for part in parts[2:]:
        total += stack[part]
    return total


def gram(rows: Tensor) -> Tensor:
    """Return XᵀX [d, d] of rows [row, d]."""
    # XᵀX is symmetric: compute the upper triangle in blocks of rows and mirror it. This takes two
    # thirds of the time of the whole product on a CPU. numpy's product uses the symmetry by
    # itself, but its threads compete with those of torch: everything else takes twice as long.
    d = rows.shape[1]
    # An accelerator needs large products: four blocks have 5/8 of the arithmetic of the whole.
    size = _BLOCK if rows.device.type == "cpu" else max(_BLOCK_OF_ACCELERATOR, math.ceil(d / 4))
    product = rows.new_empty(d, d)
    for start in range(0, d, size):
        end = min(start + size, d)
        block = rows[:, start:end].T @ rows[:, start:]
        product[start:end, start:] = block
        product[end:, start:end] = block[:, end - start :].T
    return product


class SecondMoment:
    """A centred scatter matrix [d, d] that is computed on first use.

    Most uses of a hook pair need only the diagonal of one side; computing all d × d matrices would
    take half of the time of a grid.
    """

    def __init__(self, second: Tensor, total: Tensor, n: float, parts: list[int]) -> None:
        self._second, self._total, self._n, self._parts = second, total, n, parts

    @cached_property
    def matrix(self) -> Tensor:
        """Return the scatter matrix Σ(x − x̄)(x − x̄)ᵀ, as [d, d]."""
        # Sxx = Σ(x − c)(x − c)ᵀ − s·sᵀ/n with s = Σ(x − c), for any shift c
        return part_sum(self._second, self._parts) - torch.outer(self._total, self._total) / self._n

    @cached_property
    def diagonal(self) -> Tensor:
        """Sum Σ(x − x̄)² of each dimension, [d]."""
        # diag Sxx = Σ(x − c)² − s²/n
        return (
            part_sum(self._second.diagonal(dim1=1, dim2=2), self._parts) - self._total**2 / self._n
        )


class DenseSecondMoment(SecondMoment):
    """A scatter matrix that is already computed."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    @cached_property
    def diagonal(self) -> Tensor:
        """Diagonal of the matrix, [d]."""
        return self.matrix.diagonal()


class ProjectedSecondMoment(DenseSecondMoment):
    """The scatter matrix of rows projected onto orthonormal columns, computed on first use."""

    def __init__(self, whole: SecondMoment, basis: Tensor) -> None:
        self._whole, self._basis = whole, basis

    @cached_property
    def matrix(self) -> Tensor:
        """Projected scatter matrix QᵀSQ [column, column]."""
        return self._basis.T @ self._whole.matrix @ self._basis


@dataclass(frozen=True)
class Scatter:
    """Scatter sums of a hook pair, centred on the means of the same rows."""

    n: float
    """Number of rows."""
    mean_x: Tensor
    """Mean x̄ of the source [d_source]."""
    mean_y: Tensor
    """Mean ȳ of the target [d_target]."""
    xy: Tensor
    """Cross-scatter Σ(x − x̄)(y − ȳ)ᵀ [d_source, d_target]."""
    second_x: SecondMoment
    """Scatter matrix of the source, computed on first use."""
    second_y: SecondMoment
    """Scatter matrix of the target, computed on first use."""

    @property
    def xx(self) -> Tensor:
        """Source scatter Σ(x − x̄)(x − x̄)ᵀ [d_source, d_source]."""
        return self.second_x.matrix

    @property
    def yy(self) -> Tensor:
        """Target scatter Σ(y − ȳ)(y − ȳ)ᵀ [d_target, d_target]."""
        return self.second_y.matrix

    @property
    def variance(self) -> Tensor:
        """Sum Σ(y − ȳ)² of each target dimension, [d_target]."""
        return self.second_y.diagonal

    def swapped(self) -> "Scatter":
        """Return the scatter with source and target exchanged; a ``down`` map is fitted on it."""
        return Scatter(self.n, self.mean_y, self.mean_x, self.xy.T, self.second_y, self.second_x)

    def with_target(self, xy: Tensor, basis: Tensor | None) -> "Scatter":
        """Return the scatter with another ``xy`` and the target side projected onto ``basis``.

        Args:
            xy: [d_source, d_target], or [d_source, column] with a basis.
            basis: [d_target, column], orthonormal columns; None leaves the target side as it is.
        """
        if basis is None:
            return replace(self, xy=xy)
        return replace(
            self,
            xy=xy,
            mean_y=self.mean_y @ basis,
            second_y=ProjectedSecondMoment(self.second_y, basis),
        )

    def onto_itself(self) -> "Scatter":
        """Return the scatter of the source with itself; round trips are scored on it."""
        return replace(self, mean_y=self.mean_x, xy=self.xx, second_y=self.second_x)

    def joined(self, other: "Scatter") -> "Scatter":
        """Return the scatter of the rows of both together, centred on their common means."""
        # With d = x̄₁ − x̄₂ and n = n₁ + n₂:  S = S₁ + S₂ + (n₁·n₂/n)·ddᵀ
        n = self.n + other.n
        share = self.n * other.n / n
        dx, dy = self.mean_x - other.mean_x, self.mean_y - other.mean_y
        return Scatter(
            n=n,
            mean_x=(self.n * self.mean_x + other.n * other.mean_x) / n,
            mean_y=(self.n * self.mean_y + other.n * other.mean_y) / n,
            xy=self.xy + other.xy + share * torch.outer(dx, dy),
            second_x=DenseSecondMoment(self.xx + other.xx + share * torch.outer(dx, dx)),
            second_y=DenseSecondMoment(self.yy + other.yy + share * torch.outer(dy, dy)),
        )

    def detached(self) -> "Scatter":
        """Return a copy of the sums that holds no reference to the moments they came from."""
        return replace(
            self,
            xy=self.xy.clone(),
            second_x=DenseSecondMoment(self.xx),
            second_y=DenseSecondMoment(self.yy),
        )

    def scaled(self, scale_x: Tensor, scale_y: Tensor) -> "Scatter":
        """Return the scatter of ``x * scale_x`` [d_source] and ``y * scale_y`` [d_target]."""
        # S → diag(a)·S·diag(b)
        return Scatter(
            n=self.n,
            mean_x=self.mean_x * scale_x,
            mean_y=self.mean_y * scale_y,
            xy=self.xy * rearrange(scale_x, "d -> d 1") * scale_y,
            second_x=DenseSecondMoment(self.xx * rearrange(scale_x, "d -> d 1") * scale_x),
            second_y=DenseSecondMoment(self.yy * rearrange(scale_y, "d -> d 1") * scale_y),
        )

    def uncentred(self) -> "Scatter":
        """Return the sums about zero instead of the means, for maps without a bias."""
        # Σxyᵀ = Sxy + n·x̄ȳᵀ
        outer = torch.outer
        return Scatter(
            n=self.n,
            mean_x=torch.zeros_like(self.mean_x),
            mean_y=torch.zeros_like(self.mean_y),
            xy=self.xy + self.n * outer(self.mean_x, self.mean_y),
            second_x=DenseSecondMoment(self.xx + self.n * outer(self.mean_x, self.mean_x)),
            second_y=DenseSecondMoment(self.yy + self.n * outer(self.mean_y, self.mean_y)),
        )


@dataclass(frozen=True)
class MapScore:
    """Held-out scores of a map."""

    r2: float
    """Explained share of the variance: ``variance_weighted`` R² of scikit-learn."""
    r2_uniform: float
    """Mean R² over output dimensions: ``uniform_average`` of scikit-learn, without dimensions of
    zero variance.
    """
    cosine: float
    """Σ⟨ŷ−ȳ', y−ȳ'⟩ / √(Σ‖ŷ−ȳ'‖² Σ‖y−ȳ'‖²), sums over all tokens."""
    n_constant: int
    """Output dimensions of zero variance, which ``r2_uniform`` leaves out."""


def score_map(weight: Tensor, bias: Tensor, held_out: Scatter) -> MapScore:
    """Return the scores of ``x @ weight + bias``, equal to those computed from the held-out rows.

    Args:
        weight: [d_source, d_target].
        bias: [d_target].
        held_out: scatter of rows on which the map was not fitted.
    """
    explained, predicted = _explained_and_predicted(weight.double(), bias.double(), held_out)
    variance = held_out.variance
    # Σ(y − ŷ)² = Σ(y − ȳ)² − 2·Σ(ŷ − ȳ)(y − ȳ) + Σ(ŷ − ȳ)²
    r2, r2_uniform, n_constant = r2_of(variance - 2 * explained + predicted, variance)
    # `tiny` instead of 0, so that the cosine of a constant prediction is 0 and not NaN.
    norm = (predicted.sum() * variance.sum()).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return MapScore(
        r2=r2, r2_uniform=r2_uniform, cosine=float(explained.sum() / norm), n_constant=n_constant
    )


def squared_errors(weight: Tensor, bias: Tensor, held_out: Scatter) -> Tensor:
    """Return Σ(y − x W − b)² over the held-out rows, per target dimension [d_target]."""
    explained, predicted = _explained_and_predicted(weight.double(), bias.double(), held_out)
    return held_out.variance - 2 * explained + predicted


def _explained_and_predicted(
    weight: Tensor, bias: Tensor, held_out: Scatter
) -> tuple[Tensor, Tensor]:
    """Return Σ(ŷ−ȳ)(y−ȳ) and Σ(ŷ−ȳ)² per target dimension; ȳ is the mean of the held-out rows."""
    # ŷ − ȳ = (x − x̄)W + (x̄W + b − ȳ), and the centred terms sum to zero:
    #   Σ(ŷ−ȳ)(y−ȳ) = diag WᵀSxy
    #   Σ(ŷ−ȳ)²     = diag WᵀSxxW + n·(x̄W + b − ȳ)²
    offset = held_out.mean_x @ weight + bias - held_out.mean_y
    over_source = "d_source d_target -> d_target"
    explained = reduce(weight * held_out.xy, over_source, "sum")
    predicted = reduce(weight * (held_out.xx @ weight), over_source, "sum")
    return explained, predicted + held_out.n * offset**2


def r2_of(error: Tensor, variance: Tensor) -> tuple[float, float, int]:
    """Return (R² by variance, mean R² over dimensions, number of constant dimensions).

    Args:
        error: [d], Σ(y − ŷ)² per dimension.
        variance: [d], Σ(y − ȳ)² per dimension.
    """
    varies = varying(variance)
    if not bool(varies.any()):
        return float("nan"), float("nan"), len(variance)
    # R² = 1 − Σ_j e_j / Σ_j v_j;  mean R² = mean_j (1 − e_j / v_j) over dimensions with v_j > 0
    uniform = 1 - error[varies] / variance[varies]
    return float(1 - error.sum() / variance.sum()), float(uniform.mean()), int((~varies).sum())


def varying(variance: Tensor) -> Tensor:
    """Return, per dimension [d], whether it varies by more than rounding errors of centring."""
    # 1e-12 is above the rounding error of float64 sums of squares, and far below the relative
    # variance of the dimensions of a residual stream, also next to massive ones.
    return variance > 1e-12 * variance.max().clamp_min(torch.finfo(variance.dtype).tiny)


def score_weights(variance: Tensor) -> Tensor:
    """Return weights [2, d] that turn error sums into both R², from ``variance`` [d].

    With ``error`` [d], ``1 - weights @ error`` is (R² by variance, mean R² over dimensions).
    """
    varies = varying(variance)
    # w₁ = 1 / Σ_j v_j;  w₂ = 1 / (v_j · number of varying dimensions), 0 for the constant ones.
    # The inner `where` keeps 1 / 0 out of the branch that is not selected.
    uniform = (
        torch.where(
            varies,
            1 / torch.where(varies, variance, torch.ones_like(variance)),
            torch.zeros_like(variance),
        )
        / varies.sum()
    )
    total = float(variance.sum())
    return torch.stack([torch.full_like(variance, 1 / total if total else float("nan")), uniform])


def cka_of(xy: float, xx: float, yy: float) -> float:
    """Return linear CKA from its three terms, each from `between_folds`.

    Products of covariances of different folds have no bias that grows with the width. If ``xx`` or
    ``yy`` is not positive, there were too few tokens; the result is NaN.

    Source: Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited".
    """
    # Σ_{j≠k}⟨Cxyʲ, Cxyᵏ⟩ / √(Σ_{j≠k}⟨Cxxʲ, Cxxᵏ⟩ · Σ_{j≠k}⟨Cyyʲ, Cyyᵏ⟩)
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan


def between_folds(covariances: Iterable[Tensor]) -> float:
    """Return Σ_{j≠k}⟨Cʲ, Cᵏ⟩ of one matrix per fold, or of a stack [fold, …]."""
    # Σ_{j≠k}⟨Cʲ, Cᵏ⟩ = ‖Σ_k Cᵏ‖² − Σ_k ‖Cᵏ‖². One matrix at a time, so that they are never stacked.
    norm = torch.linalg.vector_norm
    total, own = None, 0.0
    for covariance in covariances:
        own += float(norm(covariance) ** 2)
        total = covariance.clone() if total is None else total.add_(covariance)
    return 0.0 if total is None else float(norm(total) ** 2) - own


NORM_BINS = 2560
"""Bins of the histogram: 40 octaves of 64 bins, from 2⁻²⁰ to 2²⁰."""
_BINS_PER_OCTAVE, _LOWEST_OCTAVE = 64, -20


@dataclass
class SideMoments:
    """First and second moments of one hook point, per part."""

    shift: Tensor
    """Shift c that is subtracted from each row before any product [d]."""
    total: Tensor
    """Sums Σ(x − c) [part, d]."""
    second: Tensor
    """Sums Σ(x − c)(x − c)ᵀ [part, d, d]."""
    norms: Tensor
    """Histogram of ‖x‖ of the fitting folds on a logarithmic scale, 64 bins per octave [bin]."""

    @classmethod
    def zeros(
        cls,
        shift: Tensor,
        zeros: Callable[[tuple[int, ...]], Tensor] | None = None,
        n_parts: int = N_PARTS,
    ) -> "SideMoments":
        """Return empty moments about ``shift`` [d].

        Args:
            shift: shift that the precision of products holds exactly.
            zeros: function from a shape to sums; by default on the device of the shift.
            n_parts: number of parts of the documents.
        """
        d = len(shift)
        shift = shift.detach().double()
        shapes = ((n_parts, d), (n_parts, d, d), (NORM_BINS,))
        return cls(shift, *((zeros or shift.new_zeros)(shape) for shape in shapes))

    def add(
        self,
        part: int,
        sums: tuple[Tensor, Tensor],
        raw: Tensor | None,
        add: Callable[[Tensor, Tensor], object] = Tensor.add_,
    ) -> None:
        """Add rows of one part.

        Args:
            part: number of the part.
            sums: (Σ(x − c) [d], Σ(x − c)(x − c)ᵀ [d, d]) of the rows.
            raw: rows as they came [row, d], for the histogram; None for parts of the test fold.
            add: function that adds a product to sums, such as `Placement.add`; by default in place.
        """
        total, second = sums
        add(self.total[part], total)
        add(self.second[part], second)
        if raw is None:
            return
        # bin = ⌊64 · (log₂‖x‖ + 20)⌋, at least in float32
        norms = raw.to(torch.promote_types(raw.dtype, torch.float32)).norm(dim=1)
        octaves = norms.clamp_min(2.0**_LOWEST_OCTAVE).log2()
        bins = ((octaves - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE).long().clamp(max=NORM_BINS - 1)
        add(self.norms, torch.bincount(bins, minlength=NORM_BINS))

    def shifted(self, shift: Tensor, n: Tensor) -> "SideMoments":
        """Return these moments about another shift; ``n`` [part] counts their rows."""
        # With δ = c − c′ and s = Σ(x − c):
        #   Σ(x − c′) = s + n·δ
        #   Σ(x − c′)(x − c′)ᵀ = Σ(x − c)(x − c)ᵀ + s·δᵀ + δ·sᵀ + n·δδᵀ
        delta = self.shift - shift
        cross = einsum(self.total, delta, "part i, j -> part i j")
        second = (
            self.second
            + cross
            + rearrange(cross, "part i j -> part j i")
            + einsum(n, torch.outer(delta, delta), "part, i j -> part i j")
        )
        total = self.total + einsum(n, delta, "part, d -> part d")
        return SideMoments(shift, total, second, self.norms)

    def merged(self, other: "SideMoments", n: Tensor) -> "SideMoments":
        """Return the moments of all rows of both; ``n`` [part] counts the rows of ``other``."""
        same_shift = other.shifted(self.shift, n)
        return SideMoments(
            self.shift,
            self.total + same_shift.total,
            self.second + same_shift.second,
            self.norms + same_shift.norms,
        )

    @property
    def squares(self) -> Tensor:
        """Sums Σ(x − c)² of each dimension [part, d]."""
        return self.second.diagonal(dim1=1, dim2=2)

    @property
    def median_norm(self) -> float:
        """Median ‖x‖ over the tokens of the fitting folds, with an error of about 0.5 %.

        NaN if there are none, or if the norms are unknown (some layers of a joint hook point).
        """
        if not bool(self.norms.any()):
            return math.nan
        # Centre of the first bin at which half of the rows are reached: 2^((bin + 0.5)/64 − 20)
        median_bin = torch.searchsorted(self.norms.cumsum(0), self.norms.sum() / 2)
        return float(2.0 ** ((median_bin + 0.5) / _BINS_PER_OCTAVE + _LOWEST_OCTAVE))


def cross_about(
    cross: Tensor, n: Tensor, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]
) -> Tensor:
    """Return cross-moments about other shifts, [part, d_x, d_y].

    Args:
        cross: Σ(x − c)(y − c')ᵀ about the old shifts [part, d_x, d_y].
        n: number of rows [part].
        x: old shift minus new shift [d_x], and Σ(x − c) about the old one [part, d_x].
        y: the same for y.
    """
    (delta_x, total_x), (delta_y, total_y) = x, y
    # With δ = c_old − c_new and s = Σ(x − c_old), for x and for y:
    #   Σ(x − cₓ)(y − c_y)ᵀ = Sxy_old + sₓ·δ_yᵀ + δₓ·s_yᵀ + n·δₓδ_yᵀ
    return (
        cross
        + einsum(total_x, delta_y, "part i, j -> part i j")
        + einsum(delta_x, total_y, "i, part j -> part i j")
        + einsum(n, torch.outer(delta_x, delta_y), "part, i j -> part i j")
    )


def cross_at(
    shifts: tuple[Tensor, Tensor],
    sides: tuple[SideMoments, SideMoments],
    cross: Tensor,
    n: Tensor,
    groups: Sequence[Sequence[int]],
    basis: Tensor | None = None,
) -> Tensor:
    """Return cross-moments about other shifts, [group, d_source, d_target or column].

    Args:
        shifts: the other shifts [d_source], [d_target].
        sides: moments of both hook points of the same rows.
        cross: [group, d_source, d_target], or [group, d_source, column] with a basis.
        n: [group], rows.
        groups: parts of which each slice of ``cross`` is the sum.
        basis: [d_target, column], columns onto which the target side is projected.
    """
    (delta_x, delta_y), (total_x, total_y) = (
        [side.shift - shift for side, shift in zip(sides, shifts, strict=True)],
        [torch.stack([side.total[list(parts)].sum(0) for parts in groups]) for side in sides],
    )
    if basis is not None:
        delta_y, total_y = delta_y @ basis, total_y @ basis
    return cross_about(cross, n, (delta_x, total_x), (delta_y, total_y))


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32 within this context."""
    with while_any("matmul precision", _use_full_precision):
        yield


def _use_full_precision() -> Callable[[], None]:
    """Switch TF32 off for the whole process, and return what restores the earlier precision."""
    # A user may have switched TF32 on. It has 10 bits of mantissa: moments would lose three
    # decimal digits.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    return partial(torch.set_float32_matmul_precision, before)
