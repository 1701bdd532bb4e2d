"""Similarities of two streams without a map, as functions of second moments.

The measures are CKA, CCA, SVCCA and Procrustes similarity. S are centred scatter sums, C = S / n
covariances, n is the number of rows:

- `DebiasedCka`: Σ_{j≠k}⟨Cxyʲ, Cxyᵏ⟩ / √(Σ_{j≠k}⟨Cxxʲ, Cxxᵏ⟩ · Σ_{j≠k}⟨Cyyʲ, Cyyᵏ⟩); products of
  different folds have no bias.
- `Cka`: ‖Sxy‖²_F / (‖Sxx‖_F ‖Syy‖_F) (linear CKA, Kornblith et al. 2019).
- `Cca`: mean singular value of Sxx^-½ Sxy Syy^-½ (Hotelling 1936; ρ̄ of Raghu et al. 2017).
- `Svcca`: CCA of the leading principal axes of each side (Raghu et al. 2017).
- `ProcrustesSimilarity`: ‖Sxy‖_* / √(tr Sxx · tr Syy) (Schönemann 1966; Williams et al. 2021).

CCA does not change under any invertible affine map of a side. The others do not change under a
rotation and one scale factor per side.

    fit = Paired(source_stream, target_stream, scatter.xy)
    Cca().value(fit), Cca().held_out(fit, test)

**Procrustes distance.** Let s be the similarity. The squared distance of the two centred streams,
each scaled to unit Frobenius norm and rotated onto each other, is 2(1 − s). The ``disparity`` of
scipy, for which one stream is scaled freely, is 1 − s².

**Rank.** A whitening uses the eigenvectors of the side's *correlation* matrix whose eigenvalues
exceed ``tolerance`` times the largest, and at most n − 1 of them. The correlation matrix is used so
that a dimension of small variance does not count as absent. Constant dimensions are dropped. If the
two ranks r_x and r_y add up to more than n − 1, r_x + r_y − (n − 1) canonical correlations are 1
for any streams (`Cca.n_forced`).

**Null.** `null` is the measure of shuffled pairs (each x with the y of another document) at the
same n, with the variances of the true streams. Biased measures are computed from the shuffled
fitting rows exactly as from the true ones. Debiased CKA needs two independent samples of the
shuffled covariance: the fitting folds' total C̃ and the test fold's C̃'. ⟨C̃, C̃'⟩ estimates
‖E C̃‖² without bias for any width and any dependence among the tokens of a document. It is not 0 by
construction, because shuffled pairs have the same position in the window.

**Sketch.** The null can be stored for m random orthonormal columns B of the target only. Then
E_B‖M B‖² = (m/d)‖M‖², so both kinds of CKA have an unbiased null. Sums of *singular values* have
none, and the null of CCA, SVCCA and Procrustes is NaN.

Limits: these are linear measures of whole streams. With massive dimensions, CKA, SVCCA and
Procrustes depend on a few coordinates only; CCA does not.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from einops import reduce
from torch import Tensor

from lrt_lens.moments._scatter import cka_of, varying


class Stream:
    """Terms of one hook point over some parts; each is computed on first use."""

    def __init__(
        self,
        matrix: Tensor,
        n: float,
        between: float = math.nan,
        *,
        tolerance: float = 1e-10,
        kept_variance: float = 0.99,
    ) -> None:
        """Take the sums of one hook point.

        Args:
            matrix: centred scatter sums S [d, d].
            n: number of rows.
            between: Σ_{j≠k}⟨Cʲ, Cᵏ⟩ of the parts' covariances; NaN if there is only one part.
            tolerance: eigenvalues below this share of the largest count as rounding errors.
            kept_variance: share of the variance that the axes of SVCCA hold.
        """
        self.matrix, self.n, self.between = matrix, n, between
        self._tolerance, self._kept_variance = tolerance, kept_variance

    @cached_property
    def norm(self) -> float:
        """Frobenius norm ‖S‖_F."""
        return float(torch.linalg.matrix_norm(self.matrix))

    @property
    def total(self) -> float:
        """Trace tr S."""
        return float(self.matrix.diagonal().sum())

    @cached_property
    def whitening(self) -> Tensor:
        """Return T [d, rank] with ``Tᵀ S T = I``, computed from the correlation matrix."""
        # R = diag(s)·S·diag(s) with s = 1/√diag S;  T = diag(s)·V·diag(1/√λ) of R = V diag(λ) Vᵀ
        variance = self.matrix.diagonal()
        varies = varying(variance)
        scale = torch.where(
            varies,
            1 / torch.where(varies, variance, torch.ones_like(variance)).sqrt(),
            torch.zeros_like(variance),
        )
        return scale[:, None] * self._axes(self.matrix * scale[:, None] * scale, 1.0)

    @cached_property
    def leading(self) -> Tensor:
        """Return T [d, k] with ``Tᵀ S T = I``, of the fewest principal axes of enough variance."""
        return self._axes(self.matrix, self._kept_variance)

    def _axes(self, matrix: Tensor, share: float) -> Tensor:
        """Return whitened eigenvectors of ``matrix`` that hold ``share`` of its trace."""
        values, vectors = torch.linalg.eigh(matrix)
        values, vectors = values.flip(0), vectors.flip(1)  # eigh sorts ascending
        rank = int(
            (values > self._tolerance * values[0].clamp_min(torch.finfo(values.dtype).tiny)).sum()
        )
        # n centred rows span at most n − 1 dimensions.
        rank = max(0, min(rank, int(self.n) - 1))
        if share < 1:
            cumulative = values[:rank].cumsum(0)
            # The number of sums below the share, plus one. If the share is all of the trace,
            # rounding can count one too many, so the rank limits it.
            rank = min(rank, int((cumulative < share * float(matrix.diagonal().sum())).sum()) + 1)
        return vectors[:, :rank] / values[:rank].sqrt()


@dataclass(frozen=True)
class Paired:
    """Two streams on the same rows."""

    x: Stream
    """Source stream."""
    y: Stream
    """Target stream."""
    xy: Tensor
    """Centred cross-scatter sums Sxy [d_source, d_target]."""
    between: float = math.nan
    """Sum Σ_{j≠k}⟨Cxyʲ, Cxyᵏ⟩ of the parts' cross-covariances; NaN if there is only one part."""


