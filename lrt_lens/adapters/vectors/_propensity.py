"""Agreement of transferred with native steering, item by item (LRT, table 1 and figure 5).

    result = evaluate_propensity(pair, stitch, [behaviour_items(file, n=60) for file in files])
    result.summary    # one row per task and arm: mean r over scales, r of changes, errors
    result.figure()

Problem: does the target prefer the same answers under the transferred vector as under its own?
Mechanism: for each task a vector is learnt on the source from half of the items (mean difference of
both answers, last token), transferred, and added to the target at every position. The propensities
m_LD of the other items are compared with those under the vector that the target learns itself
(LRT, §3.4: Pearson's r and mean squared error at each scale). All arms have the length of the
native vector, as the paper gives all vectors length 1.

The paper leaves out that items differ in m_LD without any steering, so r is high for *any* small
change. Each r is therefore compared with that of no steering (arm ``none``), with that of random
directions, and with ``r_change``, the correlation of the *changes* m(scale) − m(0), which does not
depend on the difficulty of items. ``mse_share`` is the error as a share of the error of predicting
no change (1: the vector predicts no better than that).

Intervals of r are over test items (those that share a prompt or a continuation are one cluster);
those of the transferred arm hold also for other training items and another map, which are left out
in groups. Standard errors of these add on Fisher's scale artanh r, as in
`lrt_lens.adapters.vectors._sources`.

Limits: a propensity is the difference of log-probabilities of whole continuations. If these differ
in number of tokens, the longer one scores lower for that alone; such items are counted in
``n_uneven`` and a warning names the task.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.vectors._arms import (
    drawn_arms,
    learnt_arms,
    plain_arms,
    shuffled_arms,
    transferred_arms,
)
from lrt_lens.adapters.vectors._equal_damage import item_clusters
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._sources import CONTRAST, MAP, total
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._vector_arm import REFITS, VectorArm
from lrt_lens.data._behaviours import answer_contrast
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.figures._propensity import propensity_figure
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._bootstrap import Clusters, bootstrap_mean
from lrt_lens.statistics._correlations import bootstrap_correlation, correlations
from lrt_lens.statistics._draws import prediction_interval, rank_test, typical_size
from lrt_lens.statistics._intervals import Interval, joined_flags, percentiles, resamples
from lrt_lens.statistics._jackknife import fisher, jackknife_error
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

SCALES = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
"""Multiples of the native vector's length; LRT gives no grid."""
_RANGES = {
    "r": (-1.0, 1.0),
    "r_change": (-1.0, 1.0),
    "mse": (0.0, math.inf),
    "mse_share": (0.0, math.inf),
    "cosine": (-1.0, 1.0),
}
"""Numbers that are averaged over tasks, with the least and the largest value of each."""
FEWEST_TESTS = 5
"""Smallest number of measured items for a correlation."""
FEWEST_TRAINED = 2
"""Smallest number of items from which a vector is learnt."""


