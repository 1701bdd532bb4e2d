"""Rotations: how much of a map is a change of axes?

Minimises ``Σ‖y − sxQ − b‖²`` over semi-orthogonal ``Q`` [d_source, d_target] (``QQᵀ = I`` where the
target is wider, ``QᵀQ = I`` where the source is).

For ``d_source ≤ d_target`` it is a closed form (Schönemann 1966): ``Sxy = UΣVᵀ``, ``Q = UVᵀ``, ``s
= tr Σ / tr Sxx``. For a wider source the quadratic term depends on ``Q`` and there is none;
`_narrowing` alternates between ``Q`` and what it leaves out (ten Berge & Knol 1984): with an
orthogonal complement ``C`` of ``Q``, the target is thought to have ``xC`` for further dimensions,
and ``[Q C] ← polar([sSxy, s²Sxx C])`` never raises the error. Taking ``C`` a step further in the
direction it came from halves the number of steps; one that raises the error is taken back. It
starts at ``UVᵀ``; the minimum it reaches is a local one. Fits that leave a fold out start at the
fit of all folds, so that they are the same minimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrt_lens.moments._scatter import Scatter
from lrt_lens.stitching.solvers._solver import ClosedForm, Setting

_MAX_ITERATIONS = 25
_MAX_REFIT_ITERATIONS = 3
"""Of a fit without one fold: it starts a step away from where it ends."""
_MOMENTUM = 0.8
_TOLERANCE = 1e-4
"""Relative decrease of the error, over five iterations, at which the alternation stops."""
_WELL_CONDITIONED = 1e-10
"""Ratio of squared singular values above which the Gram matrix loses nothing that matters."""
_NOT_SINGULAR = 1e-14
"""The same where what is lost is made good by Newton steps."""


@dataclass(frozen=True)
class Procrustes(ClosedForm):
    """Semi-orthogonal map, by default with one scale for all directions."""

    scale: bool = True
    """Whether the map may stretch as a whole; False is a rigid motion."""
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
        """``sQ``."""
        rotation = _polar(fit.xy)
        if fit.xy.shape[0] > fit.xy.shape[1]:
            begun = (
                (rotation, _MAX_ITERATIONS)
                if start is None
                else (_polar(start), _MAX_REFIT_ITERATIONS)
            )
            rotation = self._narrowing(fit, *begun)
        return [self._stretch(rotation, fit) * rotation] * len(settings)

    def _stretch(self, rotation: Tensor, fit: Scatter) -> Tensor:
        quadratic = (rotation * (fit.xx @ rotation)).sum()
        if not self.scale:
            return torch.ones_like(quadratic)
        return (rotation * fit.xy).sum() / quadratic.clamp_min(torch.finfo(quadratic.dtype).tiny)

    def _narrowing(self, fit: Scatter, rotation: Tensor, iterations: int) -> Tensor:
        """Alternation for a source wider than the target."""
        width = fit.xy.shape[1]
        whole = before = torch.cat(
            [rotation, torch.linalg.qr(rotation, mode="complete").Q[:, width:]], 1
        )
        least = looked = self._error(rotation, fit)
        for iteration in range(1, iterations + 1):
            ahead = whole + _MOMENTUM * (whole - before)
            scale = self._stretch(ahead[:, :width], fit)
            after = _rotation(
                torch.cat([scale * fit.xy, scale**2 * (fit.xx @ ahead[:, width:])], 1)
            )
            error = self._error(after[:, :width], fit)
            if error > least:
                # Too far: the next step starts from here, at rest.
                before = whole
                continue
            before, whole, least = whole, after, error
            if iteration % 5 == 0:
                if looked - error < _TOLERANCE * error:
                    break
                looked = error
        return whole[:, :width]

    def _error(self, rotation: Tensor, fit: Scatter) -> float:
        """Σ‖y − sxQ‖² over centred rows."""
        scale = self._stretch(rotation, fit)
        return float(
            fit.variance.sum()
            + scale**2 * (rotation * (fit.xx @ rotation)).sum()
            - 2 * scale * (rotation * fit.xy).sum()
        )


def _rotation(matrix: Tensor) -> Tensor:
    """Return the orthogonal matrix nearest to a square one.

    It is found from the Gram matrix, and made orthogonal to rounding by Newton's steps.
    """
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    if values[0] <= _NOT_SINGULAR * values[-1]:
        return _polar(matrix)
    rotation = matrix @ (vectors * values.rsqrt()) @ vectors.T
    for _ in range(3):
        gram = rotation.T @ rotation
        if float((gram.diagonal() - 1).abs().max()) < 1e-13:
            break
        rotation = 1.5 * rotation - 0.5 * (rotation @ gram)
    return rotation


def _polar(matrix: Tensor) -> Tensor:
    """Return the semi-orthogonal matrix nearest to ``matrix``.

    This is UVᵀ of its singular value decomposition, computed by way of the smaller Gram matrix.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return _polar(matrix.T).T
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    if values[0] > _WELL_CONDITIONED * values[-1]:
        return matrix @ (vectors * values.rsqrt()) @ vectors.T
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh
