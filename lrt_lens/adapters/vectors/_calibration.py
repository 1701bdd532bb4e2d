"""Calibration: the scale at which an intervention causes a wanted amount of damage.

Problem: the effects of two interventions can only be compared if both cost the same on neutral
text. Mechanism: damage is the rise of the loss, or the KL divergence from the unsteered model, both
in nats per token (`lrt_lens.adapters.vectors._neutral_text`). It grows about with the square of a
small step. The search starts at a scale predicted from norms, brackets the budget, interpolates
with a power law and looks for an earlier crossing (`lrt_lens.adapters.vectors._scale_search`). Each
block normalises the stream first, so only the length of a step relative to the stream matters. A
step of SHARE · median‖x‖ costs about 0.1 nats per token.

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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from lrt_lens._repr_html import card, facts, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.vectors._intervention import Intervention
from lrt_lens.adapters.vectors._neutral_text import Neutral, NeutralText, Unit
from lrt_lens.adapters.vectors._scale_search import MAX_EVALUATIONS, search_scale
from lrt_lens.adapters.vectors._steering_hook import Mode, Positions
from lrt_lens.adapters.vectors._steers import Steers
from lrt_lens.adapters.vectors._strength import Strength
from lrt_lens.figures._steering import calibration_figure
from lrt_lens.figures._template import with_counts
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
]

SHARE = 0.16
"""Length of the step that costs 0.1 nats per token, as a share of the median ‖x‖.

Median over the measured directions: 0.16 in the bundled large model, 0.20 in SmolLM2-135M.
"""
_BUDGET = 0.1
"""Damage at which SHARE was measured, in nats per token."""
MAX_PASSES = MAX_EVALUATIONS + 1
"""Largest number of passes over the neutral texts, the unsteered one included."""
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


def predict_scale(
    vector: Steers | Sequence[Steers],
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
    vectors = tuple(vector) if isinstance(vector, Sequence) else (vector,)
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
    vectors: Sequence[Steers], median_norm: float | Sequence[float] | None
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


@dataclass(frozen=True, repr=False)
class Calibration(ShortRepr):
    """The scale that meets a damage budget, and the measurements of the search."""

    scale: float
    """First scale whose damage is within 5 % of the budget; NaN if none was found."""
    damage: float
    """Measured damage at that scale, in nats per token."""
    budget: float
    """Requested damage, in nats per token."""
    curve: pd.DataFrame
    """One row per tried scale with a finite damage: scale, damage."""
    unit: Unit = "loss"
    """Measure of damage: the rise of the loss, or KL(unsteered ‖ steered)."""
    at_limit: bool = False
    """True if the largest scale of the mode (a full ablation) stays within the budget.

    ``scale`` is then that largest scale, and ``damage`` is smaller than requested.
    """
    n_texts: int = 0
    """Number of neutral texts on which damage was measured."""
    texts: str = ""
    """Hash of the tokens of the neutral texts."""
    intervention: Intervention | None = field(default=None, repr=False)
    """The intervention that was calibrated."""
    flag: str = ""
    """Sentence about the unusual: no scale meets the budget, the damage crosses it more than once,
    the limit of the mode stays within it, or checks for an earlier crossing were left out."""

    @property
    def reached(self) -> bool:
        """True if a scale meets the budget, or the mode's largest scale stays within it."""
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

    @property
    def vector(self) -> Any:
        """The calibrated vector, which remembers scale, damage and positions in ``strength``.

        Raises:
            ValueError: several vectors were calibrated together, or no scale meets the budget.
        """
        first, *others = self.vectors
        if others:
            raise ValueError(
                f"{len(others) + 1} vectors were calibrated together; expected one: take .vectors"
            )
        return first

    @property
    def vectors(self) -> tuple[Any, ...]:
        """The calibrated vectors, in the order of the forward pass; see `vector`.

        Raises:
            ValueError: no scale meets the budget.
        """
        plan = self._applicable()
        levels = plan.levels or [None] * len(plan.vectors)
        hooks = tuple(vector.hook for vector in plan.vectors)
        return tuple(
            replace(
                vector,
                strength=Strength(
                    scale=self.scale,
                    damage=self.damage,
                    budget=self.budget,
                    unit=self.unit,
                    mode=plan.mode,
                    positions=plan.positions,
                    skip_first=0 if plan.positions == "every" else vector.skip_first,
                    level=level,
                    n_texts=self.n_texts,
                    texts=self.texts,
                    hooks=hooks if len(hooks) > 1 else (),
                ),
            )
            for vector, level in zip(plan.vectors, levels, strict=True)
        )

    def apply(self, model: ModelLike) -> Handle:
        """Register the intervention at this scale: ``with calibration.apply(model): ...``.

        Raises:
            ValueError: no scale meets the budget; the message says what the curve does.
        """
        return self._applicable().apply(model, scale=self.scale)

    def _applicable(self) -> Intervention:
        """Return the intervention, if a scale was found for it."""
        if self.intervention is None or not self.reached:
            raise ValueError(
                f"the budget of {self.budget:g} nats per token was not reached, so there is no "
                f"scale to apply ({self.flag or 'nothing was calibrated'}); calibrate with a "
                "damage that the curve reaches, see calibration.figure()"
            )
        return self.intervention

    def _repr_html_(self) -> str:
        measure = "rise of the loss" if self.unit == "loss" else "KL of the next token"
        summary = {
            "scale": self.scale,
            "damage": f"{self.damage:.3g} of {self.budget:g} (nats per token, {measure})",
            "steered passes": len(self.curve) - 1,
        }
        return card("Calibration", facts(summary), note(self.flag), table(self.curve))

    def figure(self) -> Any:
        """Return a plotly figure of damage against scale, with scale and flag if there are any."""
        mode = "add" if self.intervention is None else self.intervention.mode
        meaning = _MEANINGS[self.unit]
        figure = calibration_figure(
            self.curve,
            budget=self.budget,
            chosen=self.scale,
            meaning=meaning,
            scale=_SCALES[mode],
            flag=self.flag,
        )
        return with_counts(figure, {"neutral texts": self.n_texts})