@dataclass(frozen=True)
class PropensitySettings(Settings):
    """Settings of `evaluate_propensity`: scales, split, transfer, positions and controls."""

    scales: Sequence[float] = SCALES
    """Multiples of the native vector's length; negative ones steer away from the behaviour."""
    train_share: float = 0.5
    """Share of the items from which vectors are learnt; the others are measured."""
    bias: Literal["none", "add"] = "none"
    """Rule for the bias: ``"none"`` maps the direction; ``"add"`` is the rule of LRT and has one
    more arm, ``bias_only``."""
    positions: Positions = "all"
    """Steered positions (LRT: all), see `SteeringVector.hooks`."""
    n_random: int = 20
    """Number of random directions: half isotropic, half with the covariance of the target's
    stream."""
    n_shuffled: int = 20
    """Number of maps of shuffled pairs: that of the stitch, and draws of such maps."""
    n_permuted: int = 0
    """Number of vectors learnt from permuted answers; with fewer than 20, the intervals have a
    flag."""
    n_train_groups: int = 8
    """Number of groups of training items that are left out one at a time, for the share of an
    interval that these items and the map cause; 0 leaves that share out."""
    seed: int = 0
    """Seed of splits, directions and bootstraps."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True, repr=False)
class PropensityEvaluation(ShortRepr):
    """Agreement of transferred and native steering on each task."""

    table: pd.DataFrame
    """One row per task, arm, draw and scale.

    Columns: r, mse, r_change, mse_share, change (mean over items, in nats), cosine (to the native
    vector).
    """
    summary: pd.DataFrame
    """One row per task and arm, with means over scales.

    Columns: r, r_sd, r_low, r_high, r_scale_low, r_scale_high (LRT's table: percentiles over
    scales, which are no sample of anything, so it is no interval of r), mse, mse_sd, mse_share,
    r_change with low and high, slope of the mean change per scale, cosine, n_draws, n_train,
    n_test, n_uneven, n_spanning (items in which a token spans the end of the prompt), contains
    (what the intervals hold for), interval_flag (what is doubtful about them).

    Intervals are over items; for arms of several vectors they are where a new draw falls. These
    have typical_size (root mean square of r_change over draws), transferred_p (two-sided p-value of
    the transferred r_change among those of the draws) and p_floor (the smallest one that so many
    draws can give).
    """
    propensities: pd.DataFrame = field(repr=False)
    """One row per task, arm, draw, scale and test item, with the propensity in nats."""

    @property
    def overall(self) -> pd.DataFrame:
        """Means over tasks with a bootstrap over tasks, one row per arm.

        The column ``interval_flag`` names intervals of fewer than ten tasks.
        """
        rows = []
        for arm, part in self.summary.groupby("arm", sort=False):
            row: dict[str, Any] = {"arm": arm, "n_tasks": len(part)}
            flags = []
            for column in _RANGES:
                # A correlation is NaN if one side is constant, and the arm `none` has no cosine at
                # all.
                interval = bootstrap_mean(part[column].dropna().to_numpy())
                interval = interval.within(*_RANGES[column])
                row |= {
                    column: interval.value,
                    f"{column}_low": interval.low,
                    f"{column}_high": interval.high,
                }
                flags.append(interval.flag.replace("items", "tasks"))
            rows.append(row | {"interval_flag": joined_flags(flags)})
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """Return LRT's figure 5 in plotly, next to r of changes: one box per task and arm."""
        return with_counts(
            propensity_figure(self.table),
            {"test prompts per task": count_range(self.table, "n_test")},
        )

    def _repr_html_(self) -> str:
        return card("PropensityEvaluation", table(self.summary))


@takes(PropensitySettings)
def evaluate_propensity(
    pair: ModelPair,
    stitch: Stitch,
    items: ChoiceItems | Sequence[ChoiceItems],
    *,
    settings: PropensitySettings | None = None,
    **options: Any,
) -> PropensityEvaluation:
    """Return how well propensities under transferred steering agree with those under native.

    LRT, §3.4: Pearson's r and mean squared error over items at each scale.

    Args:
        pair: both models.
        stitch: vectors are learnt at its source hook point and measured at its target hook point.
        items: one task, or several with different names.
        settings: all settings; see `PropensitySettings`.
        options: fields of `PropensitySettings` as keywords.

    Raises:
        ValueError: no items, too few of them, two tasks of one name, a scale that is 0 or not
            finite, or an item whose continuations are the same tokens.
        MismatchError: a stitch of other models.
    """
    settings = resolve(PropensitySettings, settings, options)
    stitch.check(pair.source, pair.target)
    tasks = [items] if isinstance(items, ChoiceItems) else list(items)
    settings = replace(settings, scales=_checked(tasks, settings.scales, settings.train_share))
    results = []
    for task in tqdm(tasks, desc="propensity", disable=not settings.progress, leave=False):
        # Vectors are learnt from one part of the items and measured on the other.
        train, test = task.split(settings.train_share, seed=settings.seed)
        arms = _arms(pair, stitch, train, settings)
        results.append(_measure(pair, task.name, len(train), test, arms, settings))
    return PropensityEvaluation(
        table=pd.concat([result.table() for result in results], ignore_index=True),
        summary=pd.concat([result.summary(settings.seed) for result in results], ignore_index=True),
        propensities=pd.concat([result.propensities() for result in results], ignore_index=True),
    )


