"""Does the target prefer the same answers under the transferred vector as under its own? LRT's
table 1 and figure 5, beside its controls.

    result = evaluate_propensity(pair, stitch, [behaviour_items(file, n=60) for file in files])
    result.summary          # a row per task and arm: mean r over scales as in the paper, r of changes, errors, intervals
    result.figure()

For every task a vector is learnt on half of the items (mean difference of both answers, last token)
in the source, carried, and added to the target at every position; propensities m_LD of the other
items are compared, item by item, with those under the vector that the target learns itself (LRT
§3.4: Pearson's r and mean squared error at each scale). All arms have the length of the native
vector, as the paper gives all vectors length 1.

What the paper leaves out: items differ in m_LD without any steering, so r is high for *any* small
change. Each r therefore stands beside that of no steering (arm ``none``) and of random directions,
and beside ``r_change``, the correlation of the *changes* m(scale) − m(0), which difficulty does not
enter. ``mse_share`` is the error as a share of what predicting no change would err (1: the vector
tells no more than that).

A propensity is the difference of log-probabilities of whole continuations. Where these differ in
number of tokens the longer one scores lower for that alone; such items are counted in ``n_uneven``
and a warning says so.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, table
from lrt_lens.adapters.vectors._arms import (
    VectorArm,
    drawn_arms,
    learnt_arms,
    plain_arms,
    transferred_arms,
)
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._behaviours import answer_contrast
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._correlations import bootstrap_correlation, correlations
from lrt_lens.statistics._intervals import Interval, bootstrap_mean, spread
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

SCALES = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
"""Multiples of the native vector's length; LRT gives no grid."""
FEWEST_TESTS = 5
DRAWN = ("random", "permuted")


@dataclass(frozen=True)
class PropensityEvaluation:
    """Agreement of transferred and native steering on each task."""

    table: pd.DataFrame
    """A row per task, arm, draw and scale: r, mse, r_change, mse_share, change (mean over items,
    nats), cosine (to the native vector).
    """
    summary: pd.DataFrame
    """A row per task and arm, means over scales: r, r_sd, r_low, r_high (bootstrap over items;
    range of draws for drawn arms), r_scale_low, r_scale_high (bootstrap over scales, the kind of
    interval that LRT's table has), mse, mse_sd, mse_share, r_change with low and high, slope of the
    mean change per scale, cosine, n_train, n_test, n_uneven."""
    propensities: pd.DataFrame = field(repr=False)
    """A row per task, arm, draw, scale and test item: propensity in nats."""

    @property
    def overall(self) -> pd.DataFrame:
        """A row an arm: means over tasks with a bootstrap over tasks."""
        rows = []
        for arm, part in self.summary.groupby("arm", sort=False):
            row: dict[str, Any] = {"arm": arm, "n_tasks": len(part)}
            for column in ("r", "r_change", "mse", "mse_share", "cosine"):
                known = part[column].dropna().to_numpy()
                interval = bootstrap_mean(known)
                row |= {
                    column: interval.value,
                    f"{column}_low": interval.low,
                    f"{column}_high": interval.high,
                }
            rows.append(row)
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """LRT's figure 5 with the r of changes beside it: a box over scales for every task and arm
        (plotly).
        """
        from lrt_lens.figures._propensity import propensity_figure

        return propensity_figure(self.table)

    def _repr_html_(self) -> str:
        return card("PropensityEvaluation", table(self.summary))


