"""A steering vector of the old revision, added to the new one by every arm.

Effects are compared at equal damage, where the length of a vector does not matter; a shift of the
mean does not change a direction, so ``mean_shift`` is left out. The loss is the effect on the old
revision minus that on the new one, on the same items and neutral texts.

Limits: ``relearnt`` needs the contrast texts, which vectors from files do not hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lrt_lens.adapters.vectors._arm_meter import ArmMeter
from lrt_lens.adapters.vectors._arms import drawn_arms, shuffled_arms
from lrt_lens.adapters.vectors._equal_damage import steering_resamples
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._vector_arm import MeasuredArm, VectorArm
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.statistics._bootstrap import Resamples
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import Interval
from lrt_lens.updates._revisions import Revisions
from lrt_lens.updates._update_settings import UpdateSettings
from lrt_lens.updates._verdicts import ArtefactUpdate

_SHARE = 10.0
"""Tolerance of a loss of effect, in tolerances of AUROC, as a share of the old effect."""


def update_vector(
    revisions: Revisions,
    vector: SteeringVector,
    items: ChoiceItems | None,
    neutral: Sequence[str] | None,
    settings: UpdateSettings,
) -> ArtefactUpdate:
    """Return what became of a vector; without items only what moments say.

    Raises:
        MismatchError: the vector belongs to another model or hook point.
        ValueError: there are too few items, or no neutral text is long enough.
    """
    stitch = revisions.stitches[vector.hook]["repaired"]
    prediction = revisions.prediction_write(vector.hook, vector.direction)
    repaired = stitch.transfer(vector)
    update = ArtefactUpdate(vector.name, "vector", vector.hook, prediction, repaired=repaired)
    if items is None or neutral is None:
        return update
    pair, budget = revisions.pair, settings.damage
    meters = [
        ArmMeter(model, items, neutral, budget=budget, both_signs=False)
        for model in (pair.source, pair.target)
    ]
    old = meters[0].measure(VectorArm("old", vector))
    measured: dict[str, list[MeasuredArm]] = {}
    for arm in _arms(revisions, vector, settings):
        measured.setdefault(arm.name, []).append(meters[1].measure(arm))
    resamples = steering_resamples(items, len(old.plus.n_tokens), seed=settings.seed)
    reference = old.plus.effect(budget, resamples)
    rows = [_row("old", _interval([old], budget, resamples), 1)]
    losses: dict[str, Interval] = {}
    for name, draws in measured.items():
        rows.append(_row(name, _interval(draws, budget, resamples), len(draws)))
        if len(draws) > 1:
            values = np.array([one.effect(budget) for one in draws])
            losses[name] = prediction_interval(old.effect(budget) - values)
        else:
            lost = reference - draws[0].plus.effect(budget, resamples)
            losses[name] = lost.interval(resamples)
    scale = _SHARE * abs(old.effect(budget))
    return replace(update, measure="effect", rows=rows, losses=losses, n=len(items), scale=scale)


def _arms(
    revisions: Revisions, vector: SteeringVector, settings: UpdateSettings
) -> Iterator[VectorArm]:
    """Yield every arm as a vector of the new revision."""
    stitches, new = revisions.stitches[vector.hook], revisions.pair.target
    for arm in ("frozen", "procrustes", "repaired"):
        yield VectorArm(arm, stitches[arm].transfer(vector))
    if vector.contrast_set is not None and vector.method != "given":
        learnt = vector.relearnt(new, vector.contrast_set, at=vector.hook)
        yield VectorArm("relearnt", learnt)
    repaired = stitches["repaired"]
    yield from shuffled_arms(repaired, vector, {}, settings.n_shuffled, settings.seed)
    yield from drawn_arms(repaired, repaired.transfer(vector), settings.n_random, settings.seed)


def _interval(draws: Sequence[MeasuredArm], budget: float, resamples: Resamples) -> Interval:
    if len(draws) > 1:
        return prediction_interval([one.effect(budget) for one in draws])
    return draws[0].plus.effect(budget, resamples).interval(resamples)


def _row(arm: str, interval: Interval, n_draws: int) -> dict[str, Any]:
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {"arm": arm, "measure": "effect", "n_draws": n_draws} | ends
