"""One map: the closed form from moments against Adam over rows, on activations of a real pair."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from benchmarks.activations import Recording, record
from benchmarks.adam import BATCH, AdamMap, Race, best_race
from benchmarks.measuring import Measurement, Settings, alternate
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.stitching._grid import StitchGrid

_TOLERANCE = 1.01
"""Adam has arrived when its held-out FVU is at most this times ridge's."""
_MAX_EPOCHS = 100
_REPEAT_UP_TO = 40.0
"""Seconds up to which Adam's winning run is repeated; a longer one is timed once."""


@dataclass(frozen=True)
class Duel:
    """Adam against ridge on the same rows."""

    recording: Recording
    ridge_fvu: float
    """On the test fold."""
    adam: Race
    """With its best learning rate."""
    tried: tuple[Race, ...]

    @property
    def raw(self) -> dict[str, Any]:
        """As it stands in results.json."""
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
        """Says so where Adam never arrived."""
        if self.adam.reached:
            return ()
        return (
            f"lower bound: in {self.adam.epochs:.0f} epochs Adam never came within 1% of ridge's held-out FVU "
            f"({self.ridge_fvu:.4f}; its best was {self.adam.fvu:.4f})",
        )


def fit_speedup_over_adam(settings: Settings) -> Measurement:
    """A: Adam, its winning learning rate for as many steps as that needs, up map only, on the rows
    that fit.

    B: `CrossMoments.from_activations` on all rows, then ``moments.fit()``: up and down, 20
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
        what="Time of Adam (the best of three learning rates, up map only) until its held-out FVU is within 1% of ridge's "
        "÷ time to accumulate the moments of the same rows and solve up and down with cross-validated penalties.",
        raw=timings.raw("adam", "moments") | duel.raw,
        notes=duel.notes,
    )


@lru_cache(maxsize=1)
def run_duel(settings: Settings) -> Duel:
    """Find out how many steps Adam needs; `sweep_speedup_over_adam` extrapolates from them. Also
    the warm-up of both sides.
    """
    rows = record(settings)
    ridge_fvu = 1 - float(_closed_form(rows).scores["r2"].iloc[0])
    max_epochs = 5 if settings.quick else _MAX_EPOCHS
    best, tried = best_race(
        rows.x, rows.y, rows.tests, _TOLERANCE * ridge_fvu, max_epochs, settings.seed
    )
    return Duel(rows, ridge_fvu, best, tuple(tried))


def _closed_form(rows: Recording) -> StitchGrid:
    return CrossMoments.from_activations(rows.x, rows.y, documents=rows.documents).fit()
