"""Transfer of a steering vector by a stitch.

    transferred = stitch.transfer(vector)                       # norm="match", bias="none"

Problem: a direction is learnt on a small model and used on a large one, whose stream has another
basis and another size. Mechanism: a direction is a difference, so the stitch's bias is not added to
it by default (Stitching, §4); ``bias="add"`` is the rule of LRT (§3, ṽ = Av + p). L-Cross has no
bias in its map: fit a map without bias and use ``bias="none"``. ``norm="match"`` gives the vector
as many standard deviations of the target's stream along its direction as it had in the source:
``‖u‖ = ‖v‖·σ_target(û)/σ_source(v̂)``.

Limits: one direction at one hook point.
"""

from dataclasses import replace
from typing import Any, Literal

from lrt_lens.adapters.vectors._mapped_length import resized
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._strength import Strength
from lrt_lens.adapters.vectors._transfer_route import TransferRoute
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch_data import StitchData, transfer_artefact


@transfer_artefact.register
def transfer_vector(
    vector: SteeringVector,
    stitch: StitchData,
    *,
    bias: Literal["none", "add"] = "none",
    norm: Literal["match", "mapped", "unit"] = "match",
    through: Any = None,
) -> SteeringVector:
    """Return a steering vector transferred to the stitch's target hook point.

    Args:
        vector: learnt at the stitch's source hook point.
        stitch: the maps between both hook points and the statistics of both streams.
        bias: ``"none"`` maps the direction, v W (Stitching, §4); ``"add"`` is the rule of LRT (§3),
            v W + b.
        norm: ``"match"`` keeps the number of standard deviations along the direction; ``"mapped"``
            keeps the length of the mapped vector; ``"unit"`` gives length 1.
        through: another `AffineMap` between the same hook points, or a pair of maps such as
            ``stitch.null``, of which the map up is used; for controls.

    Raises:
        MismatchError: a vector or a map of another hook point, model or width.
        ValueError: an unknown rule, or a map that sends the vector to zero.
    """
    stitch.refuse_foreign(vector.origin)
    through = through.up if isinstance(through, MapPair) else through
    if through is not None:
        stitch.refuse_other_map("through=", through)
    if bias not in ("none", "add") or norm not in ("match", "mapped", "unit"):
        raise ValueError(
            f"bias {bias!r}, norm {norm!r}; expected none or add, and match, mapped or unit"
        )
    affine = through if through is not None else stitch.up
    # Maps are fitted in float64; the result is rounded to float32 once, at the end.
    direction = vector.direction.double()
    # LRT: ṽ = v W + b. Stitching: ṽ = v W, because b cancels in a difference of two points.
    mapped = affine.points(direction) if bias == "add" else affine.directions(direction)
    deviations = stitch.source_statistics.deviation, stitch.target_statistics.deviation
    mapped = resized(mapped, direction, norm, deviations, f"vector {vector.name!r}")
    return replace(
        vector,
        direction=mapped.float(),
        hook=stitch.target_hook,
        model=stitch.target,
        median_norm=stitch.target_statistics.median_norm,
        transferred_by="stitch",
        route=route_of(stitch, through),
        strength=_kept(vector),
        file=None,
    )


def _kept(vector: SteeringVector) -> Strength | None:
    """Return the strength of a transferred vector; a scale that was calibrated is forgotten.

    A file of another program says what is done with its vector, which the transfer keeps, but not
    at which damage; a level of the source means nothing in the target.
    """
    if vector.file is None or vector.strength is None:
        return None
    return replace(vector.strength.without_damage(), level=None)


def route_of(stitch: StitchData, through: AffineMap | None = None) -> TransferRoute:
    """Return the facts about a stitch that its artefacts keep.

    ``through`` is the map that was used, if it is not the stitch's own map up.
    """
    n_tokens, source = stitch.scores.get("n_tokens"), stitch.source
    return TransferRoute(
        source="" if source is None else source.name,
        revision="unknown" if source is None else source.revision,
        source_hook=stitch.source_hook,
        target_hook=stitch.target_hook,
        solver=str(stitch.scores.get("solver") or ""),
        n_tokens=None if n_tokens is None or n_tokens != n_tokens else int(n_tokens),
        map_hash=(through or stitch.up).digest,
    )
