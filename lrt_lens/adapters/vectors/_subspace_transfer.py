"""Transfer of a steering subspace by a stitch.

    transferred = stitch.transfer(subspace)                     # norm="match"

Problem: a map sends orthonormal directions to oblique ones of other lengths. Mechanism: directions
map without bias, B W, and the rows of the transferred basis are the orthonormal ones closest to the
images (`lrt_lens.adapters.vectors._orthonormal`), so that the span is the image of the span for any
map. Distances are Euclidean ones of the target's stream, because ablation and projection there are
Euclidean too; whitening the images would choose other rows of the same span. What scale 1 adds is
transferred as a vector, with the same rules for its length, and lies in the transferred span. The
centre is a point and maps with the bias, c W + b.

Every rule depends on the span, on what scale 1 adds and on the centre alone, and not on the rows:
matching the length of each row in standard deviations would give another result for other rows of
one subspace.

Limits: a subspace that the map sends to fewer dimensions is refused.
"""

from dataclasses import replace
from typing import Any, Literal

from lrt_lens.adapters.vectors._mapped_length import resized
from lrt_lens.adapters.vectors._steering_subspace import SteeringSubspace
from lrt_lens.adapters.vectors._transfer import route_of
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching._stitch_data import StitchData, transfer_artefact


@transfer_artefact.register
def transfer_subspace(
    subspace: SteeringSubspace,
    stitch: StitchData,
    *,
    bias: Literal["none"] = "none",
    norm: Literal["match", "mapped", "unit"] = "match",
    through: Any = None,
) -> SteeringSubspace:
    """Return a subspace transferred to the stitch's target hook point.

    Args:
        subspace: learnt at the stitch's source hook point.
        stitch: the maps between both hook points and the statistics of both streams.
        bias: ``"none"``; directions of a span have no bias.
        norm: rule for the length of what scale 1 adds, see `transfer_vector`.
        through: another `AffineMap` between the same hook points, or a pair of maps such as
            ``stitch.null``, of which the map up is used; for controls.

    Raises:
        MismatchError: a subspace or a map of another hook point, model or width.
        ValueError: an unknown rule, a bias, or a map that sends the subspace to fewer dimensions.
    """
    stitch.refuse_foreign(subspace.origin)
    through = through.up if isinstance(through, MapPair) else through
    if through is not None:
        stitch.refuse_other_map("through=", through)
    if bias != "none" or norm not in ("match", "mapped", "unit"):
        raise ValueError(
            f"bias {bias!r}, norm {norm!r}; expected none, and match, mapped or unit: directions of"
            " a subspace have no bias, and SteeringVector has bias='add'"
        )
    affine = stitch.up if through is None else through
    rows = affine.directions(subspace.basis.double())
    # (a B) W is in the span of B W.
    direction = subspace.coefficients.double() @ subspace.basis.double()
    step = affine.directions(direction)
    if subspace.norm > 0:
        deviations = stitch.source_statistics.deviation, stitch.target_statistics.deviation
        step = resized(step, direction, norm, deviations, f"subspace {subspace.name!r}")
    centre = None if subspace.centre is None else affine.points(subspace.centre.double()).float()
    moved = replace(
        subspace,
        hook=stitch.source_hook,
        median_norm=stitch.target_statistics.median_norm,
        transferred_by="stitch",
        route=route_of(stitch, through),
        strength=None,
    )
    return moved.with_span(rows, step, hook=stitch.target_hook, model=stitch.target, centre=centre)
