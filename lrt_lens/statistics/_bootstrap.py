"""Studentised bootstrap over independent units, which may be clusters of items or of texts.

Problem: the percentile bootstrap of a mean of 8 normal items holds .90 instead of .95, and .83 of 8
skewed ones; items that share a prompt or a word are not independent; and the effect of a steering
vector at equal damage varies with the items *and* with the neutral texts. Mechanism: an estimate is
computed for each resample together with its standard error, from the *influence* of each unit (the
derivative of the estimate with respect to the unit's weight). The quantiles of

    t_b = (θ_b − θ) / SE_b,        SE² = Σ_sources G/(G − 1) · Σ_clusters (Σ_units influence)²

give the interval θ − t(.975)·SE to θ − t(.025)·SE (bootstrap-t). It follows the skewness of the
units and is wide if there are few of them. Estimates of several arms use the same resamples, so
their differences and ratios are *paired*.

    bootstrap_mean([0.2, 0.4, 0.1])              # Interval(0.2333, 95% …)
    bootstrap_ratio(transferred, native)         # NaN if the mean of `native` may be 0
    bootstrap_mean(effects, clusters=Clusters.of(words, prompts))

**Clusters.** Units can share several things, such as a prompt and a word. The variance is then that
of two-way clustering (Cameron, Gelbach and Miller 2011, eq. 2.11): the sum over single factors,
less that over pairs, and so on; it is at least that of any single factor. Resamples draw the
clusters of the factor with the fewest. A factor of fewer than ``FEWEST_CLUSTERS`` clusters says
nothing about others of its kind: it counts as fixed, and the interval holds for these alone.

Source: Efron and Tibshirani (1993), *An Introduction to the Bootstrap*, section 12.5, with the
infinitesimal jackknife as the error of each resample (section 22.5).

Limits: `docs/results/intervals.md` has what these intervals hold. Populations with a heavy tail
(lognormal, 20 units: .90) are held less; an interval of few units, or in which one unit rules, says
so in its ``flag``.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from itertools import combinations
from typing import cast

import numpy as np
from scipy.optimize import brentq

from lrt_lens.statistics._intervals import (
    N_BOOTSTRAP,
    NOTHING,
    Interval,
    expanded_percentiles,
    joined_flags,
    t_quantile,
)

FEWEST_CLUSTERS = 5
"""Fewest clusters of a factor over which an interval generalises; a factor of fewer is fixed."""
FEW = 10
"""Number of independent units below which an interval has a flag."""
_RULING = 0.6
"""Share of the variance from which on a single unit is said to rule an interval."""
NO_VARIATION = "no variation between units: the interval has no width"
"""Flag of an interval over equal units."""
_ROUNDING = 1e-12
"""Standard error, relative to the estimate, that rounding explains."""
_FARTHEST = 1e6
"""Distance from a ratio, in first guesses of its reach, up to which an end is searched."""
_AT_ONCE = 2**23
"""Largest number of weights (resample × unit) that are in memory at once."""


@dataclass(frozen=True)
class Clusters:
    """Which units are independent of each other: the clusters of each factor that they share."""

    factors: tuple[np.ndarray, ...]
    """Number of the cluster of each unit, from 0, [unit], one array per factor."""

    @classmethod
    def single(cls, n: int) -> "Clusters":
        """Return n units that are all independent."""
        return cls((np.arange(n),))

    @classmethod
    def of(cls, *labels: Sequence[Hashable]) -> "Clusters":
        """Return the clusters of units that share a label; one sequence of labels per factor.

        Factors of fewer than ``FEWEST_CLUSTERS`` labels are left out. Without any factor, units
        are independent.
        """
        numbered = [label_numbers(one) for one in labels]
        n = len(numbered[0])
        kept = [one for one in numbered if one.max(initial=-1) + 1 >= FEWEST_CLUSTERS]
        # Two factors that split the units alike are one factor.
        kept = [one for i, one in enumerate(kept) if not any((one == o).all() for o in kept[:i])]
        return cls(tuple(kept)) if kept else cls.single(n)

    @property
    def drawn(self) -> np.ndarray:
        """Clusters that a resample draws, one per unit, from the factor that has the fewest."""
        return min(self.factors, key=lambda one: int(one.max(initial=-1)))

    @property
    def n(self) -> int:
        """Number of independent clusters that are drawn."""
        return int(self.drawn.max(initial=-1)) + 1

    def variance(self, influence: np.ndarray) -> float:
        """Return the variance of an estimate from the influence of each unit, [unit].

        Cameron, Gelbach and Miller (2011), eq. 2.11, but at least that of any single factor.
        """
        single = [_one_way(influence, one) for one in self.factors]
        total = sum(sign * _one_way(influence, shared) for sign, shared in self._shared)
        return max(total, *single)

    @cached_property
    def _shared(self) -> list[tuple[int, np.ndarray]]:
        """Sign and clusters of each set of factors, (−1)^(size + 1) and [unit].

        An interval asks for dozens of variances, and labels are slow to number.
        """
        return [
            (
                (-1) ** (size + 1),
                label_numbers(list(zip(*(one.tolist() for one in some), strict=True))),
            )
            for size in range(1, len(self.factors) + 1)
            for some in combinations(self.factors, size)
        ]


def few_units(n: int, name: str = "items") -> str:
    """Return the flag of an interval over ``n`` independent units; empty if they are enough."""
    return f"{n} independent {name}" if n < FEW else ""


def label_numbers(labels: Sequence[Hashable]) -> np.ndarray:
    """Return the number of each label, in the order of first appearance, [unit]."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=int)


