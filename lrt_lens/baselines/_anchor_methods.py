"""Five methods that fit a linear map from anchors: texts that both models have read.

Problem: the papers of these methods report different measures on different models. Mechanism: five
methods that are fitted on the same rows, each with its own W.

X [n, d_source] and Y [n, d_target] are the centred rows of the anchors; X̂ and Ŷ are the same rows
scaled to length 1; s is a factor by least squares on the anchors, because cosines hold no length;
σ are standard deviations per dimension.

| method | W | source |
| --- | --- | --- |
| `RelativeRepresentation` | s·X̂ᵀ(Ŷᵀ)⁺ | Moschella 2209.15430, 2406.15057 |
| `AnchorProjection` | s·X̂ᵀŶ | after ACS, Kim & Han 2605.09875 |
| `AnchorProcrustes` | UVᵀ of XᵀY = UΣVᵀ, standardised | Maiorca et al. 2311.00664, *ortho* |
| `AnchorLinear` | X⁺Y, standardised | Maiorca et al. 2311.00664, *linear* |
| `AnchorRidge` | ridge, penalty by cross-validation | ours: the data without the method |

A relative representation describes a row by its cosines to the source's anchors and inverts these
on the target's; it is not linear: cos(x, aᵢ) = x·âᵢ / ‖x‖. But it is linear up to the length ‖x‖,
which the inversion does not need, because cosines scale with it. So x ↦ ‖x‖·(image of x) is exactly
the linear map above, and it maps directions as it maps points about the mean.

Zero-padding to equal width adds rows and columns of zeros to XᵀY, so the orthogonal matrix of the
padded problem, restricted to the real dimensions, is the thin UVᵀ.

Limits: directions that no anchor shows (n < d) are mapped to zero; a full orthogonal matrix would
map them to arbitrary directions.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lrt_lens.adapters.concepts._row_maps import RCOND, fit_rows

Centred = Float[Tensor, "anchor d"]
"""Centred rows of anchors."""


@runtime_checkable
class AnchorMethod(Protocol):
    """A fit of a linear map from centred anchors."""

    name: ClassVar[str]
    """Name of the method in tables."""

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """Return W of ``y ≈ x W`` for centred rows, float64."""
        ...


@dataclass(frozen=True)
class RelativeRepresentation:
    """Cosines to the source's anchors, inverted on the target's."""

    rcond: float = RCOND
    """Cut-off of the pseudo-inverse, as a share of the target anchors' largest singular value.

    The paper prunes anchors instead.
    """
    name: ClassVar[str] = "relative"

    def __post_init__(self) -> None:
        if not 0 < self.rcond < 1:
            raise ValueError(
                f"rcond is {self.rcond}; expected a share between 0 and 1, such as 1e-6 or 0.1"
            )

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """Return s·X̂ᵀ(Ŷᵀ)⁺."""
        # X̂ᵀ are cosines to the source's anchors (up to ‖x‖); (Ŷᵀ)⁺ inverts those to the target's.
        return _scaled(_unit(x).T @ torch.linalg.pinv(_unit(y).T, rtol=self.rcond), x, y)


@dataclass(frozen=True)
class AnchorProjection:
    """Sum of the target's anchors, weighted by cosines to the source's anchors."""

    name: ClassVar[str] = "anchor_projection"

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """Return s·X̂ᵀŶ."""
        # x X̂ᵀ holds ‖x‖ times the cosine to each anchor, the weight of its row of Ŷ.
        return _scaled(_unit(x).T @ _unit(y), x, y)


@dataclass(frozen=True)
class AnchorProcrustes:
    """Rotation between standardised anchors, zero-padded to equal width."""

    name: ClassVar[str] = "procrustes"

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """Return σ_x⁻¹·UVᵀ·σ_y."""
        sx, sy = _deviations(x), _deviations(y)
        # W = diag(1/σ_x) · UVᵀ · diag(σ_y)
        return rotation((x / sx).T @ (y / sy)) / rearrange(sx, "d -> d 1") * sy


@dataclass(frozen=True)
class AnchorLinear:
    """Minimum-norm least squares between standardised anchors, exact on them if n ≤ d."""

    name: ClassVar[str] = "linear"

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """Return σ_x⁻¹·(X/σ_x)⁺Y."""
        sx = _deviations(x)
        # W = diag(1/σ_x) (X/σ_x)⁺ Y. Dividing Y by σ_y and multiplying again would change nothing,
        # because least squares treats each column of Y by itself.
        return torch.linalg.pinv(x / sx, rtol=RCOND) @ y / rearrange(sx, "d -> d 1")


@dataclass(frozen=True)
class AnchorRidge:
    """Ridge on the anchors: the same data without any of the methods above."""

    name: ClassVar[str] = "anchor_ridge"

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """Return the weight of `fit_rows`, with its penalty chosen by cross-validation."""
        # Each anchor is a group of its own, so folds are over anchors.
        return fit_rows(x, y, groups=range(len(x)), method="ridge", score=False).weight


ANCHOR_METHODS: tuple[AnchorMethod, ...] = (
    RelativeRepresentation(),
    AnchorProjection(),
    AnchorProcrustes(),
    AnchorLinear(),
    AnchorRidge(),
)
"""All methods, with the settings of their papers."""


def rotation(cross: Float[Tensor, "d_source d_target"]) -> Float[Tensor, "d_source d_target"]:
    """Return UVᵀ of a cross-scatter UΣVᵀ (Schönemann 1966), zero on directions without covariance.

    It solves the orthogonal Procrustes problem min_Q ‖XQ − Y‖ for the cross-scatter XᵀY.
    """
    u, values, vh = torch.linalg.svd(cross, full_matrices=False)
    # Singular vectors of zero singular values are arbitrary, so they are left out.
    shown = values > RCOND * values[0].clamp_min(torch.finfo(values.dtype).tiny)
    return u[:, shown] @ vh[shown]


def _unit(rows: Tensor) -> Tensor:
    # A row of zeros stays zero; 0/0 would be NaN.
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _deviations(rows: Tensor) -> Tensor:
    """Return the standard deviations [d] of centred rows; 1 for a constant dimension."""
    deviations = rows.square().mean(0).sqrt()
    # A constant dimension is not exactly 0 in floating point.
    varies = deviations > RCOND * deviations.max()
    return torch.where(varies, deviations, torch.ones_like(deviations))


def _scaled(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return s·W with the factor s that fits the anchors best."""
    # s = ⟨XW, Y⟩ / ‖XW‖²
    predicted = x @ weight
    tiny = torch.finfo(weight.dtype).tiny
    return weight * ((predicted * y).sum() / predicted.square().sum().clamp_min(tiny))
