"""Does a transferred steering vector steer, next to its controls, at equal damage?

    result = evaluate_steering(pair, stitch, vector, items, neutral=texts)
    result.summary          # effect at equal damage per arm, with intervals and the fraction of native
    result.figure()

*Propensity* is log p(positive continuation) − log p(negative one), in nats; an *effect* is its
change against no steering, item by item. Every arm (`lrt_lens.adapters.vectors._arms`) is measured
at scales that bracket the same *damage* (nats per token on neutral text), and its effect is
interpolated there; an arm whose scales do not bracket the budget gets NaN and a flag, never an
extrapolation. Intervals over items are paired bootstraps; ``map_error`` is the jackknife over maps
that leave one fold out.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.vectors._arms import (
    Arm,
    drawn_arms,
    learnt_arms,
    plain_arms,
    transferred_arms,
)
from lrt_lens.adapters.vectors._calibration import NeutralText, calibrate_on
from lrt_lens.adapters.vectors._choices import ChoiceText
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import residual_post
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    jackknife_error,
    spread,
)
from lrt_lens.stitching._rows import RowScore, score_rows
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

AUTO_SCALES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.4)
"""Multiples of an arm's calibrated scale at which its curve is measured."""
DRAW_SCALES = (0.75, 1.3)
"""The same for arms of many draws: just enough to bracket the budget."""
DRAWN_ARMS = ("random", "permuted", "refit")


@dataclass(frozen=True)
class Curve:
    """One arm's propensities and damages over scales."""

    arm: Arm
    scales: np.ndarray
    """[scale], ascending, 0 first."""
    damage: np.ndarray
    """[scale], nats per token."""
    propensity: np.ndarray
    """[scale, item], nats."""

    def effect_at(self, budget: float) -> np.ndarray:
        """[item], change of propensity where the damage first crosses ``budget``; NaN where no two
        scales bracket it.
        """
        low, share = self._bracket(budget)
        return (
            (1 - share) * self.propensity[low]
            + share * self.propensity[low + 1]
            - self.propensity[0]
        )

    def scale_at(self, budget: float) -> float:
        """The scale interpolated at ``budget``, NaN where it is not bracketed."""
        low, share = self._bracket(budget)
        return float((1 - share) * self.scales[low] + share * self.scales[low + 1])

    def _bracket(self, budget: float) -> tuple[int, float]:
        """(index below the crossing, share of the way to the next scale): damage grows with the
        square of a small step.
        """
        above = np.flatnonzero(self.damage >= budget)
        if not len(above) or above[0] == 0:
            return 0, math.nan
        low = int(above[0]) - 1
        roots = np.sqrt(np.clip(self.damage[[low, low + 1]], 0, None))
        return low, float((math.sqrt(budget) - roots[0]) / (roots[1] - roots[0]))


@dataclass(frozen=True)
class SteeringEvaluation:
    """Curves and summary of all arms."""

    table: pd.DataFrame
    """A row per arm, draw and scale: concept, arm, draw, hook, scale, propensity, propensity_low,
    propensity_high, damage.
    """
    summary: pd.DataFrame
    """A row per arm: concept, arm, hook, n_draws, scale, effect_at_equal_damage, low, high,
    fraction_of_native, fraction_low, fraction_high, map_error, flag."""
    budget: float
    """Damage at which arms are compared."""
    vectors: dict[str, SteeringVector] = field(repr=False)
    """The vector of every arm that is not drawn many times."""
    contrast_score: RowScore | None = None
    """The stitch's R² on the very texts of the contrast set; None where these are unknown."""

    @property
    def concept(self) -> str:
        """Name of what was steered."""
        return str(self.table["concept"].iloc[0])

    def figure(self, kind: Literal["summary", "curves", "damage"] = "summary") -> Any:
        """Effects at equal damage, propensity over scales, or effect over damage (plotly)."""
        from lrt_lens.figures import _steering as figures

        if kind == "summary":
            return figures.summary_figure(self.summary, concept=self.concept)
        if kind == "curves":
            return figures.steering_figure(self.table, concept=self.concept)
        return figures.effect_damage_figure(self.table, concept=self.concept, budget=self.budget)

    def _repr_html_(self) -> str:
        budget = f"{self.concept}: effect in nats, a change against no steering, with every arm at a damage of {self.budget:g} nats per token."
        return card("SteeringEvaluation", note(budget), table(self.summary))