def _one_way(influence: np.ndarray, clusters: np.ndarray) -> float:
    """Return G/(G − 1) · Σ_clusters (Σ_units influence)²; NaN for a single cluster."""
    sums = np.bincount(clusters, weights=influence)
    n = len(sums)
    return float(n / (n - 1) * (sums**2).sum()) if n > 1 else math.nan


class Resamples:
    """Weights of the units of each source in the sample itself and in each resample.

    Row 0 is the sample: all weights are 1. The sources are drawn independently of each other.

    Args:
        sources: clusters of the units by name of the source, such as ``"items"``.
        seed: seed of the resamples.
        n_draws: number of resamples.
    """

    def __init__(
        self, sources: Mapping[str, Clusters], *, seed: int = 0, n_draws: int = N_BOOTSTRAP
    ) -> None:
        self.sources = dict(sources)
        generator = np.random.default_rng(seed)
        self.weights: dict[str, np.ndarray] = {}
        """Weight of each unit by source, [1 + draw, unit]."""
        for name, clusters in self.sources.items():
            drawn = generator.multinomial(clusters.n, np.full(clusters.n, 1 / clusters.n), n_draws)
            counts = np.concatenate([np.ones((1, clusters.n), dtype=int), drawn])
            self.weights[name] = counts[:, clusters.drawn].astype(float)


