"""Result of an evaluation of SAEs: tables with intervals from sums per document.

    table = evaluation_table(by_document, codes, pair, draws, seed)
    SAEEvaluation(table, by_document, source_hook, target_hook, seed, draws)

Problem: every metric is a ratio of sums over tokens, and tokens of one document are not
independent. Mechanism: sums are kept per document and arm, and intervals resample documents,
studentised (`lrt_lens.statistics._bootstrap`); those of ``dead_fraction`` (Clopper–Pearson) are
over features. For ``random`` they are the intervals that a new random map falls into.

Limits: every arm must have read the same documents.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lrt_lens._repr_html import card, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.saes._sae_pass import CodeTally
from lrt_lens.figures._sae import sae_figure
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._bootstrap import bootstrap_ratio
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import NOTHING, Interval, clopper_pearson, t_quantile
from lrt_lens.stitching._stitched_pass import Tally


class Metric(NamedTuple):
    """Views, besides the table, in which a metric with an interval over documents appears."""

    in_summary: bool = True
    """True if `SAEEvaluation.summary` has it."""
    in_difference: bool = True
    """True if `SAEEvaluation.difference` accepts it; needs a denominator that is never near 0."""


METRICS = {
    "l0": Metric(),
    "fvu": Metric(),
    "delta_ce": Metric(),
    "ce_recovered": Metric(in_difference=False),
    "ce_recovered_zero": Metric(in_summary=False, in_difference=False),
}
"""Metrics with an interval over documents; `SAEEvaluation.table` describes them."""
ARMS = (
    "source",
    "transferred",
    "refitted",
    "native",
    "shuffled",
    "shuffled_refitted",
    "random",
    "random_refitted",
)
"""Arms in the order of tables and figures."""


@dataclass(frozen=True, repr=False)
class SAEEvaluation(ShortRepr):
    """L0, FVU, ΔCE, recovered loss and dead features of each SAE, with intervals."""

    table: pd.DataFrame
    """One row per arm.

    Columns with intervals (``_low`` and ``_high``): l0 (active features per token), fvu
    (‖x − x̂‖² ÷ ‖x − mean‖²), delta_ce (cross-entropy minus that of the unchanged model, nats per
    token), ce_recovered ((mean − ce) ÷ (mean − own), with the loss under ablation by the mean),
    ce_recovered_zero (with the loss under ablation by 0), dead_fraction. Columns without: arm,
    model, ce, own_ce, n_tokens, n_documents, n_features, n_draws, contains (what varies in the
    intervals), interval_flag (what is doubtful about them), and for ``random`` transferred_p and
    p_floor.
    """
    by_document: pd.DataFrame = field(repr=False)
    """One row per arm and document: n_tokens, and sums over its tokens (l0, error, variance, ce,
    own, mean, zero).
    """
    source_hook: str
    """Hook point of the source, which the SAE reads."""
    target_hook: str
    """Hook point of the target, which the transferred SAE reads."""
    seed: int = 0
    """Seed of the bootstraps and the random maps."""
    draws: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    """One row per random map: draw, and each metric of the table without its interval."""

    @property
    def summary(self) -> pd.DataFrame:
        """Metrics without intervals, one row per arm."""
        shown = [name for name, metric in METRICS.items() if metric.in_summary]
        return pd.DataFrame(self.table, columns=["arm", "model", *shown, "dead_fraction"])

    def difference(self, arm: str, other: str, metric: str = "delta_ce") -> Interval:
        """Difference of a metric, ``arm`` minus ``other``, by a paired bootstrap over documents.

        ``random`` is the mean over random maps, and the interval contains their number too.
        ``metric`` is ``"l0"``, ``"fvu"`` or ``"delta_ce"``.

        Raises:
            ValueError: unknown arm or metric.
        """
        known = list(dict.fromkeys(self.by_document["arm"]))
        for name in (arm, other):
            if name not in known:
                raise ValueError(f"no arm {name!r}; expected one of {known}")
        accepted = [key for key, value in METRICS.items() if value.in_difference]
        if metric not in accepted:
            raise ValueError(f"metric is {metric!r}; expected one of {accepted}")
        sums = [
            _ratios(pd.DataFrame(self.by_document[self.by_document["arm"] == name]))[metric]
            for name in (arm, other)
        ]
        interval = _paired_difference(sums[0], sums[1], self.seed)
        return _over_draws(interval, self.draws, metric) if "random" in (arm, other) else interval

    def figure(self) -> Any:
        """Plotly figure of each metric by arm with its interval."""
        return sae_figure(self.table)

    def _repr_html_(self) -> str:
        measured = [
            f"{name}{end}" for name in (*METRICS, "dead_fraction") for end in ("", "_low", "_high")
        ]
        shown = ["arm", "model", *(name for name in measured if name in self.table)]
        caption = f"{self.source_hook} → {self.target_hook}; delta_ce in nats per token."
        return card("SAEEvaluation", note(caption), table(pd.DataFrame(self.table, columns=shown)))


def frames_of(tally: Tally, codes: dict[str, CodeTally]) -> dict[str, list[pd.DataFrame]]:
    """Sums over tokens, one row per document, by arm; one frame per random map."""
    frames: dict[str, list[pd.DataFrame]] = {}
    for name, code in codes.items():
        end = "A" if name == "source" else "B"
        losses = {kind: tally.sums[end, kind]["ce"] for kind in ("own", "mean", "zero")} | {
            "ce": tally.sums[end, name]["ce"]
        }
        frame = pd.DataFrame(
            {"document": np.arange(tally.n_documents), "n_tokens": code.counts} | code.sums | losses
        )
        frames.setdefault(name.split()[0], []).append(frame)
    return frames


def documents_of(frames: dict[str, list[pd.DataFrame]]) -> pd.DataFrame:
    """Sums over tokens, one row per arm and document; random maps are averaged."""
    order = [arm for arm in ARMS if arm in frames]
    return pd.concat(
        [
            # Sums of the random maps are averaged per document, so the arm has one row per document
            # too.
            (sum(frames[arm][1:], frames[arm][0]) / len(frames[arm])).assign(arm=arm)
            for arm in order
        ],
        ignore_index=True,
    )


def _ratios(rows: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerator and denominator of each metric, [document]; a metric is the ratio of their sums."""
    ce, own, n = (rows[name].to_numpy(dtype=float) for name in ("ce", "own", "n_tokens"))
    mean, zero = (rows[name].to_numpy(dtype=float) for name in ("mean", "zero"))
    error, variance = (rows[name].to_numpy(dtype=float) for name in ("error", "variance"))
    return {
        "l0": (rows["l0"].to_numpy(dtype=float), n),
        # FVU = Σ‖x − x̂‖² / Σ‖x − mean‖²
        "fvu": (error, variance),
        "delta_ce": (ce - own, n),
        # recovered = (CE of the ablation − CE with the SAE) / (CE of the ablation − own CE)
        "ce_recovered": (mean - ce, mean - own),
        "ce_recovered_zero": (zero - ce, zero - own),
    }


