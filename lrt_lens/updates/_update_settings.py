"""Settings of `update`, and the texts on which artefacts are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lrt_lens._settings import Settings


@dataclass(frozen=True)
class UpdateSettings(Settings):
    """Settings of `update`: text of the maps, rules of the verdict, controls."""

    n_tokens: int = 100_000
    """Number of tokens on which the maps between the revisions are fitted."""
    context_length: int = 128
    """Number of tokens per window, BOS included."""
    tolerance: float = 0.02
    """Loss that needs no repair: of AUROC for probes, of FVU for SAEs, and as a share of the old
    effect, ten times this, for vectors."""
    recover: float = 0.9
    """Share of a loss that a repair has to recover, unless its rest is within the tolerance."""
    false_positive_rates: Sequence[float] = (0.01, 0.05)
    """Rates of false positives at which thresholds of probes were set on the old revision."""
    recentre: Literal["train", "none"] = "train"
    """``"train"`` sets the thresholds of all repaired probes without labels, on the training texts;
    ``"none"`` leaves them as the maps give them."""
    test_share: float = 0.5
    """Share of the labelled texts that are tested; the others set thresholds, and relearn."""
    damage: float = 0.1
    """Damage at which vectors are compared, in nats per token on the neutral texts."""
    n_shuffled: int = 20
    """Number of draws of the map of shuffled pairs for vectors."""
    n_random: int = 20
    """Number of random vectors."""
    n_sae_tokens: int = 10_000
    """Number of positions on which SAEs are measured."""
    progress: bool = True
    """Show progress bars."""
    seed: int = 0
    """Seed of the harvest, of splits and of draws."""
