"""Procrustes maps: how much of the relation of two streams is a change of axes?

Objective: minimise ``Σ‖y − sxQ − b‖²`` over semi-orthogonal ``Q`` [d_source, d_target], that is
``QQᵀ = I`` if the target is at least as wide, ``QᵀQ = I`` if the source is wider.

    grid = moments.fit(Procrustes())
    grid = moments.fit(Procrustes(scale=False))      # rigid: s = 1

Mechanism: for ``d_source ≤ d_target`` there is a closed form (Schönemann 1966): ``Sxy = UΣVᵀ``,
``Q = UVᵀ``, ``s = tr Σ / tr Sxx``. For a wider source the quadratic term depends on ``Q`` and no
closed form exists. `_narrowing` then alternates between ``Q`` and its complement (ten Berge & Knol
1984): let ``C`` be an orthogonal complement of ``Q``, and extend the target by the dimensions
``s·xC``. The update ``[Q C] ← polar([s·Sxy, s²·Sxx C])`` never raises the error. Momentum (a
further step in the direction of the last one) halves the number of iterations; a step that raises
the error is rejected.

Limits: for a wider source the result is a local minimum. The iteration starts at ``UVᵀ``, and fits
without one fold start at the fit of all folds, so that all of them reach the same minimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrt_lens.moments._scatter import Scatter, gram
from lrt_lens.stitching.solvers._solver import ClosedForm, Setting

_MAX_ITERATIONS = 25
"""Most iterations of a fit that starts at ``UVᵀ``."""
_MAX_REFIT_ITERATIONS = 3
"""Most iterations of a fit without one fold, which starts close to its minimum."""
_MOMENTUM = 0.8
"""Share of the last step that is added again."""
_TOLERANCE = 1e-4
"""Relative decrease of the error, over five iterations, below which the alternation stops."""
_WELL_CONDITIONED = 1e-10
"""Least ratio λ_min/λ_max of a Gram matrix whose eigenvectors are accurate enough to use alone."""
_NOT_SINGULAR = 1e-14
"""Least ratio λ_min/λ_max of a Gram matrix if Newton–Schulz steps correct the result afterwards."""


@dataclass(frozen=True)
class Procrustes(ClosedForm):
    """Semi-orthogonal map, by default with one scale for all directions."""

    scale: bool = True
    """True if the map has one scale factor s; False fixes s = 1 (a rigid motion)."""
    label: ClassVar[str] = "procrustes"
    iterative: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        label = self.label if self.scale else "procrustes_rigid"
        return f"{label}_standardized" if self.standardize else label

    def weights(
        self, fit: Scatter, settings: Sequence[Setting], start: Tensor | None = None
    ) -> Sequence[Tensor]:
        """Return ``sQ`` for every setting."""
        if fit.xy.shape[0] <= fit.xy.shape[1]:
            # Q = UVᵀ of Sxy = UΣVᵀ
            rotation = polar(fit.xy)
        else:
            rotation = self._narrowing(fit, start)
        return [self._stretch(rotation, fit) * rotation] * len(settings)

    def _stretch(self, rotation: Tensor, fit: Scatter) -> Tensor:
        # s = tr QᵀSxy / tr QᵀSxxQ minimises the error for a fixed Q.
        quadratic = (rotation * (fit.xx @ rotation)).sum()
        if not self.scale:
            return torch.ones_like(quadratic)
        return (rotation * fit.xy).sum() / quadratic.clamp_min(torch.finfo(quadratic.dtype).tiny)

    def _narrowing(self, fit: Scatter, start: Tensor | None) -> Tensor:
        """Return Q for a source wider than the target, by alternation from UVᵀ or ``start``."""
        width = fit.xy.shape[1]
        rotation = polar(fit.xy if start is None else start)
        # [Q C], square: the complete QR decomposition of Q gives its orthogonal complement C.
        whole = torch.cat([rotation, torch.linalg.qr(rotation, mode="complete").Q[:, width:]], 1)
        iterations = _MAX_ITERATIONS if start is None else _MAX_REFIT_ITERATIONS
        whole = _Alternation(fit.xx, fit.xy, fit.variance.sum(), self.scale).run(whole, iterations)
        return _orthogonal(whole[:, :width])


@dataclass(frozen=True)
class _Point:
    """A square orthogonal matrix ``[Q C]`` and its product with Sxx, both [d_source, d_source]."""

    whole: Tensor
    product: Tensor

    def beyond(self, before: "_Point") -> "_Point":
        """Return the point a share of the last step further on; it is not orthogonal."""
        # The product is linear in the point, so it needs no product of its own.
        return _Point(
            self.whole.lerp(before.whole, -_MOMENTUM), self.product.lerp(before.product, -_MOMENTUM)
        )


@dataclass(frozen=True)
class _Alternation:
    """The alternation for a source wider than the target, on the sums of one scatter."""

    xx: Tensor
    xy: Tensor
    variance: Tensor
    """tr Syy."""
    scale: bool

    def at(self, whole: Tensor) -> _Point:
        """Return a point, from its matrix [d_source, d_source]."""
        return _Point(whole, self.xx @ whole)

    def run(self, whole: Tensor, iterations: int) -> Tensor:
        """Return [Q C] after at most ``iterations`` steps from ``whole``."""
        now = before = self.at(whole)
        least = looked = self.error(now)
        for iteration in range(1, iterations + 1):
            after = self.at(self._step(now.beyond(before)))
            error = self.error(after)
            if error > least:
                # The step went too far: reject it and take the next one without momentum.
                before = now
                continue
            before, now, least = now, after, error
            if iteration % 5 == 0:
                if looked - error < _TOLERANCE * error:
                    break
                looked = error
        return now.whole

    def error(self, point: _Point) -> float:
        """Return Σ‖y − sxQ‖² over centred rows."""
        scale, linear, quadratic = self._scale(point)
        # tr Syy + s²·tr QᵀSxxQ − 2s·tr QᵀSxy
        return float(self.variance + scale**2 * quadratic - 2 * scale * linear)

    def _step(self, point: _Point) -> Tensor:
        scale, _, _ = self._scale(point)
        # [Q C] ← polar([s·Sxy, s²·Sxx C])
        width = self.xy.shape[1]
        return _rotation(torch.cat([scale * self.xy, scale**2 * point.product[:, width:]], 1))

    def _scale(self, point: _Point) -> tuple[Tensor, Tensor, Tensor]:
        """Return s, tr QᵀSxy and tr QᵀSxxQ."""
        width = self.xy.shape[1]
        rotation = point.whole[:, :width]
        linear = (rotation * self.xy).sum()
        quadratic = (rotation * point.product[:, :width]).sum()
        if not self.scale:
            return torch.ones_like(linear), linear, quadratic
        return linear / quadratic.clamp_min(torch.finfo(quadratic.dtype).tiny), linear, quadratic


def _rotation(matrix: Tensor) -> Tensor:
    """Return the orthogonal matrix nearest to a square one, up to rounding errors of its spectrum.

    `_orthogonal` removes what these leave; an iteration needs it only where they are large.
    """
    # polar(M) = M (MᵀM)^-½ is faster than a singular value decomposition, but squares the
    # condition number.
    values, vectors = torch.linalg.eigh(gram(matrix))
    ratio = float(values[0] / values[-1].clamp_min(torch.finfo(values.dtype).tiny))
    if ratio <= _NOT_SINGULAR:
        return polar(matrix)
    # (MᵀM)^-½ = (V e^-¼)(V e^-¼)ᵀ
    rotation = matrix @ gram((vectors * values**-0.25).T)
    return rotation if ratio > _WELL_CONDITIONED else _orthogonal(rotation)


def _orthogonal(rotation: Tensor) -> Tensor:
    """Return columns that are almost orthonormal made orthonormal to rounding."""
    # Newton–Schulz steps R ← R(3I − RᵀR)/2 converge quadratically: an error of 1e-2 (at a ratio of
    # 1e-14) → 1e-4 → 1e-8 → 1e-16.
    for _ in range(3):
        product = gram(rotation)
        if float((product.diagonal() - 1).abs().max()) < 1e-13:
            break
        rotation = 1.5 * rotation - 0.5 * (rotation @ product)
    return rotation


def polar(matrix: Tensor) -> Tensor:
    """Return the semi-orthogonal matrix nearest to ``matrix``: UVᵀ of its decomposition UΣVᵀ."""
    # M (MᵀM)^-½ = UVᵀ, from the smaller Gram matrix; an ill-conditioned one needs the full
    # decomposition, because its small eigenvalues are rounding errors.
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    if values[0] > _WELL_CONDITIONED * values[-1]:
        return matrix @ (vectors * values.rsqrt()) @ vectors.T
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh
