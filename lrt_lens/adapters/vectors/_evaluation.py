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
extrapolated. Intervals over items are paired bootstraps; ``map_error`` is the jackknife over maps
that were fitted without one fold.

Limits: propensity is a preference between two fixed continuations, not the text that the model
writes.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.vectors._arms import (
    VectorArm,
    contrast_of,
    drawn_arms,
    learnt_arms,
    plain_arms,
    transferred_arms,
)
from lrt_lens.adapters.vectors._calibration import NeutralText, calibrate_on
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.figures import _steering as figures
from lrt_lens.models._hook_points import residual_post
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._intervals import Interval, bootstrap_mean, bootstrap_ratio, spread
from lrt_lens.statistics._jackknife import jackknife_error
from lrt_lens.stitching._stitch import RowScore, Stitch, score_rows

logger = logging.getLogger(__name__)

AUTO_SCALES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.4)
"""Multiples of an arm's calibrated scale at which its curve is measured."""
DRAW_SCALES = (0.75, 1.3)
"""Multiples for arms of several vectors: one scale on each side of the budget."""
FEWEST_ITEMS = 4
"""Smallest number of items for an interval."""


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
    n_permuted: int = 5
    """Number of vectors learnt from permuted labels."""
    validation_share: float = 0.25
    """Share of the items that select the hook point of ``native_best`` and are not measured."""
    seed: int = 0
    """Seed of directions, splits and bootstraps."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class Curve:
    """Propensities and damages of one arm over scales."""

    arm: VectorArm
    """The arm that was measured."""
    scales: np.ndarray
    """Scales in ascending order, 0 first, [scale]."""
    damage: np.ndarray
    """Damage in nats per token, [scale]."""
    propensity: np.ndarray
    """Propensities in nats, [scale, item]."""

    def effect_at(self, budget: float) -> np.ndarray:
        """Return the change of propensity [item] at the first scale whose damage is ``budget``.

        Interpolated between two measured scales; NaN if no two of them bracket the budget.
        """
        low, share = self._bracket(budget)
        # effect = (1 − t) m(s₀) + t m(s₁) − m(0)
        return (
            (1 - share) * self.propensity[low]
            + share * self.propensity[low + 1]
            - self.propensity[0]
        )

    def scale_at(self, budget: float) -> float:
        """Return the interpolated scale whose damage is ``budget``, NaN if it is not bracketed."""
        low, share = self._bracket(budget)
        return float((1 - share) * self.scales[low] + share * self.scales[low + 1])

    def _bracket(self, budget: float) -> tuple[int, float]:
        """Return (index of the last scale before the budget, share of the way to the next one)."""
        # Damage need not rise monotonically with the scale, so the first crossing counts.
        above = np.flatnonzero(self.damage >= budget)
        if not len(above) or above[0] == 0:
            return 0, math.nan
        low = int(above[0]) - 1
        # Damage grows with the square of a small step, D ∝ s², so √D is linear in the scale:
        # t = (√budget − √D₀) / (√D₁ − √D₀). The rise of the loss may be below 0: it counts as 0.
        roots = np.sqrt(np.clip(self.damage[[low, low + 1]], 0, None))
        return low, float((math.sqrt(budget) - roots[0]) / (roots[1] - roots[0]))


@dataclass(frozen=True)
class SteeringEvaluation:
    """Curves of all arms over scales, and their effects at equal damage."""

    table: pd.DataFrame
    """One row per arm, draw and scale.

    Columns: concept, arm, draw, hook, scale, propensity, propensity_low, propensity_high, damage.
    """
    summary: pd.DataFrame
    """One row per arm.

    Columns: concept, arm, hook, n_draws, scale, effect_at_equal_damage, low, high,
    fraction_of_native, fraction_low, fraction_high, map_error, flag.
    """
    budget: float
    """Damage at which arms are compared, in nats per token."""
    vectors: dict[str, SteeringVector] = field(repr=False)
    """Vector of each arm that has only one."""
    contrast_score: RowScore | None = None
    """R² of the stitch on the texts of the contrast set; None if these are unknown."""
    n_spanning: int = 0
    """Number of items in which a token spans the end of the prompt; it is scored as one."""

    @property
    def concept(self) -> str:
        """Name of the concept that was steered."""
        return str(self.table["concept"].iloc[0])

    def figure(self, kind: Literal["summary", "curves", "damage"] = "summary") -> Any:
        """Return a plotly figure of effects at equal damage.

        ``"curves"`` shows propensity over scale instead, ``"damage"`` effect over damage.
        """
        if kind == "summary":
            return figures.summary_figure(self.summary, concept=self.concept)
        if kind == "curves":
            return figures.steering_figure(self.table, concept=self.concept)
        return figures.effect_damage_figure(self.table, concept=self.concept, budget=self.budget)

    def _repr_html_(self) -> str:
        legend = (
            f"{self.concept}: effect in nats, the change of propensity from no steering, "
            f"with every arm at a damage of {self.budget:g} nats per token."
        )
        return card("SteeringEvaluation", note(legend), table(self.summary))


@takes(SteeringSettings)
def evaluate_steering(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
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
        vector: learnt on the source.
        items: prompts with a positive and a negative continuation. If the contrast texts are
            known, a share of the items only selects the hook point of ``native_best``.
        neutral: texts on which steering should change nothing; damage is measured on them.
        contrast: texts that the vector was learnt from; by default those that the vector holds.
            Without them the arms ``native``, ``native_best`` and ``permuted`` are left out.
        settings: all settings; see `SteeringSettings`.
        options: fields of `SteeringSettings` as keywords.

    Raises:
        ValueError: scales or damage that are not positive, fewer than 4 items, or no neutral text
            that is long enough.
        MismatchError: a stitch of other models, a vector of another model or hook point, or
            contrast texts that the vector was not learnt from.
    """
    settings = resolve(SteeringSettings, settings, options)
    stitch.check(pair.source, pair.target)
    stitch.refuse_foreign(vector.origin)
    _check_arguments(settings, items)
    contrast = contrast_of(vector, contrast)
    score = _contrast_score(pair, stitch, contrast)
    # Items that select a hook point would flatter it, so they are not measured.
    validation, test = (
        items.split(settings.validation_share, seed=settings.seed)
        if contrast is not None
        else (items, items)
    )
    arms = _arms(pair, stitch, vector, contrast, validation, neutral, settings)
    meter = _ArmMeter(pair.target, test, neutral, settings)
    bar = tqdm(arms, desc=f"steer {vector.name}", disable=not settings.progress, leave=False)
    curves = [meter.measure(arm) for arm in bar]
    return SteeringEvaluation(
        table=_table(vector.name, curves, settings.seed),
        summary=_summary(vector.name, curves, settings.damage, settings.seed),
        budget=settings.damage,
        vectors={arm.name: arm.vector for arm in arms if arm.draw is None},
        contrast_score=score,
        n_spanning=meter.at(stitch.target_hook)[0].n_spanning,
    )