def calibrate_scale(
    model: ModelLike,
    vector: Steers | Sequence[Steers],
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
    """Return the first positive scale at which an intervention costs ``damage`` on ``neutral``.

    Deterministic. Needs about six forward passes over the neutral texts, two of which look for an
    earlier crossing, and at most 32 if the damage does not rise like an ordinary curve; KL, a clamp
    and further hook points need one or two more unsteered passes. ``scale`` is NaN, never an
    extrapolation, if no scale with a damage within 5 % of the budget was found: the curve may
    saturate below the budget or jump over it. If a full ablation stays within the budget, ``scale``
    is 1 and ``at_limit`` is set. ``flag`` says all of this in words.

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
        tolerance: difference from the budget, as a share of it, at which the search stops; at most
            0.05.

    Raises:
        ValueError: no neutral text that is long enough, a budget or first guess that is not
            positive, a tolerance out of range, an unknown unit, or no level for a clamp.
        MismatchError: a vector of another model.
    """
    hooked = load_model(model)
    vectors = tuple(vector) if isinstance(vector, Sequence) else (vector,)
    for one in vectors:
        one.refuse_other_model(hooked)
    levels = _levels(hooked, vectors, level) if mode == "clamp" else ()
    plan = Intervention.of(vectors, mode=mode, positions=positions, levels=levels)
    tokenized = NeutralText(hooked, neutral, plan.vectors[0].hook, skip_first=plan.skip_first)
    # Means of the unsteered stream, from which a clamp beyond scale 1 starts.
    if mode == "clamp":
        means = [tokenized.mean_component(one.direction, one.hook) for one in plan.vectors]
        plan = replace(plan, means=tuple(means))
    return calibrate_on(
        tokenized, plan, damage, unit=unit, first_guess=first_guess, tolerance=tolerance
    )


def calibrate_on(
    neutral: NeutralText,
    vector: Steers | Intervention,
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
        ValueError: a budget or first guess that is not positive, a tolerance out of range, or an
            unknown unit.
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

    found = search_scale(
        measure, damage, first_guess=first_guess, tolerance=tolerance, largest=plan.limit
    )
    # Scale 0 costs 0 by definition.
    curve = pd.DataFrame(sorted([(0.0, 0.0), *found.tried]), columns=["scale", "damage"])
    return Calibration(
        scale=found.scale,
        damage=found.damage,
        budget=damage,
        curve=curve,
        unit=unit,
        at_limit=found.at_limit,
        n_texts=len(neutral.n_tokens),
        texts=neutral.digest,
        intervention=plan,
        flag=found.flag,
    )


def _refuse_other_texts(neutral: NeutralText, plan: Intervention) -> None:
    """Raise `MismatchError` unless the texts were prepared for these vectors."""
    for vector in plan.vectors:
        vector.refuse_other_model(neutral.model)
    # Passes resume at the stored hook point, so it must be the first one that changes the stream.
    texts = Origin("these neutral texts", neutral.batches.hook, made="were prepared")
    remedy = f"prepare them with NeutralText(model, texts, {plan.vectors[0].hook!r})"
    refuse_foreign(plan.vectors[0].origin, texts, remedy=remedy)


def _first_guess(neutral: NeutralText, plan: Intervention, damage: float) -> float:
    """Return the predicted scale of ``"add"``; 1 for the other modes, whose end is at scale 1."""
    if plan.mode != "add" or any(vector.norm == 0 for vector in plan.vectors):
        return 1.0
    norms = [neutral.median_norm(vector.hook) for vector in plan.vectors]
    return predict_scale(plan.vectors, damage, median_norm=norms)


def _levels(
    model: HookedModel, vectors: Sequence[Steers], level: float | Sequence[float] | None
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
