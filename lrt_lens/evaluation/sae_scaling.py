"""How an SAE's error falls with compute, from scratch and from a transferred beginning: power laws over widths (Stitching, figures 1c and 8, table 4).

    study = study_sae_scaling(pair, stitch, saes, documents, n_tokens=60_000)     # saes: of the source, one a width
    study.summary      # arm: FVU ≈ amplitude · FLOPs^−exponent on the frontier of all widths, and where it crosses scratch's line
    study.savings      # FLOPs saved against scratch, by width and threshold

For every budget of FLOPs the *frontier* is the least FVU that a run of any width has reached by then. What a run began with is charged to it:
the stitch, and for ``transferred_charged``, a second reading of the same runs, the training of the source's SAE of that width too. The paper fits
a straight line in log-log axes, which has no floor; the fit with a floor stands beside it, because an SAE of k active features has one.

Arms are those of `study_sae_initialisation`, which runs once for every width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from lrt_lens.adapters.sae.rows import SAERows
from lrt_lens.data.documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.evaluation.sae_initialisation import study_sae_initialisation
from lrt_lens.models.pair import ModelPair
from lrt_lens.repr_html import card, note, table
from lrt_lens.stitching.stitch import Stitch

N_BUDGETS = 24
CHARGED = "transferred_charged"
"""The arm ``transferred`` again, with the source's SAE on its bill."""


@dataclass(frozen=True)
class PowerLaw:
    """``error ≈ floor + amplitude · flops ** -exponent``."""

    amplitude: float
    exponent: float
    floor: float
    r2: float
    """Of the logarithms."""

    def crossing(self, other: "PowerLaw") -> float:
        """FLOPs at which two lines without a floor meet; NaN where they are parallel or have one."""
        if self.floor or other.floor or np.isclose(self.exponent, other.exponent):
            return float("nan")
        with np.errstate(over="ignore"):
            return float((self.amplitude / other.amplitude) ** (1 / (self.exponent - other.exponent)))