def _check_arguments(settings: SteeringSettings, items: ChoiceItems) -> None:
    scales, damage = settings.scales, settings.damage
    if isinstance(scales, str):
        if scales != "auto":
            raise ValueError(f"scales is {scales!r}; expected 'auto' or a list of positive numbers")
    # A curve begins at scale 0 and ascends, so negative scales are refused.
    elif not len(scales) or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(
            f"scales is {list(scales)}; expected positive finite numbers "
            "(no steering is always measured)"
        )
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
    vector: SteeringVector,
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
        arms += learnt_arms(pair, stitch, vector, contrast, rules, settings.n_permuted)
        # Scales of the caller may miss the budget at some hook points, so they are searched.
        meter = _ArmMeter(pair.target, validation, neutral, replace(settings, scales="auto"))
        arms.append(_best_native(pair.target, vector, contrast, meter))
    arms += plain_arms(stitch, vector, transferred, rules)
    arms += drawn_arms(stitch, transferred, settings.n_random, settings.seed)
    return arms


class _ArmMeter:
    """Curves of arms on items and neutral texts that are tokenized once per hook point."""

    def __init__(
        self,
        model: HookedModel,
        items: ChoiceItems,
        neutral: Sequence[str],
        settings: SteeringSettings,
    ) -> None:
        self.model, self.items, self.neutral_texts = model, items, neutral
        self.budget = settings.damage
        self.positions: Positions = settings.positions
        self.scales: list[float] | None = (
            None
            if isinstance(settings.scales, str)
            else sorted(float(scale) for scale in settings.scales)
        )
        self._texts: dict[str, tuple[PreferenceText, NeutralText, np.ndarray]] = {}
        # Last scale at the budget by name of the arm: its vectors have similar strengths.
        self._last_scale: dict[str, float] = {}

    def at(self, hook: str) -> tuple[PreferenceText, NeutralText, np.ndarray]:
        """Return (items, neutral texts, unsteered propensities) at one hook point."""
        if hook not in self._texts:
            items = PreferenceText(self.model, self.items, hook)
            neutral = NeutralText(self.model, self.neutral_texts, hook)
            self._texts[hook] = (items, neutral, items.propensity())
        return self._texts[hook]

    def measure(self, arm: VectorArm) -> Curve:
        """Return the arm's curve over scales that bracket the budget, if such scales exist."""
        curve = self._curve(arm, self._scales(arm))
        is_drawn, is_auto = arm.draw is not None, self.scales is None
        if is_drawn and is_auto and curve.damage.max() < self.budget:
            # The extrapolated scales missed the budget.
            curve = self._curve(arm, self._searched(arm, DRAW_SCALES))
        return curve

    def _curve(self, arm: VectorArm, scales: list[float]) -> Curve:
        items, neutral, unsteered = self.at(arm.vector.hook)
        # Scale 0 is no steering: damage 0 by definition.
        damages, propensities = [0.0], [unsteered]
        for scale in scales:
            hook = arm.vector.hook_at(scale, positions=self.positions)
            damages.append(neutral.damage(hook))
            propensities.append(items.propensity(hook))
        return Curve(arm, np.array([0.0, *scales]), np.array(damages), np.array(propensities))

    def _scales(self, arm: VectorArm) -> list[float]:
        if self.scales is not None:
            return self.scales
        if arm.draw is None:
            return self._searched(arm, AUTO_SCALES)
        # D ∝ s² leads from the last draw's scale to s · √(budget / D) with a single pass. Far from
        # the budget the square law does not hold, so the scale is searched.
        guess = self._last_scale.get(arm.name, 1.0)
        neutral = self.at(arm.vector.hook)[1]
        damage = neutral.damage(arm.vector.hook_at(guess, positions=self.positions))
        if not 0.1 * self.budget < damage < 10 * self.budget:
            return self._searched(arm, DRAW_SCALES)
        self._last_scale[arm.name] = guess * math.sqrt(self.budget / damage)
        return [multiple * self._last_scale[arm.name] for multiple in DRAW_SCALES]

    def _searched(self, arm: VectorArm, multiples: tuple[float, ...]) -> list[float]:
        """Return multiples of the calibrated scale; all tried scales if none reached the budget."""
        calibration = calibrate_on(
            self.at(arm.vector.hook)[1],
            arm.vector,
            self.budget,
            positions=self.positions,
            first_guess=self._last_scale.get(arm.name),
            tolerance=0.03,
        )
        if not calibration.reached:
            return [scale for scale in calibration.curve["scale"] if scale > 0]
        self._last_scale[arm.name] = calibration.scale
        return [multiple * calibration.scale for multiple in multiples]


