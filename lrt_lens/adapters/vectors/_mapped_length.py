"""Length of a transferred direction.

    resized(mapped, direction, stitch, "match", "vector 'sentiment'")

Problem: a map fitted with a penalty shortens directions, and the streams of two models have
different sizes. Mechanism: the length is set by the deviations of both streams along the direction.

Limits: ``"match"`` needs the covariance of both streams.
"""

from typing import Literal

from lrt_lens.stitching._stitch_data import StitchData
from lrt_lens.typing import Direction


def resized(
    mapped: Direction,
    direction: Direction,
    stitch: StitchData,
    norm: Literal["match", "mapped", "unit"],
    what: str,
) -> Direction:
    """Mapped direction [d_target] with the length of a rule.

    Args:
        mapped: image of ``direction``.
        direction: direction in the source, [d_source].
        stitch: statistics of both streams.
        norm: ``"match"``, ``"mapped"`` or ``"unit"``, as in `transfer_vector`.
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
    source = max(stitch.source_statistics.deviation(direction), 1e-30)
    deviations = direction.norm() / source
    return mapped / length * deviations * stitch.target_statistics.deviation(mapped)
