"""One arm of an evaluation of concept maps: vectors on a model, with facts about their maps."""

import math
from dataclasses import dataclass
from typing import Any

from lrt_lens.adapters.vectors._steering_vector import SteeringVector


@dataclass(frozen=True)
class ConceptArm:
    """Vectors on one model, one per hook point, with facts about the maps that gave them."""

    name: str
    """Name of the arm, as in the table of `lrt_lens.adapters.concepts._arms`."""
    vectors: tuple[SteeringVector, ...]
    """Vectors on the model, one per hook point."""
    facts: dict[str, Any]
    """Facts about the maps, each a mean over hook points.

    Keys: cosine and norm_ratio (to the native vectors); n, d, interpolates, r2, r2_uniform.
    """
    draw: int | None = None
    """Number of the draw; None for arms with a single one."""

    @property
    def length(self) -> float:
        """Length of all vectors together."""
        return math.hypot(*(vector.norm for vector in self.vectors))
