"""Similarities of two streams without a map, as functions of second moments.

CKA, CCA, SVCCA and Procrustes similarity.

S are centred scatter sums, C = S / n covariances, n rows:

- `DebiasedCka`: Σ_{j≠k}⟨Cxyʲ, Cxyᵏ⟩ / √(Σ_{j≠k}⟨Cxxʲ, Cxxᵏ⟩ · Σ_{j≠k}⟨Cyyʲ, Cyyᵏ⟩); products of
  different folds have no bias.
- `Cka`: ‖Sxy‖²_F / (‖Sxx‖_F ‖Syy‖_F) (linear CKA, Kornblith et al. 2019).
- `Cca`: mean singular value of Sxx^-½ Sxy Syy^-½ (Hotelling 1936; ρ̄ of Raghu et al. 2017).
- `Svcca`: CCA after each side is cut to its leading principal axes (Raghu et al. 2017).
- `Procrustes`: ‖Sxy‖_* / √(tr Sxx · tr Syy) (Schönemann 1966; Williams et al. 2021).

CCA does not change under any invertible affine map of a side, the others do not change under
rotations and one scale for each side.

Procrustes: with s the similarity, the squared distance of the two centred streams, each scaled to
unit Frobenius norm and rotated onto each other, is 2(1 − s); scipy's ``disparity`` (one of them
scaled freely) is 1 − s².

    fit = Paired(source_stream, target_stream, scatter.xy)
    Cca().value(fit), Cca().held_out(fit, test)

**Rank.** A whitening keeps the eigenvectors of the side's *correlation* matrix whose eigenvalues
exceed ``tolerance`` times the largest, and at most n − 1 of them: so a dimension that is small is
not taken for one that is absent. Constant dimensions are dropped. Where the ranks kept exceed n − 1
together, r_x + r_y − (n − 1) canonical correlations are 1 whatever the streams are
(`Cca.n_forced`).

**Null.** `null` is the measure of shuffled pairs (each x with the y of another document) at the
same n; marginals are the truth's. Biased measures read the shuffled fitting rows as they read the
true ones. Debiased CKA needs two independent samples of the shuffled covariance: the fitting folds'
total C̃ and the test fold's C̃' are the two that are kept, and ⟨C̃, C̃'⟩ estimates ‖E C̃‖² without
bias, whatever the width and however the tokens of a document hang together. It is not 0 by
construction: shuffled pairs keep their position in the window. Through the sketch, m random
orthonormal columns B of the target, E_B‖M B‖² = (m/d)‖M‖², so both kinds of CKA have an unbiased
null; sums of *singular values* have none, and CCA, SVCCA and Procrustes get NaN.

Limits: linear measures of whole streams. With massive dimensions CKA, SVCCA and Procrustes follow a
handful of coordinates, CCA does not.
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
    """Terms of one hook point over some parts, computed when first needed."""

    def __init__(
        self,
        matrix: Tensor,
        n: float,
        between: float = math.nan,
        *,
        tolerance: float = 1e-10,
        kept_variance: float = 0.99,
    ) -> None:
        """Take centred scatter sums [d, d] of ``n`` rows.

        ``between`` is Σ_{j≠k}⟨Cʲ, Cᵏ⟩ of the parts' covariances.
        """
        self.matrix, self.n, self.between = matrix, n, between
        self._tolerance, self._kept_variance = tolerance, kept_variance

    @cached_property
    def norm(self) -> float:
        """‖S‖_F."""
        return float(torch.linalg.matrix_norm(self.matrix))

    @property
    def total(self) -> float:
        """Tr S."""
        return float(self.matrix.diagonal().sum())

    @cached_property
    def whitening(self) -> Tensor:
        """Return T [d, rank] with ``Tᵀ S T = I``, computed from the correlation matrix."""
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
        """Return T [d, k], the whitened principal axes that hold the wanted share of variance.

        ``Tᵀ S T = I``.
        """
        return self._axes(self.matrix, self._kept_variance)

    def _axes(self, matrix: Tensor, share: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        values, vectors = values.flip(0), vectors.flip(1)
        rank = int(
            (values > self._tolerance * values[0].clamp_min(torch.finfo(values.dtype).tiny)).sum()
        )
        rank = max(0, min(rank, int(self.n) - 1))
        if share < 1:
            cumulative = values[:rank].cumsum(0)
            # As many axes as reach the share; the last comparison may miss it by rounding.
            rank = min(rank, int((cumulative < share * float(matrix.diagonal().sum())).sum()) + 1)
        return vectors[:, :rank] / values[:rank].sqrt()


@dataclass(frozen=True)
class Paired:
    """Two streams on the same rows."""

    x: Stream
    y: Stream
    xy: Tensor
    """[d_source, d_target], centred cross-scatter sums."""
    between: float = math.nan
    """Σ_{j≠k}⟨Cxyʲ, Cxyᵏ⟩ of the parts' cross-covariances."""