def _checked(tasks: list[ChoiceItems], scales: Sequence[float], train_share: float) -> list[float]:
    """Return the scales in ascending order; ValueError for arguments that cannot be measured."""
    if not tasks:
        raise ValueError("no items given; give ChoiceItems, or a list with one for every task")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"tasks share a name: {repeated}; give each task its own name")
    are_numbers = all(math.isfinite(scale) and scale != 0 for scale in scales)
    if not len(scales) or not are_numbers or len(set(scales)) < len(scales):
        raise ValueError(
            f"scales is {list(scales)}; expected different finite numbers other than 0 "
            "(no steering is always measured)"
        )
    if not 0 < train_share < 1:
        raise ValueError(
            f"train_share is {train_share}; expected a share between 0 and 1, such as 0.5"
        )
    for task in tasks:
        # The rounding of `ChoiceItems.split`.
        n_train = min(len(task) - 1, max(1, round(train_share * len(task))))
        n_test = len(task) - n_train
        if n_test < FEWEST_TESTS or n_train < FEWEST_TRAINED:
            raise ValueError(
                f"task {task.name!r} has {len(task)} item(s), of which {n_test} would be measured; "
                f"a correlation over items needs at least {FEWEST_TESTS} of them and a vector "
                f"{FEWEST_TRAINED} others: give more items"
            )
    return sorted(float(scale) for scale in scales)


def _arms(
    pair: ModelPair, stitch: Stitch, train: ChoiceItems, settings: PropensitySettings
) -> list[VectorArm]:
    """Return the native arm, then all others, each as long as the native vector."""
    contrast = answer_contrast(train)
    vector = SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
    # The rule for lengths has no effect: all vectors are scaled to the native one below.
    rules = {"bias": settings.bias}
    native, *learnt = learnt_arms(
        pair,
        stitch,
        vector,
        contrast,
        rules,
        n_permuted=settings.n_permuted,
        n_groups=settings.n_train_groups,
    )
    like = native.vector
    # Without groups of training items, refits of the map are left out too.
    transferred, *map_refits = transferred_arms(stitch, vector, rules)
    others = [
        transferred,
        *(map_refits if settings.n_train_groups else []),
        *shuffled_arms(stitch, vector, rules, settings.n_shuffled, settings.seed),
        *plain_arms(stitch, vector, like, rules),
        *learnt,
        *drawn_arms(stitch, like, settings.n_random, settings.seed),
    ]
    return [
        native,
        *(replace(arm, vector=arm.vector * (like.norm / arm.vector.norm)) for arm in others),
    ]


@dataclass(frozen=True)
class _ArmPropensities:
    """Propensities of the test items under one arm."""

    name: str
    """Name of the arm."""
    draw: int | None
    """Number of the vector in an arm of several vectors; None in an arm of one vector."""
    cosine: float
    """Cosine to the native vector; NaN without steering."""
    values: np.ndarray
    """Propensities in nats, [scale, item]."""