def draws_of(frames: list[pd.DataFrame], codes: dict[str, CodeTally]) -> pd.DataFrame:
    """Metrics of each random map."""
    rows = []
    for draw, frame in enumerate(frames):
        ratios = {name: float(n.sum() / d.sum()) for name, (n, d) in _ratios(frame).items()}
        fired = codes[f"random {draw}"].fired
        dead = {"dead_fraction": float((~fired).double().mean())}
        rows.append({"draw": draw} | ratios | dead)
    return pd.DataFrame(rows)


def evaluation_table(
    by_document: pd.DataFrame,
    codes: dict[str, CodeTally],
    pair: ModelPair,
    draws: pd.DataFrame,
    seed: int,
) -> pd.DataFrame:
    """Table of `SAEEvaluation` from sums per document and from the features that fired."""
    table: list[dict[str, Any]] = []
    for arm, rows in by_document.groupby("arm", sort=False):
        row: dict[str, Any] = {
            "arm": arm,
            "model": (pair.source if arm == "source" else pair.target).name,
        }
        measured = {
            metric: bootstrap_ratio(numerator, denominator, seed=seed)
            for metric, (numerator, denominator) in _ratios(rows).items()
        }
        # Draws of the random maps are named `random 0`, `random 1`, …: the first word is the arm.
        fired = [code.fired for name, code in codes.items() if name.split()[0] == arm]
        measured["dead_fraction"] = _dead(fired[0])
        if arm == "random":
            measured = {name: prediction_interval(draws[name].to_numpy()) for name in measured}
            measured["dead_fraction"] = measured["dead_fraction"].within()
        for metric, interval in measured.items():
            row |= _columns(metric, interval)
        n, ce, own = (
            float(rows[name].to_numpy(dtype=float).sum()) for name in ("n_tokens", "ce", "own")
        )
        row |= {"ce": ce / n, "own_ce": own / n, "n_tokens": round(n)}
        row |= {"n_documents": len(rows), "n_features": len(fired[0]), "n_draws": len(fired)}
        # Dead features are counted on the same documents, but their interval is over features.
        flags = dict.fromkeys(one.flag.replace("items", "documents") for one in measured.values())
        row["contains"] = "draws" if arm == "random" else "documents"
        row["interval_flag"] = "; ".join(flag for flag in flags if flag)
        table.append(row)
    for row in table:
        if row["arm"] == "random":
            [ours] = [one["delta_ce"] for one in table if one["arm"] == "transferred"]
            row |= _rank(ours, draws["delta_ce"].to_numpy())
    return pd.DataFrame(table)


