"""Length of a transferred direction.

    deviations = stitch.source_statistics.deviation, stitch.target_statistics.deviation
    resized(mapped, direction, "match", deviations, "vector 'sentiment'")

Problem: a map fitted with a penalty shortens directions, and the streams of two models have
different sizes. Mechanism: the length is set by the deviations of both streams along the direction.

Limits: ``"match"`` needs the covariance of both streams.
"""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Deviation = Callable[[Tensor], float]
"""Function from a direction to the standard deviation of a stream along it."""


def resized(
    mapped: Float[Tensor, "d_target"],
    direction: Float[Tensor, "d_source"],
    norm: Literal["match", "mapped", "unit"],
    deviations: tuple[Deviation, Deviation],
    what: str,
) -> Float[Tensor, "d_target"]:
    """Mapped direction [d_target] with the length of a rule.

    Args:
        mapped: image of ``direction``.
        direction: direction in the source, [d_source].
        norm: ``"match"``, ``"mapped"`` or ``"unit"``, as in `transfer_vector`.
        deviations: functions that give the standard deviation of the source's and of the target's
            stream along a direction.
        what: name of the direction, for the error.

    Raises:
        ValueError: the image is zero.
    """
    length = mapped.norm()
    if not length > 0:
        raise ValueError(
            f"the map sends {what} to zero, because the target's stream does not depend on its "
            "direction; transfer another vector, or fit the map on more texts"
        )
    if norm == "mapped":
        return mapped
    if norm == "unit":
        return mapped / length
    # ‖u‖ = ‖v‖ · σ_target(û) / σ_source(v̂); the floor avoids 0/0 in a stream without variance.
    n_deviations = direction.norm() / max(deviations[0](direction), 1e-30)
    return mapped / length * n_deviations * deviations[1](mapped)
