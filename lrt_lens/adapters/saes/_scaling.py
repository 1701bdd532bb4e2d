"""How an SAE's error falls with compute, from scratch and from a transferred beginning: power laws
over widths (Stitching, figures 1c and 8, table 4).

    study = study_sae_scaling(pair, stitch, saes, documents, n_tokens=60_000)     # saes: of the source, one a width
    study.summary      # bill, arm: FVU ≈ amplitude · FLOPs^−exponent on the frontier of all widths, and FVU beside scratch's at equal FLOPs
    study.savings      # FLOPs saved against scratch, by width and threshold

For every budget of FLOPs the *frontier* is the least FVU that a run of any width has reached by
then. There are three bills: ``training`` steps alone, which is what exponents are compared by,
because a price that is paid once bends a line that it is not small beside; ``stitch`` with what
fitting the maps took (the paper's reading of savings); and ``source_sae`` with the training of the
source's SAE of that width too. Scratch pays for nothing under any, a rotated SAE for no stitch. The
paper fits a straight line in log-log axes, which has no floor; the fit with a floor stands beside
it, because an SAE of k active features has one.

Arms are those of `study_sae_initialisation`, which runs once for every width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.saes._initialisation import UNSTITCHED, rows_of, study_sae_initialisation
from lrt_lens.adapters.saes._rows import SAERows
from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.figures._sae_scaling import scaling_figure
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

N_BUDGETS = 24
Bill = Literal["training", "stitch", "source_sae"]
BILLS: tuple[Bill, ...] = ("training", "stitch", "source_sae")


@dataclass(frozen=True)
class PowerLaw:
    """``error ≈ floor + amplitude · flops ** -exponent``."""

    amplitude: float
    exponent: float
    floor: float
    r2: float
    """Of the logarithms."""

    def crossing(self, other: "PowerLaw") -> float:
        """FLOPs at which two lines without a floor meet; NaN where they are parallel or have one,
        infinite or 0 beyond what a float holds.
        """
        if self.floor or other.floor or not abs(self.exponent - other.exponent) > 1e-12:
            return float("nan")
        log = (math.log(self.amplitude) - math.log(other.amplitude)) / (
            self.exponent - other.exponent
        )
        return math.exp(log) if log < 700 else float("inf")


@dataclass(frozen=True)
class SAEScaling:
    """Training runs of several widths from every beginning."""

    history: pd.DataFrame = field(repr=False)
    """A row per width, arm, seed and measurement: width, arm, seed, tokens, fvu, and FLOPs by bill:
    training, stitch, source_sae (NaN where not known).
    """
    frontier: pd.DataFrame = field(repr=False)
    """A row per bill, arm, seed and budget: bill, arm, seed, flops, fvu (least of any width; NaN
    where none could begin), width (whose).
    """
    fits: pd.DataFrame
    """A row per bill, arm and seed: amplitude, exponent, r2 (of the line), floor, amplitude_above,
    exponent_above, r2_above (with a floor), crossing (FLOPs at which the line meets scratch's of
    that seed), inside (whether within the budgets measured)."""
    savings: pd.DataFrame = field(repr=False)
    """`SAEInitialisation.savings` with a column width."""

    @property
    def summary(self) -> pd.DataFrame:
        """The line of every arm under every bill, over seeds, and where it leaves the arm beside
        scratch.

        Columns: bill, arm, amplitude (geometric mean), exponent (mean) with exponent_low and
        exponent_high (least and most), r2, the same with a floor, fvu_ratio_first, _middle and
        _last (FVU ÷ scratch's at the least, the middle and the largest budget), crossing (geometric
        mean, FLOPs), inside, n_seeds.
        """
        rows = []
        for bill, of_bill in self.fits.groupby("bill", sort=False):
            at = self.frontier[self.frontier["bill"] == bill].pivot_table(
                index="flops",
                columns="arm",
                values="fvu",
                aggfunc=lambda values: values.mean(skipna=False),
                dropna=False,
            )
            places = (0, len(at) // 2, -1)
            for arm, fits in of_bill.groupby("arm", sort=False):
                ratio = at[arm].to_numpy() / at["scratch"].to_numpy()
                rows.append(
                    {
                        "bill": bill,
                        "arm": arm,
                        "amplitude": _geometric_mean(fits["amplitude"].to_numpy()),
                        "exponent": fits["exponent"].mean(),
                        "exponent_low": fits["exponent"].min(),
                        "exponent_high": fits["exponent"].max(),
                        "r2": fits["r2"].mean(),
                        "floor": fits["floor"].mean(),
                        "exponent_above": fits["exponent_above"].mean(),
                        "r2_above": fits["r2_above"].mean(),
                        **{
                            f"fvu_ratio_{name}": ratio[i]
                            for name, i in zip(("first", "middle", "last"), places, strict=True)
                        },
                        "crossing": _geometric_mean(fits["crossing"].to_numpy()),
                        "inside": bool(fits["inside"].all()),
                        "n_seeds": len(fits),
                    }
                )
        return pd.DataFrame(rows)

    def figure(self, bill: Bill = "stitch") -> Any:
        """FVU over FLOPs with the fitted lines under one bill, and FLOPs saved over thresholds for
        every width (plotly).
        """
        return scaling_figure(self.history, self.frontier, self.summary, self.savings, bill=bill)

    def _repr_html_(self) -> str:
        shown = self.summary.reindex(
            columns=[
                "bill",
                "arm",
                "amplitude",
                "exponent",
                "exponent_low",
                "exponent_high",
                "floor",
                "fvu_ratio_last",
                "crossing",
            ]
        )
        return card(
            "SAEScaling",
            note(
                "FVU ≈ amplitude · FLOPs^−exponent; least and most over seeds; ratio to scratch at the largest budget."
            ),
            table(shown),
        )


def study_sae_scaling(
    pair: ModelPair,
    stitch: Stitch,
    saes: Sequence[Any],
    documents: Documents | SAERows,
    *,
    n_tokens: int = 100_000,
    seeds: Sequence[int] = (0, 1),
    source_sae_tokens: int | None = None,
    n_budgets: int = N_BUDGETS,
    progress: bool = True,
    **options: Any,
) -> SAEScaling:
    """`study_sae_initialisation` for every width, and power laws on what they reached.

    Args: pair: the models of the stitch. stitch: carries the SAEs. saes: SAELens SAEs of the
        source's hook point, of different widths and trained alike. documents: text, or `SAERows` at
        the stitch's target hook point; read once for all widths. n_tokens: training rows of each
        run. seeds: as in `study_sae_initialisation`. source_sae_tokens: what each of ``saes`` was
        trained on, to charge it. n_budgets: points of a frontier, even in log FLOPs from a tenth of
        the narrowest run of the costliest arm to the end of the widest. progress: show bars.
        options: of `study_sae_initialisation` and `train_sae`: shares, batch_rows, lr, ….

    Raises: MismatchError: fewer than two widths, two SAEs of one width, rows split by another seed
        than the stitch's, or beginnings that cost more than any run.

    Source: Stitching (arXiv 2506.06609) §3.1, figures 1c, 2a and 8, table 4; the floor, the
    controls and the second bill are ours.
    """
    widths = [int(sae.cfg.d_sae) for sae in saes]
    if len(set(widths)) < max(2, len(widths)):
        raise MismatchError(
            f"saes have widths {widths}; expected at least two, each of another width: a law over FLOPs needs them"
        )
    rows = rows_of(documents, pair, stitch).in_memory(n_tokens)
    histories, savings = [], []
    for width, sae in sorted(zip(widths, saes, strict=True), key=lambda one: one[0]):
        study = study_sae_initialisation(
            pair,
            stitch,
            sae,
            rows,
            n_tokens=n_tokens,
            seeds=seeds,
            source_sae_tokens=source_sae_tokens,
            progress=progress,
            **options,
        )
        savings.append(study.savings.assign(width=width))
        histories.append(
            _billed(study.history, study.stitch_flops, study.source_sae_flops).assign(width=width)
        )
    history = pd.concat(histories, ignore_index=True).reindex(
        columns=["width", "arm", "seed", "tokens", "fvu", *BILLS]
    )
    frontier = frontier_of(history, n_budgets)
    return SAEScaling(history, frontier, fit_arms(frontier), pd.concat(savings, ignore_index=True))


def _billed(history: pd.DataFrame, stitch_flops: float, source_flops: float) -> pd.DataFrame:
    """Runs with FVU and with the FLOPs of every bill."""
    stitched = np.where(history["arm"].isin(UNSTITCHED), 0.0, stitch_flops)
    carried = np.where(history["arm"] == "scratch", 0.0, source_flops)
    flops = history["flops"].to_numpy(dtype=float)
    return history.assign(
        fvu=1 - history["explained_variance"],
        training=flops,
        stitch=flops + stitched,
        source_sae=flops + stitched + carried,
    )


def budgets_of(history: pd.DataFrame, bill: str, n: int) -> np.ndarray:
    """Return ``n`` FLOP budgets, evenly spaced in their logarithm, at which every arm has a run."""
    first, last = [], []
    for _, runs in history.groupby("arm"):
        flops = [run[bill].to_numpy(dtype=float) for _, run in runs.groupby("width")]
        first.append(min(run.min() + (run.max() - run.min()) / 10 for run in flops))
        last.append(max(run.max() for run in flops))
    if not max(first) < min(last):
        raise MismatchError(
            f"what a run begins with costs {max(first):.1e} FLOPs, and the longest run of some arm ends at {min(last):.1e} (bill {bill!r}); no budget "
            "has all arms: train longer or wider, or fit the stitch on fewer tokens"
        )
    return np.geomspace(max(first), min(last), n)


def frontier_of(history: pd.DataFrame, n_budgets: int) -> pd.DataFrame:
    """The least FVU of any width at each budget, for every bill whose prices are known; see
    `SAEScaling.frontier`.
    """
    rows = []
    for bill in BILLS:
        if not np.isfinite(history[bill].to_numpy(dtype=float)).all():
            continue
        budgets = budgets_of(history, bill, n_budgets)
        for arm, of_arm in history.groupby("arm", sort=False):
            for seed, runs in of_arm.groupby("seed", sort=False):
                widths = np.unique(runs["width"].to_numpy(dtype=int))
                reached = np.stack(
                    [_reached(run, bill, budgets) for _, run in runs.groupby("width")]
                )
                best = np.where(np.isnan(reached), np.inf, reached).argmin(axis=0)
                fvu = np.fmin.reduce(reached)
                rows.append(
                    pd.DataFrame(
                        {
                            "bill": bill,
                            "arm": arm,
                            "seed": seed,
                            "flops": budgets,
                            "fvu": fvu,
                            "width": widths[best],
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


def _reached(run: pd.DataFrame, bill: str, budgets: np.ndarray) -> np.ndarray:
    """[budget] least FVU of a run so far, linear between measurements; NaN before the first one,
    and for a run that was never finite.
    """
    run = run.sort_values(bill)
    so_far = np.fmin.accumulate(run["fvu"].to_numpy(dtype=float))
    return np.interp(budgets, run[bill].to_numpy(dtype=float), so_far, left=np.nan)


def fit_arms(frontier: pd.DataFrame) -> pd.DataFrame:
    """Both laws for every bill, arm and seed; see `SAEScaling.fits`."""
    curves: dict[Any, pd.DataFrame] = dict(
        iter(frontier.groupby(["bill", "arm", "seed"], sort=False))
    )
    rows = []
    for (bill, arm, seed), curve in curves.items():
        line, above = _law(curve), _law(curve, floor=True)
        crossing = line.crossing(_law(curves[bill, "scratch", seed]))
        rows.append(
            {
                "bill": bill,
                "arm": arm,
                "seed": seed,
                "amplitude": line.amplitude,
                "exponent": line.exponent,
                "r2": line.r2,
                "floor": above.floor,
                "amplitude_above": above.amplitude,
                "exponent_above": above.exponent,
                "r2_above": above.r2,
                "crossing": crossing,
                "inside": bool(curve["flops"].min() <= crossing <= curve["flops"].max()),
            }
        )
    return pd.DataFrame(rows)


def _law(curve: pd.DataFrame, *, floor: bool = False) -> PowerLaw:
    """NaN for a curve of fewer than three points: an arm that could hardly begin, or whose runs
    were not finite.
    """
    flops, fvu = curve["flops"].to_numpy(dtype=float), curve["fvu"].to_numpy(dtype=float)
    known = np.isfinite(fvu)
    if known.sum() < 3:
        return PowerLaw(*[float("nan")] * 4)
    return fit_power_law(flops[known], fvu[known], floor=floor)


def fit_power_law(flops: np.ndarray, error: np.ndarray, *, floor: bool = False) -> PowerLaw:
    """Least squares of log error on log FLOPs (the paper's table 4); with ``floor``, of log(error −
    floor), at the floor that leaves the errors' logarithms best fitted.

    ValueError for fewer than three points or errors that are not positive.
    """
    if len(flops) < 3 or not (error > 0).all():
        raise ValueError(
            f"{len(flops)} point(s), least error {error.min() if len(error) else None}; expected at least three, all positive"
        )
    log_c, log_e = np.log(flops), np.log(error)
    spread = float(((log_e - log_e.mean()) ** 2).sum())

    def law(value: float) -> PowerLaw:
        slope, intercept = np.polyfit(log_c, np.log(error - value), 1)
        residual = log_e - np.log(value + np.exp(intercept + slope * log_c))
        return PowerLaw(
            float(np.exp(intercept)),
            float(-slope),
            value,
            1 - float((residual**2).sum()) / spread if spread else float("nan"),
        )

    straight = law(0.0)
    if not floor or not np.isfinite(straight.r2):
        return straight
    # Floors are searched by their distance below the least error, evenly in its logarithm: the
    # optimum lies next to that error as often as far from it.
    least = float(error.min())
    gaps = np.geomspace(1e-3, 1.0, 60)
    start = int(np.argmax([law(least * (1 - gap)).r2 for gap in gaps]))
    ends = gaps[max(start - 1, 0)], gaps[min(start + 1, len(gaps) - 1)]
    found: Any = minimize_scalar(
        lambda gap: -law(least * (1 - gap)).r2,
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-9},
    )
    return max(straight, law(least * (1 - float(found.x))), key=lambda one: one.r2)


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))