def _best_native(
    model: HookedModel, vector: SteeringVector, contrast: ContrastSet, meter: _ArmMeter
) -> VectorArm:
    """Return the native vector at the hook point where its effect on the meter's items is largest.

    One candidate per block of the target. Effects that are NaN lose against all others.
    """
    best, best_effect = None, -math.inf
    for layer in range(model.n_layers):
        native = vector.relearnt(model, contrast, at=residual_post(layer))
        curve = meter.measure(VectorArm("native_best", native, draw=layer))
        effect = float(curve.effect_at(meter.budget).mean())
        # A comparison with NaN is False, so a NaN effect never replaces a measured one.
        if best is None or effect > best_effect:
            best, best_effect = native, effect if not math.isnan(effect) else -math.inf
    if best is None:
        raise ValueError(
            f"{model.name!r} has no block at which to learn a native vector; give another target"
        )
    return VectorArm("native_best", best)


def _table(concept: str, curves: list[Curve], seed: int) -> pd.DataFrame:
    rows = [_table_row(concept, curves[0], 0, seed) | {"arm": "none", "draw": None}]
    for curve in curves:
        # Refits give `map_error`; they are no arm of their own.
        if curve.arm.name != "refit":
            rows += [_table_row(concept, curve, i, seed) for i in range(len(curve.scales))]
    return pd.DataFrame(rows)


