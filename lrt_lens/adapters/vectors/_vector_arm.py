"""A vector of an arm, and its curves in both signs with the effects at a budget."""

import math
from dataclasses import dataclass, replace
from typing import Any

from lrt_lens.adapters.vectors._equal_damage import Curve

REFITS = ("map_refit", "contrast_refit", "native_refit")
"""Arms that give standard errors and no rows of their own."""


@dataclass(frozen=True)
class VectorArm:
    """A vector on the target and the name of the arm that it belongs to."""

    name: str
    """Name of the arm, as in the table of the module docstring."""
    vector: Any
    """Vector on the target model, or subspace (`Steers`)."""
    draw: int | None = None
    """Number of the vector in an arm of several vectors; None in an arm of one vector."""
    later: tuple[Any, ...] = ()
    """Vectors at later hook points that act together with ``vector``, at the same scale."""

    def negated(self) -> "VectorArm":
        """Return the arm with every vector reversed."""
        # Not `-vector`, which would also rename it and exchange its contrast texts.
        vector, *later = (one.reversed() for one in (self.vector, *self.later))
        return replace(self, vector=vector, later=tuple(later))


@dataclass(frozen=True)
class MeasuredArm:
    """One vector of an arm with its curves for both signs."""

    arm: VectorArm
    """The vector, and the arm that it belongs to."""
    plus: Curve
    """Curve of the vector."""
    minus: Curve | None = None
    """Curve of the vector's negative, over positive scales; None if it was not measured."""

    def effect(self, budget: float) -> float:
        """Return the mean effect of the vector at the budget; NaN if it is not bracketed."""
        return float(self.plus.effect_at(budget).mean())

    def negated(self, budget: float) -> float:
        """Return the mean effect of the vector's negative at the budget; NaN if unknown."""
        return math.nan if self.minus is None else float(self.minus.effect_at(budget).mean())

    def both(self, budget: float) -> float:
        """Return (E(v) − E(−v)) / 2, which does not depend on the sign of the vector."""
        return (self.effect(budget) - self.negated(budget)) / 2
