"""How many labels of the target a transfer saves: the curve over k, and the result of both studies.

    result = lrt.evaluate_vector_labels(pair, stitch, contrast)      # or evaluate_probe_labels
    result.summary                # value, labels_saved and its interval, per measure, arm and k
    result.figure()

Problem: a transferred vector or probe that is below the native one may still be worth many labels.
Mechanism: many times, the labelled texts are divided into a pool and held-out texts, artefacts are
learnt on the source's side of the pool, and k labels of the target are drawn from it. All arms are
measured on the same held-out texts:

| arm | what it uses |
| --- | --- |
| ``transferred`` | the source's labels and the map |
| ``combined`` | the same, and k labels of the target |
| ``combined_fidelity`` | the same, weighed by the predicted fidelity (vectors only) |
| ``native`` | k labels of the target alone |
| ``shuffled``, ``combined_shuffled`` | as the first two, through the map of shuffled pairs |

``labels_saved`` of an arm with k labels is k' − k, with k' the number of labels at which ``native``
is as good. Between measured numbers, native is interpolated linearly in log(k + 1), from chance at
k = 0. It is negative if native is better with the same k.

Limits: intervals hold for other divisions and draws of these texts and this map, not for other
texts. Labels of the source are taken to be free.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings
from lrt_lens._short_repr import ShortRepr
from lrt_lens.figures._label_savings import label_savings_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import expanded_percentiles, resamples, t_quantile

NATIVE = "native"
"""Arm that uses k labels of the target alone, against which labels are counted."""


@dataclass(frozen=True)
class LabelSavingsSettings(Settings):
    """Settings of `evaluate_vector_labels` and `evaluate_probe_labels`."""

    ks: Sequence[int] = (0, 4, 16, 64)
    """Numbers of labels of the target, in pairs for vectors and in texts for probes; 0 is the
    transfer alone."""
    n_draws: int = 20
    """Number of divisions of the texts, each with one draw of the labels; fewer than 20 are
    flagged."""
    held_out_share: float = 0.5
    """Share of the pairs or texts on which arms are measured."""
    task: str = "labels"
    """Name of the concept or task in tables and figures."""
    seed: int = 0
    """Seed of divisions and draws."""


@dataclass(frozen=True, repr=False)
class LabelSavings(ShortRepr):
    """Quality over the number of labels of the target, and how many a transfer saves."""

    table: pd.DataFrame
    """One row per measure, arm, k and draw.

    Columns: task, unit (what k counts), measure (``"cosine"`` to the direction of all held-out
    pairs, ``"auroc"``, ``"accuracy"``), arm, k, draw, value, weight (share of the pairs in a
    vector, penalty of a probe; NaN for other arms).
    """
    chance: Mapping[str, float]
    """Value of each measure without any label."""
    n_pool: int
    """Number of pairs or texts from which labels are drawn."""
    n_held_out: int
    """Number of pairs or texts on which all arms are measured."""

    @property
    def summary(self) -> pd.DataFrame:
        """Means over draws, one row per measure, arm and k.

        Columns: task, unit, measure, arm, k, value with low and high (where another draw falls),
        weight (median), above_native with above_low and above_high (mean difference to native with
        the same draws, 95% of draws of these texts), labels_saved with saved_low and saved_high,
        at_least (native is never as good: the true number is larger), n_draws, interval_flag.
        """
        rows = []
        for measure in self.table["measure"].unique():
            part = self.table[self.table["measure"] == measure]
            values = part.pivot_table(index="draw", columns=["arm", "k"], values="value")
            weights = part.groupby(["arm", "k"], sort=False)["weight"].median()
            native = _NativeCurve.of(values, self.chance[str(measure)])
            for key in weights.index.to_list():
                arm, k = str(key[0]), int(key[1])
                own = values[(arm, k)].to_numpy()
                least = -1.0 if measure == "cosine" else 0.0
                interval = prediction_interval(own).within(least)
                same = (NATIVE, k) in values.columns and arm != NATIVE
                rows.append(
                    {
                        "task": self.table["task"].iloc[0],
                        "unit": self.table["unit"].iloc[0],
                        "measure": measure,
                        "arm": arm,
                        "k": k,
                        "value": interval.value,
                        "low": interval.low,
                        "high": interval.high,
                        "weight": weights[(arm, k)],
                        **_difference(own - values[(NATIVE, k)].to_numpy() if same else None),
                        **({} if arm == NATIVE else native.saved(own, k)),
                        "n_draws": len(own),
                        "interval_flag": interval.flag,
                    }
                )
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """Return a plotly figure of each measure over k, one line per arm."""
        counts = {f"held-out {self.table['unit'].iloc[0]}": self.n_held_out}
        return with_counts(label_savings_figure(self.summary), counts)

    def _repr_html_(self) -> str:
        unit = self.table["unit"].iloc[0]
        text = (
            f"{self.n_pool} {unit} to draw labels from, {self.n_held_out} held out. Intervals of "
            "values: where another draw falls."
        )
        return card("LabelSavings", note(text), table(self.summary))


@dataclass(frozen=True)
class _NativeCurve:
    """Quality of native over the number of labels, from chance at k = 0."""

    ks: np.ndarray
    """Numbers of labels, ascending, 0 first, [k]."""
    values: np.ndarray
    """Values of each draw, [draw, k]."""

    @classmethod
    def of(cls, values: pd.DataFrame, chance: float) -> "_NativeCurve":
        """Return the curve of the arm ``native`` in a table of draws by (arm, k)."""
        native = values[NATIVE].sort_index(axis=1)
        start = np.full((len(native), 1), chance)
        return cls(np.array([0, *native.columns]), np.hstack([start, native.to_numpy()]))

    def saved(self, own: np.ndarray, k: int) -> dict[str, Any]:
        """Return the columns of labels saved by an arm with values [draw] and k labels."""
        means, curves = own.mean(keepdims=True), self.values.mean(0, keepdims=True)
        value, low, high = float(self._saved(means, curves, k)[0]), math.nan, math.nan
        # Draws of the arm and of native belong together, so they are resampled together.
        if len(own) > 1:
            index = resamples(len(own), seed=0)
            draws = self._saved(own[index].mean(1), self.values[index].mean(1), k)
            interval = expanded_percentiles(value, draws, len(own))
            low, high = interval.low, interval.high
        return {
            "labels_saved": value,
            "saved_low": low,
            "saved_high": high,
            "at_least": float(means[0]) > float(curves.max()),
        }

    def _saved(self, values: np.ndarray, curves: np.ndarray, k: int) -> np.ndarray:
        """Return labels saved for values [row] and curves of native [row, k]."""
        # More labels do not make native worse but for noise, which the running maximum removes.
        rising = np.maximum.accumulate(curves, axis=1)
        # The first number of labels at which native reaches the value, 0 at chance.
        reached = (rising < values[:, None]).sum(1)
        upper = np.clip(reached, 1, len(self.ks) - 1)
        low, high = (np.take_along_axis(rising, at[:, None], 1)[:, 0] for at in (upper - 1, upper))
        # Linear in log(k + 1) between two numbers; a value outside of both is at the nearer one.
        rise = np.where(high > low, high - low, 1.0)
        share = np.clip((values - low) / rise, 0, 1)
        ends = np.log1p(self.ks)
        between = np.expm1(ends[upper - 1] + share * (ends[upper] - ends[upper - 1]))
        return np.where(reached == len(self.ks), self.ks[-1], between) - k


def _difference(values: np.ndarray | None) -> dict[str, float]:
    """Return the mean of paired differences with its interval; NaN without any."""
    names = ("above_native", "above_low", "above_high")
    if values is None or len(values) < 2:
        mean = math.nan if values is None else float(values.mean())
        return dict(zip(names, (mean, math.nan, math.nan), strict=True))
    # mean ± t(.975, n − 1) · s/√n
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = t_quantile(len(values) - 1) * error
    return dict(zip(names, (mean, mean - half, mean + half), strict=True))


def label_counts(settings: LabelSavingsSettings, n_pool: int, least: int) -> list[int]:
    """Return the numbers of labels of ``native``: those of the settings, powers of 2, and the pool.

    Raises:
        ValueError: a number is neither 0 nor between ``least`` and ``n_pool``, or there is no draw.
    """
    ks = list(settings.ks)
    if settings.n_draws < 1 or not ks or any(k and not least <= k <= n_pool for k in ks):
        raise ValueError(
            f"ks is {ks}, n_draws {settings.n_draws}; expected 0 or numbers from {least} to "
            f"{n_pool} (those that are not held out), and at least one draw: give smaller k, more "
            "texts, or a smaller held_out_share"
        )
    powers = [2**i for i in range(1, 20) if least <= 2**i < n_pool]
    return sorted({*powers, *(k for k in ks if k), n_pool})


def pool_size(n: int, share: float, least: int) -> int:
    """Return how many of n pairs or texts are not held out; at least ``least`` on both sides.

    Raises:
        ValueError: the share leaves fewer on a side.
    """
    held_out = round(share * n) if 0 < share < 1 else 0
    if min(held_out, n - held_out) < least:
        raise ValueError(
            f"held_out_share is {share} of {n}; expected a share between 0 and 1 that leaves at "
            f"least {least} on both sides: give more texts"
        )
    return n - held_out