def _rank(ours: float, draws: np.ndarray) -> dict[str, float]:
    """Columns of the share of draws whose ΔCE is at most ``ours``."""
    # p = (1 + #{draw ≤ ours}) / (n + 1); a smaller loss is better, so there is one side.
    n = len(draws) + 1
    return {"transferred_p": (1 + int((draws <= ours).sum())) / n, "p_floor": 1 / n}


def _columns(name: str, interval: Interval) -> dict[str, float]:
    """Columns of a metric and of the ends of its interval."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _dead(fired: torch.Tensor) -> Interval:
    """Share of silent features with its interval over features."""
    return clopper_pearson(int((~fired).sum()), len(fired)) if len(fired) else NOTHING


def _over_draws(interval: Interval, draws: pd.DataFrame, metric: str) -> Interval:
    """Return an interval over documents, widened by t · s/√n of the mean over random maps."""
    n = len(draws)
    if n < 2:
        return Interval(interval.value, math.nan, math.nan, f"{n} draw")
    reach = t_quantile(n - 1) * float(np.std(draws[metric].to_numpy(), ddof=1)) / math.sqrt(n)
    return interval.widened(reach)


def _paired_difference(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], seed: int
) -> Interval:
    """Difference of two ratios of sums over the same documents, with a paired bootstrap interval.

    With one denominator it is a ratio of sums itself. Otherwise the difference is linearised, and
    the influence of each document on it is resampled.
    """
    if np.array_equal(a[1], b[1]):
        return bootstrap_ratio(a[0] - b[0], a[1], seed=seed)
    values = [numerator.sum() / denominator.sum() for numerator, denominator in (a, b)]
    # Influence of document i on r = Σn/Σd: (n_i − r d_i) / mean(d).
    influence = sum(
        sign * (n - value * d) / d.mean()
        for sign, value, (n, d) in zip((1, -1), values, (a, b), strict=True)
    )
    spread = bootstrap_ratio(np.asarray(influence), np.ones(len(a[0])), seed=seed)
    value = float(values[0] - values[1])
    return Interval(value, value + spread.low, value + spread.high, spread.flag)
