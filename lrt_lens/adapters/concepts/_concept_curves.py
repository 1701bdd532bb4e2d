"""Curves of all arms of one concept over β, and the rows of both tables that follow from them.

    ConceptCurves("mood", curves, 0.1, resamples, refits).summary()

Problem: an effect varies with the items and, at equal damage, with the neutral texts; with the
contrast pairs from which its vector and its map are learnt; and draws of a control vary with their
map. Mechanism: arms of one vector are resampled over items and texts
(`lrt_lens.adapters.vectors._equal_damage`), and refits without each group of contrast pairs add
what these cause (`lrt_lens.adapters.vectors._sources`). Controls have the interval that a new draw
falls into, and every other arm has its two-sided p-value among the draws.

Limits: for ``stitch``, the documents of the map count as fixed. Columns over β hold for other items
only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lrt_lens.adapters.concepts._concept_arm import ConceptArm
from lrt_lens.adapters.vectors._equal_damage import ITEMS, Curve
from lrt_lens.adapters.vectors._sources import CONTRAST, ratio_error, total
from lrt_lens.statistics._bootstrap import Resamples, bootstrap_mean
from lrt_lens.statistics._draws import prediction_interval, rank_test, typical_size
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags
from lrt_lens.statistics._jackknife import jackknife_error

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
class ContrastRefit:
    """Mean effects of an arm that was learnt without one group of contrast pairs, in nats."""

    at_one: float
    """Effect at β = 1."""
    at_budget: float
    """Effect at equal damage; NaN without a budget, or if the budget is not bracketed."""


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
    refits: Mapping[str, Sequence[ContrastRefit]] = field(default_factory=dict)
    """Refits of each arm of one vector, in the same order of groups for all arms."""

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
        # Draws of a random arm differ in effect, so their interval is over draws.
        is_drawn = draws[0].arm.draw is not None
        effect = self._at_one(name, draws)
        row |= {"effect": effect.value, "effect_low": effect.low, "effect_high": effect.high}
        row |= {"effect_contrast_error": self._error(name, "at_one"), "interval_flag": effect.flag}
        row |= self._typical(name) if is_drawn else self._beside_draws(name)
        if self.budget is not None:
            at_budget = self._at_budget(name, draws, self.budget)
            doubts = joined_flags([effect.flag, at_budget["interval_flag"]])
            row |= at_budget | {"interval_flag": doubts}
        row["contains"] = "draws" if is_drawn else self._contains(row)
        curve = draws[0].curve
        return row | {"n_items": curve.propensity.shape[1], "n_texts": len(curve.n_tokens)}

    def _contains(self, row: Mapping[str, Any]) -> str:
        """Return the sources of variation in the intervals of an arm of one vector."""
        # An effect at equal damage that is unknown has no interval.
        is_unknown = math.isnan(row.get("effect_at_equal_damage", math.nan))
        errors = [row["effect_contrast_error"]] + [row.get("contrast_error")] * (not is_unknown)
        is_known = not any(math.isnan(error) for error in errors)
        return ", ".join([*self.resamples.sources, *[CONTRAST] * is_known])

    def _refitted(self, name: str, where: Literal["at_one", "at_budget"]) -> list[float]:
        """Return the effects of the refits of an arm; empty without refits."""
        return [getattr(one, where) for one in self.refits.get(name, [])]

    def _error(self, name: str, where: Literal["at_one", "at_budget"]) -> float:
        """Return the standard error that the contrast pairs cause; NaN without refits."""
        return jackknife_error(self._refitted(name, where))

    def _total(self, name: str, sampled: Interval, error: float) -> Interval:
        """Return an interval over items and texts, widened by what the contrast pairs cause."""
        return total(sampled, {CONTRAST: error}, {CONTRAST: len(self.refits.get(name, []))})

    def _effects(self, name: str) -> list[float]:
        """Return the mean effect of each draw, at equal damage if that was measured."""
        draws = [one for one in self.curves if one.arm.name == name]
        if self.budget is None:
            return [float(one.effect(1.0).mean()) for one in draws]
        return [float(one.upward.effect_at(self.budget).mean()) for one in draws]

    def _typical(self, name: str) -> dict[str, float]:
        return {"typical_size": typical_size(self._effects(name))}

    def _beside_draws(self, name: str) -> dict[str, float]:
        """Return the p-values of an arm of the target among the draws of two controls."""
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
        error, ratio = self._error(name, "at_budget"), math.nan
        if draws[0].arm.draw is not None:
            interval = prediction_interval(means)
            fraction = prediction_interval(np.array(means) / float(own.values[0]))
            doubts = [interval.flag]
        else:
            curve = draws[0].upward
            estimate = curve.effect(budget, self.resamples)
            interval = self._total(name, estimate.interval(self.resamples), error)
            fraction = NOTHING
            # The propensities of the source model have another scale than those of the target.
            if name != "source":
                # Native lacks the pairs of the vector that this arm lacks.
                refitted = (self._refitted(one, "at_budget") for one in (name, "native"))
                ratio = ratio_error(*refitted)
                fraction = self._total(name, estimate.ratio(own, self.resamples), ratio)
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
            "contrast_error": error,
            "fraction_contrast_error": ratio,
            "flag": f"damage not bracketed in {missed} of {len(draws)}" if missed else "",
            "interval_flag": joined_flags(doubts),
        }

    def _at_one(self, name: str, draws: list[ArmCurve]) -> Interval:
        """Return the effect at β = 1, with where a new draw falls for drawn arms."""
        effects = [one.effect(1.0) for one in draws]
        if draws[0].arm.draw is not None:
            return prediction_interval([float(effect.mean()) for effect in effects])
        sampled = bootstrap_mean(effects[0], clusters=self.resamples.sources[ITEMS])
        return self._total(name, sampled, self._error(name, "at_one"))