@dataclass(frozen=True)
class ShuffledPairs:
    """Cross-scatter of shuffled pairs, from which nulls are computed."""

    fit: Tensor
    """Cross-scatter of the shuffled fitting folds [d_source, d_target or sketch width]."""
    test: Tensor
    """Cross-scatter of the shuffled test fold [d_source, d_target or sketch width]."""
    n_fit: float
    """Number of rows of the fitting folds."""
    n_test: float
    """Number of rows of the test fold."""
    n_parts: int
    """Number of parts in the between-fold products of the true pairs."""
    expansion: float
    """d_target ÷ sketch width, by which squared norms are too small; 1 without a sketch."""

    @property
    def sketched(self) -> bool:
        """True if only random columns of the target are stored."""
        return self.expansion != 1


@runtime_checkable
class Measure(Protocol):
    """A similarity of two streams; 1 if they are equal up to what the measure is invariant to."""

    @property
    def name(self) -> str:
        """Name of the measure in tables."""
        ...

    def value(self, streams: Paired) -> float:
        """Return the similarity of two streams."""
        ...

    def held_out(self, fit: Paired, test: Paired) -> float:
        """Return the value on the test fold, along the directions of the fitting folds."""
        ...

    def null(self, fit: Paired, shuffled: ShuffledPairs) -> float:
        """Return the similarity of shuffled pairs; NaN if a sketch has no unbiased estimate."""
        ...


@dataclass(frozen=True)
class DebiasedCka:
    """Linear CKA without the bias that grows with the width.

    Noise can bring it outside [0, 1]. It is NaN if the term of one side is not positive.
    """

    name: str = "cka"

    def value(self, streams: Paired) -> float:
        """Return CKA from products of covariances of different parts."""
        return cka_of(streams.between, streams.x.between, streams.y.between)

    def held_out(self, fit: Paired, test: Paired) -> float:  # noqa: ARG002 (nothing is fitted)
        """Return CKA from products of different groups of the test fold."""
        return self.value(test)

    def null(self, fit: Paired, shuffled: ShuffledPairs) -> float:
        """Return the CKA of shuffled pairs, divided by the terms of the true streams."""
        # ⟨C̃, C̃'⟩ replaces each of the n_parts·(n_parts − 1) products ⟨Cxyʲ, Cxyᵏ⟩, j ≠ k.
        product = float((shuffled.fit * shuffled.test).sum()) / (shuffled.n_fit * shuffled.n_test)
        n_products = shuffled.n_parts * (shuffled.n_parts - 1)
        return cka_of(n_products * shuffled.expansion * product, fit.x.between, fit.y.between)


@dataclass(frozen=True)
class Cka:
    """Linear CKA as usually computed; it has a bias that grows with d / n."""

    name: str = "cka_biased"

    def value(self, streams: Paired) -> float:
        """Return CKA from the scatter of all parts together."""
        return cka_of(float(streams.xy.square().sum()), streams.x.norm**2, streams.y.norm**2)

    def held_out(self, fit: Paired, test: Paired) -> float:  # noqa: ARG002 (nothing is fitted)
        """Return CKA on the test fold, which has fewer rows and therefore more bias."""
        return self.value(test)

    def null(self, fit: Paired, shuffled: ShuffledPairs) -> float:
        """Return the value of the shuffled fitting folds."""
        return cka_of(
            shuffled.expansion * float(shuffled.fit.square().sum()), fit.x.norm**2, fit.y.norm**2
        )


