"""Settings of the evaluation of concept transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrt_lens._settings import Settings
from lrt_lens.adapters.concepts._concept_map import Extraction, TextRead
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.models._reading import ShortTexts

BETAS = (-1.5, -1.0, 1.0, 1.5)
"""Strengths of L-Cross (arXiv 2501.02009), figures 7 and 8; β = 0 is always measured."""


@dataclass(frozen=True)
class ConceptTransferSettings(Settings):
    """Settings of `lrt_lens.evaluate_concept_transfer`: strengths, vectors, maps and controls."""

    betas: Sequence[float] = BETAS
    """Strengths besides 0, as multiples of a vector's own length on the target."""
    damage: float | None = 0.1
    """Damage in nats per token on neutral text at which arms are compared too; None leaves that
    out."""
    by: Extraction = "mean_difference"
    """How vectors are learnt: mean difference (CAA) or first principal component (RepE)."""
    read: TextRead = "last"
    """Row of a text: its ``"last"`` unmasked token, or the ``"mean"`` over the unmasked tokens."""
    short_texts: ShortTexts = "drop"
    """Rule for pairs with a text that the mask leaves nothing of: ``"drop"``, ``"refuse"``
    or ``"unmasked"``."""
    ridge: bool = True
    """True if ridge maps are fitted too."""
    positions: Positions = "all"
    """Positions that are steered (in the paper all for CAA, the last one for RepE)."""
    n_pairs: int | None = None
    """Number of pairs from which vectors are learnt; None takes half of a concept's pairs.

    With few pairs the arm ``own`` interpolates.
    """
    n_random: int = 20
    """Number of random maps."""
    n_shuffled: int = 20
    """Number of maps fitted on texts with target rows assigned to other texts."""
    n_noise: int = 20
    """Number of maps fitted on random source rows; one if it interpolates, because all such maps
    give the native vector."""
    n_contrast_groups: int = 8
    """Number of groups of contrast pairs that are left out one at a time, for the share of an
    interval that the contrast texts cause; 0 leaves that share out. There are fewer groups if one
    would have a single pair of the vector or of a map, and none if there would be fewer than 4."""
    seed: int = 0
    """Seed of splits, draws, folds and bootstraps."""
