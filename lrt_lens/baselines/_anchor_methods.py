"""Five ways from anchors to a linear map: what cross-family papers do with texts that both models
have read.

X [n, d_source] and Y [n, d_target] are the anchors' rows about their own means; X̂ and Ŷ the same
with rows of length 1; s a factor by least squares on the anchors, because cosines know no length.

| method | W | source |
| --- | --- | --- |
| `RelativeRepresentation` | s·X̂ᵀ(Ŷᵀ)⁺: cosines to the source's anchors, inverted on the target's | Moschella 2209.15430, 2406.15057 |
| `AnchorProjection` | s·X̂ᵀŶ: cosines to the source's anchors weigh the target's anchors | after ACS, Kim & Han 2605.09875 |
| `AnchorProcrustes` | UVᵀ of XᵀY = UΣVᵀ, dimensions standardised | Maiorca et al. 2311.00664, *ortho* |
| `AnchorLinear` | X⁺Y, dimensions standardised | the same, *linear* |
| `AnchorRidge` | ridge, penalty by cross-validation | ours: the same data without the method |

A relative representation is not linear: cos(x, aᵢ) = x·âᵢ / ‖x‖. But it is linear up to that one
length, which the way back does not need, because cosines scale with it. So x ↦ ‖x‖·(its image) is
exactly the linear map above, and a direction goes the same way as a point about the mean.

Zero-padding to equal width adds rows and columns of zeros to XᵀY, so that the orthogonal matrix of
the padded problem restricted to the real dimensions is the thin UVᵀ. Directions that no anchor
shows (n < d) go to zero here; a full orthogonal matrix would send them somewhere arbitrary.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.adapters.concepts._row_maps import RCOND, fit_rows

Centred = Float[Tensor, "anchor d"]


@runtime_checkable
class AnchorMethod(Protocol):
    """From centred anchors to a linear map."""

    name: ClassVar[str]
    """As it stands in tables."""

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """W of ``y ≈ x W`` for rows about their means, float64."""
        ...


@dataclass(frozen=True)
class RelativeRepresentation:
    """Cosines to the source's anchors, inverted on the target's."""

    rcond: float = RCOND
    """Singular values of the target's anchors below this share of the largest count as zero; the
    paper prunes anchors instead.
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
        """s·X̂ᵀ(Ŷᵀ)⁺."""
        return _scaled(_unit(x).T @ torch.linalg.pinv(_unit(y).T, rtol=self.rcond), x, y)


@dataclass(frozen=True)
class AnchorProjection:
    """Cosines to the source's anchors weigh those of the target."""

    name: ClassVar[str] = "anchor_projection"

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """s·X̂ᵀŶ."""
        return _scaled(_unit(x).T @ _unit(y), x, y)


@dataclass(frozen=True)
class AnchorProcrustes:
    """The rotation between standardised anchors, zero-padded to equal width."""

    name: ClassVar[str] = "procrustes"

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """σ_x⁻¹·UVᵀ·σ_y."""
        sx, sy = _deviations(x), _deviations(y)
        return rotation((x / sx).T @ (y / sy)) / sx[:, None] * sy


@dataclass(frozen=True)
class AnchorLinear:
    """Minimum-norm least squares between standardised anchors: with n ≤ d it runs through all of
    them.
    """

    name: ClassVar[str] = "linear"

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """σ_x⁻¹·X⁺Y."""
        sx = _deviations(x)
        return torch.linalg.pinv(x / sx, rtol=RCOND) @ y / sx[:, None]


@dataclass(frozen=True)
class AnchorRidge:
    """Ridge on the anchors: what they are worth without any of the ideas above."""

    name: ClassVar[str] = "anchor_ridge"

    def weight(
        self, x: Centred, y: Float[Tensor, "anchor d_target"]
    ) -> Float[Tensor, "d d_target"]:
        """As `lrt_lens.adapters.concepts._row_maps.fit_rows`."""
        return fit_rows(x, y, groups=range(len(x)), method="ridge", score=False).weight


ANCHOR_METHODS: tuple[AnchorMethod, ...] = (
    RelativeRepresentation(),
    AnchorProjection(),
    AnchorProcrustes(),
    AnchorLinear(),
    AnchorRidge(),
)
"""All of them, as the papers have them."""


def rotation(cross: Float[Tensor, "d_source d_target"]) -> Float[Tensor, "d_source d_target"]:
    """UVᵀ of a cross-scatter UΣVᵀ over the directions that it shows (Schönemann 1966): zero on the
    others.
    """
    u, values, vh = torch.linalg.svd(cross, full_matrices=False)
    shown = values > RCOND * values[0].clamp_min(torch.finfo(values.dtype).tiny)
    return u[:, shown] @ vh[shown]


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _deviations(rows: Tensor) -> Tensor:
    """Return standard deviations [d], 1 for a dimension that does not vary."""
    found = rows.square().mean(0).sqrt()
    return torch.where(found > RCOND * found.max(), found, torch.ones_like(found))


def _scaled(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The weight times the factor that fits the anchors best."""
    predicted = x @ weight
    return weight * (
        (predicted * y).sum() / predicted.square().sum().clamp_min(torch.finfo(weight.dtype).tiny)
    )