@dataclass(frozen=True)
class ShuffledPairs:
    """Cross-scatter of shuffled pairs, from which nulls are computed."""

    fit: Tensor
    """[d_source, d_target or sketch width], of the fitting folds."""
    test: Tensor
    """The same of the test fold."""
    n_fit: float
    n_test: float
    n_parts: int
    """Parts among which the truth's between-fold products were taken."""
    expansion: float
    """d_target / sketch width: by how much squared norms are too small; 1 where the target is
    whole.
    """

    @property
    def sketched(self) -> bool:
        """Whether only some random columns of the target are there."""
        return self.expansion != 1


@runtime_checkable
class Measure(Protocol):
    """A similarity of two streams; 1 if they differ only in what the measure ignores."""

    @property
    def name(self) -> str:
        """Name of the measure in tables."""
        ...

    def value(self, streams: Paired) -> float:
        """The similarity."""
        ...

    def held_out(self, fit: Paired, test: Paired) -> float:
        """Return the value on the test fold, along the directions that the fitting folds gave."""
        ...

    def null(self, fit: Paired, shuffled: ShuffledPairs) -> float:
        """The similarity of shuffled pairs; NaN where the sketch allows no unbiased estimate."""
        ...


@dataclass(frozen=True)
class DebiasedCka:
    """Linear CKA without the bias that width adds.

    It may leave [0, 1] by its own noise; it is NaN if a side's own term is not positive.
    """

    name: str = "cka"

    def value(self, streams: Paired) -> float:
        """From products of different parts."""
        return cka_of(streams.between, streams.x.between, streams.y.between)

    def held_out(self, fit: Paired, test: Paired) -> float:  # noqa: ARG002 (nothing is fitted)
        """Between the groups of the test fold."""
        return self.value(test)

    def null(self, fit: Paired, shuffled: ShuffledPairs) -> float:
        """Return the null from shuffled pairs, on the truth's own terms.

        It is the product of the shuffled fitting folds and the shuffled test fold.
        """
        product = float((shuffled.fit * shuffled.test).sum()) / (shuffled.n_fit * shuffled.n_test)
        n_products = shuffled.n_parts * (shuffled.n_parts - 1)
        return cka_of(n_products * shuffled.expansion * product, fit.x.between, fit.y.between)


@dataclass(frozen=True)
class Cka:
    """Linear CKA as it is usually computed: grows with width over rows."""

    name: str = "cka_biased"

    def value(self, streams: Paired) -> float:
        """From the scatter of all parts."""
        return cka_of(float(streams.xy.square().sum()), streams.x.norm**2, streams.y.norm**2)

    def held_out(self, fit: Paired, test: Paired) -> float:  # noqa: ARG002 (nothing is fitted)
        """On the test fold, which has fewer rows and so more bias."""
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
        """Return the whitened axes [d, rank] within which directions are sought."""
        return stream.whitening

    def n_forced(self, streams: Paired) -> int:
        """Return how many canonical correlations are 1 by construction.

        Two subspaces of too few rows must meet.
        """
        return max(
            0,
            self.axes(streams.x).shape[1] + self.axes(streams.y).shape[1] - (int(streams.x.n) - 1),
        )

    def value(self, streams: Paired) -> float:
        """Mean singular value of the whitened cross-scatter."""
        return self._mean(streams, streams.xy)

    def held_out(self, fit: Paired, test: Paired) -> float:
        """Mean correlation on the test fold along the canonical directions of the fitting folds."""
        a, b = self.axes(fit.x), self.axes(fit.y)
        if not min(a.shape[1], b.shape[1]):
            return math.nan
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
        """Return the value of the shuffled fitting folds, with the truth's whitening.

        It is NaN if the null is sketched.
        """
        return math.nan if shuffled.sketched else self._mean(fit, shuffled.fit)

    def _mean(self, streams: Paired, xy: Tensor) -> float:
        whitened = self.axes(streams.x).T @ xy @ self.axes(streams.y)
        if not min(whitened.shape):
            return math.nan
        wide = whitened if whitened.shape[0] <= whitened.shape[1] else whitened.T
        # Eigenvalues of the small side's products: a third of the time of a singular value
        # decomposition, and correlations to 1e-8. What lies outside [0, 1] is rounding.
        return float(torch.linalg.eigvalsh(wide @ wide.T).clamp(0, 1).sqrt().mean())


@dataclass(frozen=True)
class Svcca(Cca):
    """Mean canonical correlation between the leading principal axes of both sides."""

    name: str = "svcca"

    def axes(self, stream: Stream) -> Tensor:
        """Return the leading principal axes [d, k]."""
        return stream.leading


@dataclass(frozen=True)
class Procrustes:
    """Similarity after the best rotation, or semi-orthogonal map where widths differ."""

    name: str = "procrustes"

    def value(self, streams: Paired) -> float:
        """‖Sxy‖_* / √(tr Sxx · tr Syy)."""
        return _share(float(torch.linalg.svdvals(streams.xy).sum()), streams)

    def held_out(self, fit: Paired, test: Paired) -> float:
        """Tr QᵀSxy' / √(tr Sxx' · tr Syy') with the rotation Q = UVᵀ of the fitting folds."""
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
    whole = math.sqrt(streams.x.total * streams.y.total)
    return covered / whole if whole > 0 else math.nan


MEASURES: dict[str, Measure] = {
    m.name: m for m in (DebiasedCka(), Cka(), Cca(), Svcca(), Procrustes())
}
"""All measures by name."""
