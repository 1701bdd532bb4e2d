"""Effect of a transferred steering vector on choice items, compared with controls at equal damage.

    result = evaluate_steering(pair, stitch, vector, items, neutral=texts)
    result.summary      # effect at equal damage per arm, with intervals and the fraction of native
    result.figure()

Problem: a vector that is scaled up has a larger effect and a larger side effect, so effects of
different vectors are only comparable at the same side effect. Mechanism: *propensity* is log
p(positive continuation) − log p(negative one), in nats; an *effect* is its change from no steering,
item by item. Each arm (`lrt_lens.adapters.vectors._arms`) is measured at scales whose damages (nats
per token on neutral text) lie on both sides of one budget, and its effect is interpolated there. If
no tried scale reached the budget, the effect is NaN and the arm has a flag; nothing is
extrapolated. Every vector is measured with both signs.

Intervals contain what varies: items and neutral texts (resampled together), and for the transferred
vector contrast pairs and map (`lrt_lens.adapters.vectors._steering_summary`). A control of several
draws has the interval that a new draw falls into, and the p-value of the transferred effect among
the sizes of the draws.

Limits: propensity is a preference between two fixed continuations, not the text that the model
writes.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.vectors._arm_meter import ArmMeter
from lrt_lens.adapters.vectors._arms import (
    contrast_of,
    drawn_arms,
    learnt_arms,
    plain_arms,
    shuffled_arms,
    transferred_arms,
)
from lrt_lens.adapters.vectors._equal_damage import ITEMS, Curve, steering_resamples
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_result import SteeringEvaluation
from lrt_lens.adapters.vectors._steering_summary import SteeringSummary
from lrt_lens.adapters.vectors._steers import Steers
from lrt_lens.adapters.vectors._vector_arm import REFITS, MeasuredArm, VectorArm
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.models._hook_points import residual_post
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._bootstrap import Clusters, Resamples, bootstrap_mean, bootstrap_ratio
from lrt_lens.stitching._stitch import RowScore, Stitch, score_rows

logger = logging.getLogger(__name__)

FEWEST_ITEMS = 4
"""Smallest number of items for an interval."""
_OF_CONTRAST = ("n_permuted", "n_contrast_groups")
"""Settings of arms that are learnt from the contrast texts."""


@dataclass(frozen=True)
class SteeringSettings(Settings):
    """Settings of `evaluate_steering`: scales, transfer, steered positions and controls."""

    scales: Literal["auto"] | Sequence[float] = "auto"
    """Multiples of the vector at which all arms are measured; ``"auto"`` searches scales around the
    budget for each arm."""
    damage: float = 0.1
    """Damage at which arms are compared, in nats per token on the neutral texts."""
    bias: Literal["none", "add"] = "none"
    """Rule for the bias of the map in the transfer, see `transfer_vector`."""
    norm: Literal["match", "mapped", "unit"] = "match"
    """Rule for the length of the transferred vector, see `transfer_vector`."""
    positions: Positions = "all"
    """Steered positions, see `SteeringVector.hooks`."""
    n_random: int = 20
    """Number of random directions: half isotropic, half with the covariance of the target's
    stream."""
    n_permuted: int = 20
    """Number of vectors learnt from permuted labels."""
    n_shuffled: int = 20
    """Number of maps of shuffled pairs: that of the stitch, and draws of such maps."""
    n_contrast_groups: int = 8
    """Number of groups of contrast pairs that are left out one at a time, for the share of an
    interval that the contrast texts cause; 0 leaves that share out."""
    both_signs: bool = True
    """Measure the negative of every vector too."""
    validation_share: float = 0.25
    """Share of the items that select the hook point of ``native_best`` and are not measured."""
    seed: int = 0
    """Seed of directions, splits and bootstraps."""
    progress: bool = True
    """Show a progress bar."""


@takes(SteeringSettings)
def evaluate_steering(
    pair: ModelPair,
    stitch: Stitch,
    vector: Steers,
    items: ChoiceItems,
    *,
    neutral: Sequence[str],
    contrast: ContrastSet | None = None,
    settings: SteeringSettings | None = None,
    **options: Any,
) -> SteeringEvaluation:
    """Return the effects of a transferred vector and its controls on the target at equal damage.

    Args:
        pair: both models.
        stitch: a stitch from the vector's hook point to a hook point of the target.
        vector: a vector or a subspace learnt on the source; a subspace adds its ``direction``.
        items: prompts with a positive and a negative continuation. If the contrast texts are
            known, a share of the items only selects the hook point of ``native_best``.
        neutral: texts on which steering should change nothing; damage is measured on them.
        contrast: texts that the vector was learnt from; by default those that the vector holds.
            Without them the arms ``native``, ``native_best`` and ``permuted`` are left out, and
            so are the numbers of draws and groups that they would have.
        settings: all settings; see `SteeringSettings`.
        options: fields of `SteeringSettings` as keywords.

    Raises:
        ValueError: scales or damage that are not positive, fewer than 4 items, no neutral text
            that is long enough, or ``n_permuted`` or ``n_contrast_groups`` without contrast texts.
        MismatchError: a stitch of other models, a vector of another model or hook point, or
            contrast texts that the vector was not learnt from.
    """
    settings = resolve(SteeringSettings, settings, options)
    stitch.check(pair.source, pair.target)
    stitch.refuse_foreign(vector.origin)
    _check_arguments(settings, items)
    contrast = contrast_of(vector, contrast)
    if contrast is None:
        _refuse_unusable(vector, options)
    score = _contrast_score(pair, stitch, contrast)
    # Items that select a hook point would flatter it, so they are not measured.
    validation, test = (
        items.split(settings.validation_share, seed=settings.seed)
        if contrast is not None
        else (items, items)
    )
    arms = _arms(pair, stitch, vector, contrast, validation, neutral, settings)
    meter = _meter(pair.target, test, neutral, settings)
    bar = tqdm(arms, desc=f"steer {vector.name}", disable=not settings.progress, leave=False)
    measured = [meter.measure(arm) for arm in bar]
    n_texts = len(measured[0].plus.n_tokens)
    resamples = steering_resamples(test, n_texts, seed=settings.seed)
    summary = SteeringSummary(vector.name, measured, settings.damage, resamples)
    return SteeringEvaluation(
        table=_table(vector.name, measured, resamples),
        summary=pd.DataFrame(summary.rows()),
        budget=settings.damage,
        vectors={arm.name: arm.vector for arm in arms if arm.draw is None},
        contrast_score=score,
        n_spanning=meter.n_spanning,
    )


def _check_arguments(settings: SteeringSettings, items: ChoiceItems) -> None:
    scales = settings.scales
    if isinstance(scales, str):
        if scales != "auto":
            raise ValueError(f"scales is {scales!r}; expected 'auto' or a list of positive numbers")
    # A curve begins at scale 0 and ascends, so negative scales are refused.
    elif not len(scales) or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(
            f"scales is {list(scales)}; expected positive finite numbers "
            "(no steering is always measured)"
        )
    refuse_unmeasurable(items, settings.damage)


def _refuse_unusable(vector: Steers, options: Mapping[str, Any]) -> None:
    """Raise ValueError if an option asks for arms that only contrast texts give."""
    asked = {name: options[name] for name in _OF_CONTRAST if options.get(name)}
    if asked:
        raise ValueError(
            f"{' and '.join(f'{name} is {n}' for name, n in asked.items())}, and the texts that"
            f" vector {vector.name!r} was learnt from are not known, without which there is no such"
            " arm: give contrast=, or leave these options out"
        )


def refuse_unmeasurable(items: ChoiceItems, damage: float) -> None:
    """Raise ValueError unless effects on these items at this damage can have an interval."""
    if not 0 < damage < math.inf:
        raise ValueError(
            f"damage is {damage}; expected a positive number of nats per token, such as 0.1"
        )
    if len(items) < FEWEST_ITEMS:
        raise ValueError(
            f"{len(items)} item(s) given; an interval over items needs at least {FEWEST_ITEMS}: "
            "give more items"
        )


def _contrast_score(
    pair: ModelPair, stitch: Stitch, contrast: ContrastSet | None
) -> RowScore | None:
    if contrast is None:
        return None
    # Contrast texts can be too short for a score; the evaluation itself does not need it.
    try:
        return score_rows(stitch, pair, contrast.texts)
    except ValueError as error:
        logger.warning("no R² on the contrast texts: %s", error)
        return None


def _arms(
    pair: ModelPair,
    stitch: Stitch,
    vector: Steers,
    contrast: ContrastSet | None,
    validation: ChoiceItems,
    neutral: Sequence[str],
    settings: SteeringSettings,
) -> list[VectorArm]:
    """Return all arms; those learnt from the contrast texts only if these are known."""
    rules = {"bias": settings.bias, "norm": settings.norm}
    arms = list(transferred_arms(stitch, vector, rules))
    transferred = arms[0].vector
    if contrast is not None:
        learnt = learnt_arms(
            pair,
            stitch,
            vector,
            contrast,
            rules,
            n_permuted=settings.n_permuted,
            n_groups=settings.n_contrast_groups,
        )
        arms += sorted(learnt, key=lambda arm: arm.name != "native")
        # Scales of the caller may miss the budget at some hook points, so they are searched.
        searching = replace(settings, scales="auto", both_signs=False)
        meter = _meter(pair.target, validation, neutral, searching)
        native = _best_native(pair.target, vector, contrast, meter, progress=settings.progress)
        arms.append(native)
    arms += plain_arms(stitch, vector, transferred, rules)
    arms += drawn_arms(stitch, transferred, settings.n_random, settings.seed)
    arms += shuffled_arms(stitch, vector, rules, settings.n_shuffled, settings.seed)
    # Refits start from the scale of the arm that they belong to.
    return sorted(arms, key=lambda arm: arm.name in REFITS)


def _meter(
    model: HookedModel, items: ChoiceItems, neutral: Sequence[str], settings: SteeringSettings
) -> ArmMeter:
    return ArmMeter(
        model,
        items,
        neutral,
        budget=settings.damage,
        positions=settings.positions,
        scales=None if isinstance(settings.scales, str) else settings.scales,
        both_signs=settings.both_signs,
    )


def _best_native(
    model: HookedModel, vector: Steers, contrast: ContrastSet, meter: ArmMeter, *, progress: bool
) -> VectorArm:
    """Return the native vector at the hook point where its effect on the meter's items is largest.

    One candidate per block of the target. Effects that are NaN lose against all others.
    """
    best, best_effect = None, -math.inf
    hooks = [residual_post(layer) for layer in range(model.n_layers)]
    learnt = vector.relearnt_at(model, contrast, hooks)
    bar = tqdm(
        learnt,
        desc="native vector of every layer",
        total=len(hooks),
        disable=not progress,
        leave=False,
    )
    for layer, native in enumerate(bar):
        effect = meter.measure(VectorArm("native_best", native, draw=layer)).effect(meter.budget)
        # A comparison with NaN is False, so a NaN effect never replaces a measured one.
        if best is None or effect > best_effect:
            best, best_effect = native, effect if not math.isnan(effect) else -math.inf
    if best is None:
        raise ValueError(
            f"{model.name!r} has no block at which to learn a native vector; give another target"
        )
    return VectorArm("native_best", best)


def _table(concept: str, measured: Sequence[MeasuredArm], resamples: Resamples) -> pd.DataFrame:
    clusters = resamples.sources[ITEMS]
    first = measured[0]
    rows = [_table_row(concept, first, first.plus, 0, 1, clusters) | {"arm": "none", "draw": None}]
    for one in measured:
        # Refits give standard errors; they are no arm of their own.
        if one.arm.name in REFITS:
            continue
        # From the largest negative scale up, so that each arm is one curve.
        if one.minus is not None:
            for i in range(len(one.minus.scales) - 1, 0, -1):
                rows.append(_table_row(concept, one, one.minus, i, -1, clusters))
        for i in range(len(one.plus.scales)):
            rows.append(_table_row(concept, one, one.plus, i, 1, clusters))
    return pd.DataFrame(rows)


def _table_row(
    concept: str, measured: MeasuredArm, curve: Curve, i: int, sign: int, clusters: Clusters
) -> dict[str, Any]:
    """Return the row of one scale of a curve."""
    propensity = bootstrap_mean(curve.propensity[i], clusters=clusters)
    damage = bootstrap_ratio(curve.rises[i], curve.n_tokens, positive=True)
    return {
        "concept": concept,
        "arm": measured.arm.name,
        "draw": measured.arm.draw,
        "hook": measured.arm.vector.hook,
        "scale": sign * float(curve.scales[i]),
        "propensity": propensity.value,
        "propensity_low": propensity.low,
        "propensity_high": propensity.high,
        "damage": float(curve.damage[i]),
        "damage_low": damage.low,
        "damage_high": damage.high,
    }
