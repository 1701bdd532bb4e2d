"""Effects of all arms at equal damage, with intervals that say what they contain.

Problem: an effect depends on the items, on the neutral texts, on the contrast pairs that the vector
was learnt from, and on the documents that the map was fitted on. Mechanism: items and neutral texts
are resampled together (`lrt_lens.adapters.vectors._equal_damage`); contrast pairs and map are left
out in groups, and the delete-a-group jackknife gives their standard errors. The sources are
independent, so the half-widths add as squares:

    low = E − √((E − E_low)² + (t₇ · SE_contrast)² + (t₄ · SE_map)²),      high likewise

A control of several draws has the interval that a new draw falls into, and the rank of the
transferred effect among the sizes of the draws.

    rows = SteeringSummary("sentiment", measured, budget=0.1, resamples=resamples).rows()

Limits: `native_best` and `untransformed` are learnt from the contrast pairs too, but their
intervals contain items and neutral texts only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrt_lens.adapters.vectors._equal_damage import ITEMS, TEXTS
from lrt_lens.adapters.vectors._sources import CONTRAST, MAP, ratio_error, refits_of, total
from lrt_lens.adapters.vectors._vector_arm import REFITS, MeasuredArm
from lrt_lens.statistics._bootstrap import Estimate, Resamples
from lrt_lens.statistics._draws import prediction_interval, rank_test, typical_size
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags
from lrt_lens.statistics._jackknife import jackknife_error

_ERRORS = {
    ITEMS: "items_error",
    TEXTS: "neutral_error",
    CONTRAST: "contrast_error",
    MAP: "map_error",
}
"""Column of the standard error of each source."""


@dataclass(frozen=True)
class Quantity:
    """One way to read an arm: the vector, its negative, or the mean of both."""

    name: str
    """Column of the effect."""
    ends: str
    """Beginning of the columns of its interval."""
    fraction: str
    """Column of the fraction of native; its ends begin alike."""
    estimate: Callable[[MeasuredArm, float, Resamples], Estimate | None]
    """Estimate of an arm at a budget; None if that sign was not measured."""
    value: Callable[[MeasuredArm, float], float]
    """Effect of an arm at a budget."""

    def columns(self, effect: Interval, fraction: Interval) -> dict[str, float]:
        """Return the columns of an effect and of its fraction of native, with their ends."""
        return {
            self.name: effect.value,
            f"{self.ends}low": effect.low,
            f"{self.ends}high": effect.high,
            # Of the vector itself it is called in full.
            self.fraction if self.ends else "fraction_of_native": fraction.value,
            f"{self.fraction}_low": fraction.low,
            f"{self.fraction}_high": fraction.high,
        }


def _minus(measured: MeasuredArm, budget: float, resamples: Resamples) -> Estimate | None:
    return None if measured.minus is None else measured.minus.effect(budget, resamples)


def _both(measured: MeasuredArm, budget: float, resamples: Resamples) -> Estimate | None:
    if measured.minus is None:
        return None
    plus, minus = (curve.effect(budget, resamples) for curve in (measured.plus, measured.minus))
    return (plus - minus) * 0.5


QUANTITIES = (
    Quantity(
        "effect_at_equal_damage",
        "",
        "fraction",
        lambda measured, budget, resamples: measured.plus.effect(budget, resamples),
        MeasuredArm.effect,
    ),
    Quantity("effect_negated", "negated_", "fraction_negated", _minus, MeasuredArm.negated),
    Quantity("effect_mean", "mean_", "fraction_mean", _both, MeasuredArm.both),
)
"""The vector, its negative, and the mean of both, in the order of the columns."""


class SteeringSummary:
    """Rows of the summary of a steering evaluation.

    Args:
        concept: name of the concept.
        measured: all measured vectors.
        budget: damage at which arms are compared, nats per token.
        resamples: resamples of items and neutral texts, shared by all arms.
    """

    def __init__(
        self, concept: str, measured: Sequence[MeasuredArm], budget: float, resamples: Resamples
    ) -> None:
        self.concept, self.budget, self.resamples = concept, budget, resamples
        self.arms: dict[str, list[MeasuredArm]] = {}
        for one in measured:
            self.arms.setdefault(one.arm.name, []).append(one)
        # All vectors are measured on the same items and texts.
        curve = measured[0].plus
        self.counts = {"n_items": curve.propensity.shape[1], "n_texts": len(curve.n_tokens)}

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per arm, without steering first."""
        none = {"concept": self.concept, "arm": "none", "n_draws": 1}
        none |= {"flag": "", "interval_flag": ""}
        zero = {q.name: 0.0 for q in QUANTITIES if q.name != "effect_negated"}
        rows = [none | zero | {"low": 0.0, "high": 0.0, "effect_negated": 0.0}]
        for name, draws in self.arms.items():
            if name not in REFITS:
                is_drawn = draws[0].arm.draw is not None
                rows.append(self._drawn(name, draws) if is_drawn else self._single(name, draws[0]))
        return [row | self.counts for row in rows]

    def _values(self, name: str, quantity: Quantity) -> list[float]:
        return [quantity.value(one, self.budget) for one in self.arms.get(name, [])]

    # ------------------------------------------------------------------------------- one vector

    def _single(self, name: str, measured: MeasuredArm) -> dict[str, Any]:
        """Return the row of an arm of one vector."""
        row: dict[str, Any] = {
            "concept": self.concept,
            "arm": name,
            "hook": measured.arm.vector.hook,
            "n_draws": 1,
            "scale": measured.plus.scale_at(self.budget),
        }
        doubts: list[str] = []
        refits = refits_of(name, self.arms)
        for quantity in QUANTITIES:
            estimate = quantity.estimate(measured, self.budget, self.resamples)
            errors = {
                source: jackknife_error(self._values(arm, quantity))
                for source, arm in refits.items()
            }
            sampled = self._sampled(estimate)
            whole = total(sampled, errors, self._groups(refits))
            fraction, ratio_errors = self._fraction(name, quantity, estimate, refits)
            row |= quantity.columns(whole, fraction)
            doubts.append(whole.flag)
            if quantity.ends == "" and estimate is not None:
                known = estimate.errors(self.resamples) | errors
                row |= {_ERRORS[source]: error for source, error in known.items()}
                row |= {f"fraction_{_ERRORS[source]}": e for source, e in ratio_errors.items()}
                row["contains"] = ", ".join(
                    source for source, error in known.items() if not math.isnan(error)
                )
        curves = [one for one in (measured.plus, measured.minus) if one is not None]
        missed = [math.isnan(one.scale_at(self.budget)) for one in curves]
        doubts += [one.doubt(self.budget, self.resamples) for one in curves]
        row["flag"] = "damage not bracketed" if missed[0] else ""
        doubts += ["damage of the vector's negative not bracketed"] * any(missed[1:])
        return row | {"interval_flag": joined_flags(doubts)}

    def _sampled(self, estimate: Estimate | None) -> Interval:
        return NOTHING if estimate is None else estimate.interval(self.resamples)

    def _groups(self, refits: Mapping[str, str]) -> dict[str, int]:
        return {source: len(self.arms[arm]) for source, arm in refits.items()}

    def _fraction(
        self, name: str, quantity: Quantity, estimate: Estimate | None, refits: Mapping[str, str]
    ) -> tuple[Interval, dict[str, float]]:
        """Return the fraction of native with its interval, and its standard errors by source."""
        if "native" not in self.arms or estimate is None:
            return NOTHING, {}
        [native] = self.arms["native"]
        if name == "native":
            # By definition; a missing effect is no fraction.
            is_known = not math.isnan(quantity.value(native, self.budget))
            return (Interval(1.0, 1.0, 1.0) if is_known else NOTHING), {}
        reference = quantity.estimate(native, self.budget, self.resamples)
        if reference is None:
            return NOTHING, {}
        sampled = estimate.ratio(reference, self.resamples)
        if math.isnan(sampled.value):
            return NOTHING, {}
        ratio = estimate / reference
        errors: dict[str, float] = {}
        own = quantity.value(native, self.budget)
        for source, arm in refits.items():
            values = self._values(arm, quantity)
            # The pairs that the transferred vector lacks are missing from the native one too.
            is_shared = source == CONTRAST
            below = self._values("native_refit", quantity) if is_shared else [own] * len(values)
            errors[source] = ratio_error(values, below)
        interval = total(sampled, errors, self._groups(refits))
        return interval, ratio.errors(self.resamples) | errors

    # ------------------------------------------------------------------------------ several draws

    def _drawn(self, name: str, draws: list[MeasuredArm]) -> dict[str, Any]:
        """Return the row of a control of several draws."""
        row: dict[str, Any] = {
            "concept": self.concept,
            "arm": name,
            "hook": draws[0].arm.vector.hook,
            "n_draws": len(draws),
            "scale": math.nan,
            "contains": "draws",
        }
        doubts: list[str] = []
        for quantity in QUANTITIES:
            values = np.array(self._values(name, quantity))
            new_draw = prediction_interval(values)
            doubts.append(new_draw.flag)
            native = self._values("native", quantity)
            ratio = prediction_interval(values / native[0]) if native else NOTHING
            row |= quantity.columns(new_draw, ratio)
        # The mean of both signs if both were measured, so that a control may point either way.
        read = QUANTITIES[2] if draws[0].minus is not None else QUANTITIES[0]
        values = self._values(name, read)
        transferred = self._values("transferred", read)
        test = rank_test(transferred[0] if transferred else math.nan, values)
        row |= {
            "typical_size": typical_size(values),
            "transferred_p": test.p,
            "p_floor": test.floor,
        }
        n_missed = int(np.isnan(self._values(name, QUANTITIES[0])).sum())
        missed = f"damage not bracketed in {n_missed} of {len(draws)} draws" if n_missed else ""
        return row | {"flag": missed, "interval_flag": joined_flags(doubts)}
