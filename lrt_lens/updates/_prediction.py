"""Predictions of the moments for one artefact; `lrt_lens.updates._revisions` has the formulas."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """Predictions of the moments for one artefact, before any label."""

    kept: float
    """Correlation of what the frozen artefact reads in both revisions."""
    moved: float
    """Share of its variance that moved; NaN for a written direction."""
    rho: float
    """Fidelity of the repaired artefact."""
    rho_low: float
    """Lower end of its 95% interval."""
    rho_high: float
    """Upper end of its 95% interval."""
