"""Measurement of arms: curves of effect and damage around one budget, for both signs of a vector.

    meter = ArmMeter(model, items, neutral, budget=0.1)
    measured = meter.measure(arm)
    measured.plus.effect_at(0.1), measured.minus.effect_at(0.1)       # [item] each

Problem: an evaluation has about a hundred vectors, each in two signs, and a vector and its negative
need different scales for the same damage. Mechanism: arms of one vector get a whole curve around a
searched scale. Draws of a control, and refits, get the few scales that bracket the budget. Vectors
of one arm need steps of about the same length, so a search begins at the last length, slightly
above the budget; with the unsteered point that is a bracket.

Limits: an effect of a draw is interpolated over a wider gap than that of an arm of one vector.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Literal

import numpy as np

from lrt_lens.adapters.vectors._calibration import calibrate_on
from lrt_lens.adapters.vectors._equal_damage import Curve
from lrt_lens.adapters.vectors._intervention import Intervention
from lrt_lens.adapters.vectors._neutral_text import NeutralText
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._vector_arm import MeasuredArm, VectorArm
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._text_reader import SKIP_FIRST

AUTO_SCALES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.4)
"""Multiples of an arm's calibrated scale at which its curve is measured."""
DRAW_SCALES = (0.75, 1.3)
"""Multiples for the first draw of a control, whose scale is searched: one on each side."""
_ABOVE = 1.06
"""Multiple of the scale that is expected at the budget, at which a draw is measured first."""
_WIDEST = 1.6
"""Largest damage of a draw's upper scale, in budgets; a larger one is measured again below."""
_TRIES = 5
"""Largest number of scales of a draw; one that misses the budget at all of them has no effect."""
_MOST_SHOWN = 8
"""Largest number of scales of a curve whose search did not reach the budget."""
_LIKE = {
    "map_refit": "transferred",
    "contrast_refit": "transferred",
    "native_refit": "native",
    "native_best": "native",
}
"""Arm whose step length is the first guess of another one."""

Sign = Literal[1, -1]
"""Sign with which a vector is added."""