def _table_row(concept: str, curve: Curve, i: int, seed: int) -> dict[str, Any]:
    """Return the row of one scale of a curve."""
    propensity = bootstrap_mean(curve.propensity[i], seed=seed)
    return {
        "concept": concept,
        "arm": curve.arm.name,
        "draw": curve.arm.draw,
        "hook": curve.arm.vector.hook,
        "scale": float(curve.scales[i]),
        "propensity": propensity.value,
        "propensity_low": propensity.low,
        "propensity_high": propensity.high,
        "damage": float(curve.damage[i]),
    }


def _summary(concept: str, curves: list[Curve], budget: float, seed: int) -> pd.DataFrame:
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm.name, []).append(curve)
    effects = {name: [curve.effect_at(budget) for curve in arms[name]] for name in arms}
    native = effects.get("native", [np.array([])])[0]
    # Effects of the refits are the leave-one-fold-out estimates of the jackknife.
    error = jackknife_error([float(effect.mean()) for effect in effects.pop("refit", [])])
    rows: list[dict[str, Any]] = [
        {
            "concept": concept,
            "arm": "none",
            "effect_at_equal_damage": 0.0,
            "low": 0.0,
            "high": 0.0,
            "n_draws": 1,
            "flag": "",
        }
    ]
    for name, draws in effects.items():
        first = arms[name][0]
        is_drawn = first.arm.draw is not None
        interval = _interval(draws, is_drawn, seed)
        # The numerator is the mean effect over draws, item by item, and the denominator the native
        # effect.
        ratio = bootstrap_ratio(np.mean(draws, axis=0), native, seed=seed)
        rows.append(
            {
                "concept": concept,
                "arm": name,
                "hook": first.arm.vector.hook,
                "n_draws": len(draws),
                "scale": math.nan if is_drawn else first.scale_at(budget),
                "effect_at_equal_damage": interval.value,
                "low": interval.low,
                "high": interval.high,
                "fraction_of_native": ratio.value,
                "fraction_low": ratio.low,
                "fraction_high": ratio.high,
                "map_error": error if name == "transferred" else math.nan,
                "flag": _flag(draws),
            }
        )
    return pd.DataFrame(rows)


def _interval(effects: list[np.ndarray], is_drawn: bool, seed: int) -> Interval:
    """Return a bootstrap over items for an arm of one vector, the range over draws for others."""
    if is_drawn:
        return spread([float(effect.mean()) for effect in effects])
    return bootstrap_mean(effects[0], seed=seed)


def _flag(effects: list[np.ndarray]) -> str:
    n_missed = sum(bool(np.isnan(effect).any()) for effect in effects)
    if not n_missed:
        return ""
    if len(effects) == 1:
        return "damage not bracketed"
    return f"damage not bracketed in {n_missed} of {len(effects)} draws"
