"""Prediction of the scale at which a steering vector causes a wanted damage, from norms alone.

Problem: a search for the scale of a damage needs a first value, and the norms of steering vectors
differ by orders of magnitude. Mechanism: a block reads the stream through a normalisation, so the
effect of a step depends on its norm relative to that of the stream. A step of SHARE of the median
‖x‖ raises the loss by about 0.1 nats per token in any direction, and damage grows with the square
of a small step:

    scale = SHARE · √(damage / 0.1) · median‖x‖ / ‖v‖

    predict_scale(transferred, damage=0.1)    # first scale that calibrate_scale tries

At several hook points the shares ‖v‖ / median‖x‖ add up, because the stream still contains the
first step at the second hook point. For two layers of one concept, each calibrated alone, adding
shares is off by 5 % and 6 %, adding damages by 31 % and 35 %. Alternatives (number of standard
deviations, Mahalanobis norm, effect on the logits) predict worse: see docs/results/strength.md.

Limits: a first guess, not a calibration. The direction is not used: one that the model ignores
needs a larger scale, one that every component reads a smaller one.
"""

import math
from collections.abc import Sequence

from lrt_lens.adapters.vectors._steering_vector import SteeringVector

SHARE = 0.16
"""Length of the step that costs 0.1 nats per token, as a share of the median ‖x‖.

Median over the measured directions: 0.16 in the bundled large model, 0.20 in SmolLM2-135M.
"""
_BUDGET = 0.1
"""Damage at which SHARE was measured, in nats per token."""


def predict_scale(
    vector: SteeringVector | Sequence[SteeringVector],
    damage: float = 0.1,
    *,
    median_norm: float | Sequence[float] | None = None,
) -> float:
    """Return the scale at which adding the vector is predicted to cause ``damage``.

    Args:
        vector: one vector, or several at different hook points that share the scale.
        damage: nats per token on neutral text, as the rise of the loss or as KL divergence.
        median_norm: median ‖x‖ of the stream at the hook point, one number per vector; by default
            the ``median_norm`` of each vector.

    Raises:
        ValueError: a damage that is not positive, a vector of length 0, or a median norm that is
            neither an argument nor stored in the vector.
    """
    vectors = (vector,) if isinstance(vector, SteeringVector) else tuple(vector)
    if not 0 < damage < math.inf:
        raise ValueError(
            f"damage is {damage}; expected a positive number of nats per token, such as 0.1"
        )
    norms = _median_norms(vectors, median_norm)
    if not all(one.norm > 0 for one in vectors):
        raise ValueError(
            f"vectors have norms {[one.norm for one in vectors]}; "
            "a vector of length 0 has no effect at any scale: leave it out"
        )
    # scale = SHARE · √(damage / 0.1) / Σ ‖v‖ / median‖x‖
    share_at_1 = sum(one.norm / norm for one, norm in zip(vectors, norms, strict=True))
    return SHARE * math.sqrt(damage / _BUDGET) / share_at_1


def _median_norms(
    vectors: Sequence[SteeringVector], median_norm: float | Sequence[float] | None
) -> list[float]:
    """Return one median norm per vector; ValueError unless all are positive and finite."""
    # A vector that was learnt or transferred stores the norm of its stream.
    if median_norm is None:
        norms = [one.median_norm for one in vectors]
    elif isinstance(median_norm, int | float):
        norms = [float(median_norm)]
    else:
        norms = [float(norm) for norm in median_norm]
    if not vectors or len(norms) != len(vectors) or not all(0 < norm < math.inf for norm in norms):
        raise ValueError(
            f"median norms are {norms} for {len(vectors)} vector(s); "
            "give median_norm=..., a positive length for each"
        )
    return norms