def evaluate_steering(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    items: ChoiceItems,
    *,
    neutral: Sequence[str],
    scales: Literal["auto"] | Sequence[float] = "auto",
    damage: float = 0.1,
    contrast: ContrastSet | None = None,
    bias: Literal["none", "add"] = "none",
    norm: Literal["match", "mapped", "unit"] = "match",
    positions: Positions = "all",
    n_random: int = 20,
    n_permuted: int = 5,
    validation_share: float = 0.25,
    seed: int = 0,
    progress: bool = True,
) -> SteeringEvaluation:
    """Measure a transferred vector and its controls on the target; see the module docstring.

    Args:
        pair: both models.
        stitch: between the vector's hook point and one of the target.
        vector: learnt on the source.
        items: prompts with continuations; a share of them only chooses the hook point of
            ``native_best``.
        neutral: texts on which steering should change nothing.
        scales: ``"auto"`` brackets the budget for every arm; a list gives the same multiples of the
            vector to all arms.
        damage: nats per token on ``neutral`` at which arms are compared.
        contrast: the texts that the vector was learnt from; taken from the vector when it still
            holds them. Without them the arms ``native``, ``native_best`` and ``permuted`` are left
            out.
        bias, norm: rules of transfer, see `transfer_vector`.
        positions: which positions are steered.
        n_random: random directions.
        n_permuted: vectors learnt from shuffled labels.
        validation_share: share of the items kept for choosing ``native_best``.
        seed: of draws, splits and bootstraps.
        progress: show a bar.
    """
    stitch.check(pair.source, pair.target)
    _check_arguments(scales, damage, items)
    if contrast is not None and vector.contrast and contrast.digest != vector.contrast:
        raise MismatchError(
            f"vector {vector.name!r} was learnt from other texts than contrast={contrast.name!r}; give the set it was learnt from"
        )
    contrast = contrast or vector.contrast_set
    score = _contrast_score(pair, stitch, contrast)
    options = {"bias": bias, "norm": norm}
    validation, test = (
        items.split(validation_share, seed=seed) if contrast is not None else (items, items)
    )
    bench = _Bench(pair, test, neutral, damage, scales, positions)
    arms = list(transferred_arms(stitch, vector, options))
    moved = arms[0].vector
    if contrast is not None:
        arms += learnt_arms(pair, stitch, vector, contrast, options, n_permuted)
        arms.append(_best_native(pair, vector, contrast, validation, neutral, damage, positions))
    arms += plain_arms(stitch, vector, moved, options)
    arms += drawn_arms(stitch, moved, n_random, seed)
    bar = tqdm(arms, desc=f"steer {vector.name}", disable=not progress, leave=False)
    curves = [bench.measure(arm) for arm in bar]
    return SteeringEvaluation(
        table=_table(vector.name, curves, seed),
        summary=_summary(vector.name, curves, damage, seed),
        budget=damage,
        vectors={arm.name: arm.vector for arm in arms if arm.draw is None},
        contrast_score=score,
    )


def _check_arguments(
    scales: Literal["auto"] | Sequence[float], damage: float, items: ChoiceItems
) -> None:
    if isinstance(scales, str):
        if scales != "auto":
            raise ValueError(f"scales is {scales!r}; expected 'auto' or a list of positive numbers")
    elif not len(scales) or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(
            f"scales is {list(scales)}; expected positive finite numbers (no steering is always measured)"
        )
    if not 0 < damage < math.inf:
        raise ValueError(
            f"damage is {damage}; expected a positive number of nats per token, such as 0.1"
        )
    if len(items) < 4:
        raise ValueError(f"{len(items)} item(s) given; an interval over items needs at least 4")


def _contrast_score(
    pair: ModelPair, stitch: Stitch, contrast: ContrastSet | None
) -> RowScore | None:
    if contrast is None:
        return None
    try:
        return score_rows(stitch, pair, contrast.texts)
    except ValueError as error:
        logger.warning("no R² on the contrast texts: %s", error)
        return None


class _Bench:
    """Items and neutral texts made ready at every hook point that an arm is at."""

    def __init__(
        self,
        pair: ModelPair,
        items: ChoiceItems,
        neutral: Sequence[str],
        damage: float,
        scales: Literal["auto"] | Sequence[float],
        positions: Positions,
    ) -> None:
        self.pair, self.items, self.neutral_texts, self.budget = pair, items, neutral, damage
        self.scales: tuple[float, ...] | None = (
            None if isinstance(scales, str) else tuple(float(scale) for scale in scales)
        )
        self.positions: Positions = positions
        self._ready: dict[str, tuple[ChoiceText, NeutralText, np.ndarray]] = {}
        self._guess: dict[str, float] = {}

    def at(self, hook: str) -> tuple[ChoiceText, NeutralText, np.ndarray]:
        """(items, neutral texts, unsteered propensities) at one hook point."""
        if hook not in self._ready:
            items = ChoiceText(self.pair.target, self.items, hook)
            self._ready[hook] = (
                items,
                NeutralText(self.pair.target, self.neutral_texts, hook),
                items.propensity(),
            )
        return self._ready[hook]

    def measure(self, arm: Arm) -> Curve:
        """The arm's curve over scales that bracket the budget, where that is possible."""
        curve = self._curve(arm, self._scales(arm))
        if arm.name in DRAWN_ARMS and self.scales is None and curve.damage.max() < self.budget:
            curve = self._curve(arm, self._searched(arm, DRAW_SCALES))
        return curve

    def _curve(self, arm: Arm, scales: list[float]) -> Curve:
        items, neutral, unsteered = self.at(arm.vector.hook)
        damages, propensities = [0.0], [unsteered]
        for scale in scales:
            hook = arm.vector.hook_at(scale, positions=self.positions)
            damages.append(neutral.damage(hook))
            propensities.append(items.propensity(hook))
        return Curve(arm, np.array([0.0, *scales]), np.array(damages), np.array(propensities))

    def _scales(self, arm: Arm) -> list[float]:
        if self.scales is not None:
            return sorted(self.scales)
        if arm.name not in DRAWN_ARMS:
            return self._searched(arm, AUTO_SCALES)
        # One step by the square root from the last draw's strength usually lands; where it goes
        # astray, a proper search.
        guess = self._guess.get(arm.name, 1.0)
        damage = self.at(arm.vector.hook)[1].damage(
            arm.vector.hook_at(guess, positions=self.positions)
        )
        if not 0.1 * self.budget < damage < 10 * self.budget:
            return self._searched(arm, DRAW_SCALES)
        self._guess[arm.name] = guess * math.sqrt(self.budget / damage)
        return [multiple * self._guess[arm.name] for multiple in DRAW_SCALES]

    def _searched(self, arm: Arm, multiples: tuple[float, ...]) -> list[float]:
        """Multiples of the calibrated scale, or all scales that were tried where none does the
        damage.
        """
        neutral = self.at(arm.vector.hook)[1]
        found = calibrate_on(
            neutral,
            arm.vector,
            self.budget,
            positions=self.positions,
            first_guess=self._guess.get(arm.name),
            tolerance=0.03,
        )
        if not found.reached:
            return [scale for scale in found.curve["scale"] if scale > 0]
        self._guess[arm.name] = found.scale
        return [multiple * found.scale for multiple in multiples]


