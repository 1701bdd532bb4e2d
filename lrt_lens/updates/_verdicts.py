"""Verdict on one artefact: keep it, repair it without labels, or learn it again.

Problem: a page with five arms per artefact and layer does not say what to do. Mechanism: one rule.
With L the loss of the frozen artefact against the old revision, on the same texts or items, and r
the share of it that an arm recovers,

    keep      L ≤ tolerance, or the interval of L holds 0
    repair    the artefact that is handed over (for probes the distilled one, where unlabelled
              texts of their kind were read, else the repaired one) loses at most the tolerance, or
              r ≥ ``recover``, or it is as good as the one learnt again
    relearn   otherwise

Without labels the same three words come from moments (`predicted_verdict`): keep if the frozen
read-out keeps almost all of its correlation, repair if the repaired one has a high fidelity.

Limits: an interval that holds 0 may be wide; ``flag`` says so, and more texts decide.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from lrt_lens.statistics._intervals import NOTHING, Interval
from lrt_lens.updates._prediction import Prediction
from lrt_lens.updates._update_settings import UpdateSettings

Verdict = Literal["keep", "repair", "relearn"]
"""Verdict on an artefact of the old revision."""
KEPT = 0.98
"""Correlation of a frozen read-out in both revisions from which it is predicted to serve."""
REPAIRED = 0.8
"""Fidelity of a repaired read-out from which it is predicted to serve."""
_UNDECIDED = 0.05
"""Upper end of the interval of a loss from which "keep" is undecided."""


@dataclass(frozen=True)
class ArtefactUpdate:
    """Measurements and verdict of one artefact."""

    name: str
    """Name of the artefact."""
    kind: Literal["probe", "vector", "sae"]
    """Kind of the artefact."""
    hook: str
    """Its hook point."""
    prediction: Prediction
    """Predictions of the moments, before any label."""
    measure: str = ""
    """Name of the number that is compared; empty if nothing was measured."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One row per arm, with the columns of `UpdateReport.table`."""
    losses: dict[str, Interval] = field(default_factory=dict)
    """Loss of each arm against the old revision, positive if it is worse."""
    repaired: Any = None
    """The repaired artefact, which belongs to the new revision."""
    kept_texts: float = float("nan")
    """Correlation of the frozen probe's scores in both revisions on texts without labels."""
    n: int = 0
    """Number of texts, items or tokens on which it was measured."""
    scale: float = 1.0
    """Size of a loss that the tolerance is compared with."""

    @property
    def loss(self) -> Interval:
        """Loss of the frozen artefact."""
        return self.losses.get("frozen", NOTHING)

    def recovered(self, arm: str) -> float:
        """Return the share of the loss that an arm recovers; NaN without a loss."""
        loss, rest = self.loss.value, self.losses.get(arm, NOTHING).value
        return (loss - rest) / loss if loss > 0 else float("nan")

    @property
    def repair(self) -> str:
        """Arm of the artefact that is handed over if a repair is needed."""
        return "distilled" if "distilled" in self.losses else "repaired"

    def verdict(self, settings: UpdateSettings) -> tuple[Verdict, str]:
        """Return the verdict, and the reason for it in words."""
        if not self.losses:
            return self.predicted_verdict(), "predicted from moments, nothing was measured"
        loss, tolerance = self.loss, settings.tolerance * self.scale
        if not loss.value > tolerance:
            # Adding 0 makes a rounded −0 one without a sign.
            lost = round(loss.value, 3) + 0.0
            return "keep", f"the frozen one loses {lost:.3f}, within {tolerance:.3f}"
        if loss.low <= 0:
            wide = "; its interval is wide: give more texts" if loss.high > _UNDECIDED else ""
            return "keep", f"a loss of {loss.value:.3f} may be 0{wide}"
        rest, recovered = self.losses[self.repair].value, self.recovered(self.repair)
        found = f"frozen loses {loss.value:.3f}, {self.repair} {rest:.3f}"
        if rest <= tolerance or recovered >= settings.recover:
            return "repair", f"{found}: {min(recovered, 1):.0%} recovered without labels"
        again = self.losses.get("relearnt", NOTHING).value
        if recovered > 0 and rest <= again + tolerance:
            return "repair", f"{found}, as good as learnt again ({again:.3f})"
        return "relearn", f"{found}: {recovered:.0%} recovered; learnt again {again:.3f}"

    def predicted_verdict(self) -> Verdict:
        """Return the verdict that moments give, before any label."""
        if self.prediction.kept >= KEPT:
            return "keep"
        return "repair" if self.prediction.rho >= REPAIRED else "relearn"
