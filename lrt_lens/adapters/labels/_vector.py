"""A transferred steering vector, combined with labelled pairs of the target.

    transferred = stitch.transfer(vector)
    combined = lrt.combine_vector(
        pair.target, transferred, few_pairs, statistics=stitch.target_statistics
    )
    combined.labels.weight            # 0: the transferred direction; 1: the pairs alone

Problem: with a few labelled pairs of the target, neither the transferred vector nor the target's
own mean difference is the best estimate. Mechanism: the posterior mean of
`lrt_lens.adapters.labels._posterior_mean`, whose weight is chosen by leaving one pair out.

Limits: pairs are combined by their mean difference, also if the vector was learnt by another rule.
The result has the length that the pairs show, and not that of the transferred vector.
"""

import math
from dataclasses import replace
from typing import Literal

from lrt_lens._numbers import checked_number
from lrt_lens.adapters.labels._posterior_mean import StreamMetric, posterior_mean
from lrt_lens.adapters.vectors._label_share import LabelRule, LabelShare
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models._hooked_model import load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.stitching._affine import StreamStatistics

COMBINED = "combined"
"""Method of a vector or probe that combines a transferred one with labels."""


def combine_vector(
    model: ModelLike,
    transferred: SteeringVector,
    contrast: ContrastSet | None,
    *,
    statistics: StreamStatistics,
    weight: Literal["cv", "fidelity"] | float = "cv",
    fidelity: float | None = None,
) -> SteeringVector:
    """Return a transferred vector combined with the mean difference of labelled pairs.

    Args:
        model: the target, on which the pairs are read.
        transferred: a vector at a hook point of this model; its rules of reading are used.
        contrast: labelled pairs; None returns ``transferred`` unchanged.
        statistics: those of the target's stream at this hook point (``stitch.target_statistics``).
        weight: share w of the pairs' own mean difference. ``"cv"`` leaves one pair out,
            ``"fidelity"`` predicts it from ``fidelity``, and a number from 0 to 1 is taken as it
            is.
        fidelity: predicted correlation, ``stitch.fidelity(vector.direction, "write").value``.

    Returns:
        A vector at the same hook point. Its ``labels`` say how many pairs it was combined with, and
        with which weight.

    Raises:
        MismatchError: the vector belongs to another model, or the statistics to another width.
        ValueError: a weight outside 0 to 1, ``"fidelity"`` without a fidelity, texts that are not
            paired, fewer than two pairs that can be read, pairs whose texts have the same states,
            or a vector whose texts were not read by a known rule.

    Source: shrinkage of James and Stein (1961) towards a direction of another model.
    """
    hooked = load_model(model)
    transferred.refuse_other_model(hooked)
    refuse_other_statistics(statistics, len(transferred.direction), "vector")
    _check_weight(weight, fidelity)
    if contrast is None:
        return transferred
    contrast.refuse_unpaired("the spread of the differences within pairs sets the weight")
    states = transferred.states(hooked, contrast, at=transferred.hook)
    if len(states) < 2:
        raise ValueError(
            f"{len(states)} pair of {len(contrast)} can be read; expected at least 2: give longer "
            "texts, or more pairs"
        )
    # Refuses pairs whose positive and negative texts have the same states.
    states.direction("mean_difference")
    result = posterior_mean(
        transferred.direction,
        states.positive - states.negative,
        StreamMetric.of(statistics.covariance),
        weight,
        fidelity,
    )
    rule: LabelRule = "given" if not isinstance(weight, str) else weight
    return replace(
        transferred,
        direction=result.direction.to(transferred.direction),
        method=COMBINED,
        labels=LabelShare(len(states), rule, result.weight, contrast.digest),
        median_norm=states.fields["median_norm"],
        strength=None,
        file=None,
    )


def refuse_other_statistics(statistics: StreamStatistics, width: int, what: str) -> None:
    """Raise `MismatchError` unless statistics have the width of an artefact."""
    if len(statistics.covariance) != width:
        raise MismatchError(
            f"the statistics are of a stream of {len(statistics.covariance)} dimensions, and the "
            f"{what} has width {width}; give those of its own hook point, such as "
            "stitch.target_statistics"
        )


def _check_weight(weight: str | float, fidelity: float | None) -> None:
    """Raise `ValueError` unless the weight is a rule or a share, with what the rule needs."""
    if isinstance(weight, str):
        if weight not in ("cv", "fidelity"):
            raise ValueError(f"weight is {weight!r}; expected 'cv', 'fidelity' or a number, 0 to 1")
    else:
        checked_number("weight", weight, above=-math.ulp(0.0), most=1.0)
    if weight == "fidelity" and (fidelity is None or not -1 <= fidelity <= 1):
        raise ValueError(
            f"weight is 'fidelity' and fidelity is {fidelity}; expected a correlation from -1 to 1,"
            " such as stitch.fidelity(vector.direction, 'write').value"
        )
