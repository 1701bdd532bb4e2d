"""Search for the first scale at which a curve of damage reaches a budget.

Problem: damage is known only at the scales that were measured, each for one pass over the neutral
texts. It usually grows like the square of the scale, but a curve may also jump over the budget,
saturate below it, or rise over it, fall and rise again. Mechanism: from a first guess the search
brackets the budget, then interpolates with a power law, and bisects if interpolation does not
narrow the bracket from both ends. When a scale is within the tolerance, further scales *below* it
are measured; if the damage of one is over the budget, the search goes on there.

    search = search_scale(measure, 0.1, first_guess=1.0)     # measure(scale) → damage
    search.reached, search.scale, search.flag

What is guaranteed for a result at scale s, unless the flag says that measurements were left out:
the damage at s is within 5 % of the budget, and no earlier rise over the budget spans a factor of 2
in scale and reaches above s/2, or a factor of 4 and above s/8. If the measured damages do not rise
like those of an ordinary curve (between neighbours, in proportion to the scale or faster), no
earlier rise spans a factor of 2 and reaches above s/1024. A search that never meets the budget has
looked between 1/1024 and 1024 times the first guess in steps of 2, and up to 2²⁰ times in steps of
8.

Limits: a narrower rise over the budget can be overlooked, and so can one below s/8 if all measured
damages look ordinary. An ordinary curve takes one or two measurements to find s, and two to check.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

REACHED = 0.05
"""Largest difference from the budget, as a share of it, at which the budget counts as reached."""
MAX_EVALUATIONS = 31
"""Largest number of scales that are measured by default."""
_FARTHEST = 2.0**20
"""Largest multiple and smallest fraction of the first guess at which the budget is searched."""
_ORDINARY, _THOROUGH = ((2.0, 2.0), (4.0, 8.0)), ((2.0, 1024.0),)
"""Grids of checks below a result, of ordinary and of other curves: pairs (step, depth)."""
_STEP = 8.0
"""Largest factor between two scales of the search for a bracket."""
_JUMP = 1.001
"""Ratio of the ends of a bracket below which the curve counts as one that jumps."""
_Point = tuple[float, float]
"""Pair (scale, damage at that scale)."""


@dataclass(frozen=True)
class ScaleSearch:
    """Result of `search_scale`."""

    scale: float
    """First scale that meets the budget, or the limit that stays within it; NaN if there is
    none."""
    damage: float
    """Damage at that scale."""
    tried: tuple[_Point, ...]
    """Pairs (scale, damage) in the order of measurement, without damages that are not finite."""
    at_limit: bool = False
    """True if the largest allowed scale stays within the budget; ``scale`` is then that one."""
    flag: str = ""
    """Sentences about what is unusual: not reached, several crossings, or checks left out."""

    @property
    def reached(self) -> bool:
        """True if ``scale`` is a number."""
        return not math.isnan(self.scale)


def search_scale(
    measure: Callable[[float], float],
    budget: float,
    *,
    first_guess: float,
    tolerance: float = 0.02,
    max_evaluations: int = MAX_EVALUATIONS,
    largest: float = math.inf,
) -> ScaleSearch:
    """Return the first scale at which the damage meets the budget.

    Args:
        measure: function from a scale to its damage; the damage at scale 0 is 0. NaN and infinity
            count as over the budget.
        budget: damage to meet, positive.
        first_guess: first scale that is measured, positive.
        tolerance: difference from the budget, as a share of it, at which the search stops; at most
            `REACHED`. A search that cannot come so close may still end within `REACHED`.
        max_evaluations: largest number of calls of ``measure``.
        largest: largest allowed scale.

    Raises:
        ValueError: a first guess that is not positive and finite, or a tolerance out of range.
    """
    if not 0 < first_guess < math.inf:
        raise ValueError(
            f"first_guess is {first_guess}; expected a positive finite scale, such as 1.0"
        )
    if not 0 <= tolerance <= REACHED:
        raise ValueError(
            f"tolerance is {tolerance}; expected a share of the budget from 0 to {REACHED}: a "
            "damage farther away does not count as reached"
        )
    # float(), because numpy's scalars would make the results numpy's too.
    first = float(min(first_guess, largest))
    search = _Search(budget, tolerance, first, largest, [])
    scale: float | None = search.first_guess
    while scale is not None and len(search.tried) < max_evaluations:
        search.tried.append((scale, float(measure(scale))))
        scale = search.next_scale()
    return search.outcome(unchecked=scale)


@dataclass(frozen=True)
class _Search:
    """The points that were measured; every decision is a function of them."""

    budget: float
    tolerance: float
    first_guess: float
    limit: float
    """Largest allowed scale; infinite if there is none."""
    tried: list[_Point]
    """Measured points in the order of measurement."""

    # ------------------------------------------------------------------------------- classification

    def _is_over(self, damage: float) -> bool:
        # `not <=` instead of `>`, so that NaN counts as over the budget.
        return not damage <= (1 + self.tolerance) * self.budget

    def _is_close(self, damage: float, tolerance: float) -> bool:
        # A comparison with NaN is False, so NaN is never close.
        return abs(damage - self.budget) <= tolerance * self.budget

    @property
    def top(self) -> float:
        """Largest scale that is tried."""
        return min(self.limit, self.first_guess * _FARTHEST)

    @property
    def bottom(self) -> float:
        """Scale at which a damage over the budget counts as a jump at scale 0."""
        return self.first_guess / _FARTHEST

    def _split(self) -> tuple[list[_Point], _Point | None]:
        """Return (points below the first one over the budget, that one), ascending in scale.

        Scale 0, whose damage is 0, is the first of the points below.
        """
        below: list[_Point] = [(0.0, 0.0)]
        for point in sorted(self.tried):
            if self._is_over(point[1]):
                return below, point
            below.append(point)
        return below, None

    def _accepted(self, tolerance: float) -> _Point | None:
        """Return the lowest point within a tolerance of the budget, below the first one over it."""
        below, _ = self._split()
        return next((point for point in below if self._is_close(point[1], tolerance)), None)

    # ------------------------------------------------------------------------------------ next step

    def next_scale(self) -> float | None:
        """Return the scale to measure next; None if the search is finished."""
        below, high = self._split()
        accepted = self._accepted(self.tolerance)
        if accepted is not None:
            return self._check(below, accepted)
        if high is None:
            if below[-1][0] < self.top:
                return min(self._higher(), self.top)
            # A limit is checked like a result. Without one, the whole range around the guess is
            # checked, because a budget that is never met is no ordinary curve.
            if below[-1][0] == self.limit:
                return self._check(below, below[-1])
            [(step, depth)] = _THOROUGH
            return _unchecked(below, self.first_guess * depth, self.first_guess / depth, step)
        if high[0] <= self.bottom:
            return None
        if self._is_jump(below[-1], high):
            return self._check(below, high)
        return self._between(below[-1], high)

    def _is_jump(self, low: _Point, high: _Point) -> bool:
        return high[0] <= max(low[0] * _JUMP, self.bottom)

    def _check(self, below: Sequence[_Point], end: _Point) -> float | None:
        """Return a scale below the end of the search at which the damage is still unknown."""
        points = [point for point in below if point[0] < end[0]] + [end]
        grids = _ORDINARY if self._is_ordinary(points) else _THOROUGH
        missing = (_unchecked(points, end[0], end[0] / depth, step) for step, depth in grids)
        return next((scale for scale in missing if scale is not None), None)

    def _is_ordinary(self, points: Sequence[_Point]) -> bool:
        """Return whether damages rise from each point to the next, in proportion or faster."""
        # D(c) ≤ 1.2 · D(s) · c/s for neighbours c < s, with 1 % of the budget for noise. A damage
        # that falls with the scale is more than that. Damages beyond the budget (the far side of a
        # jump) say nothing about the points below.
        for (scale, damage), (above, larger) in pairwise(points):
            level = larger if larger < self.budget else self.budget
            if damage > 1.2 * max(level, 0.0) * scale / above + 0.01 * self.budget:
                return False
            if level < damage - REACHED * self.budget:
                return False
        return True

    def _higher(self) -> float:
        """Return a scale above all measured ones, none of which is over the budget."""
        before, (scale, damage) = ([(0.0, 0.0), *sorted(self.tried)])[-2:]
        if damage <= 0:
            return scale * 4.0
        # D(s) ∝ sᵖ, so s_next = s · (budget / D)^(1/p), with p from the two highest scales. At most
        # 8 times the scale, because p is uncertain far below the budget.
        power = min(6.0, max(0.5, _power(before, (scale, damage))))
        factor = (self.budget / damage) ** (1 / power)
        if len(self.tried) > 1 and damage < 1.1 * before[1]:
            # The curve is flat, so the power law says nothing.
            factor = _STEP
        elif len(self.tried) > 2:
            # The power law has failed twice.
            factor = max(2.0, factor)
        return scale * min(_STEP, max(1.02, factor))

    def _between(self, low: _Point, high: _Point) -> float:
        """Return a scale between two ends of a bracket."""
        same_side = len(self.tried) > 1 and (
            self._is_over(self.tried[-1][1]) == self._is_over(self.tried[-2][1])
        )
        if same_side or not math.isfinite(high[1]):
            # Interpolation has moved one end only: bisect, in the logarithm of the scale.
            return math.sqrt(low[0] * high[0]) if low[0] > 0 else high[0] / _STEP
        if low[1] > 0:
            # The same power law as above, through both ends of the bracket.
            guess = low[0] * (self.budget / low[1]) ** (1 / _power(low, high))
        else:
            # A damage of 0 or less has no logarithm. With D ∝ s², √D is linear in s:
            # s = s₀ + (√budget − √D₀) / (√D₁ − √D₀) · (s₁ − s₀)
            roots = [math.sqrt(max(value, 0.0)) for _, value in (low, high)]
            share = (math.sqrt(self.budget) - roots[0]) / (roots[1] - roots[0])
            guess = low[0] + share * (high[0] - low[0])
        # At least 3 % inside the bracket, otherwise one end may never be replaced (regula falsi).
        margin = 0.03 * (high[0] - low[0])
        return min(high[0] - margin, max(low[0] + margin, guess))

    # -------------------------------------------------------------------------------------- outcome

    def outcome(self, unchecked: float | None) -> ScaleSearch:
        """Return the result; ``unchecked`` is the scale that would have been measured next."""
        below, high = self._split()
        best = self._accepted(self.tolerance) or self._near()
        at_limit = best is None and high is None and below[-1][0] == self.limit
        if at_limit:
            best = below[-1]
        sentences = []
        if best is None:
            sentences.append(self._failure(below, high))
        elif at_limit:
            sentences.append(
                f"the largest scale, {best[0]:.3g}, stays within the budget of {self.budget:.3g}"
            )
        if best is not None and (returns := self._returns(best[0])):
            sentences.append(returns)
        if best is not None and unchecked is not None:
            sentences.append(
                f"the search ended after {len(self.tried)} passes, before it had looked for an "
                "earlier crossing everywhere"
            )
        finite = tuple(point for point in self.tried if math.isfinite(point[1]))
        scale, damage = best if best is not None else (math.nan, math.nan)
        return ScaleSearch(scale, damage, finite, at_limit, "; ".join(sentences))

    def _near(self) -> _Point | None:
        """Return the lowest point within `REACHED` of the budget, up to the first one over it."""
        below, high = self._split()
        points = [*below, high] if high is not None else below
        return next((point for point in points if self._is_close(point[1], REACHED)), None)

    def _returns(self, scale: float) -> str:
        """Return a sentence if the damage was within the budget again beyond ``scale``."""
        later = [
            (other, damage)
            for other, damage in sorted(self.tried)
            if other > scale and damage < (1 - REACHED) * self.budget
        ]
        if not later:
            return ""
        other, damage = later[0]
        return (
            f"the damage crosses the budget more than once: at scale {other:.4g} it is {damage:.3g}"
            " again; the first crossing is taken"
        )

    def _failure(self, below: Sequence[_Point], high: _Point | None) -> str:
        budget = f"no scale with a damage within {REACHED:.0%} of {self.budget:.3g} was found"
        if high is None:
            scale, damage = max(below, key=lambda point: point[1])
            return (
                f"{budget}: up to scale {below[-1][0]:.3g} the largest damage is {damage:.3g}, at "
                f"scale {scale:.3g}"
            )
        low = below[-1]
        above = "NaN" if math.isnan(high[1]) else f"{high[1]:.3g}"
        change = f"damage {low[1]:.3g} at scale {low[0]:.5g} and {above} at scale {high[0]:.5g}"
        if self._is_jump(low, high):
            return f"{budget}: the damage jumps over it, with {change}"
        return f"{budget} in {len(self.tried)} passes: they end with {change}"


def _unchecked(points: Sequence[_Point], end: float, floor: float, step: float) -> float | None:
    """Return the highest scale missing in a grid from ``end`` to ``floor``; None if none is.

    The ratio of neighbouring scales is at most ``step``. All points count, not only those of the
    grid.
    """
    scales = sorted({scale for scale, _ in points if scale <= end} | {0.0}, reverse=True)
    # 1e-9 covers the rounding of logarithms, so that a gap of exactly one step is no gap.
    for upper, lower in pairwise(scales):
        if upper <= floor * (1 + 1e-9):
            return None
        if upper > lower * step * (1 + 1e-9):
            gap = upper / max(lower, floor)
            return upper / gap ** (1 / math.ceil(math.log(gap, step) - 1e-9))
    return None


def _power(near: _Point, far: _Point) -> float:
    """Return p of D ∝ sᵖ between two points; 2 if the damage does not rise from above 0.

    2 is the power of a small step: KL has its minimum at scale 0, so its derivative is 0 there.
    """
    if near[1] <= 0 or far[1] <= near[1]:
        return 2.0
    # p = ln(D₁ / D₀) / ln(s₁ / s₀)
    return math.log(far[1] / near[1]) / math.log(far[0] / near[0])
