"""Calibration: the scale at which an intervention causes a wanted amount of damage.

Problem: the effects of two interventions can only be compared if both cost the same on neutral
text. Mechanism: damage is the rise of the loss, or the KL divergence from the unsteered model, both
in nats per token (`lrt_lens.adapters.vectors._neutral_text`). It grows about with the square of a
small step. The search starts at a scale predicted from norms, brackets the budget and interpolates
with a power law. Each block normalises the stream first, so only the length of a step relative to
the stream matters. A step of SHARE · median‖x‖ costs about 0.1 nats per token.

    scale = SHARE · √(damage / 0.1) · median‖x‖ / ‖v‖                     (`predict_scale`)

    calibration = calibrate_scale(model, vector, neutral=texts, damage=0.1)
    with calibration.apply(model):
        model.generate("This film was")
    calibrate_scale(model, [at_layer_2, at_layer_4], texts, unit="kl")    # one scale for two
    calibrate_scale(model, vector, texts, mode="clamp", level=3.0)        # towards a level
    calibrate_scale(model, vector, conversations, positions="generated")  # a chat model

At several hook points the shares ‖v‖ / median‖x‖ add up, because the stream still contains the
first step at the second hook point. The scale that two layers of one concept need together,
predicted from the scales of each alone, is 6 % (sentiment) and 5 % (mood) too small if shares are
added, and 31 % and 35 % too large if damages are added. Alternatives (number of standard
deviations, Mahalanobis norm, effect on the logits) predict worse: see docs/results/strength.md.
`lrt_lens.adapters.vectors._intervention` says what the scale multiplies in each mode.

Limits: damage on neutral text says nothing about side effects on other kinds of text, and nothing
about the effect of the vector. A direction that the model ignores needs a longer step than
predicted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from lrt_lens._repr_html import card, facts, table
from lrt_lens.adapters.vectors._intervention import Intervention
from lrt_lens.adapters.vectors._neutral_text import Neutral, NeutralText, Unit
from lrt_lens.adapters.vectors._steering_hook import Mode, Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.figures._steering import calibration_figure
from lrt_lens.models._belonging import Origin, refuse_foreign
from lrt_lens.models._hooked_model import Handle, HookedModel, load_model
from lrt_lens.models._loading import ModelLike

__all__ = [
    "MAX_PASSES",
    "SHARE",
    "Calibration",
    "NeutralText",
    "calibrate_on",
    "calibrate_scale",
    "predict_scale",
    "search_scale",
]

SHARE = 0.16
"""Length of the step that costs 0.1 nats per token, as a share of the median ‖x‖.

