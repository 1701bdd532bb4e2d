"""Labels of the target that were combined with what a map transferred.

Problem: a vector or probe that is transferred and then improved by labels of the target must say
so, also after it was saved. Mechanism: `lrt_lens.adapters.labels` sets one field of the artefact.

    combined.labels          # LabelShare(n=16, rule='cv', weight=0.82, corpus='…')

Limits: the labelled texts themselves are not stored, only their hash.
"""

from dataclasses import dataclass
from typing import Literal

LabelRule = Literal["cv", "fidelity", "given"]
"""Rule that set how much the labels count: cross-validation, a predicted fidelity, or the user."""


@dataclass(frozen=True)
class LabelShare:
    """How many labels of the target a transferred artefact was combined with, and how."""

    n: int
    """Number of labelled pairs (vectors) or labelled texts (probes) of the target."""
    rule: LabelRule
    """Rule that set how much the labels count."""
    weight: float
    """Share of the target's own mean difference in a vector, 0 to 1; NaN for probes, whose
    ``penalty`` says it."""
    corpus: str
    """Hash of the labelled pairs or texts."""