@dataclass(frozen=True)
class Estimate:
    """An estimate in the sample (row 0) and in each resample, with the influence of each unit."""

    values: np.ndarray
    """Estimate, [1 + draw]."""
    influence: Mapping[str, np.ndarray] = field(repr=False)
    """Influence of one copy of each unit on the estimate, by source, [1 + draw, unit].

    It is the derivative with respect to the unit's weight; the weighted sum is 0.
    """

    def __sub__(self, other: "Estimate") -> "Estimate":
        return self._with(other, self.values - other.values, 1.0, -1.0)

    def __mul__(self, factor: float) -> "Estimate":
        scaled = {name: one * factor for name, one in self.influence.items()}
        return Estimate(self.values * factor, scaled)

    def __truediv__(self, other: "Estimate") -> "Estimate":
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.values / other.values
            # d(a/b) = da/b − (a/b) db/b
            return self._with(other, ratio, 1 / other.values, -ratio / other.values)

    def ratio(self, other: "Estimate", resamples: Resamples) -> Interval:
        """Return the ratio to another estimate with its interval.

        NaN if the interval of the other estimate includes 0. The ends are those of Fieller (1954):
        every ratio r for which a − r·b may be 0. A difference is closer to a mean than a ratio is,
        so its quantiles of t are used.
        """
        value = float(self.values[0] / other.values[0]) if other.values[0] else math.nan
        if math.isnan(value) or not other.interval(resamples).excludes(0.0):
            return NOTHING
        linear = self - other * value
        # The search for the ends needs the sample alone, not the resamples.
        a, b = self.in_sample, other.in_sample

        def error(ratio: float) -> float:
            return (a - b * ratio).error(resamples)

        ends = (float(a.values[0]), float(b.values[0]))
        low, high = _fieller(*ends, error, *linear.quantiles(resamples))
        return Interval(value, low, high, linear.doubts(resamples))

    @property
    def in_sample(self) -> "Estimate":
        """The estimate in the sample alone, without resamples."""
        return Estimate(self.values[:1], {name: one[:1] for name, one in self.influence.items()})

    def quantiles(self, resamples: Resamples) -> tuple[float, float]:
        """Return the .025 and .975 quantiles of t = (θ_b − θ) / SE_b over the resamples."""
        variances = np.zeros(len(self.values))
        for name, one in self.influence.items():
            clusters = resamples.sources[name]
            # Resamples without an estimate are NaN, and are left out below.
            with np.errstate(invalid="ignore"):
                variances += _variances(one, resamples.weights[name], clusters.drawn)
        n = min(resamples.sources[name].n for name in self.influence)
        return _t_quantiles(self.values, np.sqrt(variances), n)

    def _with(
        self, other: "Estimate", values: np.ndarray, a: np.ndarray | float, b: np.ndarray | float
    ) -> "Estimate":
        names = dict.fromkeys([*self.influence, *other.influence])
        left, right = np.broadcast_to(a, values.shape), np.broadcast_to(b, values.shape)
        influence = {}
        for name in names:
            parts = [
                one.influence[name] * factor[:, None]
                for one, factor in ((self, left), (other, right))
                if name in one.influence
            ]
            with np.errstate(invalid="ignore"):
                influence[name] = reduce(np.add, parts)
        return Estimate(values, influence)

    def errors(self, resamples: Resamples) -> dict[str, float]:
        """Return the standard error that each source causes in the estimate."""
        return {
            name: math.sqrt(resamples.sources[name].variance(one[0]))
            for name, one in self.influence.items()
        }

    def error(self, resamples: Resamples) -> float:
        """Return the standard error that all sources together cause in the estimate."""
        return math.hypot(*self.errors(resamples).values())

    def interval(self, resamples: Resamples) -> Interval:
        """Return the estimate with its interval; NaN ends if a source has a single cluster."""
        value = float(self.values[0])
        if math.isnan(value):
            return NOTHING
        error = self.error(resamples)
        if error <= _ROUNDING * abs(value):
            return Interval(value, value, value, NO_VARIATION)
        low_t, high_t = self.quantiles(resamples)
        return Interval(
            value, value - high_t * error, value - low_t * error, self.doubts(resamples)
        )

    def doubts(self, resamples: Resamples) -> str:
        """Return what is doubtful about an interval of this estimate; empty if nothing."""
        error, flags = self.error(resamples), list[str]()
        for name, one in self.influence.items():
            clusters = resamples.sources[name]
            few = few_units(clusters.n, name)
            sums = np.bincount(clusters.drawn, weights=one[0]) ** 2
            is_ruled = not few and sums.max() > _RULING * error**2
            flags.append(f"one of {clusters.n} {name} rules" if is_ruled else few)
        return joined_flags(flags)


def _variances(influence: np.ndarray, weights: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the variance of each row's estimate, [1 + draw], as `_one_way` of what was drawn."""
    n = int(drawn.max(initial=-1)) + 1
    if n < 2:
        return np.full(len(influence), math.nan)
    if n == influence.shape[1]:
        return n / (n - 1) * (weights * influence**2).sum(1)
    # A cluster that is drawn twice counts as two clusters, so its squared sum counts twice.
    order = np.argsort(drawn, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(drawn[order]) > 0])
    sums = np.add.reduceat(influence[:, order], starts, axis=1)
    return n / (n - 1) * (weights[:, order][:, starts] * sums**2).sum(1)


