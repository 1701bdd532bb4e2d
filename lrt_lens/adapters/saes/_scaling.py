"""Scaling of an SAE's error with compute, from scratch and from a transferred SAE: power laws.

    study = study_sae_scaling(pair, stitch, saes, documents, n_tokens=60_000)
    study.summary      # per bill and arm: FVU ≈ amplitude · FLOPs^−exponent on the frontier
    study.savings      # FLOPs saved against scratch, per width and threshold

Problem: a start that saves FLOPs at one size may save nothing at another. Mechanism: power laws of
the error over FLOPs, over several widths, from each initialisation.

``saes`` are SAEs of the source, one per width. For each budget of FLOPs the *frontier* is the
smallest FVU that a run of any width has reached. FLOPs are counted by three bills:

- ``training``: training steps only. Exponents are compared by this bill, because a cost that is
  paid once bends the line where it is not small compared with the budget.
- ``stitch``: with the cost of fitting the maps (the paper's reading of savings).
- ``source_sae``: with the training of the source's SAE of that width too.

Scratch pays only for training steps under each bill, and a rotated SAE for no stitch. The arms are
those of `study_sae_initialisation`, which runs once per width.

Source: Stitching (arXiv 2506.06609), figures 1c and 8, table 4. The paper fits a straight line in
log-log axes, which has no floor; a fit with a floor is reported too, because the error of an SAE
with k active features has one.

Limits: a power law of two or three widths describes the measured range and no other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from lrt_lens._repr_html import card, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.saes._compatibility import require_sae
from lrt_lens.adapters.saes._initialisation import (
    UNSTITCHED,
    check_source_sae,
    refuse_other_options,
    rows_of,
    study_sae_initialisation,
)
from lrt_lens.adapters.saes._rows import SAERows
from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.figures._sae_scaling import scaling_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

N_BUDGETS = 24
"""Default number of budgets of a frontier."""
Bill = Literal["training", "stitch", "source_sae"]
"""Name of a bill."""
BILLS: tuple[Bill, ...] = ("training", "stitch", "source_sae")
"""Bills by which FLOPs are counted; the module docstring describes them."""


@dataclass(frozen=True)
class PowerLaw:
    """Power law ``error ≈ floor + amplitude · flops ** -exponent``."""

    amplitude: float
    """Error above the floor at one FLOP."""
    exponent: float
    """Decrease of the log error per unit of log FLOPs."""
    floor: float
    """Error that no number of FLOPs removes; 0 for a straight line in log-log axes."""
    r2: float
    """Share of the variance of the log errors that is explained."""

    def crossing(self, other: "PowerLaw") -> float:
        """FLOPs at which two power laws without a floor meet.

        NaN if they are parallel or have a floor; infinite or 0 beyond the range of a float.
        """
        if self.floor or other.floor or not abs(self.exponent - other.exponent) > 1e-12:
            return float("nan")
        # log C = (log a₁ − log a₂) / (b₁ − b₂), from a₁ C^−b₁ = a₂ C^−b₂
        log = (math.log(self.amplitude) - math.log(other.amplitude)) / (
            self.exponent - other.exponent
        )
        # exp overflows a float64 above 709.
        return math.exp(log) if log < 700 else float("inf")


@dataclass(frozen=True, repr=False)
class SAEScaling(ShortRepr):
    """Training runs of several widths from all initialisations, with their power laws."""

    history: pd.DataFrame = field(repr=False)
    """One row per width, arm, seed and measurement: width, arm, seed, tokens, fvu, and FLOPs by
    bill: training, stitch, source_sae (NaN if not known).
    """
    frontier: pd.DataFrame = field(repr=False)
    """One row per bill, arm, seed and budget.

    Columns: bill, arm, seed, flops, fvu (smallest of all widths; NaN if no width can start within
    the budget), width (of the run with that fvu).
    """
    fits: pd.DataFrame
    """One row per bill, arm and seed.

    Columns: amplitude, exponent, r2 (of the line), floor, amplitude_above, exponent_above, r2_above
    (with a floor), crossing (FLOPs at which the line meets that of scratch of that seed), inside
    (True if the crossing is a measured budget).
    """
    savings: pd.DataFrame = field(repr=False)
    """Table of `SAEInitialisation.savings` for each width, with a column width."""

    @property
    def summary(self) -> pd.DataFrame:
        """Power laws over seeds per bill and arm, and FVU compared with scratch's.

        Columns: bill, arm, amplitude (geometric mean), exponent (mean) with exponent_low and
        exponent_high (least and most), r2; floor, exponent_above, r2_above (fit with a floor);
        fvu_ratio_first, _middle and _last (FVU ÷ scratch's at the smallest, the middle and the
        largest budget), crossing (geometric mean, FLOPs), inside, n_seeds.
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
            # mean(skipna=False): a budget that one seed cannot afford has no mean FVU.
            budgets = {"first": 0, "middle": len(at) // 2, "last": -1}
            for arm, fits in of_bill.groupby("arm", sort=False):
                ratio = at[arm].to_numpy() / at["scratch"].to_numpy()
                means = ("r2", "floor", "exponent_above", "r2_above")
                rows.append(
                    {
                        "bill": bill,
                        "arm": arm,
                        "amplitude": _geometric_mean(fits["amplitude"].to_numpy()),
                        "exponent": fits["exponent"].mean(),
                        "exponent_low": fits["exponent"].min(),
                        "exponent_high": fits["exponent"].max(),
                        **{name: fits[name].mean() for name in means},
                        **{f"fvu_ratio_{name}": ratio[i] for name, i in budgets.items()},
                        "crossing": _geometric_mean(fits["crossing"].to_numpy()),
                        "inside": bool(fits["inside"].all()),
                        "n_seeds": len(fits),
                    }
                )
        return pd.DataFrame(rows)

    def figure(self, bill: Bill = "stitch") -> Any:
        """Plotly figure of FVU over FLOPs with the fitted lines, and of the FLOPs saved.

        The first panel is drawn for one bill, the second for all widths and thresholds.
        """
        figure = scaling_figure(self.history, self.frontier, self.summary, self.savings, bill=bill)
        counts = {"seeds": len(set(self.fits["seed"])), "widths": len(set(self.history["width"]))}
        return with_counts(figure, counts)

    def _repr_html_(self) -> str:
        columns = ["bill", "arm", "amplitude", "exponent", "exponent_low", "exponent_high"]
        columns += ["floor", "fvu_ratio_last", "crossing"]
        caption = (
            "FVU ≈ amplitude · FLOPs^−exponent; least and most over seeds; ratio to scratch at the "
            "largest budget."
        )
        return card("SAEScaling", note(caption), table(self.summary.reindex(columns=columns)))


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
    """Power laws of FVU over FLOPs, from `study_sae_initialisation` for each width.

    Args:
        pair: the models of the stitch.
        stitch: transfers the SAEs.
        saes: SAELens SAEs of the source's hook point, of different widths and trained alike.
        documents: text, or `SAERows` of the target hook point; read once for all widths.
        n_tokens: training rows of each run.
        seeds: seeds of `study_sae_initialisation`.
        source_sae_tokens: training tokens of each of ``saes``, to charge their cost.
        n_budgets: points of a frontier, evenly spaced in log FLOPs from a tenth of the narrowest
            run of the most expensive arm to the end of the widest.
        progress: show bars.
        options: options of `study_sae_initialisation` and fields of `SAETrainingSettings`: shares,
            batch_rows, lr, ….

    Raises:
        MismatchError: fewer than two widths, or two SAEs of one width; an SAE belongs to another
            hook point, model, basis or tokenizer; rows of another hook point or model, or split by
            another seed than the stitch's; initialisations that cost more than any run.

    Source: Stitching (arXiv 2506.06609) §3.1, figures 1c, 2a and 8, table 4; the floor, the
    controls and the second bill are ours.
    """
    studied = ("shares", "n_rows")
    refuse_other_options({name: options[name] for name in options if name not in studied})
    for sae in saes:
        require_sae(sae, "cfg", "W_dec")
    widths = [int(sae.cfg.d_sae) for sae in saes]
    if len(set(widths)) < max(2, len(widths)):
        raise MismatchError(
            f"saes have widths {widths}; expected at least two, each of another width, for a power "
            "law over FLOPs"
        )
    stitch.check(pair.source, pair.target)
    for sae in saes:
        check_source_sae(sae, pair, stitch)
    rows = rows_of(documents, pair, stitch, saes).in_memory(n_tokens)
    histories, savings = [], []
    # From narrow to wide: the order of the tables.
    for width, sae in sorted(zip(widths, saes, strict=True), key=lambda item: item[0]):
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
    """History with columns for FVU and for the FLOPs under each bill."""
    # Scratch and the rotation use no fitted map; only scratch uses no source SAE.
    stitched = np.where(history["arm"].isin(UNSTITCHED), 0.0, stitch_flops)
    of_source = np.where(history["arm"] == "scratch", 0.0, source_flops)
    flops = history["flops"].to_numpy(dtype=float)
    return history.assign(
        fvu=1 - history["explained_variance"],
        training=flops,
        stitch=flops + stitched,
        source_sae=flops + stitched + of_source,
    )


def budgets_of(history: pd.DataFrame, bill: str, n: int) -> np.ndarray:
    """Budgets of FLOPs within which each arm has a run, evenly spaced in log FLOPs, [n].

    Raises:
        MismatchError: there is no such budget.
    """
    first, last = [], []
    for _, runs in history.groupby("arm"):
        flops = [run[bill].to_numpy(dtype=float) for _, run in runs.groupby("width")]
        # From a tenth of the way through the narrowest run: the first steps follow no power law.
        first.append(min(run.min() + (run.max() - run.min()) / 10 for run in flops))
        last.append(max(run.max() for run in flops))
    if not max(first) < min(last):
        raise MismatchError(
            f"an initialisation costs {max(first):.1e} FLOPs, and the longest run of some arm ends "
            f"at {min(last):.1e} (bill {bill!r}), so that no budget has all arms; train longer or "
            "wider, or fit the stitch on fewer tokens"
        )
    return np.geomspace(max(first), min(last), n)


def frontier_of(history: pd.DataFrame, n_budgets: int) -> pd.DataFrame:
    """Smallest FVU of all widths at each budget, for each bill whose costs are known.

    The columns are those of `SAEScaling.frontier`.
    """
    rows = []
    for bill in BILLS:
        if not np.isfinite(history[bill].to_numpy(dtype=float)).all():
            continue
        budgets = budgets_of(history, bill, n_budgets)
        for arm, of_arm in history.groupby("arm", sort=False):
            for seed, runs in of_arm.groupby("seed", sort=False):
                widths = np.unique(runs["width"].to_numpy(dtype=int))
                curves = [_reached(run, bill, budgets) for _, run in runs.groupby("width")]
                reached = np.stack(curves)
                best = np.where(np.isnan(reached), np.inf, reached).argmin(axis=0)
                columns = {"flops": budgets, "fvu": np.fmin.reduce(reached), "width": widths[best]}
                rows.append(pd.DataFrame({"bill": bill, "arm": arm, "seed": seed} | columns))
    return pd.concat(rows, ignore_index=True)


def _reached(run: pd.DataFrame, bill: str, budgets: np.ndarray) -> np.ndarray:
    """Smallest FVU that a run has reached within each budget, [budget].

    Linear between measurements; NaN before the first one, and for a run that was never finite.
    """
    run = run.sort_values(bill)
    # A run that diverges counts with the error that it had reached; fmin ignores NaN.
    so_far = np.fmin.accumulate(run["fvu"].to_numpy(dtype=float))
    return np.interp(budgets, run[bill].to_numpy(dtype=float), so_far, left=np.nan)


def fit_arms(frontier: pd.DataFrame) -> pd.DataFrame:
    """Power laws with and without a floor per bill, arm and seed, as in `SAEScaling.fits`."""
    curves: dict[Any, pd.DataFrame] = dict(
        iter(frontier.groupby(["bill", "arm", "seed"], sort=False))
    )
    rows = []
    for (bill, arm, seed), curve in curves.items():
        line, above = _law(curve), _law(curve, floor=True)
        # Runs of one seed are compared, because they read the rows in the same order.
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
    """Power law of a curve; NaN if fewer than three of its points are finite."""
    flops, fvu = curve["flops"].to_numpy(dtype=float), curve["fvu"].to_numpy(dtype=float)
    # NaN marks budgets below the cost of the initialisation.
    known = np.isfinite(fvu)
    if known.sum() < 3:
        return PowerLaw(*[float("nan")] * 4)
    return fit_power_law(flops[known], fvu[known], floor=floor)


def fit_power_law(flops: np.ndarray, error: np.ndarray, *, floor: bool = False) -> PowerLaw:
    """Power law from least squares of log error on log FLOPs (the paper's table 4).

    With ``floor``, log(error − floor) is regressed, at the floor that fits the log errors best.

    Raises:
        ValueError: fewer than three points, or errors that are not positive.
    """
    if len(flops) < 3 or not (error > 0).all():
        raise ValueError(
            f"{len(flops)} point(s), least error {error.min() if len(error) else None}; expected "
            "at least three, all positive: train with more measurements"
        )
    log_c, log_e = np.log(flops), np.log(error)
    spread = float(((log_e - log_e.mean()) ** 2).sum())

    def law(value: float) -> PowerLaw:
        # log(e − floor) = log amplitude − exponent · log C
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
    # Floors are searched by their distance below the least error, evenly in log distance, because
    # the optimum can be close to that error or far from it.
    least = float(error.min())
    gaps = np.geomspace(1e-3, 1.0, 60)
    start = int(np.argmax([law(least * (1 - gap)).r2 for gap in gaps]))
    ends = gaps[max(start - 1, 0)], gaps[min(start + 1, len(gaps) - 1)]
    minimum: Any = minimize_scalar(
        lambda gap: -law(least * (1 - gap)).r2,
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-9},
    )
    # A floor is reported only if it fits better than the straight line, the case floor = 0.
    return max(straight, law(least * (1 - float(minimum.x))), key=lambda candidate: candidate.r2)


def _geometric_mean(values: np.ndarray) -> float:
    """Geometric mean exp(mean(log values)); NaN if any value is NaN."""
    return float(np.exp(np.log(values).mean()))
