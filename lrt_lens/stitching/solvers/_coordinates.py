"""Baselines that mix no dimensions: mean, translation, scaling of axes, identity.

Problem: a full map shows shared geometry only if it is better than maps that cannot rotate.
Mechanism: ``Mean`` predicts the target's mean, which scores 0 by the definition of R². ``Identity``
and ``Translation`` use the source's coordinates unchanged; ``AxisScaling`` multiplies each
separately.

    grid.compare([Mean(), Identity(), Translation(), AxisScaling(), Ridge()])

Limits: if the widths differ, coordinate j of the source predicts coordinate j of the target for
the first min(d_source, d_target) coordinates. Further source coordinates are dropped, further
target coordinates get their mean (0 under ``Identity``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrt_lens.moments._scatter import Scatter, varying
from lrt_lens.stitching.solvers._solver import ClosedForm, Setting


@dataclass(frozen=True)
class Mean(ClosedForm):
    """The constant prediction ``ŷ = ȳ``."""

    label: ClassVar[str] = "mean"
    separable: ClassVar[bool] = True

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Return a weight of zeros for every setting."""
        return [torch.zeros_like(fit.xy)] * len(settings)


@dataclass(frozen=True)
class Translation(ClosedForm):
    """The source's coordinates about the target's mean: ``ŷ = x + (ȳ − x̄)``."""

    label: ClassVar[str] = "translation"

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Return the identity matrix [d_source, d_target] for every setting."""
        return [_eye(fit)] * len(settings)


@dataclass(frozen=True)
class Identity(Translation):
    """The source's coordinates unchanged: ``ŷ = x``, a map that reads no activations."""

    label: ClassVar[str] = "identity"

    def __post_init__(self) -> None:
        if self.standardize:
            raise ValueError(
                "Identity(standardize=True) would read the activations' variances, but Identity "
                "reads no activations; use Translation(standardize=True)"
            )

    @property
    def has_intercept(self) -> bool:
        """False, because the identity has no bias."""
        return False


@dataclass(frozen=True)
class AxisScaling(ClosedForm):
    """One least-squares line per dimension: ``ŷ_j = a_j x_j + b_j``."""

    label: ClassVar[str] = "axis_scaling"

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Return the diagonal weight of the slopes; a slope is 0 if the source does not vary."""
        # The diagonal of a rectangular Sxy has min(d_source, d_target) entries.
        variance, covariance = fit.second_x.diagonal[: fit.xy.shape[1]], fit.xy.diagonal()
        variance = variance[: len(covariance)]
        varies = varying(variance)
        # a_j = Sxy_jj / Sxx_jj
        slope = torch.where(
            varies, covariance / torch.where(varies, variance, torch.ones_like(variance)), 0.0
        )
        weight = _eye(fit)
        weight.diagonal().mul_(slope)
        return [weight] * len(settings)


def _eye(fit: Scatter) -> Tensor:
    return torch.eye(*fit.xy.shape, dtype=fit.xy.dtype, device=fit.xy.device)