class ArmMeter:
    """Curves of arms on items and neutral texts that are tokenized once per hook point.

    Args:
        model: the model that is steered.
        items: choice items on which effects are measured.
        neutral: texts on which damage is measured.
        budget: damage at which arms are compared, in nats per token.
        positions: steered positions.
        scales: scales at which all arms are measured; None searches scales around the budget.
        both_signs: measure the negative of every vector too.
    """

    def __init__(
        self,
        model: HookedModel,
        items: ChoiceItems,
        neutral: Sequence[str],
        *,
        budget: float,
        positions: Positions = "all",
        scales: Sequence[float] | None = None,
        both_signs: bool = True,
    ) -> None:
        self.model, self.items, self.neutral_texts = model, items, neutral
        self.budget, self.both_signs = budget, both_signs
        self.positions: Positions = positions
        self.scales = None if scales is None else sorted(float(scale) for scale in scales)
        self._texts: dict[tuple[str, int], tuple[PreferenceText, NeutralText, np.ndarray]] = {}
        # Last length of a step at the budget, by name of the arm and sign.
        self._last_step: dict[tuple[str, Sign], float] = {}

    def at(
        self, hook: str, skip_first: int = SKIP_FIRST
    ) -> tuple[PreferenceText, NeutralText, np.ndarray]:
        """Return (items, neutral texts, unsteered propensities) at one hook point.

        Damage is measured after the ``skip_first`` positions that are not steered.
        """
        if (hook, skip_first) not in self._texts:
            items = PreferenceText(self.model, self.items, hook)
            neutral = NeutralText(self.model, self.neutral_texts, hook, skip_first=skip_first)
            self._texts[hook, skip_first] = (items, neutral, items.propensity())
        return self._texts[hook, skip_first]

    @property
    def n_spanning(self) -> int:
        """Number of continuations that share a token with the end of their prompt."""
        return next((items.n_spanning for items, *_ in self._texts.values()), 0)

    def afresh(self) -> "ArmMeter":
        """Return a meter with the same texts that has measured no arm."""
        other = copy(self)
        other._last_step = {}
        return other

    def measure(self, arm: VectorArm) -> MeasuredArm:
        """Return the arm's curves over scales that bracket the budget, if such scales exist."""
        plus = self._curve(arm, 1)
        return MeasuredArm(arm, plus, self._curve(arm, -1) if self.both_signs else None)

    def _curve(self, arm: VectorArm, sign: Sign) -> Curve:
        signed = arm if sign > 0 else arm.negated()
        plan = Intervention.of((signed.vector, *signed.later), positions=self.positions)
        if self.scales is not None:
            return self._at_scales(plan, self.scales)
        key = (arm.name, sign)
        # Lengths of steps are those of the vector at the first hook point.
        norm = plan.vectors[0].norm
        if arm.draw is not None and (step := self._expected_step(key)) is not None:
            curve = bracketing_curve(
                lambda scales: self._at_scales(plan, scales), self.budget, step / norm
            )
            if not math.isnan(scale := curve.scale_at(self.budget)):
                self._last_step[key] = scale * norm
            return curve
        multiples = AUTO_SCALES if arm.draw is None else DRAW_SCALES
        return self._at_scales(plan, self._searched(plan, key, multiples))

    def _expected_step(self, key: tuple[str, Sign]) -> float | None:
        """Return the length of the last step at the budget of this arm or of one like it."""
        name, sign = key
        like: tuple[str, Sign] = (_LIKE.get(name, ""), sign)
        known = (self._last_step.get(one) for one in (key, like))
        return next((step for step in known if step is not None), None)

    def _searched(
        self, plan: Intervention, key: tuple[str, Sign], multiples: tuple[float, ...]
    ) -> list[float]:
        """Return multiples of the calibrated scale; all tried scales if none reached the budget."""
        step, first = self._expected_step(key), plan.vectors[0]
        calibration = calibrate_on(
            self.at(first.hook, plan.skip_first)[1],
            plan,
            self.budget,
            first_guess=None if step is None else step / first.norm,
            tolerance=0.03,
        )
        if not calibration.reached:
            # Further draws begin where this search began, and are not searched as widely.
            middle = float(np.median(calibration.curve["scale"].to_numpy(dtype=float)))
            self._last_step.setdefault(key, middle * first.norm)
            tried = [scale for scale in calibration.curve["scale"] if scale > 0]
            # A search that fails tries dozens of scales; a few show the curve.
            return [tried[int(i)] for i in np.unique(np.linspace(0, len(tried) - 1, _MOST_SHOWN))]
        self._last_step[key] = calibration.scale * first.norm
        return [multiple * calibration.scale for multiple in multiples]

    def _at_scales(self, plan: Intervention, scales: Sequence[float]) -> Curve:
        """Return the curve at the given scales, with no steering as the first."""
        items, neutral, unsteered = self.at(plan.vectors[0].hook, plan.skip_first)
        # Scale 0 is no steering: damage 0 by definition.
        rises, propensities = [np.zeros(len(neutral.n_tokens))], [unsteered]
        for scale in scales:
            # The first hook changes the stored residual, the others act within the pass.
            (_, first), *later = plan.hooks(scale).items()
            rises.append(neutral.losses(first, dict(later)) - neutral.unsteered)
            with self.model.intervene({**dict(later)}):
                propensities.append(items.propensity(first))
        return Curve(
            np.array([0.0, *scales]), np.array(rises), neutral.n_tokens, np.array(propensities)
        )


def bracketing_curve(
    measure: Callable[[Sequence[float]], Curve], budget: float, expected: float
) -> Curve:
    """Return a curve of few scales, one of them slightly above the budget if it is reached.

    ``measure`` returns the curve at positive scales, with no steering as the first; ``expected`` is
    the scale that is expected at the budget.
    """
    scale = expected * _ABOVE
    curve = measure([])
    for _ in range(_TRIES):
        curve = joined_curve(curve, measure([scale]))
        damage = float(curve.damage[np.flatnonzero(curve.scales == scale)[0]])
        above = curve.damage[curve.damage >= budget]
        if len(above) and above.min() <= _WIDEST * budget:
            break
        # D ∝ s² leads to s · √(budget / D); far from the budget at most fourfold.
        factor = math.sqrt(budget / damage) if damage > 0 else 4.0
        scale *= _ABOVE * min(4.0, max(0.25, factor))
    return curve


def joined_curve(one: Curve, other: Curve) -> Curve:
    """Return the curve of the scales of both curves of one vector, each scale once."""
    # `unique` sorts the scales and gives the index of the first of equal ones.
    scales, first = np.unique(np.concatenate([one.scales, other.scales]), return_index=True)
    return Curve(
        scales,
        np.concatenate([one.rises, other.rises])[first],
        one.n_tokens,
        np.concatenate([one.propensity, other.propensity])[first],
    )
