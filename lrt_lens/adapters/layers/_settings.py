"""Settings of `choose_layers`."""

from dataclasses import dataclass

from lrt_lens._settings import Settings
from lrt_lens.adapters.vectors._contrast_states import Method
from lrt_lens.models._reading import Read, ShortTexts
from lrt_lens.models._text_codec import Truncation


@dataclass(frozen=True)
class LayerChoiceSettings(Settings):
    """Settings of `choose_layers`: how texts are read, folds, the target's pass and controls."""

    read: Read = "last"
    """Token of a text that is read, or how its tokens are pooled; a probe cannot read ``"max"``."""
    method: Method = "mean_difference"
    """Rule by which a vector is learnt from contrast texts."""
    penalty: float = 0.1
    """Penalty λ of the probes, for standardised features; one for all layers."""
    n_folds: int = 5
    """Number of folds of texts; both texts of a pair are in one fold."""
    target: bool = False
    """Read the texts with the target too."""
    damage: float = 0.1
    """Damage at which native vectors are compared, in nats per token on the neutral texts."""
    n_random: int = 32
    """Number of random directions: half isotropic, half with the covariance of the source's
    stream."""
    short_texts: ShortTexts = "drop"
    """Rule for texts that the mask leaves nothing of, see `SteeringVector.mean_difference`."""
    truncation: Truncation | None = None
    """End that is cut off texts longer than the context."""
    seed: int = 0
    """Seed of folds and random directions."""
    progress: bool = False
    """Show progress bars."""
