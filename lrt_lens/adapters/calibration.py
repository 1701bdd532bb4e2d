"""The strength at which a vector does a given amount of damage.

Vectors are compared at equal damage: the scale at which the loss on neutral text rises by the same amount. Damage grows about with
the square of a small step, so the search brackets the budget and interpolates in the square root.

    calibration = calibrate_scale(model, vector, neutral=texts, damage=0.1)
    calibration.scale, calibration.curve
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from lrt_lens.adapters.steering import SteeringVector
from lrt_lens.adapters.steering_hook import Positions, SteeringHook
from lrt_lens.adapters.token_batches import TokenBatches
from lrt_lens.models.hooked_model import SKIP_FIRST, HookedModel
from lrt_lens.models.loading import ModelLike, load_model

MAX_PASSES = 12
_LARGEST_SCALE = 2.0**20


@dataclass(frozen=True)
class Calibration:
    """A strength and the search that led to it."""

    scale: float
    """Multiples of the vector; NaN where the budget was not bracketed."""
    damage: float
    """Damage at that scale, as measured."""
    budget: float
    """Damage asked for, in nats per token."""
    curve: pd.DataFrame
    """Every scale that was tried, with its damage."""

    @property
    def reached(self) -> bool:
        """Whether the budget was bracketed."""
        return not math.isnan(self.scale)

    def figure(self) -> Any:
        """Damage against scale, the choice marked (plotly)."""
        from lrt_lens.report.figures import calibration_figure

        return calibration_figure(self.curve, budget=self.budget, chosen=self.scale)


class NeutralText:
    """Neutral texts on which an intervention's damage is measured."""

    def __init__(self, model: HookedModel, texts: Sequence[str], hook: int | str) -> None:
        rows = model.encode(texts)
        if all(len(row) <= SKIP_FIRST + 1 for row in rows):
            raise ValueError(f"no neutral text is longer than {SKIP_FIRST + 1} tokens; give texts of a few sentences")
        self.batches = TokenBatches(model, rows, hook)
        self.baseline = self._loss(None)

    def damage(self, hook: SteeringHook) -> float:
        """Nats per token by which the loss rises, over the positions that may be steered."""
        return self._loss(hook) - self.baseline

    def _loss(self, hook: SteeringHook | None) -> float:
        # Positions mean something on a plain text too: the first steerable token ends the prompt, the rest counts as generated.
        prompts = [SKIP_FIRST + 1] * len(self.batches.rows)
        losses = [-values[SKIP_FIRST:] for _, values in self.batches.log_probabilities(hook, prompts)]
        return float(torch.cat(losses).mean())


def calibrate_scale(
    model: ModelLike,
    vector: SteeringVector,
    neutral: Sequence[str],
    damage: float = 0.1,
    *,
    positions: Positions = "all",
    first_guess: float = 1.0,
    tolerance: float = 0.02,
) -> Calibration:
    """The positive scale at which the loss on ``neutral`` rises by ``damage`` nats per token.

    Deterministic, at most 12 forward passes over the neutral texts (the unsteered one included). ``scale`` is NaN, never an
    extrapolation, where the budget cannot be bracketed. ``tolerance`` is relative to the budget.
    """
    hooked = load_model(model)
    vector.refuse_other_model(hooked)
    return calibrate_on(
        NeutralText(hooked, neutral, vector.hook),
        vector,
        damage,
        positions=positions,
        first_guess=first_guess,
        tolerance=tolerance,
    )


def calibrate_on(
    neutral: NeutralText,
    vector: SteeringVector,
    damage: float,
    *,
    positions: Positions = "all",
    first_guess: float = 1.0,
    tolerance: float = 0.02,
) -> Calibration:
    """`calibrate_scale` on texts made ready before."""
    if not damage > 0 or math.isinf(damage):
        raise ValueError(f"damage is {damage}; expected a positive number of nats per token, such as 0.1")

    def measure(scale: float) -> float:
        return neutral.damage(vector.hook_at(scale, positions=positions))

    tried = search_scale(measure, damage, first_guess=first_guess, tolerance=tolerance, max_evaluations=MAX_PASSES - 1)
    curve = pd.DataFrame(sorted({(0.0, 0.0), *tried}), columns=["scale", "damage"])
    if max((value for _, value in tried), default=0.0) < (1 - tolerance) * damage:
        return Calibration(math.nan, math.nan, damage, curve)
    scale, reached = min(tried, key=lambda point: abs(point[1] - damage))
    return Calibration(scale, reached, damage, curve)


def search_scale(
    measure: Callable[[float], float], budget: float, *, first_guess: float, tolerance: float, max_evaluations: int
) -> list[tuple[float, float]]:
    """(scale, damage) pairs tried until one is within ``tolerance`` of the budget: bracket, then interpolate in the square root."""
    tried: list[tuple[float, float]] = []
    low, high = (0.0, 0.0), None
    scale = first_guess
    while len(tried) < max_evaluations and scale < _LARGEST_SCALE:
        value = measure(scale)
        tried.append((scale, value))
        if abs(value - budget) <= tolerance * budget:
            break
        if math.isnan(value) or value > budget:
            high = (scale, value)
        else:
            low = (scale, value)
        scale = _next_scale(low, high, budget)
    return [(s, v) for s, v in tried if not math.isnan(v)]


def _next_scale(low: tuple[float, float], high: tuple[float, float] | None, budget: float) -> float:
    if high is None:
        # damage ~ scale²; overshoot a little so that the budget gets bracketed, and never leap by more than eight.
        factor = 1.15 * math.sqrt(budget / low[1]) if low[1] > 0 else 4.0
        return low[0] * min(8.0, max(1.3, factor))
    if math.isnan(high[1]):
        return 0.5 * (low[0] + high[0])
    roots = [math.sqrt(max(value, 0.0)) for _, value in (low, high)]
    share = (math.sqrt(budget) - roots[0]) / (roots[1] - roots[0])
    # Stay inside the bracket by a margin, or a curved damage would creep towards one end.
    return low[0] + min(0.97, max(0.03, share)) * (high[0] - low[0])