def _best_native(
    pair: ModelPair,
    vector: SteeringVector,
    contrast: ContrastSet,
    validation: ChoiceItems,
    neutral: Sequence[str],
    damage: float,
    positions: Positions,
) -> Arm:
    """The native vector at the hook point where its effect on validation items is largest."""
    bench = _Bench(pair, validation, neutral, damage, "auto", positions)
    best, best_effect = None, -math.inf
    for layer in range(pair.target.n_layers):
        arm = Arm(
            "refit", vector.relearnt(pair.target, contrast, at=residual_post(layer)), draw=layer
        )
        effect = float(bench.measure(arm).effect_at(damage).mean())
        if best is None or effect > best_effect:
            best, best_effect = arm, effect if not math.isnan(effect) else -math.inf
    if best is None:
        raise ValueError(f"{pair.target.name!r} has no block to learn a native vector at")
    return Arm("native_best", best.vector)


def _table(concept: str, curves: list[Curve], seed: int) -> pd.DataFrame:
    unsteered = bootstrap_mean(curves[0].propensity[0], seed=seed)
    rows: list[dict[str, Any]] = [
        _table_row(concept, "none", None, curves[0].arm.vector.hook, 0.0, unsteered, 0.0)
    ]
    for curve in curves:
        if curve.arm.name == "refit":
            continue  # they are `map_error`, no arm of their own
        for scale, damage, propensity in zip(
            curve.scales, curve.damage, curve.propensity, strict=True
        ):
            interval = bootstrap_mean(propensity, seed=seed)
            rows.append(
                _table_row(
                    concept,
                    curve.arm.name,
                    curve.arm.draw,
                    curve.arm.vector.hook,
                    float(scale),
                    interval,
                    float(damage),
                )
            )
    return pd.DataFrame(rows)


def _table_row(
    concept: str,
    arm: str,
    draw: int | None,
    hook: str,
    scale: float,
    propensity: Interval,
    damage: float,
) -> dict[str, Any]:
    return {
        "concept": concept,
        "arm": arm,
        "draw": draw,
        "hook": hook,
        "scale": scale,
        "propensity": propensity.value,
        "propensity_low": propensity.low,
        "propensity_high": propensity.high,
        "damage": damage,
    }


def _summary(concept: str, curves: list[Curve], budget: float, seed: int) -> pd.DataFrame:
    effects: dict[str, list[np.ndarray]] = {}
    for curve in curves:
        effects.setdefault(curve.arm.name, []).append(curve.effect_at(budget))
    native = effects.get("native", [np.array([])])[0]
    error = jackknife_error([float(effect.mean()) for effect in effects.pop("refit", [])])
    rows = [
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
        first = next(curve for curve in curves if curve.arm.name == name)
        drawn = name in DRAWN_ARMS
        interval = (
            spread([float(effect.mean()) for effect in draws])
            if drawn
            else bootstrap_mean(draws[0], seed=seed)
        )
        ratio = bootstrap_ratio(np.mean(draws, axis=0), native, seed=seed)
        rows.append(
            {
                "concept": concept,
                "arm": name,
                "hook": first.arm.vector.hook,
                "n_draws": len(draws),
                "scale": math.nan if drawn else first.scale_at(budget),
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


def _flag(draws: list[np.ndarray]) -> str:
    missed = sum(bool(np.isnan(effect).any()) for effect in draws)
    if not missed:
        return ""
    return (
        "damage not bracketed"
        if len(draws) == 1
        else f"damage not bracketed in {missed} of {len(draws)} draws"
    )
