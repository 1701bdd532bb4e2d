"""Maps that mix no dimensions: mean, translation, scaling of axes, identity.

A full map has to beat them before anything is said about shared geometry.

``Mean`` predicts the target's mean and scores 0 by definition of R². ``Identity`` and
``Translation`` take the source's coordinates as they are, ``AxisScaling`` stretches each; where the
widths differ the shared first coordinates are used and the rest is zero-padded or dropped.
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
    """``ŷ = ȳ``."""

    label: ClassVar[str] = "mean"
    separable: ClassVar[bool] = True

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Zeros."""
        return [torch.zeros_like(fit.xy)] * len(settings)


@dataclass(frozen=True)
class Translation(ClosedForm):
    """``ŷ = x + (ȳ − x̄)``: the same coordinates about another mean."""

    label: ClassVar[str] = "translation"

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """Ones on the diagonal."""
        return [_eye(fit)] * len(settings)


@dataclass(frozen=True)
class Identity(Translation):
    """``ŷ = x``: no activations are looked at."""

    label: ClassVar[str] = "identity"

    def __post_init__(self) -> None:
        if self.standardize:
            raise ValueError(
                "Identity(standardize=True) would look at activations, which identity does not; "
                "use Translation(standardize=True)"
            )

    @property
    def has_intercept(self) -> bool:
        """There is no bias."""
        return False


@dataclass(frozen=True)
class AxisScaling(ClosedForm):
    """``ŷ_j = a_j x_j + b_j``, each dimension by least squares of its own."""

    label: ClassVar[str] = "axis_scaling"

    def weights(self, fit: Scatter, settings: Sequence[Setting]) -> Sequence[Tensor]:
        """``a_j = Sxy_jj / Sxx_jj``; 0 where the source does not vary."""
        variance, covariance = fit.second_x.diagonal[: fit.xy.shape[1]], fit.xy.diagonal()
        variance = variance[: len(covariance)]
        varies = varying(variance)
        slope = torch.where(
            varies, covariance / torch.where(varies, variance, torch.ones_like(variance)), 0.0
        )
        weight = _eye(fit)
        weight.diagonal().mul_(slope)
        return [weight] * len(settings)


def _eye(fit: Scatter) -> Tensor:
    return torch.eye(*fit.xy.shape, dtype=fit.xy.dtype, device=fit.xy.device)