def evaluate_propensity(
    pair: ModelPair,
    stitch: Stitch,
    items: ChoiceItems | Sequence[ChoiceItems],
    *,
    scales: Sequence[float] = SCALES,
    train_share: float = 0.5,
    bias: Literal["none", "add"] = "none",
    positions: Positions = "all",
    n_random: int = 4,
    n_permuted: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> PropensityEvaluation:
    """Compare native and transferred steering item by item, at every scale; see the module docstring.

    Args:
        pair: both models.
        stitch: vectors are learnt at its source hook and measured at its target hook.
        items: one task, or several with different names.
        scales: multiples of the native vector's length; negative ones steer away. No steering is
            always measured.
        train_share: share of the items that vectors are learnt from; the others are measured.
        bias: ``"none"`` maps the direction; ``"add"`` is LRT's rule, and adds the arm
            ``bias_only``.
        positions: which positions are steered (LRT: all).
        n_random: random directions, half isotropic, half as the target's stream.
        n_permuted: vectors learnt from shuffled answers.
        seed: of splits, draws and bootstraps.
        progress: show a bar.

    Raises:
        ValueError: no items, too few of them, two tasks of one name, a scale that is 0 or not
            finite, an item with one continuation twice.
    """
    stitch.check(pair.source, pair.target)
    tasks = [items] if isinstance(items, ChoiceItems) else list(items)
    scales = _checked(tasks, scales, train_share)
    found = []
    for task in tqdm(tasks, desc="propensity", disable=not progress, leave=False):
        train, test = task.split(train_share, seed=seed)
        arms = _arms(pair, stitch, train, bias, n_random, n_permuted, seed)
        found.append(_measure(pair, task.name, len(train), test, arms, scales, positions, progress))
    return PropensityEvaluation(
        table=pd.concat([task.table() for task in found], ignore_index=True),
        summary=pd.concat([task.summary(seed) for task in found], ignore_index=True),
        propensities=pd.concat([task.propensities() for task in found], ignore_index=True),
    )


def _checked(tasks: list[ChoiceItems], scales: Sequence[float], train_share: float) -> list[float]:
    if not tasks:
        raise ValueError("no items given; give ChoiceItems, or a list with one for every task")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(
            f"tasks share a name: {sorted({name for name in names if names.count(name) > 1})}; give each its own"
        )
    if (
        not len(scales)
        or not all(math.isfinite(scale) and scale != 0 for scale in scales)
        or len(set(scales)) < len(scales)
    ):
        raise ValueError(
            f"scales is {list(scales)}; expected different finite numbers other than 0 (no steering is always measured)"
        )
    if not 0 < train_share < 1:
        raise ValueError(
            f"train_share is {train_share}; expected a share between 0 and 1, such as 0.5"
        )
    for task in tasks:
        n_test = len(task) - min(len(task) - 1, max(1, round(train_share * len(task))))
        if n_test < FEWEST_TESTS or len(task) - n_test < 2:
            raise ValueError(
                f"task {task.name!r} has {len(task)} item(s), of which {n_test} would be measured; a correlation over items needs at least "
                f"{FEWEST_TESTS} of them and a vector 2 others: give more items"
            )
    return sorted(float(scale) for scale in scales)


def _arms(
    pair: ModelPair,
    stitch: Stitch,
    train: ChoiceItems,
    bias: Literal["none", "add"],
    n_random: int,
    n_permuted: int,
    seed: int,
) -> list[VectorArm]:
    """Native first; every vector as long as the native one."""
    contrast = answer_contrast(train)
    vector = SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
    options = {"bias": bias}
    native, *permuted = learnt_arms(pair, stitch, vector, contrast, options, n_permuted)
    like = native.vector
    others = [arm for arm in transferred_arms(stitch, vector, options) if arm.name != "refit"]
    others += [
        *plain_arms(stitch, vector, like, options),
        *permuted,
        *drawn_arms(stitch, like, n_random, seed),
    ]
    return [
        native,
        *(replace(arm, vector=arm.vector * (like.norm / arm.vector.norm)) for arm in others),
    ]


@dataclass(frozen=True)
class _Task:
    """Propensities of one task's test items."""

    name: str
    n_train: int
    n_uneven: int
    scales: list[float]
    unsteered: np.ndarray
    """[item]."""
    arms: list[VectorArm]
    steered: np.ndarray
    """[arm, scale, item]; the native arm comes first."""

    def _rows(self) -> list[tuple[str, int | None, float, np.ndarray]]:
        """(arm, draw, cosine to native, [scale, item]), no steering included."""
        native = self.arms[0].vector
        none = ("none", None, math.nan, np.tile(self.unsteered, (len(self.scales), 1)))
        return [
            none,
            *(
                (arm.name, arm.draw, native.cosine(arm.vector), m)
                for arm, m in zip(self.arms, self.steered, strict=True)
            ),
        ]

    def table(self) -> pd.DataFrame:
        """A row per arm, draw and scale."""
        native, parts = self.steered[0], []
        no_change = ((native - self.unsteered) ** 2).mean(1)
        for name, draw, cosine, m in self._rows():
            mse = ((m - native) ** 2).mean(1)
            columns = {
                "task": self.name,
                "arm": name,
                "draw": draw,
                "scale": self.scales,
                "r": correlations(m, native),
                "mse": mse,
                "r_change": correlations(m - self.unsteered, native - self.unsteered),
                "mse_share": mse / no_change,
                "change": (m - self.unsteered).mean(1),
                "cosine": cosine,
            }
            parts.append(pd.DataFrame(columns).astype({"draw": "Int64"}))
        return pd.concat(parts, ignore_index=True)

    def summary(self, seed: int) -> pd.DataFrame:
        """A row an arm."""
        rows: list[dict[str, Any]] = []
        # pandas' stubs take a group's column for a number.
        for name, part in cast(Any, self.table().groupby("arm", sort=False)):
            by_scale = part.groupby("scale")[["r", "mse"]].mean()
            r, change = (
                self._interval(str(name), column, part, seed) for column in ("r", "r_change")
            )
            over_scales = bootstrap_mean(by_scale["r"].to_numpy(), seed=seed)
            rows.append(
                {
                    "task": self.name,
                    "arm": name,
                    "r": r.value,
                    "r_sd": by_scale["r"].std(),
                    "r_low": r.low,
                    "r_high": r.high,
                    "r_scale_low": over_scales.low,
                    "r_scale_high": over_scales.high,
                    "mse": by_scale["mse"].mean(),
                    "mse_sd": by_scale["mse"].std(),
                    "mse_share": part["mse_share"].mean(),
                    "r_change": change.value,
                    "r_change_low": change.low,
                    "r_change_high": change.high,
                    "slope": _slope(part),
                    "cosine": part["cosine"].mean(),
                    "n_train": self.n_train,
                    "n_test": len(self.unsteered),
                    "n_uneven": self.n_uneven,
                }
            )
        return pd.DataFrame(rows)

    def _interval(self, name: str, column: str, part: Any, seed: int) -> Interval:
        """Mean over scales: range over draws for drawn arms, bootstrap over items for the others."""
        if name in DRAWN:
            return spread(part.groupby("draw")[column].mean().tolist())
        [m] = [m for arm, _, _, m in self._rows() if arm == name]
        before = self.unsteered if column == "r_change" else 0.0
        return bootstrap_correlation(m - before, self.steered[0] - before, seed=seed)

    def propensities(self) -> pd.DataFrame:
        """A row per arm, draw, scale and item."""
        parts = []
        for name, draw, _, m in self._rows():
            for scale, values in zip(self.scales, m, strict=True):
                columns = {
                    "task": self.name,
                    "arm": name,
                    "draw": draw,
                    "scale": 0.0 if name == "none" else scale,
                    "item": range(len(values)),
                    "propensity": values,
                }
                parts.append(pd.DataFrame(columns).astype({"draw": "Int64"}))
                if name == "none":
                    break
        return pd.concat(parts, ignore_index=True)


def _measure(
    pair: ModelPair,
    name: str,
    n_train: int,
    test: ChoiceItems,
    arms: list[VectorArm],
    scales: list[float],
    positions: Positions,
    progress: bool,
) -> _Task:
    texts = PreferenceText(pair.target, test, arms[0].vector.hook)
    if texts.n_uneven:
        logger.warning(
            "%s: %d of %d items have continuations of different token counts; each is scored whole, so the longer one scores lower",
            name,
            texts.n_uneven,
            len(test),
        )
    bar = tqdm(arms, desc=name, disable=not progress, leave=False)
    steered = [
        [texts.propensity(arm.vector.hook_at(scale, positions=positions)) for scale in scales]
        for arm in bar
    ]
    return _Task(name, n_train, texts.n_uneven, scales, texts.propensity(), arms, np.array(steered))


def _slope(part: pd.DataFrame) -> float:
    """Least-squares slope through 0 of the mean change over scales, in nats per native vector."""
    scale, change = part["scale"].to_numpy(float), part["change"].to_numpy(float)
    return float(scale @ change / (scale @ scale))