@dataclass(frozen=True)
class _TaskPropensities:
    """Propensities of the test items of one task under all arms."""

    name: str
    """Name of the task."""
    n_train: int
    """Number of items from which the vectors were learnt."""
    n_uneven: int
    """Number of items whose continuations have different numbers of tokens."""
    n_spanning: int
    """Number of items in which a token spans the end of the prompt."""
    scales: list[float]
    """Multiples of the native vector, in ascending order."""
    unsteered: np.ndarray
    """Propensities without steering in nats, [item]."""
    arms: list[_ArmPropensities]
    """Arm without steering first, the native arm second, then all others."""
    clusters: Clusters
    """Which test items are independent."""

    @property
    def native(self) -> np.ndarray:
        """Propensities [scale, item] under the native vector."""
        return self.arms[1].values

    @property
    def shown(self) -> list[_ArmPropensities]:
        """Arms that have rows; refits give standard errors only."""
        return [arm for arm in self.arms if arm.name not in REFITS]

    def table(self) -> pd.DataFrame:
        """Return one row per arm, draw and scale."""
        native, parts = self.native, []
        # mean over items of (m_native(s) − m(0))²: the error of predicting no change
        no_change = ((native - self.unsteered) ** 2).mean(1)
        for arm in self.shown:
            m = arm.values
            mse = ((m - native) ** 2).mean(1)
            columns = {
                "task": self.name,
                "arm": arm.name,
                "draw": arm.draw,
                "scale": self.scales,
                "r": correlations(m, native),
                "mse": mse,
                # corr(m(s) − m(0), m_native(s) − m(0)) and mse / mse of predicting no change
                "r_change": correlations(m - self.unsteered, native - self.unsteered),
                "mse_share": mse / no_change,
                "change": (m - self.unsteered).mean(1),
                "cosine": arm.cosine,
            }
            parts.append(pd.DataFrame(columns).astype({"draw": "Int64"}))
        return pd.concat(parts, ignore_index=True)

    def summary(self, seed: int) -> pd.DataFrame:
        """Return one row per arm with means over scales and draws."""
        rows: list[dict[str, Any]] = []
        # pandas' stubs take a group's column for a number.
        table = self.table()
        transferred = float(table.loc[table["arm"] == "transferred", "r_change"].mean())
        for name, part in cast(Any, table.groupby("arm", sort=False)):
            by_scale = part.groupby("scale")[["r", "mse"]].mean()
            r, change = (
                self._interval(str(name), column, part, seed) for column in ("r", "r_change")
            )
            is_drawn = bool(part["draw"].notna().any())
            over_scales = _over_scales(by_scale["r"].to_numpy(), seed)
            rows.append(
                {
                    "task": self.name,
                    "arm": name,
                    "r": r.value,
                    # Standard deviations over scales, with n − 1 as in pandas.
                    "r_sd": by_scale["r"].std(),
                    "r_low": r.low,
                    "r_high": r.high,
                    "r_scale_low": over_scales[0],
                    "r_scale_high": over_scales[1],
                    "mse": by_scale["mse"].mean(),
                    "mse_sd": by_scale["mse"].std(),
                    "mse_share": part["mse_share"].mean(),
                    "r_change": change.value,
                    "r_change_low": change.low,
                    "r_change_high": change.high,
                    "slope": _slope(part),
                    "cosine": part["cosine"].mean(),
                    "n_draws": part["draw"].nunique() if is_drawn else 1,
                    "n_train": self.n_train,
                    "n_test": len(self.unsteered),
                    "n_uneven": self.n_uneven,
                    "n_spanning": self.n_spanning,
                    "contains": self._contains(str(name), is_drawn),
                    "interval_flag": joined_flags([r.flag, change.flag]),
                }
                | (_ranks(part, transferred) if is_drawn else {})
            )
        return pd.DataFrame(rows)

    def _contains(self, name: str, is_drawn: bool) -> str:
        if is_drawn:
            return "draws"
        # `r` of native with itself is 1, whatever varies.
        return ", ".join(["items", *(self._errors(name, "r") if name != "native" else [])])

    def _errors(self, name: str, column: str) -> dict[str, float]:
        """Return the standard error of artanh r by source, for an arm that has refits."""
        by_name: dict[str, list[np.ndarray]] = {}
        for arm in self.arms:
            by_name.setdefault(arm.name, []).append(arm.values)
        below = by_name.get("native_refit", [])
        ours = {
            "transferred": by_name.get("contrast_refit", []),
            # Without steering only the native vector, with which it is compared, is learnt.
            "none": [self.arms[0].values] * len(below),
        }.get(name, [])
        # The training items that one vector lacks are missing from the other one too.
        pairs = {CONTRAST: list(zip(ours, below, strict=True)) if ours else []}
        if name == "transferred":
            pairs[MAP] = [(values, self.native) for values in by_name.get("map_refit", [])]
        before = self.unsteered if column == "r_change" else 0.0
        return {
            source: jackknife_error(
                [float(fisher(correlations(a - before, b - before).mean())) for a, b in some]
            )
            for source, some in pairs.items()
            if some
        }

    def _interval(self, name: str, column: str, part: Any, seed: int) -> Interval:
        """Return the mean over scales with an interval.

        Where a new draw falls for arms of several vectors; over items, and over training items and
        map if they were left out in groups, for the others.
        """
        if part["draw"].notna().any():
            new_draw = prediction_interval(part.groupby("draw")[column].mean().tolist())
            return new_draw.within(*_RANGES[column])
        [m] = [arm.values for arm in self.arms if arm.name == name]
        # r_change correlates m(s) − m(0), r correlates m(s) itself.
        before = self.unsteered if column == "r_change" else 0.0
        r = bootstrap_correlation(
            m - before, self.native - before, clusters=self.clusters, seed=seed
        )
        # NaN without steering (no changes), 1 for native with itself.
        if math.isnan(r.value) or r.low == r.high:
            return r
        errors = self._errors(name, column)
        groups = {CONTRAST: self._n_refits("native_refit"), MAP: self._n_refits("map_refit")}
        z = Interval(*fisher(np.array([r.value, r.low, r.high])).tolist())
        whole = total(z, errors, groups)
        return Interval(r.value, math.tanh(whole.low), math.tanh(whole.high), r.flag)

    def _n_refits(self, name: str) -> int:
        return sum(arm.name == name for arm in self.arms)

    def propensities(self) -> pd.DataFrame:
        """Return one row per arm, draw, scale and item."""
        parts = []
        for arm in self.shown:
            # No steering is the same at every scale: one row per item, with scale 0.
            scales = [0.0] if arm.name == "none" else self.scales
            # strict=False: `none` has one scale in the list, but one row of values per scale.
            for scale, values in zip(scales, arm.values, strict=False):
                columns = {
                    "task": self.name,
                    "arm": arm.name,
                    "draw": arm.draw,
                    "scale": scale,
                    "item": range(len(values)),
                    "propensity": values,
                }
                parts.append(pd.DataFrame(columns).astype({"draw": "Int64"}))
        return pd.concat(parts, ignore_index=True)


