"""One map: the closed form from moments and Adam over rows, on activations of a real pair."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from benchmarks.activations import Recording, record
from benchmarks.adam import BATCH, AdamMap, Race, best_race
from benchmarks.measuring import Measurement, Settings, alternate
from lrt_lens.moments import CrossMoments
from lrt_lens.stitching import StitchGrid

_TOLERANCE = 1.01
"""Adam reaches its goal if its held-out FVU is at most this times that of ridge."""
_MAX_EPOCHS = 100
_REPEAT_UP_TO = 40.0
"""Seconds up to which the best run of Adam is repeated; a longer run is timed once."""


@dataclass(frozen=True)
class Duel:
    """Results of Adam and ridge on the same rows."""

    recording: Recording
    ridge_fvu: float
    """Fraction of variance unexplained by ridge on the test fold."""
    adam: Race
    """The run of Adam with the best learning rate."""
    tried: tuple[Race, ...]
    """The runs with every learning rate."""

    @property
    def raw(self) -> dict[str, Any]:
        """The values for results.json."""
        rows = self.recording
        return {
            "activations": rows.origin,
            "rows": len(rows.x),
            "test_rows": int(rows.tests.sum()),
            "d_source": rows.x.shape[1],
            "d_target": rows.y.shape[1],
            "batch_rows": BATCH,
            "ridge_held_out_fvu": self.ridge_fvu,
            "adam_goal_fvu": _TOLERANCE * self.ridge_fvu,
            "adam": asdict(self.adam),
            "adam_learning_rates": [asdict(run) for run in self.tried],
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """A note that the ratio is a lower bound, if Adam did not reach its goal."""
        if self.adam.reached:
            return ()
        return (
            f"lower bound: in {self.adam.epochs:.0f} epochs Adam never came within 1% of ridge's "
            f"held-out FVU ({self.ridge_fvu:.4f}; its best was {self.adam.fvu:.4f})",
        )


def fit_speedup_over_adam(settings: Settings) -> Measurement:
    """Seconds of Adam ÷ seconds of the closed form.

    A: Adam with its best learning rate for the steps that it needs, map up only, on the fitting
    rows. B: `CrossMoments.from_activations` on all rows, then ``moments.fit()``: up and down, 20
    penalties on five folds, test scores.
    """
    duel = run_duel(settings)
    rows, run = duel.recording, duel.adam
    x, y = rows.x[~rows.tests], rows.y[~rows.tests]
    timings = alternate(
        lambda: AdamMap(x, y, run.learning_rate, settings.seed).step(run.steps),
        lambda: _closed_form(rows),
        3 if run.seconds <= _REPEAT_UP_TO else 1,
    )
    return Measurement(
        name="fit_speedup_over_adam",
        value=timings.ratio,
        target=5.0,
        at_most=False,
        what="Time of Adam (the best of three learning rates, up map only) until its held-out "
        "FVU is within 1% of ridge's ÷ time to accumulate the moments of the same rows and solve "
        "up and down with cross-validated penalties.",
        raw=timings.raw("adam", "moments") | duel.raw,
        notes=duel.notes,
    )


@lru_cache(maxsize=1)
def run_duel(settings: Settings) -> Duel:
    """The number of steps that Adam needs; also the warm-up of both sides.

    `sweep_speedup_over_adam` extrapolates from these steps.
    """
    rows = record(settings)
    ridge_fvu = 1 - float(_closed_form(rows).scores["r2"].iloc[0])
    max_epochs = 5 if settings.quick else _MAX_EPOCHS
    best, races = best_race(
        rows.x, rows.y, rows.tests, _TOLERANCE * ridge_fvu, max_epochs, settings.seed
    )
    return Duel(rows, ridge_fvu, best, tuple(races))


def _closed_form(rows: Recording) -> StitchGrid:
    """Moments of the rows, and ridge maps with cross-validated penalties."""
    moments = CrossMoments.from_activations(rows.x, rows.y, documents=rows.documents, null=False)
    return moments.fit()
