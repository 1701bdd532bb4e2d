"""The strength at which a vector was calibrated: its scale, what it costs, and how it acts.

Problem: a scale means nothing without the damage that it causes, the texts on which that was
measured and the positions that were steered; a vector that leaves the notebook loses all of them.
Mechanism: one record, which `Calibration.vector` sets, files keep and exports write down.

    vector = calibrate_scale(model, vector, texts, damage=0.1).vector
    vector.strength                     # Strength(scale=2.31, damage=0.101, budget=0.1, …)
    vector.save("mood.safetensors")

Limits: the neutral texts themselves are not stored, only their number and a hash of their tokens.
"""

from dataclasses import dataclass, replace
from typing import Literal

from lrt_lens.adapters.vectors._steering_hook import Mode, Positions


@dataclass(frozen=True)
class Strength:
    """Scale of a vector, and the damage that it causes at some positions."""

    scale: float
    """Multiple of the vector that is added; for a clamp or an ablation the share of the change."""
    damage: float = float("nan")
    """Measured damage on neutral text, in nats per token; NaN if it was not measured."""
    budget: float = float("nan")
    """Damage that was asked for, in nats per token; NaN if none was."""
    unit: Literal["loss", "kl"] = "loss"
    """Measure of damage: the rise of the loss, or KL(unsteered ‖ steered)."""
    mode: Mode = "add"
    """Change of the component along the vector."""
    positions: Positions = "all"
    """Steered positions, see `SteeringVector.hooks`."""
    skip_first: int = 0
    """First positions of a text that are not steered."""
    level: float | None = None
    """Component along the unit vector that a clamp sets; None for the other modes."""
    n_texts: int = 0
    """Number of neutral texts on which the damage was measured."""
    texts: str = ""
    """Hash of the tokens of the neutral texts; empty if there are none."""
    hooks: tuple[str, ...] = ()
    """Hook points of all vectors that cause the damage together; empty for one vector alone."""

    def without_damage(self) -> "Strength":
        """Return the same scale and positions, with no damage that is known."""
        nan = float("nan")
        return replace(self, damage=nan, budget=nan, n_texts=0, texts="", hooks=())

    @property
    def meets_budget(self) -> bool:
        """True if the measured damage is the one that was asked for, within 5 %."""
        return abs(self.damage - self.budget) <= 0.05 * abs(self.budget)

    @property
    def where(self) -> str:
        """Steered positions in words."""
        chosen = {
            "all": "all positions",
            "every": "all positions",
            "last": "the last one",
            "generated": "generated positions",
        }[self.positions]
        after = f", without the first {self.skip_first}" if self.skip_first else ""
        return f"{chosen}{after}"


def steered_positions(
    known: Strength | None,
    scale: float | None,
    mode: Mode | None,
    positions: Positions | None,
    skip_first: int,
) -> tuple[Positions, int]:
    """Return positions, and the number of first ones that are left out.

    A scale holds for the positions at which it was calibrated, so both are those of the strength
    where its scale is taken and no positions are given; else ``"all"`` and ``skip_first``.
    """
    takes_scale = known is not None and scale is None and mode in (None, known.mode)
    if known is not None and takes_scale and positions is None:
        return known.positions, known.skip_first
    return positions or "all", skip_first


def with_defaults(
    known: Strength | None, scale: float | None, mode: Mode | None, level: float | None
) -> tuple[float, Mode, float | None]:
    """Return scale, mode and level; what is None is taken from a strength, else 1 and ``"add"``."""
    chosen: Mode = mode or ("add" if known is None else known.mode)
    if known is None or known.mode != chosen:
        return (1.0 if scale is None else scale), chosen, level
    return (
        (known.scale if scale is None else scale),
        chosen,
        known.level if level is None else level,
    )
