"""A direction without its component in the span of others.

    outside_span(vector.direction, stitch.source_statistics.principal_directions(2))

Problem: a few directions of a stream have most of its variance and may rule a vector that is learnt
from few texts. Mechanism: the vector's component in their span is subtracted.

Limits: the component of the concept along these directions goes with them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.typing import Direction

_ROUNDING = 1e-6
"""Share of a direction's length that rounding to float32 leaves of one that lies in the span."""


def outside_span(direction: Direction, directions: Float[Tensor, "direction d_model"]) -> Direction:
    """Return a direction without its component in the span of some others.

    Raises:
        ValueError: the others have another width or depend on each other, or nothing but rounding
            is left.
    """
    n, width = directions.shape
    if width != len(direction) or torch.linalg.matrix_rank(directions.double()) < n:
        raise ValueError(
            f"directions has the shape {tuple(directions.shape)}; expected independent rows of"
            f" {len(direction)} entries, as many as the vector has"
        )
    # v − QQᵀv with orthonormal columns Q that span the directions
    basis = torch.linalg.qr(directions.to(direction.device).double().T).Q
    own = direction.double()
    rest = own - basis @ (basis.T @ own)
    if rest.norm() <= _ROUNDING * own.norm():
        raise ValueError(
            f"the vector lies in the span of the {n} directions, so that nothing is left of it; "
            "take away fewer directions"
        )
    return rest.float()