@dataclass(frozen=True)
class Cca:
    """Mean canonical correlation over the smaller rank."""

    name: str = "cca"

    def axes(self, stream: Stream) -> Tensor:
        """Return the whitened axes [d, rank] whose combinations are the canonical directions."""
        return stream.whitening

    def n_forced(self, streams: Paired) -> int:
        """Return how many canonical correlations are 1 by construction, for lack of rows."""
        # Subspaces of r_x and r_y dimensions in n − 1 (centred rows) share at least
        # r_x + r_y − (n − 1).
        return max(
            0,
            self.axes(streams.x).shape[1] + self.axes(streams.y).shape[1] - (int(streams.x.n) - 1),
        )

    def value(self, streams: Paired) -> float:
        """Return the mean singular value of the whitened cross-scatter."""
        return self._mean(streams, streams.xy)

    def held_out(self, fit: Paired, test: Paired) -> float:
        """Return the mean correlation on the test fold, in the fitting folds' directions."""
        a, b = self.axes(fit.x), self.axes(fit.y)
        if not min(a.shape[1], b.shape[1]):
            return math.nan
        # T_xᵀ Sxy T_y = UΣVᵀ: canonical directions are T_x U and T_y V.
        left, _, right = torch.linalg.svd(a.T @ fit.xy @ b, full_matrices=False)
        a, b = a @ left, b @ right.T
        # corr_k = a_kᵀSxy'b_k / √(a_kᵀSxx'a_k · b_kᵀSyy'b_k) of each pair of directions k
        per_direction = "d direction -> direction"
        covariance = reduce(a * (test.xy @ b), per_direction, "sum")
        variance_x = reduce(a * (test.x.matrix @ a), per_direction, "sum")
        variance_y = reduce(b * (test.y.matrix @ b), per_direction, "sum")
        spread = variance_x * variance_y
        return float((covariance / spread.clamp_min(torch.finfo(spread.dtype).tiny).sqrt()).mean())

    def null(self, fit: Paired, shuffled: ShuffledPairs) -> float:
        """Return the value of the shuffled fitting folds; NaN if the null is sketched.

        Shuffling does not change Sxx and Syy, so the whitening of the true streams is used.
        """
        return math.nan if shuffled.sketched else self._mean(fit, shuffled.fit)

    def _mean(self, streams: Paired, xy: Tensor) -> float:
        """Return the mean singular value of ``T_xᵀ xy T_y``; NaN if a side has no axis."""
        whitened = self.axes(streams.x).T @ xy @ self.axes(streams.y)
        if not min(whitened.shape):
            return math.nan
        wide = whitened if whitened.shape[0] <= whitened.shape[1] else whitened.T
        # σᵢ(M) = √λᵢ(MMᵀ), on the smaller side: a third of the time of a singular value
        # decomposition, with correlations exact to 1e-8. Eigenvalues outside [0, 1] are rounding
        # errors.
        return float(torch.linalg.eigvalsh(wide @ wide.T).clamp(0, 1).sqrt().mean())


@dataclass(frozen=True)
class Svcca(Cca):
    """Mean canonical correlation between the leading principal axes of both sides."""

    name: str = "svcca"

    def axes(self, stream: Stream) -> Tensor:
        """Return the leading principal axes [d, k]."""
        return stream.leading


@dataclass(frozen=True)
class ProcrustesSimilarity:
    """Similarity after the best rotation (a semi-orthogonal map if the widths differ)."""

    name: str = "procrustes"

    def value(self, streams: Paired) -> float:
        """Return ‖Sxy‖_* / √(tr Sxx · tr Syy)."""
        return _share(float(torch.linalg.svdvals(streams.xy).sum()), streams)

    def held_out(self, fit: Paired, test: Paired) -> float:
        """Return tr QᵀSxy' / √(tr Sxx' · tr Syy'), with Q = UVᵀ of the fitting folds."""
        left, _, right = torch.linalg.svd(fit.xy, full_matrices=False)
        return _share(float(((left @ right) * test.xy).sum()), test)

    def null(self, fit: Paired, shuffled: ShuffledPairs) -> float:
        """Return the value of the shuffled fitting folds; NaN if the null is sketched."""
        return (
            math.nan
            if shuffled.sketched
            else _share(float(torch.linalg.svdvals(shuffled.fit).sum()), fit)
        )


def _share(covered: float, streams: Paired) -> float:
    """Return ``covered / √(tr Sxx · tr Syy)``; NaN if a stream does not vary."""
    whole = math.sqrt(streams.x.total * streams.y.total)
    return covered / whole if whole > 0 else math.nan


MEASURES: dict[str, Measure] = {
    m.name: m for m in (DebiasedCka(), Cka(), Cca(), Svcca(), ProcrustesSimilarity())
}
"""All measures by name."""