@dataclass(frozen=True)
class SAEScaling:
    """Training runs of several widths from every beginning."""

    history: pd.DataFrame = field(repr=False)
    """A row per width, arm, seed and measurement: width, arm, seed, tokens, flops (what the run began with is charged), fvu."""
    frontier: pd.DataFrame = field(repr=False)
    """A row per arm, seed and budget: arm, seed, flops, fvu (least of any width), width (whose)."""
    fits: pd.DataFrame
    """A row per arm and seed: arm, seed, amplitude, exponent, r2 (of the line), floor, amplitude_above, exponent_above, r2_above (with a floor), crossing
    (FLOPs at which the line meets scratch's of that seed), inside (whether within the budgets measured)."""
    savings: pd.DataFrame = field(repr=False)
    """`SAEInitialisation.savings` with a column width."""

    @property
    def summary(self) -> pd.DataFrame:
        """The line of every arm, over seeds, and where it leaves the arm beside scratch.

        Columns: arm, amplitude (geometric mean), exponent (mean) with exponent_low and exponent_high (least and most), r2, the same with a floor,
        fvu_ratio_first, _middle and _last (FVU ÷ scratch's at the least, the middle and the largest budget), crossing (geometric mean, FLOPs), inside, n_seeds.
        """
        at = self.frontier.pivot_table(index="flops", columns="arm", values="fvu", aggfunc="mean", sort=True)
        places = (0, len(at) // 2, -1)
        rows = []
        for arm, fits in self.fits.groupby("arm", sort=False):
            ratio = at[arm].to_numpy() / at["scratch"].to_numpy()
            rows.append(
                {
                    "arm": arm, "amplitude": _geometric_mean(fits["amplitude"].to_numpy()), "exponent": fits["exponent"].mean(),
                    "exponent_low": fits["exponent"].min(), "exponent_high": fits["exponent"].max(), "r2": fits["r2"].mean(),
                    "floor": fits["floor"].mean(), "exponent_above": fits["exponent_above"].mean(), "r2_above": fits["r2_above"].mean(),
                    **{f"fvu_ratio_{name}": ratio[i] for name, i in zip(("first", "middle", "last"), places, strict=True)},
                    "crossing": _geometric_mean(fits["crossing"].to_numpy()), "inside": bool(fits["inside"].all()), "n_seeds": len(fits),
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """FVU over FLOPs with the fitted lines, and FLOPs saved over thresholds for every width (plotly)."""
        from lrt_lens.report.sae_scaling import scaling_figure

        return scaling_figure(self.history, self.frontier, self.summary, self.savings)

    def _repr_html_(self) -> str:
        shown = self.summary.reindex(
            columns=["arm", "amplitude", "exponent", "exponent_low", "exponent_high", "floor", "fvu_ratio_last", "crossing"]
        )
        return card(
            "SAEScaling",
            note("FVU ≈ amplitude · FLOPs^−exponent; least and most over seeds; ratio to scratch at the largest budget."),
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

    Args:
        pair: the models of the stitch.
        stitch: carries the SAEs.
        saes: SAELens SAEs of the source's hook point, of different widths and trained alike.
        documents: text, or `SAERows` at the stitch's target hook point; read once for all widths.
        n_tokens: training rows of each run.
        seeds: as in `study_sae_initialisation`.
        source_sae_tokens: what each of ``saes`` was trained on, to charge it.
        n_budgets: points of the frontier, even in log FLOPs from a tenth of the narrowest run (the costliest beginning charged) to the whole of the widest.
        progress: show bars.
        options: of `study_sae_initialisation` and `train_sae`: shares, batch_rows, lr, ….

    Raises:
        MismatchError: fewer than two widths, or two SAEs of one width.

    Source: Stitching (arXiv 2506.06609) §3.1, figures 1c, 2a and 8, table 4; the floor, the controls and the second bill are ours.
    """
    widths = [int(sae.cfg.d_sae) for sae in saes]
    if len(set(widths)) < max(2, len(widths)):
        raise MismatchError(f"saes have widths {widths}; expected at least two, each of another width: a law over FLOPs needs them")
    rows = documents if isinstance(documents, SAERows) else SAERows.from_documents(pair.target, documents, at=stitch.target_hook)
    rows = rows.in_memory(n_tokens)
    histories, savings = [], []
    for width, sae in sorted(zip(widths, saes, strict=True), key=lambda one: one[0]):
        study = study_sae_initialisation(
            pair, stitch, sae, rows, n_tokens=n_tokens, seeds=seeds, source_sae_tokens=source_sae_tokens, progress=progress, **options
        )
        savings.append(study.savings.assign(width=width))
        histories += [run.assign(width=width) for run in _billed(study.history, study.stitch_flops, study.source_sae_flops)]
    history = pd.concat(histories, ignore_index=True).reindex(columns=["width", "arm", "seed", "tokens", "flops", "fvu"])
    frontier = frontier_of(history, budgets_of(history, n_budgets))
    return SAEScaling(history, frontier, fit_arms(frontier), pd.concat(savings, ignore_index=True))


def _billed(history: pd.DataFrame, stitch_flops: float, source_flops: float) -> list[pd.DataFrame]:
    """Runs with FVU and with what each began with added to its FLOPs; the transferred ones twice where the source's SAE has a price."""
    runs = []
    for arm, run in history.assign(fvu=1 - history["explained_variance"]).groupby("arm", sort=False):
        begun = run if arm == "scratch" else run.assign(flops=run["flops"] + stitch_flops)
        runs.append(begun)
        if arm == "transferred" and np.isfinite(source_flops):
            runs.append(begun.assign(arm=CHARGED, flops=begun["flops"] + source_flops))
    return runs


def budgets_of(history: pd.DataFrame, n: int) -> np.ndarray:
    """[n] FLOPs, even in their logarithm, over which every arm but the twice-charged one has a run; see `study_sae_scaling`."""
    first, last = [], []
    for _, runs in history[history["arm"] != CHARGED].groupby("arm"):
        flops = [run["flops"].to_numpy(dtype=float) for _, run in runs.groupby("width")]
        ends = [(run.min(), run.max()) for run in flops]
        first.append(min(begin + (end - begin) / 10 for begin, end in ends))
        last.append(max(end for _, end in ends))
    return np.geomspace(max(first), min(last), n)


def frontier_of(history: pd.DataFrame, budgets: np.ndarray) -> pd.DataFrame:
    """The least FVU of any width at each budget; see `SAEScaling.frontier`. Budgets below an arm's first measurement are left out."""
    rows = []
    for key, runs in history.groupby(["arm", "seed"], sort=False):
        best = pd.DataFrame({width: _reached(run, budgets) for width, run in runs.groupby("width")}, index=budgets).dropna(how="all")
        least = pd.DataFrame({"flops": best.index, "fvu": best.min(axis=1).to_numpy(), "width": best.idxmin(axis=1).to_numpy()})
        rows.append(least.assign(arm=key[0], seed=key[1]))  # pyright: ignore[reportIndexIssue] (two columns make a pair)
    return pd.concat(rows, ignore_index=True).reindex(columns=["arm", "seed", "flops", "fvu", "width"])


def _reached(run: pd.DataFrame, budgets: np.ndarray) -> np.ndarray:
    """[budget] least FVU of a run so far, linear between measurements; NaN before the first one."""
    run = run.sort_values("flops")
    so_far = np.minimum.accumulate(run["fvu"].to_numpy(dtype=float))
    return np.interp(budgets, run["flops"].to_numpy(dtype=float), so_far, left=np.nan)


def fit_arms(frontier: pd.DataFrame) -> pd.DataFrame:
    """Both laws for every arm and seed; see `SAEScaling.fits`."""
    curves: Mapping[Any, pd.DataFrame] = dict(iter(frontier.groupby(["arm", "seed"], sort=False)))
    span = frontier["flops"].min(), frontier["flops"].max()
    rows = []
    for (arm, seed), curve in curves.items():
        line, above = _law(curve), _law(curve, floor=True)
        crossing = line.crossing(_law(curves["scratch", seed]))
        rows.append(
            {
                "arm": arm, "seed": seed, "amplitude": line.amplitude, "exponent": line.exponent, "r2": line.r2, "floor": above.floor,
                "amplitude_above": above.amplitude, "exponent_above": above.exponent, "r2_above": above.r2,
                "crossing": crossing, "inside": bool(span[0] <= crossing <= span[1]),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _law(curve: pd.DataFrame, *, floor: bool = False) -> PowerLaw:
    """NaN for a curve of fewer than three points: an arm whose bill is most of the budgets."""
    if len(curve) < 3:
        return PowerLaw(*[float("nan")] * 4)
    return fit_power_law(curve["flops"].to_numpy(dtype=float), curve["fvu"].to_numpy(dtype=float), floor=floor)


def fit_power_law(flops: np.ndarray, error: np.ndarray, *, floor: bool = False) -> PowerLaw:
    """Least squares of log error on log FLOPs (the paper's table 4); with ``floor``, of log(error − floor), at the floor that leaves the errors' logarithms best fitted.

    ValueError for fewer than three points or errors that are not positive.
    """
    if len(flops) < 3 or not (error > 0).all():
        raise ValueError(f"{len(flops)} point(s), least error {error.min() if len(error) else None}; expected at least three, all positive")
    log_c, log_e = np.log(flops), np.log(error)

    def law(value: float) -> PowerLaw:
        slope, intercept = np.polyfit(log_c, np.log(error - value), 1)
        residual = log_e - np.log(value + np.exp(intercept + slope * log_c))
        spread = float(((log_e - log_e.mean()) ** 2).sum())
        return PowerLaw(float(np.exp(intercept)), float(-slope), value, 1 - float((residual**2).sum()) / spread if spread else float("nan"))

    straight = law(0.0)
    if not floor or not np.isfinite(straight.r2):
        return straight
    # Floors are searched by their distance below the least error, evenly in its logarithm: the optimum lies next to that error as often as far from it.
    least = float(error.min())
    gaps = np.geomspace(1e-3, 1.0, 60)
    start = int(np.argmax([law(least * (1 - gap)).r2 for gap in gaps]))
    ends = gaps[max(start - 1, 0)], gaps[min(start + 1, len(gaps) - 1)]
    found: Any = minimize_scalar(lambda gap: -law(least * (1 - gap)).r2, bounds=ends, method="bounded", options={"xatol": 1e-9})
    return max(straight, law(least * (1 - float(found.x))), key=lambda one: one.r2)


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))