def _measure(
    pair: ModelPair,
    name: str,
    n_train: int,
    test: ChoiceItems,
    arms: list[VectorArm],
    settings: PropensitySettings,
) -> _TaskPropensities:
    """Return the propensities of a task's test items without steering and under each arm."""
    native = arms[0].vector
    texts = PreferenceText(pair.target, test, native.hook)
    if texts.n_uneven:
        logger.warning(
            "%s: %d of %d items have continuations of different token counts; each is scored "
            "whole, so the longer one scores lower",
            name,
            texts.n_uneven,
            len(test),
        )
    steered = []
    for arm in tqdm(arms, desc=name, disable=not settings.progress, leave=False):
        hooks = (arm.vector.hook_at(s, positions=settings.positions) for s in settings.scales)
        values = np.array([texts.propensity(hook) for hook in hooks])
        cosine = native.cosine(arm.vector)
        steered.append(_ArmPropensities(arm.name, arm.draw, cosine, values))
    unsteered, scales = texts.propensity(), list(settings.scales)
    # No steering is compared with native steering at every scale.
    repeated = np.tile(unsteered, (len(scales), 1))
    none = _ArmPropensities("none", None, math.nan, repeated)
    counts = (n_train, texts.n_uneven, texts.n_spanning)
    clusters = item_clusters(test)
    return _TaskPropensities(name, *counts, scales, unsteered, [none, *steered], clusters)


def _over_scales(r: np.ndarray, seed: int) -> tuple[float, float]:
    """Return LRT's ends: percentiles of the mean over scales drawn again, though none is random."""
    ends = percentiles(float(r.mean()), r[resamples(len(r), seed)].mean(1))
    return ends.low, ends.high


def _ranks(part: Any, transferred: float) -> dict[str, float]:
    """Return the columns of a control: size of its draws, rank of the transferred arm in them."""
    draws = part.groupby("draw")["r_change"].mean().tolist()
    test = rank_test(transferred, draws)
    return {"typical_size": typical_size(draws), "transferred_p": test.p, "p_floor": test.floor}


def _slope(part: pd.DataFrame) -> float:
    """Return the slope of the mean change over scales, in nats per native vector."""
    scale, change = part["scale"].to_numpy(float), part["change"].to_numpy(float)
    # Least squares through 0: b = Σ s·Δm / Σ s²
    return float(scale @ change / (scale @ scale))
