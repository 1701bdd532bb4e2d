"""Curves of all arms of one concept over β, and the rows of both tables that follow from them.

    ConceptCurves("mood", curves, 0.1, resamples).summary()

Problem: an effect varies with the items and, at equal damage, with the neutral texts; draws of a
control vary with their map. Mechanism: arms of one vector are resampled
(`lrt_lens.adapters.vectors._equal_damage`), controls have the interval that a new draw falls into,
and every other arm has its two-sided p-value among the draws.

Limits: vectors are learnt from contrast pairs, which no interval here contains.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrt_lens.adapters.concepts._concept_arm import DRAWN, ConceptArm
from lrt_lens.adapters.vectors._equal_damage import ITEMS, Curve
from lrt_lens.statistics._bootstrap import Resamples, bootstrap_mean
from lrt_lens.statistics._draws import prediction_interval, rank_test, typical_size
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags

_FACTS = ("cosine", "norm_ratio", "n", "d", "interpolates", "r2", "r2_uniform")
"""Keys of `ConceptArm.facts` that the summary shows as columns."""


@dataclass(frozen=True)
class ArmCurve:
    """Propensities and damages of one arm over β."""

    arm: ConceptArm
    """Arm that was measured."""
    curve: Curve
    """Values at all measured β, ascending, with negative ones and 0 among them."""

    def at(self, beta: float) -> tuple[np.ndarray, float]:
        """Return propensity [item] and damage at a measured β."""
        index = int(np.flatnonzero(self.curve.scales == beta)[0])
        return self.curve.propensity[index], float(self.curve.damage[index])

    def effect(self, beta: float) -> np.ndarray:
        """Change of propensity at a measured β, [item]."""
        return self.at(beta)[0] - self.at(0.0)[0]

    @property
    def upward(self) -> Curve:
        """The curve from β = 0 up, on which equal damage is searched."""
        up = self.curve.scales >= 0
        curve = self.curve
        return Curve(curve.scales[up], curve.rises[up], curve.n_tokens, curve.propensity[up])


@dataclass(frozen=True)
class ConceptCurves:
    """Curves of all arms of one concept, and the rows of both tables that follow from them."""

    concept: str
    """Name of the concept."""
    curves: list[ArmCurve]
    """Curves of all arms, that of ``source`` first, that of ``native`` second."""
    budget: float | None
    """Damage in nats per token for the comparison; None leaves it out."""
    resamples: Resamples
    """Resamples of the items and of the neutral texts, shared by all arms."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per arm, draw and β.

        The unsteered target is the arm ``none``; the unsteered source is β = 0 of ``source``.
        """
        rows = []
        for curve in self.curves:
            for beta in curve.curve.scales.tolist():
                # All arms of the target share the propensities at β = 0: one row is enough.
                if beta != 0 or curve.arm.name == "source":
                    rows.append(self._row(curve, curve.arm.name, beta))
                elif curve.arm.name == "native":
                    rows.append(self._row(curve, "none", beta))
        return rows

    def _row(self, curve: ArmCurve, name: str, beta: float) -> dict[str, Any]:
        row: dict[str, Any] = {
            "concept": self.concept,
            # Draws of a random arm differ in effect at β = 1, so the interval is over draws.
            "arm": name,
            "draw": curve.arm.draw,
            "beta": beta,
        }
        propensity, damage = curve.at(beta)
        columns = {
            "propensity": propensity,
            # per cent: 100·σ(propensity)
            "probability": 100 / (1 + np.exp(-propensity)),
            "effect": curve.effect(beta),
        }
        for column, values in columns.items():
            mean = bootstrap_mean(values, clusters=self.resamples.sources[ITEMS])
            row |= {column: mean.value, f"{column}_low": mean.low, f"{column}_high": mean.high}
        return row | {"damage": damage}

    def summary(self) -> list[dict[str, Any]]:
        """One row per arm."""
        by_arm: dict[str, list[ArmCurve]] = {}
        for curve in self.curves:
            by_arm.setdefault(curve.arm.name, []).append(curve)
        return [self._summary_row(name, draws) for name, draws in by_arm.items()]

    def _summary_row(self, name: str, draws: list[ArmCurve]) -> dict[str, Any]:
        # The arm `source` has no map and therefore no facts.
        facts = [one.arm.facts for one in draws]
        row: dict[str, Any] = {"concept": self.concept, "arm": name, "n_draws": len(draws)}
        row |= {key: float(np.mean([fact.get(key, math.nan) for fact in facts])) for key in _FACTS}
        effect = self._interval(name, [one.effect(1.0) for one in draws])
        row |= {"effect": effect.value, "effect_low": effect.low, "effect_high": effect.high}
        row |= {"interval_flag": effect.flag, "contains": self._contains(name)}
        row |= self._beside_draws(name)
        if self.budget is None:
            return row
        at_budget = self._at_budget(name, draws, self.budget)
        doubts = joined_flags([effect.flag, at_budget["interval_flag"]])
        return row | at_budget | {"interval_flag": doubts}

    def _contains(self, name: str) -> str:
        return "draws" if name in DRAWN else ", ".join(self.resamples.sources)

    def _effects(self, name: str) -> list[float]:
        """Return the mean effect of each draw, at equal damage if that was measured."""
        draws = [one for one in self.curves if one.arm.name == name]
        if self.budget is None:
            return [float(one.effect(1.0).mean()) for one in draws]
        return [float(one.upward.effect_at(self.budget).mean()) for one in draws]

    def _beside_draws(self, name: str) -> dict[str, float]:
        """Return the typical size of a control, or the p-values of another arm of the target."""
        if name in DRAWN:
            return {"typical_size": typical_size(self._effects(name))}
        if name == "source":
            return {}
        [effect] = self._effects(name)
        columns = {}
        for control, column in (("random_matched", "random_p"), ("shuffled", "shuffled_p")):
            test = rank_test(effect, self._effects(control))
            columns |= {column: test.p, f"{column}_floor": test.floor}
        return columns

    def _at_budget(self, name: str, draws: list[ArmCurve], budget: float) -> dict[str, Any]:
        """Columns of the comparison at equal damage."""
        effects = [one.upward.effect_at(budget) for one in draws]
        native = next(one for one in self.curves if one.arm.name == "native")
        own = native.upward.effect(budget, self.resamples)
        means = [float(one.mean()) for one in effects]
        if name in DRAWN:
            interval = prediction_interval(means)
            fraction = prediction_interval(np.array(means) / float(own.values[0]))
            doubts = [interval.flag]
        else:
            curve = draws[0].upward
            estimate = curve.effect(budget, self.resamples)
            interval = estimate.interval(self.resamples)
            # The propensities of the source model have another scale than those of the target.
            fraction = NOTHING if name == "source" else estimate.ratio(own, self.resamples)
            doubts = [interval.flag, fraction.flag, curve.doubt(budget, self.resamples)]
        # An effect is NaN if no two β bracket the budget.
        missed = sum(bool(np.isnan(one).any()) for one in effects)
        return {
            "beta_at_equal_damage": float(np.mean([one.upward.scale_at(budget) for one in draws])),
            "effect_at_equal_damage": interval.value,
            "low": interval.low,
            "high": interval.high,
            "fraction_of_native": fraction.value,
            "fraction_low": fraction.low,
            "fraction_high": fraction.high,
            "flag": f"damage not bracketed in {missed} of {len(draws)}" if missed else "",
            "interval_flag": joined_flags(doubts),
        }

    def _interval(self, name: str, effects: list[np.ndarray]) -> Interval:
        """Return where a new draw falls for drawn arms, else a bootstrap over items."""
        if name in DRAWN:
            return prediction_interval([float(effect.mean()) for effect in effects])
        return bootstrap_mean(effects[0], clusters=self.resamples.sources[ITEMS])
