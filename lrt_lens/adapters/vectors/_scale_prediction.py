"""At which scale will a vector cost so much? A prediction from lengths alone: no forward pass of a
steered model.

    predict_scale(moved, damage=0.1)          # where calibrate_scale begins to look

A block reads the stream through a norm, so what a step changes depends on its length beside the
stream's: adding a share SHARE of the median ‖x‖ costs about 0.1 nats per token, whichever the
direction. For a small step damage grows with the square:

    scale = SHARE · √(damage / 0.1) · median‖x‖ / ‖v‖

and at several hook points shares add: a stream keeps the first step when it meets the second (two
layers of one concept, each calibrated alone: adding shares is 5 and 6% off, adding damages 31 and
35%). Numbers of standard deviations, Mahalanobis lengths and what reaches the logits were tried in
its place and foretell less: docs/results/strength.md has the table.

Limits: a prediction is a place to start, never a calibration. It knows nothing of the direction:
one that the model ignores takes more, one that it reads everywhere takes less.
"""

import math
from collections.abc import Sequence

from lrt_lens.adapters.vectors._steering_vector import SteeringVector

SHARE = 0.16
"""Of the median ‖x‖: the step that costs 0.1 nats per token (bundled large model: median .16;
SmolLM2-135M: .20).
"""
_BUDGET = 0.1


def predict_scale(
    vector: SteeringVector | Sequence[SteeringVector],
    damage: float = 0.1,
    *,
    median_norm: float | Sequence[float] | None = None,
) -> float:
    """The scale at which ``mode="add"`` will cost about ``damage`` nats per token on neutral text; see
    the module docstring.

    Args:
        vector: one, or one for each of several hook points that share the scale.
        damage: nats per token, as the rise of the loss or as KL.
        median_norm: median ‖residual‖ at the hook point, one for each vector; the vectors' own
            where left out.

    Raises:
        ValueError: a budget that is not positive, a vector of length 0, or one that knows no median
            norm where none is given.
    """
    vectors = (vector,) if isinstance(vector, SteeringVector) else tuple(vector)
    if not 0 < damage < math.inf:
        raise ValueError(
            f"damage is {damage}; expected a positive number of nats per token, such as 0.1"
        )
    if median_norm is None:
        norms = [one.median_norm for one in vectors]
    else:
        norms = (
            [float(median_norm)]
            if isinstance(median_norm, int | float)
            else [float(norm) for norm in median_norm]
        )
    if not vectors or len(norms) != len(vectors) or not all(0 < norm < math.inf for norm in norms):
        raise ValueError(
            f"median norms are {norms} for {len(vectors)} vector(s); give median_norm=..., a positive length for each"
        )
    if not all(one.norm > 0 for one in vectors):
        raise ValueError(
            f"vectors have norms {[one.norm for one in vectors]}; no scale makes a vector of length 0 do anything"
        )
    share_at_1 = sum(one.norm / norm for one, norm in zip(vectors, norms, strict=True))
    return SHARE * math.sqrt(damage / _BUDGET) / share_at_1