def _t_quantiles(values: np.ndarray, errors: np.ndarray, n: int) -> tuple[float, float]:
    """Return both quantiles of t over the resamples, from row 0 (the sample) and the others.

    NaN for a single cluster.
    """
    if n < 2:
        return math.nan, math.nan
    known = ~np.isnan(values) & ~np.isnan(errors)
    difference, scale = values[known][1:] - values[0], errors[known][1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        # A resample of one unit alone has no error: its t is infinite, or 0 at the estimate.
        t = np.where(difference == 0, 0.0, difference / scale)
    low, high = np.quantile(t, [0.025, 0.975], method="nearest")
    # With two or three units too many resamples have no error.
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = -t_quantile(n - 1), t_quantile(n - 1)
    return float(low), float(high)


def _fieller(
    a: float, b: float, error: Callable[[float], float], low_t: float, high_t: float
) -> tuple[float, float]:
    """Return the ends of the ratios r for which low_t ≤ (a − r·b) / SE(a − r·b) ≤ high_t.

    If every ratio on one side qualifies, that end is a/b ± t·SE.
    """
    if math.isnan(low_t):
        return math.nan, math.nan
    value, ends = a / b, list[float]()
    # Below a/b, a − r·b has the sign of b, so that the end is set by the quantile of that sign.
    below, above = (high_t, low_t) if b > 0 else (low_t, high_t)
    for t, side in ((abs(below), -1.0), (abs(above), 1.0)):
        # |a − r·b| − |t|·SE(a − r·b) at r = a/b ± step; the end is its root.
        gap = lambda step, t=t, side=side: abs(b) * step - t * error(value + side * step)  # noqa: E731
        reach = first = t * error(value) / abs(b)
        while gap(reach) < 0 and reach < _FARTHEST * first:
            reach *= 1.5
        # With a handful of units every ratio may qualify; the end is then that of a/b itself.
        root = first
        if gap(reach) >= 0:
            root = float(cast(float, brentq(gap, 0.0, reach))) if gap(0.0) < 0 else 0.0
        ends.append(value + side * root)
    return ends[0], ends[1]


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, *, clusters: Clusters | None = None, seed: int = 0
) -> Interval:
    """Return the mean over items with its bootstrap interval.

    NaN if there are no items, or if one is NaN.

    Args:
        values: one number per item, [item].
        clusters: which items are independent; all of them by default.
        seed: seed of the resamples.
    """
    values = np.asarray(values, dtype=float)
    return _interval_of_ratio(values, np.ones_like(values), clusters, seed)


def bootstrap_ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    positive: bool = False,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> Interval:
    """Return the ratio of two means over the same items with its paired bootstrap interval.

    NaN if the interval of the denominator's mean includes 0, if there are no items, or if one is
    NaN.

    Args:
        numerator: one number per item, [item].
        denominator: one number per item, [item].
        positive: True if the denominator is positive by nature, such as a number of tokens or a
            loss; its interval is then not asked.
        clusters: which items are independent; all of them by default.
        seed: seed of the resamples.
    """
    numerator = np.asarray(numerator, dtype=float)
    denominator = np.asarray(denominator, dtype=float)
    if not len(denominator) or np.isnan(numerator).any():
        return NOTHING
    if not denominator.any():
        return NOTHING
    is_sure = positive or np.ptp(denominator) == 0
    if not is_sure and not bootstrap_mean(denominator, clusters=clusters, seed=seed).excludes(0.0):
        return NOTHING
    return _interval_of_ratio(numerator, denominator, clusters, seed)


