"""The strength at which an intervention does a given amount of damage.

Interventions are compared at equal damage: the strength at which they cost the same on neutral
text, as the rise of the loss or as KL from the unsteered model, both in nats per token
(`lrt_lens.adapters.vectors._neutral_text`). Damage grows about with the square of a small step, so
the search begins where the lengths of vector and stream foretell
(`lrt_lens.adapters.vectors._scale_prediction`), brackets the budget and interpolates along a power
of the scale.

    found = calibrate_scale(model, vector, neutral=texts, damage=0.1)
    found.scale, found.curve
    with found.apply(model): ...

    calibrate_scale(model, [at_layer_2, at_layer_4], texts, unit="kl")              # one multiplier for several hook points
    calibrate_scale(model, vector, texts, mode="clamp", level=3.0)                  # how far towards (or beyond) a level
    calibrate_scale(model, vector, conversations, positions="generated")            # a chat model

What the scale multiplies in each mode is told in `lrt_lens.adapters.vectors._intervention`. Limits:
damage on neutral text says nothing of what steering does to texts of another kind, and nothing of
whether the vector has an effect: a direction that the model ignores takes any strength.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lrt_lens._repr_html import card, facts, table
from lrt_lens.adapters.vectors._intervention import Intervention
from lrt_lens.adapters.vectors._neutral_text import Neutral, NeutralText, Unit
from lrt_lens.adapters.vectors._scale_prediction import predict_scale
from lrt_lens.adapters.vectors._steering_hook import Mode, Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.models._hooked_model import Handle, HookedModel, load_model
from lrt_lens.models._loading import ModelLike

__all__ = [
    "MAX_PASSES",
    "Calibration",
    "NeutralText",
    "calibrate_on",
    "calibrate_scale",
    "search_scale",
]

MAX_PASSES = 12
_LARGEST_SCALE = 2.0**20
_MEANINGS = {
    "loss": "damage: rise of the loss on neutral text",
    "kl": "damage: KL(unsteered ‖ steered) on neutral text",
}
_SCALES = {
    "add": "scale (1 = the vector's own length)",
    "clamp": "scale (1 = clamped to the level)",
    "ablate": "scale (1 = all of the component)",
}


@dataclass(frozen=True)
class Calibration:
    """A strength and the search that led to it."""

    scale: float
    """Multiples of the vector, or of the way that the mode goes; NaN where the budget was not
    bracketed.
    """
    damage: float
    """Damage at that scale, as measured."""
    budget: float
    """Damage asked for, in nats per token."""
    curve: pd.DataFrame
    """Every scale that was tried, with its damage."""
    unit: Unit = "loss"
    """What damage counts: the rise of the loss, or KL(unsteered ‖ steered)."""
    at_limit: bool = False
    """Whether all that the mode can do (a full ablation) stays within the budget: ``scale`` is then
    that, and ``damage`` less than asked for.
    """
    intervention: Intervention | None = field(default=None, repr=False)
    """What was turned up."""

    @property
    def reached(self) -> bool:
        """Whether there is a scale to use."""
        return not math.isnan(self.scale)

    @property
    def levels(self) -> tuple[float, ...]:
        """Mean component along each unit vector that a clamp of this scale leads to, in the order
        of the hook points; empty for other modes.
        """
        one = self.intervention
        if one is None or one.mode != "clamp":
            return ()
        return tuple(
            mean + self.scale * (level - mean)
            for level, mean in zip(one.levels, one.means, strict=True)
        )

    def apply(self, model: ModelLike) -> Handle:
        """Put everything on a model at this strength: ``with found.apply(model): ...``; ValueError
        where no strength was found.
        """
        if self.intervention is None or not self.reached:
            raise ValueError(
                f"the budget of {self.budget:g} nats per token was not reached (most seen: {self.curve['damage'].max():.3g}), so there is no strength "
                "to apply; give a smaller damage"
            )
        return self.intervention.apply(model, scale=self.scale)

    def _repr_html_(self) -> str:
        unit = "nats per token, " + (
            "rise of the loss" if self.unit == "loss" else "KL of the next token"
        )
        found = {
            "scale": self.scale,
            "damage": f"{self.damage:.3g} of {self.budget:g} ({unit})",
            "steered passes": len(self.curve) - 1,
        }
        return card("Calibration", facts(found), table(self.curve))

    def figure(self) -> Any:
        """Damage against scale, the choice marked (plotly)."""
        from lrt_lens.figures._steering import calibration_figure

        mode = "add" if self.intervention is None else self.intervention.mode
        meaning = _MEANINGS[self.unit]
        return calibration_figure(
            self.curve, budget=self.budget, chosen=self.scale, meaning=meaning, scale=_SCALES[mode]
        )


def calibrate_scale(
    model: ModelLike,
    vector: SteeringVector | Sequence[SteeringVector],
    neutral: Neutral,
    damage: float = 0.1,
    *,
    unit: Unit = "loss",
    mode: Mode = "add",
    level: float | Sequence[float] | None = None,
    positions: Positions = "all",
    first_guess: float | None = None,
    tolerance: float = 0.02,
) -> Calibration:
    """The positive scale at which an intervention costs ``damage`` nats per token on ``neutral``.

    Deterministic, at most 12 forward passes over the neutral texts (the unsteered one included; KL,
    a clamp and further hook points take one or two more without steering), three as a rule.
    ``scale`` is NaN, never an extrapolation, where the budget cannot be bracketed; where a full
    ablation stays within the budget it is 1 and ``at_limit`` is set.

    Args:
        model: to be steered.
        vector: one, or one for each of several hook points, which share the scale.
        neutral: texts without the concept, or conversations (lists of ``{"role", "content"}``) that
            end with the assistant's turn, of which only that turn counts.
        damage: budget, nats per token.
        unit: ``"loss"``: by how much the loss rises; ``"kl"``: KL(unsteered ‖ steered) of the
            next-token distribution.
        mode: ``"add"``, ``"clamp"`` or ``"ablate"``; `lrt_lens.adapters.vectors._intervention`
            tells what the scale multiplies in each.
        level: of a clamp of scale 1, one for each vector; the mean component on the vector's own
            positive texts, taken again in this model, where left out and where the vector still
            holds its texts.
        positions: which positions are steered; see `SteeringVector.hooks`.
        first_guess: the first scale that is tried; predicted from the unsteered stream where None
            (`predict_scale`).
        tolerance: relative to the budget.

    Raises:
        ValueError: no neutral text that is long enough, a budget that is not positive, an unknown
            unit, or no level for a clamp.
        MismatchError: a vector of another model.
    """
    hooked = load_model(model)
    vectors = (vector,) if isinstance(vector, SteeringVector) else tuple(vector)
    for one in vectors:
        one.refuse_other_model(hooked)
    levels = _levels(hooked, vectors, level) if mode == "clamp" else ()
    plan = Intervention.of(vectors, mode=mode, positions=positions, levels=levels)
    ready = NeutralText(hooked, neutral, plan.vectors[0].hook)
    if mode == "clamp":
        means = [ready.mean_component(one.direction, one.hook) for one in plan.vectors]
        plan = Intervention(plan.vectors, mode, positions, plan.levels, tuple(means))
    return calibrate_on(
        ready, plan, damage, unit=unit, first_guess=first_guess, tolerance=tolerance
    )


def calibrate_on(
    neutral: NeutralText,
    vector: SteeringVector | Intervention,
    damage: float,
    *,
    unit: Unit = "loss",
    positions: Positions = "all",
    first_guess: float | None = None,
    tolerance: float = 0.02,
) -> Calibration:
    """`calibrate_scale` on texts made ready before; ``positions`` are those of a single vector, an
    `Intervention` has its own.
    """
    if not damage > 0 or math.isinf(damage):
        raise ValueError(
            f"damage is {damage}; expected a positive number of nats per token, such as 0.1"
        )
    plan = (
        vector if isinstance(vector, Intervention) else Intervention.of(vector, positions=positions)
    )
    if first_guess is None:
        first_guess = _first_guess(neutral, plan, damage)

    def measure(scale: float) -> float:
        first, *rest = plan.hooks(scale).items()
        return neutral.cost(unit, first[1], dict(rest))

    tried = search_scale(
        measure,
        damage,
        first_guess=first_guess,
        tolerance=tolerance,
        max_evaluations=MAX_PASSES - 1,
        largest=plan.limit,
    )
    curve = pd.DataFrame(sorted({(0.0, 0.0), *tried}), columns=["scale", "damage"])
    if max((value for _, value in tried), default=0.0) < (1 - tolerance) * damage:
        all_of_it = [point for point in tried if point[0] == plan.limit]
        scale, reached = all_of_it[0] if all_of_it else (math.nan, math.nan)
        return Calibration(scale, reached, damage, curve, unit, bool(all_of_it), plan)
    scale, reached = min(tried, key=lambda point: abs(point[1] - damage))
    return Calibration(scale, reached, damage, curve, unit, False, plan)


def search_scale(
    measure: Callable[[float], float],
    budget: float,
    *,
    first_guess: float,
    tolerance: float,
    max_evaluations: int,
    largest: float = _LARGEST_SCALE,
) -> list[tuple[float, float]]:
    """(scale, damage) pairs tried until one is within ``tolerance`` of the budget: bracket, and
    follow the power of the scale between two points.
    """
    tried: list[tuple[float, float]] = []
    below, high = [(0.0, 0.0)], None
    largest = min(largest, _LARGEST_SCALE)
    scale = min(first_guess, largest)
    while len(tried) < max_evaluations and scale <= largest:
        value = measure(scale)
        tried.append((scale, value))
        if abs(value - budget) <= tolerance * budget:
            break
        if math.isnan(value) or value > budget:
            high = (scale, value)
        else:
            below.append((scale, value))
            if scale == largest:
                break
        scale = min(_next_scale(below, high, budget), largest)
    return [(s, v) for s, v in tried if not math.isnan(v)]


def _next_scale(
    below: list[tuple[float, float]], high: tuple[float, float] | None, budget: float
) -> float:
    low = below[-1]
    if high is None:
        # Damage grows with the square of a small step; two points tell by which power it grows
        # here. Never leap by more than eight.
        power = _power(below[-2], low)
        return low[0] * (
            min(8.0, max(1.02, (budget / low[1]) ** (1 / power))) if low[1] > 0 else 4.0
        )
    if math.isnan(high[1]):
        return 0.5 * (low[0] + high[0])
    if low[1] > 0:
        guess = low[0] * (budget / low[1]) ** (1 / _power(low, high))
    else:
        roots = [math.sqrt(max(value, 0.0)) for _, value in (low, high)]
        guess = low[0] + (math.sqrt(budget) - roots[0]) / (roots[1] - roots[0]) * (high[0] - low[0])
    # Stay inside the bracket by a margin, or a curved damage would creep towards one end.
    margin = 0.03 * (high[0] - low[0])
    return min(high[0] - margin, max(low[0] + margin, guess))


def _power(one: tuple[float, float], other: tuple[float, float]) -> float:
    """The power of the scale by which damage grows from one point to the other; 2 where one of them
    shows no damage.
    """
    if one[1] <= 0 or other[1] <= one[1]:
        return 2.0
    return min(6.0, max(0.5, math.log(other[1] / one[1]) / math.log(other[0] / one[0])))


def _first_guess(neutral: NeutralText, plan: Intervention, damage: float) -> float:
    """What the lengths of vectors and stream foretell for ``"add"``; the other modes know where
    they lead, so 1.
    """
    if plan.mode != "add" or any(vector.norm == 0 for vector in plan.vectors):
        return 1.0
    return predict_scale(
        plan.vectors,
        damage,
        median_norm=[neutral.median_norm(vector.hook) for vector in plan.vectors],
    )


def _levels(
    model: HookedModel, vectors: Sequence[SteeringVector], level: float | Sequence[float] | None
) -> list[float]:
    if level is not None:
        given = [float(level)] if isinstance(level, int | float) else [float(one) for one in level]
        if len(given) != len(vectors) or not all(map(math.isfinite, given)):
            raise ValueError(
                f"level is {level} for {len(vectors)} vector(s); give a finite component along each unit vector"
            )
        return given
    forgetful = [vector.name for vector in vectors if vector.contrast_set is None]
    if forgetful:
        raise ValueError(
            f"mode 'clamp' needs level=...: {forgetful} no longer hold texts of the concept to take it from (vector.mean_component)"
        )
    return [
        vector.mean_component(model, vector.contrast_set.positive)
        for vector in vectors
        if vector.contrast_set is not None
    ]