Median over the measured directions: 0.16 in the bundled large model, 0.20 in SmolLM2-135M.
"""
_BUDGET = 0.1
"""Damage at which SHARE was measured, in nats per token."""
MAX_PASSES = 12
"""Largest number of passes over the neutral texts, the unsteered one included."""
_LARGEST_SCALE = 2.0**20
"""Largest scale that is tried: a direction without any effect would be scaled up for ever."""
# Subtitles of the figure by unit of damage, and titles of its axis by mode.
_MEANINGS = {
    "loss": "damage: rise of the loss on neutral text",
    "kl": "damage: KL(unsteered ‖ steered) on neutral text",
}
_SCALES = {
    "add": "scale (1 = the vector's own length)",
    "clamp": "scale (1 = clamped to the level)",
    "ablate": "scale (1 = all of the component)",
}
_Point = tuple[float, float]
"""Pair (scale, damage at that scale)."""


def predict_scale(
    vector: SteeringVector | Sequence[SteeringVector],
    damage: float = 0.1,
    *,
    median_norm: float | Sequence[float] | None = None,
) -> float:
    """Return the scale at which adding the vector is predicted to cause ``damage``.

    Args:
        vector: one vector, or several at different hook points that share the scale.
        damage: nats per token on neutral text, as the rise of the loss or as KL divergence.
        median_norm: median ‖x‖ of the stream at the hook point, one number per vector; by default
            the ``median_norm`` of each vector.

    Raises:
        ValueError: a damage that is not positive, a vector of length 0, or a median norm that is
            neither an argument nor stored in the vector.
    """
    vectors = (vector,) if isinstance(vector, SteeringVector) else tuple(vector)
    if not 0 < damage < math.inf:
        raise ValueError(
            f"damage is {damage}; expected a positive number of nats per token, such as 0.1"
        )
    norms = _median_norms(vectors, median_norm)
    if not all(one.norm > 0 for one in vectors):
        raise ValueError(
            f"vectors have norms {[one.norm for one in vectors]}; "
            "a vector of length 0 has no effect at any scale: leave it out"
        )
    # scale = SHARE · √(damage / 0.1) / Σ ‖v‖ / median‖x‖
    share_at_1 = sum(one.norm / norm for one, norm in zip(vectors, norms, strict=True))
    return SHARE * math.sqrt(damage / _BUDGET) / share_at_1


def _median_norms(
    vectors: Sequence[SteeringVector], median_norm: float | Sequence[float] | None
) -> list[float]:
    """Return one median norm per vector; ValueError unless all are positive and finite."""
    # A vector that was learnt or transferred stores the norm of its stream.
    if median_norm is None:
        norms = [one.median_norm for one in vectors]
    elif isinstance(median_norm, int | float):
        norms = [float(median_norm)]
    else:
        norms = [float(norm) for norm in median_norm]
    if not vectors or len(norms) != len(vectors) or not all(0 < norm < math.inf for norm in norms):
        raise ValueError(
            f"median norms are {norms} for {len(vectors)} vector(s); "
            "give median_norm=..., a positive length for each"
        )
    return norms


@dataclass(frozen=True)
class Calibration:
    """The scale that meets a damage budget, and the measurements of the search."""

    scale: float
    """Scale of the intervention; NaN if no tried scale reached the budget."""
    damage: float
    """Measured damage at that scale, in nats per token."""
    budget: float
    """Requested damage, in nats per token."""
    curve: pd.DataFrame
    """One row per tried scale: scale, damage."""
    unit: Unit = "loss"
    """Measure of damage: the rise of the loss, or KL(unsteered ‖ steered)."""
    at_limit: bool = False
    """True if the largest scale of the mode (a full ablation) stays within the budget.

    ``scale`` is then that largest scale, and ``damage`` is smaller than requested.
    """
    intervention: Intervention | None = field(default=None, repr=False)
    """The intervention that was calibrated."""

    @property
    def reached(self) -> bool:
        """True if a scale met the budget, or stays within it at the mode's largest scale."""
        return not math.isnan(self.scale)

    @property
    def levels(self) -> tuple[float, ...]:
        """Mean component along each unit vector under a clamp of this scale.

        One number per hook point, in the order of the forward pass; empty for other modes.
        """
        plan = self.intervention
        if plan is None or plan.mode != "clamp":
            return ()
        # A clamp moves the mean μ by scale · (level − μ).
        return tuple(
            mean + self.scale * (level - mean)
            for level, mean in zip(plan.levels, plan.means, strict=True)
        )

    def apply(self, model: ModelLike) -> Handle:
        """Register the intervention at this scale: ``with calibration.apply(model): ...``.

        Raises:
            ValueError: no scale reached the budget.
        """
        if self.intervention is None or not self.reached:
            raise ValueError(
                f"the budget of {self.budget:g} nats per token was not reached (largest measured "
                f"damage: {self.curve['damage'].max():.3g}), so there is no scale to apply; "
                "calibrate with a smaller damage"
            )
        return self.intervention.apply(model, scale=self.scale)

    def _repr_html_(self) -> str:
        measure = "rise of the loss" if self.unit == "loss" else "KL of the next token"
        summary = {
            "scale": self.scale,
            "damage": f"{self.damage:.3g} of {self.budget:g} (nats per token, {measure})",
            "steered passes": len(self.curve) - 1,
        }
        return card("Calibration", facts(summary), table(self.curve))

    def figure(self) -> Any:
        """Return a plotly figure of damage against scale, with the calibrated scale marked."""
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
    """Return the positive scale at which an intervention costs ``damage`` on ``neutral``.

    Deterministic. Needs at most 12 forward passes over the neutral texts, about three as a rule;
    KL, a clamp and further hook points need one or two more unsteered passes. ``scale`` is NaN,
    never an extrapolation, if no tried scale reaches the budget. If a full ablation stays within
    the budget, ``scale`` is 1 and ``at_limit`` is set.

    Args:
        model: the model to steer.
        vector: one vector, or several at different hook points that share the scale.
        neutral: texts without the concept, or conversations (lists of ``{"role", "content"}``) that
            end with the assistant's turn; only that turn counts.
        damage: budget, nats per token.
        unit: ``"loss"``: rise of the loss; ``"kl"``: KL(unsteered ‖ steered) of the next-token
            distribution.
        mode: ``"add"``, ``"clamp"`` or ``"ablate"``; `lrt_lens.adapters.vectors._intervention`
            says what the scale multiplies in each.
        level: component along the unit vector that a clamp of scale 1 sets, one number per vector;
            by default the mean component of this model on the positive texts of each vector.
        positions: steered positions, see `SteeringVector.hooks`.
        first_guess: first scale that is tried; by default predicted from the norms of vector and
            stream (`predict_scale`).
        tolerance: accepted difference from the budget, as a share of it.

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
    tokenized = NeutralText(hooked, neutral, plan.vectors[0].hook)
    # Means of the unsteered stream, from which a clamp beyond scale 1 starts.
    if mode == "clamp":
        means = [tokenized.mean_component(one.direction, one.hook) for one in plan.vectors]
        plan = replace(plan, means=tuple(means))
    return calibrate_on(
        tokenized, plan, damage, unit=unit, first_guess=first_guess, tolerance=tolerance
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
    """Return the calibration of `calibrate_scale` on texts that are already tokenized.

    ``positions`` are those of a single vector; an `Intervention` has its own.

    Raises:
        ValueError: a budget that is not positive, or an unknown unit.
        MismatchError: a vector of another model than that of the texts, or texts that were prepared
            at another hook point than the first one of the vectors.
    """
    if not damage > 0 or math.isinf(damage):
        raise ValueError(
            f"damage is {damage}; expected a positive number of nats per token, such as 0.1"
        )
    plan = (
        vector if isinstance(vector, Intervention) else Intervention.of(vector, positions=positions)
    )
    _refuse_other_texts(neutral, plan)
    if first_guess is None:
        first_guess = _first_guess(neutral, plan, damage)

    def measure(scale: float) -> float:
        # The first hook changes the stored residual; hooks at later hook points run within the
        # pass.
        (_, first), *later = plan.hooks(scale).items()
        return neutral.cost(unit, first, dict(later))

    tried = search_scale(
        measure,
        damage,
        first_guess=first_guess,
        tolerance=tolerance,
        max_evaluations=MAX_PASSES - 1,
        largest=plan.limit,
    )
    # Scale 0 costs 0 by definition. The set drops a second (0, 0) if the search tried scale 0.
    curve = pd.DataFrame(sorted({(0.0, 0.0), *tried}), columns=["scale", "damage"])
    # A search that never reached the budget has no answer, unless the mode's largest scale comes
    # first.
    if max((value for _, value in tried), default=0.0) < (1 - tolerance) * damage:
        at_limit = [point for point in tried if point[0] == plan.limit]
        scale, measured = at_limit[0] if at_limit else (math.nan, math.nan)
        return Calibration(scale, measured, damage, curve, unit, bool(at_limit), plan)
    scale, measured = min(tried, key=lambda point: abs(point[1] - damage))
    return Calibration(scale, measured, damage, curve, unit, False, plan)


def _refuse_other_texts(neutral: NeutralText, plan: Intervention) -> None:
    """Raise `MismatchError` unless the texts were prepared for these vectors."""
    for vector in plan.vectors:
        vector.refuse_other_model(neutral.model)
    # Passes resume at the stored hook point, so it must be the first one that changes the stream.
    texts = Origin("these neutral texts", neutral.batches.hook, made="were prepared")
    remedy = f"prepare them with NeutralText(model, texts, {plan.vectors[0].hook!r})"
    refuse_foreign(plan.vectors[0].origin, texts, remedy=remedy)


def search_scale(
    measure: Callable[[float], float],
    budget: float,
    *,
    first_guess: float,
    tolerance: float,
    max_evaluations: int,
    largest: float = _LARGEST_SCALE,
) -> list[tuple[float, float]]:
    """Return the (scale, damage) pairs of a search for a damage within ``tolerance`` of a budget.

    The search brackets the budget, then interpolates between the two ends with a power law. Scales
    at which the damage is NaN bound it from above and are not returned.
    """
    tried: list[_Point] = []
    below, high = [(0.0, 0.0)], None
    largest = min(largest, _LARGEST_SCALE)
    scale = min(first_guess, largest)
    while len(tried) < max_evaluations and scale <= largest:
        value = measure(scale)
        tried.append((scale, value))
        # NaN compares as False, so a damage of NaN is never accepted.
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


def _next_scale(below: list[_Point], high: _Point | None, budget: float) -> float:
    """Return the scale to try next.

    ``below`` are the points with less damage than the budget, the newest last; ``high`` is the
    newest point with more, None until there is one.
    """
    low = below[-1]
    if high is None:
        # D(s) ∝ sᵖ, so s_next = s · (budget / D)^(1/p), with p from the two newest points. At most
        # 8 times the scale, because p is uncertain far below the budget.
        if low[1] <= 0:
            return low[0] * 4.0
        power = _power(below[-2], low)
        return low[0] * min(8.0, max(1.02, (budget / low[1]) ** (1 / power)))
    if math.isnan(high[1]):
        # Nothing to interpolate with: bisect.
        return 0.5 * (low[0] + high[0])
    if low[1] > 0:
        # The same power law, through both ends of the bracket.
        guess = low[0] * (budget / low[1]) ** (1 / _power(low, high))
    else:
        # A damage of 0 or less has no logarithm. With D ∝ s², √D is linear in s:
        # s = s₀ + (√budget − √D₀) / (√D₁ − √D₀) · (s₁ − s₀)
        roots = [math.sqrt(max(value, 0.0)) for _, value in (low, high)]
        guess = low[0] + (math.sqrt(budget) - roots[0]) / (roots[1] - roots[0]) * (high[0] - low[0])
    # At least 3 % inside the bracket, otherwise one end may never be replaced (regula falsi).
    margin = 0.03 * (high[0] - low[0])
    return min(high[0] - margin, max(low[0] + margin, guess))


def _power(near: _Point, far: _Point) -> float:
    """Return p of D ∝ sᵖ between two points, 0.5 to 6; 2 if the damage does not rise from above 0.

    2 is the power of a small step: KL has its minimum at scale 0, so its derivative is 0 there.
    """
    if near[1] <= 0 or far[1] <= near[1]:
        return 2.0
    # p = ln(D₁ / D₀) / ln(s₁ / s₀)
    return min(6.0, max(0.5, math.log(far[1] / near[1]) / math.log(far[0] / near[0])))


def _first_guess(neutral: NeutralText, plan: Intervention, damage: float) -> float:
    """Return the predicted scale of ``"add"``; 1 for the other modes, whose end is at scale 1."""
    if plan.mode != "add" or any(vector.norm == 0 for vector in plan.vectors):
        return 1.0
    norms = [neutral.median_norm(vector.hook) for vector in plan.vectors]
    return predict_scale(plan.vectors, damage, median_norm=norms)


def _levels(
    model: HookedModel, vectors: Sequence[SteeringVector], level: float | Sequence[float] | None
) -> list[float]:
    """Return the levels of the caller, or the mean component on each vector's positive texts."""
    if level is not None:
        levels = [float(level)] if isinstance(level, int | float) else [float(one) for one in level]
        if len(levels) != len(vectors) or not all(map(math.isfinite, levels)):
            raise ValueError(
                f"level is {level} for {len(vectors)} vector(s); "
                "give a finite component along each unit vector"
            )
        return levels
    without_texts = [vector.name for vector in vectors if vector.contrast_set is None]
    if without_texts:
        raise ValueError(
            f"mode 'clamp' needs level=...: {without_texts} no longer hold texts of the concept; "
            "compute a level with vector.mean_component(model, texts)"
        )
    # Computed in this model: a level of the source would be in units of another stream.
    return [
        vector.mean_component(model, vector.contrast_set.positive)
        for vector in vectors
        if vector.contrast_set is not None
    ]