def _interval_of_ratio(
    numerator: np.ndarray, denominator: np.ndarray, clusters: Clusters | None, seed: int
) -> Interval:
    if len(numerator) == 0 or np.isnan(numerator).any() or np.isnan(denominator).any():
        return NOTHING
    clusters = clusters or Clusters.single(len(numerator))
    a, b = float(numerator.sum()), float(denominator.sum())
    value = a / b
    influence = partial(_influence_on_difference, numerator, denominator)
    error = lambda ratio: math.sqrt(clusters.variance(influence(ratio)))  # noqa: E731
    # Units that are equal up to rounding do not vary.
    if error(value) <= _ROUNDING * abs(a):
        return Interval(value, value, value, NO_VARIATION)
    generator, n = np.random.default_rng(seed), clusters.n
    rest = np.bincount(clusters.drawn, weights=numerator - value * denominator)
    sizes = np.bincount(clusters.drawn).astype(float)
    parts = [_resampled_sums(rest, sizes, size, generator) for size in _portions(n)]
    sums = np.concatenate([[0.0], *(one for one, _ in parts)])
    errors = np.concatenate([[error(value)], *(one for _, one in parts)])
    low, high = _fieller(a, b, error, *_t_quantiles(sums, errors, n))
    at_hand = Estimate(np.array([value]), {"items": influence(value)[None]})
    return Interval(value, low, high, at_hand.doubts(Resamples({"items": clusters}, n_draws=0)))


def _influence_on_difference(
    numerator: np.ndarray, denominator: np.ndarray, ratio: float
) -> np.ndarray:
    """Return the influence of each item on Σa − r·Σb, which is centred over items."""
    difference = numerator - ratio * denominator
    return difference - difference.mean()


def _portions(n: int) -> list[int]:
    """Return numbers of resamples that fit into memory together, for n units."""
    size = max(1, _AT_ONCE // max(n, 1))
    full, rest = divmod(N_BOOTSTRAP, size)
    return [size] * full + ([rest] if rest else [])


def _resampled_sums(
    values: np.ndarray, sizes: np.ndarray, n_draws: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum over clusters and its standard error in resamples, [draw] each.

    ``values`` and ``sizes`` are the sum over the items of each cluster, and their number.
    """
    n = len(values)
    weights = generator.multinomial(n, np.full(n, 1 / n), n_draws).astype(float)
    sums = weights @ values
    # Centred over the items of the resample: value − mean · size
    mean = sums / (weights @ sizes)
    squares = weights @ values**2 - 2 * mean * (weights @ (values * sizes))
    squares += mean**2 * (weights @ sizes**2)
    # Rounding leaves a tiny number, or one below 0, where all drawn clusters are equal.
    squares = np.where(squares <= 1e-13 * (weights @ values**2), 0.0, squares)
    return sums, np.sqrt(n / max(n - 1, 1) * squares)


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float],
    values: np.ndarray,
    *,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> Interval:
    """Return a statistic of the items in ``values`` [..., item] with its bootstrap interval.

    For statistics without influences: percentiles, widened for the number of clusters
    (`expanded_percentiles`). The items are drawn along the last axis, so the rows stay paired. A
    resample for which the statistic is undefined (NaN) is left out; the interval is NaN if no
    resample is left.
    """
    value = float(statistic(values))
    clusters = clusters or Clusters.single(values.shape[-1])
    draws = np.array([statistic(values[..., index]) for index in _drawn_items(clusters, seed)])
    defined = draws[~np.isnan(draws)]
    if not len(defined) or clusters.n < 2:
        return Interval(value, math.nan, math.nan)
    interval = expanded_percentiles(value, defined, clusters.n)
    return Interval(value, interval.low, interval.high, few_units(clusters.n))


def _drawn_items(clusters: Clusters, seed: int) -> list[np.ndarray]:
    """Return the numbers of the items of each resample; whole clusters are drawn."""
    members = [np.flatnonzero(clusters.drawn == k) for k in range(clusters.n)]
    drawn = np.random.default_rng(seed).integers(0, clusters.n, size=(N_BOOTSTRAP, clusters.n))
    return [np.concatenate([members[k] for k in row]) for row in drawn]
